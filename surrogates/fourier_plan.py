"""The matrices by which fused Fourier layers transform a planar grid, with real and imaginary parts apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from .spectral import analysis_matrix, forward_matrix, inverse_matrix, synthesis_matrix

Complex = tuple[torch.Tensor, torch.Tensor]
"""Real and imaginary part of a matrix."""


@dataclass(frozen=True)
class Plan:
    """The matrices of one grid, float32, with the pair (real, imaginary) before the wave numbers."""

    grid: tuple[int, int]
    kept: tuple[int, int]
    forward: torch.Tensor
    """Transposed, (r l, w)"""
    inverse: torch.Tensor
    """(r l, w)"""
    analysis: Complex
    """(k, h)"""
    analysis_adjoint: Complex
    synthesis: Complex
    """(h, k)"""
    synthesis_adjoint: Complex

    @classmethod
    @lru_cache(maxsize=64)
    def of(
        cls, grid: tuple[int, int], modes: tuple[int, ...], periods: tuple[float, ...], device: torch.device
    ) -> Plan:
        """Return the plan of a grid."""
        (h, w), (first, last) = grid, modes
        with torch.inference_mode(False):
            rows = forward_matrix(w, last, periods[1], torch.float32, device)
            rows = rows.unflatten(1, (last, 2)).transpose(1, 2).flatten(1).T.contiguous()
            back = inverse_matrix(w, last, periods[1], torch.float32, device)
            back = back.unflatten(0, (last, 2)).transpose(0, 1).flatten(0, 1).contiguous()
            analysis = _complex(analysis_matrix(h, first, periods[0], torch.float32, device))
            synthesis = _complex(synthesis_matrix(h, first, periods[0], torch.float32, device))
            return cls(
                grid=grid, kept=(2 * first, last), forward=rows, inverse=back, analysis=analysis,
                analysis_adjoint=_adjoint(analysis), synthesis=synthesis, synthesis_adjoint=_adjoint(synthesis),
            )  # fmt: skip


def _complex(matrix: torch.Tensor) -> Complex:
    """Return the matrix that multiplies columns, from that by which rows of pairs (real, imaginary) are multiplied."""
    real, imaginary = matrix[: len(matrix) // 2].chunk(2, dim=1)
    return real.T.contiguous(), imaginary.T.contiguous()


def _adjoint(matrix: Complex) -> Complex:
    """Return the conjugate transpose."""
    return matrix[0].T.contiguous(), -matrix[1].T.contiguous()
