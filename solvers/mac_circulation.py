"""The staggered scheme between four walls for its potential alone: the defect of the circulation around every corner.

u = ∂a/∂y, v = -∂a/∂x as in mac_potential. The sum of momentum around a corner of the cells contains no pressure, and
there are as many corners within the walls as unknown values of a: one scalar equation for one scalar field. Its defect
r becomes an error of a with the inverse of the linear part between walls that let no vorticity through,

    e = (-∇²/dt + ν ∇⁴/2)⁻¹ r

by sine transforms, so that all wave numbers weigh alike whatever the step.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .case import Case
from .mac import Force, momentum
from .mac_grid import Edge
from .mac_operators import library_of
from .mac_potential import PotentialResidual
from .parameters import Parameters


class CirculationResidual:
    """The defect of the implicit midpoint rule for states (*lead, 1, nx, ny) of the potential at the upper corners.

    viscosity, p, force : as `PotentialResidual` takes them.
    speed : what the mean square of errors is measured by, a velocity of the flow; states of rest have none.

    Raises
    ------
    ValueError : the case is not a plane between four walls.
    """

    def __init__(
        self, case: Case, *, viscosity: float, p: Parameters, force: Force | None = None, speed: float = 1.0
    ) -> None:
        self.potential = PotentialResidual(case, viscosity=viscosity, p=p, force=force)
        grid = self.potential.residual.grid
        if grid.ndim != 2 or any(edge is not Edge.WALL for pair in grid.edges for edge in pair):
            raise ValueError(f"Case {case.name}: the circulation is for planes between four walls, not {grid.edges}.")
        self._viscosity, self._p, self._force, self._speed = viscosity, p, force, speed
        self.spacing = case.grid.spacing
        self._sines, lines = [], []
        for n, h in zip(case.grid.shape, self.spacing, strict=True):
            k = np.arange(1, n)
            self._sines.append(np.sin(np.pi * np.outer(k, k) / n) * np.sqrt(2 / n))
            lines.append(-((2 / h * np.sin(np.pi * k / (2 * n))) ** 2))
        self._laplacian = np.add.outer(*lines)
        self._constants: dict[tuple[Any, ...], Any] = {}

    def velocity(self, fields: Any) -> Any:
        """Return the velocities at the faces, (2, *lead, nx, ny), of (*lead, 1, nx, ny)."""
        return self.potential.velocity(library_of(fields).moveaxis(fields, -3, 0))

    def __call__(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the defect of the circulation, (*lead, nx - 1, ny - 1), in the units of ∂ω/∂t."""
        residual, u, new_u = self.potential.residual, self.velocity(old), self.velocity(new)
        middle = residual.padded(0.5 * (u + new_u), self._p, t + 0.5 * dt)
        defect = (new_u - u) * (1 / dt) - momentum(
            residual.grid, middle, viscosity=self._viscosity, force=self._force, t=t + 0.5 * dt
        )
        x, y = defect[0][..., :-1, :], defect[1][..., :-1]
        hx, hy = self.spacing
        return (y[..., 1:, :] - y[..., :-1, :]) * (1 / hx) - (x[..., 1:] - x[..., :-1]) * (1 / hy)

    def correction(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the error of the new velocities at the faces, as far as the defect tells it, (*lead, 2, nx, ny)."""
        defect = self(old, new, t, dt)
        key = (dt, defect.dtype, getattr(defect, "device", None))
        if key not in self._constants:
            laplacian = self._laplacian
            given = (*self._sines, 1 / (-laplacian / dt + 0.5 * self._viscosity * laplacian**2))
            # Kept, because uploads cost time and cannot be part of a CUDA graph.
            self._constants[key] = [defect.new_tensor(a) if hasattr(defect, "new_tensor") else a for a in given]
        sx, sy, inverse = self._constants[key]
        error = sx @ ((sx @ defect @ sy) * inverse) @ sy
        library = library_of(error)
        error = library.concatenate([error, 0 * error[..., -1:, :]], -2)
        error = library.concatenate([error, 0 * error[..., -1:]], -1)
        return library.moveaxis(self.velocity(error[..., None, :, :]), 0, -3)

    def size(self, fields: Any) -> Any:
        """Return the speed at every face, (*lead, 2, nx, ny): the scale of a loss."""
        like = fields[..., :1, :, :]
        return 0 * library_of(fields).concatenate([like, like], -3) + self._speed
