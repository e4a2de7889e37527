"""Gaussian random fields on periodic grids: one draw is one function, whatever the grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.fft


def gaussian_random_field(
    shape: Sequence[int], rng: np.random.Generator, *, smoothness: float = 2.5, inverse_length: float = 7.0,
    amplitude: float | None = None,
) -> np.ndarray:  # fmt: skip
    """Return a sample of N(0, σ² (-∇² + τ²)^(-α)) without mean on the unit torus, shape `shape`.

        w(x) = √2 σ Σ_k (4π²|k|² + τ²)^(-α/2) Re(ξ_k exp(2πi k·x)),   E|ξ_k|² = 1,  k ≠ 0

    The modes are drawn in the order of their largest wavenumber: a generator with the same seed gives the same
    function on every grid with equal numbers of points along its axes, but for the modes that a coarser one lacks.
    Draw it on the whole grid on every rank, from the generator that all ranks share.

    Parameters
    ----------
    shape : points along each axis.
    rng : generator; 2 normal numbers a mode are drawn.
    smoothness : α. The defaults of all three are the vorticity of the Fourier neural operator's data
        (Li et al. 2021, section A.3.3, as their published program computes it): E[w²] = 0.0343.
    inverse_length : τ.
    amplitude : σ; τ^((2α - d) / 2) if left out, which makes E[w²] nearly independent of τ.

    Raises
    ------
    ValueError : the field would have infinite variance, 2α <= d.
    """
    shape = tuple(int(n) for n in shape)
    ndim = len(shape)
    if not 2 * smoothness > ndim:
        raise ValueError(f"smoothness {smoothness:g} gives no field in {ndim} dimensions; take more than {ndim / 2:g}.")
    sigma = inverse_length ** ((2 * smoothness - ndim) / 2) if amplitude is None else amplitude
    order, squared = _modes(shape)
    draws = rng.normal(size=(len(order), 2)) * math.sqrt(0.5)
    weights = math.sqrt(2.0) * sigma * (4 * np.pi**2 * squared + inverse_length**2) ** (-smoothness / 2)
    weights[squared == 0] = 0.0
    spectrum = np.zeros(math.prod(shape), dtype=complex)
    spectrum.real[order] = weights * draws[:, 0]
    spectrum.imag[order] = weights * draws[:, 1]
    return np.ascontiguousarray(scipy.fft.ifftn(spectrum.reshape(shape), norm="forward").real)


@lru_cache(maxsize=1)  # data sets draw thousands of fields on one grid
def _modes(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return flat indices of all modes, in an order that a finer grid continues, and their |k|²."""
    k = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape), indexing="ij")
    k = [line.ravel() for line in k]
    # -n/2 is the first wavenumber of the next shell: counted as such, shells are complete on every even grid.
    shell = np.max([np.where(line < 0, -line, line + 1) for line in k], axis=0)
    order = np.lexsort((*k, shell))
    return order, sum(line[order] ** 2 for line in k)
