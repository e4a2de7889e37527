"""What the periodic problems share: RK4 with an integrating factor, and its steps as an equation for a physics loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch


class SpectralSolver:
    """∂w/∂t = slope(w) - ν k² w on periodic grids of even size, for spectra of the last `ndim` axes.

    half : exp(-ν k² dt / 2).
    """

    ndim: int
    half: torch.Tensor
    dt: float

    @abstractmethod
    def slope(self, w: torch.Tensor) -> torch.Tensor:
        """Return the rest of ∂w/∂t, of a spectrum."""

    def step(self, w: torch.Tensor) -> torch.Tensor:
        """Return the spectrum a step later."""
        e, dt = self.half, self.dt
        a = self.slope(w)
        b = self.slope(e * (w + dt / 2 * a))
        c = self.slope(e * w + dt / 2 * b)
        d = self.slope(e * (e * w + dt * c))
        return e * (e * (w + dt / 6 * a) + dt / 3 * (b + c)) + dt / 6 * d

    def advanced(self, u: torch.Tensor, steps: int) -> torch.Tensor:
        """Return the state so many steps later."""
        axes = tuple(range(-self.ndim, 0))
        spectrum = torch.fft.rfftn(u, dim=axes)
        for _ in range(steps):
            spectrum = self.step(spectrum)
        return torch.fft.irfftn(spectrum, u.shape[-self.ndim :], dim=axes)


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
