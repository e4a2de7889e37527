"""The residual of the vorticity scheme on whole grids, for arrays and tensors: what a physics loss minimises.

It is the defect of the scheme of the case, the same object that `vorticity.solve_vorticity_by_differences` steps with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .case import Case
from .vorticity import IMPLICIT_MIDPOINT, VorticityFlow, WholePlane


class VorticityResidual:
    """The defect of one step of a case with one field on a periodic plane, for states (*lead, nx, ny).

    viscosity, drag, forcing : as `solve_vorticity_by_differences` takes them.
    """

    def __init__(
        self, case: Case, *, viscosity: float, drag: float = 0.0, forcing: Callable[..., np.ndarray] | None = None
    ) -> None:
        self.scheme, self._drag = case.scheme or IMPLICIT_MIDPOINT, drag
        grid = case.grid
        self.plane, self._spacing, self._viscosity = WholePlane(grid.shape, grid.spacing), grid.spacing, viscosity
        self._forcing: Any = 0.0
        if forcing is not None:
            axes = [grid.points(axis, periodic=True) for axis in range(grid.ndim)]
            self._forcing = np.broadcast_to(np.asarray(forcing(tuple(np.ix_(*axes))), dtype=float), grid.shape).copy()
        self._tensors: dict[tuple[Any, Any], Any] = {}

    def flow(self, like: Any) -> VorticityFlow:
        """Return ∂ω/∂t for arrays or tensors of the kind of `like`."""
        forcing = self._forcing
        if hasattr(like, "new_tensor") and np.ndim(forcing):
            kind = (like.dtype, like.device)
            if kind not in self._tensors:
                self._tensors[kind] = like.new_tensor(forcing)
            forcing = self._tensors[kind]
        return VorticityFlow(self.plane, self._spacing, viscosity=self._viscosity, drag=self._drag, forcing=forcing)

    def __call__(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the defect of the discrete equation, in the units of ∂ω/∂t.

        old, new : at t and t + dt.
        """
        return self.scheme.residual([old], new, self.flow(new), t, dt)

    def step(self, old: Any, t: float, dt: float) -> Any:
        """Return the state at t + dt, for which the defect vanishes."""
        return self.scheme.step([old], self.flow(old), t, dt)

    def correction(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the defect as an error of the new state: (1/dt - D/2)⁻¹ of it, with D the diffusion.

        Unlike the defect itself it weighs all wave numbers alike, whatever the step.
        """
        flow = self.flow(new)
        return flow.without_diffusion(1 / dt, 0.5, self.scheme.residual([old], new, flow, t, dt))

    def size(self, fields: Any) -> Any:
        """Return the state itself: its mean square is the scale of a loss."""
        return fields
