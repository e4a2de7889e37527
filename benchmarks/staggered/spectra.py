"""What the periodic problems share: RK4 with an integrating factor, and its steps as an equation for a physics loss."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch


class SpectralSolver:
    """∂w/∂t = slope(w) - ν k² w on periodic grids of n points a side, n even, for spectra of the last axes.

    side : length of the box along every axis, of which there are `ndim`.
    k : wave numbers (ndim, *spectrum). over : 1 / k², 0 for the mean. keep : 1 below two thirds of the highest wave
    number on every axis, else 0. kind : of spectra.
    """

    def __init__(
        self, n: int, ndim: int, viscosity: float, dt: float, *, side: float, dtype: torch.dtype,
        device: str | torch.device,
    ) -> None:  # fmt: skip
        like = {"dtype": dtype, "device": device}
        full, half = torch.fft.fftfreq(n, 1 / n, **like), torch.fft.rfftfreq(n, 1 / n, **like)
        waves = torch.stack(torch.meshgrid(*[full] * (ndim - 1), half, indexing="ij"))
        self.ndim, self.shape, self.dt, self.k = ndim, (n,) * ndim, dt, 2 * math.pi / side * waves
        squared = self.k.square().sum(0)
        self.over = torch.where(squared > 0, 1 / squared.clamp(min=1e-9), 0.0)
        self.keep = (waves.abs() < n / 3).all(0).to(dtype)
        self.kind = torch.complex64 if dtype == torch.float32 else torch.complex128
        # What a step multiplies by, of the kind of spectra: on a GPU every product and sum is then one kernel.
        half = torch.exp(-viscosity * squared * dt / 2)
        factors = (half, half**2, dt / 2 * half, dt * half, dt / 6 * half**2, dt / 3 * half)
        self._once, self._twice, *self._slopes = (factor.to(self.kind) for factor in factors)

    @abstractmethod
    def slope(self, w: torch.Tensor) -> torch.Tensor:
        """Return the rest of ∂w/∂t, of a spectrum."""

    def step(self, w: torch.Tensor) -> torch.Tensor:
        """Return the spectrum a step later."""
        halfway, end, (to_b, to_d, of_a, of_bc) = self._once * w, self._twice * w, self._slopes
        a = self.slope(w)
        b = self.slope(torch.addcmul(halfway, to_b, a))
        c = self.slope(torch.add(halfway, b, alpha=self.dt / 2))
        d = self.slope(torch.addcmul(end, to_d, c))
        return torch.add(torch.addcmul(torch.addcmul(end, of_a, a), of_bc, b + c), d, alpha=self.dt / 6)

    def advanced(self, u: torch.Tensor, steps: int) -> torch.Tensor:
        """Return the state so many steps later."""
        axes = tuple(range(-self.ndim, 0))
        spectrum = torch.fft.rfftn(u, dim=axes)
        for _ in range(steps):
            spectrum = self.step(spectrum)
        return torch.fft.irfftn(spectrum, self.shape, dim=axes)


class OwnSteps:
    """The full grid's own steps as an equation for a physics loss; old states carry no gradient.

    solver : dtype -> the solver in that precision. steps : of it in a frame.
    """

    def __init__(self, solver: Callable[[torch.dtype], SpectralSolver], steps: int) -> None:
        self._solvers = {kind: solver(kind) for kind in (torch.float32, torch.float64)}
        self._steps = steps

    def step(self, old: torch.Tensor, t: float, dt: float) -> torch.Tensor:
        """Return the state a frame later."""
        return self._solvers[old.dtype].advanced(old, self._steps)

    def correction(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the error of a state."""
        with torch.no_grad():
            wanted = self.step(old, t, dt)
        return new - wanted

    def size(self, fields: Any) -> Any:
        """Return the state."""
        return fields
