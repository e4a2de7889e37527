"""The linear part of a step on a periodic box: one matrix over the fields for every wave, by least squares."""

from __future__ import annotations

import torch

from .problem import Problem

NOISE = 1e-6
"""Amplitude over the largest wave's below which a wave of float32 states is little but rounding noise."""


class LinearStep(torch.nn.Module):
    """û(t + Δt, k) = A(k) û(t, k) for every wave k: the linear step, the same everywhere, that fits pairs best.

    It is exact where the equation is linear with constant coefficients; elsewhere it takes the linear part, which for
    semilinear equations (diffusion, dispersion, a mean flow) is the stiff one, and leaves a network the rest. Until
    `fit`, which counts once, it is the identity. Waves that the pairs do not hold go to zero.

    (batch, fields, *grid) -> the same; also on other grids, whose waves beyond the fitted ones go to zero.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        if not all(problem.periodic):
            closed = [axis for axis, around in enumerate(problem.periodic) if not around]
            raise ValueError(
                f"Stepping target 'linear' needs periodic axes; case {problem.case} has walls on axis {closed[0]}. "
                "Take target 'delta'."
            )
        count, self.shape = len(problem.fields), problem.shape
        waves = (*self.shape[:-1], self.shape[-1] // 2 + 1)
        identity = torch.eye(count).reshape(count, count, *(1,) * len(waves)).expand(count, count, *waves)
        # Real and imaginary part as two real arrays, which every file format and data parallel training can carry.
        self.register_buffer("real", identity.clone())
        self.register_buffer("imaginary", torch.zeros(count, count, *waves))
        self.register_buffer("rest", torch.ones(count))
        """Deviation of what is left of a step, per field, in the units of the states."""
        self.register_buffer("fitted", torch.zeros((), dtype=torch.int64))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states one step later."""
        grid, axes = states.shape[2:], tuple(range(2, states.ndim))
        if states.shape[0] == 0:  # of which there is no transform
            return states.clone()
        spectrum = torch.fft.rfftn(states, dim=axes, norm="forward")
        if tuple(grid) != tuple(self.shape):
            spectrum = resized(spectrum, (*self.shape[:-1], self.shape[-1] // 2 + 1))
        step = torch.complex(self.real, self.imaginary)
        spectrum = torch.einsum("ij...,bj...->bi...", step, spectrum)
        if tuple(grid) != tuple(self.shape):
            spectrum = resized(spectrum, (*grid[:-1], grid[-1] // 2 + 1))
        return torch.fft.irfftn(spectrum, s=grid, dim=axes, norm="forward")

    @torch.no_grad()
    def fit(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Take the matrices that carry states (pairs, fields, *grid) to those one step later with the least error.

        Σ |û' - A û|² + ε |A|² for every wave, in float64, ε at the level of rounding noise. Where torch.distributed
        runs, over the pairs of all processes: collective.
        """
        axes = tuple(range(2, before.ndim))
        x, y = (torch.fft.rfftn(states.double(), dim=axes, norm="forward") for states in (before, after))
        old = torch.einsum("bi...,bj...->...ij", x, x.conj())
        new = torch.einsum("bi...,bj...->...ij", y, x.conj())
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for total in (old, new):
                torch.distributed.all_reduce(torch.view_as_real(total))
        count = x.shape[1]
        level = NOISE**2 * old.diagonal(dim1=-2, dim2=-1).real.flatten(0, -2).amax(0)
        level = torch.where(level > 0, level, 1.0)  # any will do for a field that is zero everywhere
        # (old + ε) is Hermitian: A = new (old + ε)⁻¹ is the conjugate transpose of a solution with it.
        step = torch.linalg.solve(old + torch.diag(level).to(old), new.mH).mH
        step = step.movedim((-2, -1), (0, 1)).reshape(count, count, *x.shape[2:])
        self.real.copy_(step.real)
        self.imaginary.copy_(step.imag)
        parts = zip(before.split(256), after.split(256), strict=True)
        left = sum((b - self(a)).square().transpose(0, 1).flatten(1).sum(1) for a, b in parts) / after[:, 0].numel()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(left)
            left /= torch.distributed.get_world_size()
        self.rest.copy_(left.sqrt().clamp(min=torch.finfo(left.dtype).tiny))
        self.fitted.fill_(1)


def resized(spectrum: torch.Tensor, waves: tuple[int, ...]) -> torch.Tensor:
    """Return a half spectrum (.., *waves of one grid) with the waves of another: cut, or filled with zeros."""
    for axis, count in enumerate(waves, start=spectrum.ndim - len(waves)):
        have, last = spectrum.shape[axis], axis == spectrum.ndim - 1
        keep = min(have, count)
        if have == count:
            continue
        # Waves -n/2 .. -1 lie at the end of every axis but the last, which holds 0 .. n/2 only.
        low, high = (keep, 0) if last else ((keep + 1) // 2, keep // 2)
        parts = [spectrum.narrow(axis, 0, low)]
        if count > keep:
            shape = list(spectrum.shape)
            shape[axis] = count - keep
            parts.append(spectrum.new_zeros(shape))
        if high:
            parts.append(spectrum.narrow(axis, have - high, high))
        spectrum = torch.cat(parts, axis)
    return spectrum
