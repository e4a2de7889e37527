"""Explicit steps of the staggered solver on tensors: what networks are graded by, and the classical rival on a GPU.

The differences are those of `headrace.solvers.mac` and the pressure is solved directly as there, by transforms (here as
products with matrices of eigenvectors) and, where there are obstacles, a capacitance matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from headrace.solvers.mac import momentum
from headrace.solvers.mac_grid import Edge, MacGrid
from headrace.solvers.mac_residual import MacResidual
from headrace.solvers.transforms import Ends

_COLUMNS, _ZERO = 16, 1e-10
"""Box solutions at a time when the capacitance matrix is made, and its eigenvalues that count as zero."""
_DAMPING = 10.0
"""ε of the stabilised method. Its authors' 2/13 is for diffusion alone: with a lid it is unstable."""


def _second_difference(n: int, h: float, ends: Ends) -> np.ndarray:
    """Return the matrix of ∂²/∂x² at cell centres."""
    matrix = (np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1) - 2 * np.eye(n)) / h**2
    if ends is Ends.PERIODIC:
        matrix[0, -1] = matrix[-1, 0] = 1 / h**2
    else:
        matrix[0, 0] += 1 / h**2
        matrix[-1, -1] += (-1 if ends is Ends.NEUMANN_DIRICHLET else 1) / h**2
    return matrix


class TensorPressure:
    """Solves ∇·(free ∇φ) = f for tensors (*lead, *grid) in float64, f zero inside obstacles."""

    def __init__(self, grid: MacGrid, device: str) -> None:
        shape, exact = grid.shape, {"dtype": torch.float64, "device": device}
        lines = [np.linalg.eigh(_second_difference(*line)) for line in zip(shape, grid.spacing, grid.ends, strict=True)]
        total = sum(np.ix_(*(values for values, _ in lines)))
        small = np.abs(total) < _ZERO * np.abs(total).max()
        self._inverse = torch.tensor(np.where(small, 0.0, 1 / np.where(small, 1.0, total)), **exact)
        self._vectors = [torch.tensor(vectors, **exact) for _, vectors in lines]
        faces = np.array(grid.cut_faces(), dtype=int).reshape(-1, 3)
        self._lower, self._upper = (torch.tensor(faces[:, k], device=device) for k in (0, 1))
        self._scale = torch.tensor([1 / grid.spacing[axis] for axis in faces[:, 2]], **exact)
        self._capacity = self._inverse_capacity(len(faces), shape) if len(faces) else None

    def to(self, dtype: torch.dtype) -> TensorPressure:
        """Return the same for tensors of another kind."""
        other = copy.copy(self)
        other._inverse, other._scale = self._inverse.to(dtype), self._scale.to(dtype)
        other._vectors = [vectors.to(dtype) for vectors in self._vectors]
        other._capacity = None if self._capacity is None else self._capacity.to(dtype)
        return other

    def _inverse_capacity(self, number: int, shape: tuple[int, ...]) -> torch.Tensor:
        whole = torch.eye(number, dtype=torch.float64, device=self._inverse.device)
        rows = [self._differences(self._box(self._spread(part, shape))) for part in whole.split(_COLUMNS)]
        capacitance = whole + torch.cat(rows)
        values, vectors = torch.linalg.eigh(0.5 * (capacitance + capacitance.T))
        kept = values > _ZERO
        return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def _box(self, f: torch.Tensor) -> torch.Tensor:
        for axis, vectors in enumerate(self._vectors):
            f = (f.movedim(axis - len(self._vectors), -1) @ vectors).movedim(-1, axis - len(self._vectors))
        f = f * self._inverse
        for axis, vectors in enumerate(self._vectors):
            f = (f.movedim(axis - len(self._vectors), -1) @ vectors.T).movedim(-1, axis - len(self._vectors))
        return f

    def _differences(self, a: torch.Tensor) -> torch.Tensor:
        """Differences over cut faces, (*lead, faces)."""
        flat = a.flatten(-len(self._vectors))
        return (flat[..., self._upper] - flat[..., self._lower]) * self._scale

    def _spread(self, y: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The transpose of `_differences`."""
        flat = y.new_zeros(*y.shape[:-1], int(np.prod(shape)))
        flat = flat.index_add(-1, self._upper, y * self._scale).index_add(-1, self._lower, -y * self._scale)
        return flat.unflatten(-1, shape)

    def solve(self, f: torch.Tensor) -> torch.Tensor:
        """Return φ."""
        phi = self._box(f)
        if self._capacity is None:
            return phi
        shape = f.shape[-len(self._vectors) :]
        return self._box(f - self._spread(self._differences(phi) @ self._capacity, shape))


class StaggeredSteps:
    """Explicit steps of a velocity field (ndim, *lead, *grid) without divergence, for walls that are steady.

    stages : None for the classical method of Runge and Kutta, or so many stages of the stabilised method of Sommeijer,
        Shampine and Verwer (1998), RKC, of second order, where diffusion is what limits the step.
    pressure : the solver of the grid's pressure, where it is there already; it takes a while to make for a large block.

    Raises
    ------
    ValueError : an axis is periodic.
    """

    def __init__(
        self, residual: MacResidual, *, p: Any, device: str, dtype: torch.dtype = torch.float32,
        stages: int | None = None, pressure: TensorPressure | None = None,
    ) -> None:  # fmt: skip
        self._residual, self._p, self._stages, self._compile = residual, p, stages, False
        self._compiled: dict[tuple[Any, ...], Callable[..., torch.Tensor]] = {}
        grid = residual.grid
        if any(low is Edge.PERIODIC for low, _ in grid.edges):
            raise ValueError(f"StaggeredSteps has no periodic axes, and the grid has {grid.edges}.")
        self._pressure = (pressure or TensorPressure(grid, device)).to(dtype)
        self.fluid = torch.ones(grid.shape, dtype=dtype, device=device)
        if grid.solid is not None:
            self.fluid = torch.tensor(~grid.solid, dtype=dtype, device=device)

    def compiled(self) -> StaggeredSteps:
        """Return the same steps with slopes compiled on a GPU, some ten seconds for every shape of fields."""
        other = copy.copy(self)
        other._compile, other._compiled = self.fluid.is_cuda, {}
        return other

    def of_stages(self, stages: int | None) -> StaggeredSteps:
        """Return the same by so many stages, of the same compiled slopes."""
        other = copy.copy(self)
        other._stages = stages
        return other

    def slope(self, u: torch.Tensor, viscosity: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ∂u/∂t without divergence, and the pressure (*lead, *grid), 0 in obstacles."""
        grid = self._residual.grid
        return self.projected(
            momentum(grid, self._residual.padded(u, self._p, 0.0), viscosity=viscosity, force=None, t=0.0)
        )

    def projected(self, change: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a change of velocity (ndim, *lead, *grid) without divergence, at rest on walls, inflows and obstacles,
        and the potential (*lead, *grid) of what was taken away, 0 in obstacles.
        """
        grid = self._residual.grid
        free = grid.constant(grid.free, change)
        pushed, leak = change * free, 0
        for axis, h in enumerate(grid.spacing):
            lane, flow = axis - grid.ndim, pushed[axis]
            n = flow.shape[lane]
            before = torch.cat((torch.zeros_like(flow.narrow(lane, 0, 1)), flow.narrow(lane, 0, n - 1)), lane)
            leak = leak + (flow - before) * (1 / h)
        phi = self._pressure.solve(leak)
        slopes = []
        for axis, h in enumerate(grid.spacing):
            lane, n = axis - grid.ndim, phi.shape[axis - grid.ndim]
            last = phi.narrow(lane, n - 1, 1)
            beyond = -last if grid.edges[axis][1] is Edge.OUTFLOW else last
            slopes.append((torch.cat((phi.narrow(lane, 1, n - 1), beyond), lane) - phi) * (1 / h))
        return pushed - free * torch.stack(slopes), phi * self.fluid

    def advanced(self, u: torch.Tensor, dt: Any, viscosity: Any, steps: int) -> torch.Tensor:
        """Return the velocity after so many steps of dt.

        dt, viscosity : numbers, or tensors with the axes of (*lead, *grid).
        """
        f = self._slope_like(u, viscosity, 0) if self._compile else lambda v: self.slope(v, viscosity)[0]
        for _ in range(steps):
            u = _runge_kutta(f, u, dt) if self._stages is None else _stabilised(f, u, dt, self._stages)
        return u

    def pressure(self, u: torch.Tensor, viscosity: Any) -> torch.Tensor:
        """Return the pressure (*lead, *grid) that belongs to a velocity."""
        return self._slope_like(u, viscosity, 1)(u) if self._compile else self.slope(u, viscosity)[1]

    def _slope_like(self, u: torch.Tensor, viscosity: Any, which: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return one result of `slope` compiled for fields like u: a hundred small kernels become ten."""
        key = (tuple(u.shape), u.dtype, viscosity if isinstance(viscosity, float) else None, which)
        given = () if isinstance(viscosity, float) else (viscosity,)
        if key not in self._compiled:
            # Traced first, what is compiled knows nothing of grids; and once without, so that constants are on the GPU.
            self.slope(u, viscosity)
            traced = make_fx(lambda v, *nu: self.slope(v, nu[0] if nu else viscosity)[which])(u, *given)
            self._compiled[key] = torch.compile(traced, dynamic=False)
        compiled = self._compiled[key]
        return lambda v: compiled(v, *given)


def _plus(u: torch.Tensor, *terms: tuple[Any, torch.Tensor]) -> torch.Tensor:
    """Return u + Σ c x: on a GPU one kernel for each term whose factor c is a number."""
    for c, x in terms:
        u = u + c * x if isinstance(c, torch.Tensor) else torch.add(u, x, alpha=c)
    return u


def _runge_kutta(f: Callable[[torch.Tensor], torch.Tensor], u: torch.Tensor, dt: Any) -> torch.Tensor:
    a = f(u)
    b = f(_plus(u, (0.5 * dt, a)))
    c = f(_plus(u, (0.5 * dt, b)))
    d = f(_plus(u, (dt, c)))
    return _plus(u, (dt / 6, _plus(a, (2.0, b), (2.0, c), (1.0, d))))


def _stabilised(f: Callable[[torch.Tensor], torch.Tensor], u: torch.Tensor, dt: Any, stages: int) -> torch.Tensor:
    """Return u after dt by RKC: stable for negative real λ dt down to about -0.4 stages²."""
    w0 = 1 + _DAMPING / stages**2
    # Chebyshev's polynomials at w0, and their first and second derivatives.
    t, d, e = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, stages + 1):
        e.append(4 * d[-1] + 2 * w0 * e[-1] - e[-2])
        d.append(2 * t[-1] + 2 * w0 * d[-1] - d[-2])
        t.append(2 * w0 * t[-1] - t[-2])
    w1 = d[stages] / e[stages]
    b = [0.0, 0.0] + [e[j] / d[j] ** 2 for j in range(2, stages + 1)]
    b[0] = b[1] = b[2]
    first = f(u)
    before, here = u, _plus(u, (dt * b[1] * w1, first))
    for j in range(2, stages + 1):
        mu, nu, push = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], 2 * b[j] * w1 / b[j - 1]
        back = -(1 - b[j - 1] * t[j - 1]) * push
        slopes = ((dt * push, f(here)), (dt * back, first))
        before, here = here, _plus((1 - mu - nu) * u, (mu, here), (nu, before), *slopes)
    return here


def potential_of(flow: torch.Tensor, spacing: float) -> torch.Tensor:
    """Return the potential at the upper corners of a plane flow without divergence, from u (*lead, nx, ny)."""
    return flow.cumsum(-1) * spacing
