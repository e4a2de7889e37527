"""Two-dimensional Navier-Stokes on a torus by second-order differences: vorticity and stream function.

    ∂ω/∂t + J(ω, ψ) = ν ∇²ω - μ ω + f,   J(a, b) = ∂a/∂x ∂b/∂y - ∂a/∂y ∂b/∂x,   ∇²ψ = -ω

J is Arakawa's, which conserves vorticity, energy and enstrophy; ∇² is the compact five-point Laplacian, in the
stream function too. The two time schemes are objects whose `residual` takes arrays and tensors: what the solver's
steps make vanish is what a physics loss minimises.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .blocks import Blocks, Exchange
from .case import Case
from .newton import DivergenceError
from .parameters import Parameters
from .scheme import ImplicitSolve, RightHandSideFunction, Scheme
from .simulate import initial_state
from .sink import Snapshot
from .transforms import Ends, SlabTransform, slabs

if TYPE_CHECKING:
    from mpi4py import MPI


class Plane(ABC):
    """A periodic plane of points: how neighbours are reached, and how linear equations are solved."""

    @abstractmethod
    def padded(self, a: Any) -> Any:
        """Return (*lead, nx, ny) with one ghost layer around, (*lead, nx + 2, ny + 2)."""

    @abstractmethod
    def solve(self, sigma: float, beta: float, a: Any) -> Any:
        """Return w with sigma·w - beta ∇²w = a; the mean of w is zero where sigma is."""

    @abstractmethod
    def largest(self, a: Any) -> float:
        """Return max |a| over the whole plane; NaN counts as infinity."""


class SlabPlane(Plane):
    """A plane in slabs over MPI ranks; arrays are (1, *slab). Its methods are collective."""

    def __init__(self, blocks: Blocks, spacing: Sequence[float]) -> None:
        self._blocks = blocks
        self._transform = SlabTransform(blocks, (Ends.PERIODIC, Ends.PERIODIC))
        self._laplacian = self._transform.second_differences(spacing)
        self._buffer = np.empty((1, *(n + 2 for n in blocks.shape)))
        self._exchange = Exchange(blocks, self._buffer, 1)

    def padded(self, a: np.ndarray) -> np.ndarray:
        """Return the slab with ghost layers, a copy."""
        self._buffer[:, 1:-1, 1:-1] = a
        self._exchange.fill(0)
        self._exchange.fill(1)
        return self._buffer.copy()

    def solve(self, sigma: float, beta: float, a: np.ndarray) -> np.ndarray:
        """Return w with sigma·w - beta ∇²w = a, by transforms."""
        return self._transform.inverse(self._transform.forward(a) * _inverse(sigma - beta * self._laplacian))

    def largest(self, a: np.ndarray) -> float:
        """Return max |a|, the same bits on every rank."""
        return float(self._blocks.max(np.array([np.abs(a).max()]))[0])

    def free(self) -> None:
        """Give back what MPI holds."""
        self._exchange.free()


class WholePlane(Plane):
    """A plane in one piece: arrays or torch tensors (*lead, nx, ny), differentiable where they are tensors."""

    def __init__(self, shape: tuple[int, int], spacing: Sequence[float]) -> None:
        self._shape = tuple(shape)
        transform = SlabTransform(slabs(shape, (True, True)), (Ends.PERIODIC, Ends.PERIODIC))
        self._laplacian = transform.second_differences(spacing)
        self._factors: dict[tuple[Any, ...], Any] = {}

    def padded(self, a: Any) -> Any:
        """Return the plane with its opposite edges repeated around it."""
        concatenate = _library(a).concatenate
        a = concatenate([a[..., -1:, :], a, a[..., :1, :]], -2)
        return concatenate([a[..., -1:], a, a[..., :1]], -1)

    def solve(self, sigma: float, beta: float, a: Any) -> Any:
        """Return w with sigma·w - beta ∇²w = a, by transforms."""
        fft = _library(a).fft
        key = (sigma, beta, a.dtype, getattr(a, "device", None))
        if key not in self._factors:
            # Kept, because an upload in every call costs time and cannot be part of a CUDA graph.
            factor = _inverse(sigma - beta * self._laplacian)
            self._factors[key] = a.new_tensor(factor) if hasattr(a, "new_tensor") else factor
        return fft.irfft2(fft.rfft2(a) * self._factors[key], self._shape)

    def largest(self, a: Any) -> float:
        """Return max |a|."""
        value = float(abs(a).max())
        return math.inf if math.isnan(value) else value


def _library(a: Any) -> Any:
    return sys.modules["torch"] if hasattr(a, "new_tensor") else np


def _inverse(symbol: np.ndarray) -> np.ndarray:
    constant = symbol == 0
    return np.where(constant, 0.0, 1 / np.where(constant, 1.0, symbol))


def jacobian(a: Any, b: Any, spacing: Sequence[float]) -> Any:
    """Return Arakawa's J(a, b) = ∂a/∂x ∂b/∂y - ∂a/∂y ∂b/∂x (Arakawa 1966, eq. 45), second order.

    a, b : with one ghost layer, (*lead, nx + 2, ny + 2) -> (*lead, nx, ny).
    """
    # Letters: e, w, n, s for the neighbours in +x, -x, +y, -y.
    ae, aw, an, as_ = a[..., 2:, 1:-1], a[..., :-2, 1:-1], a[..., 1:-1, 2:], a[..., 1:-1, :-2]
    be, bw, bn, bs = b[..., 2:, 1:-1], b[..., :-2, 1:-1], b[..., 1:-1, 2:], b[..., 1:-1, :-2]
    ane, anw, ase, asw = a[..., 2:, 2:], a[..., :-2, 2:], a[..., 2:, :-2], a[..., :-2, :-2]
    bne, bnw, bse, bsw = b[..., 2:, 2:], b[..., :-2, 2:], b[..., 2:, :-2], b[..., :-2, :-2]
    central = (ae - aw) * (bn - bs) - (an - as_) * (be - bw)
    conserves_enstrophy = ae * (bne - bse) - aw * (bnw - bsw) - an * (bne - bnw) + as_ * (bse - bsw)
    conserves_energy = bn * (ane - anw) - bs * (ase - asw) - be * (ane - ase) + bw * (anw - asw)
    return (central + conserves_enstrophy + conserves_energy) * (1 / (12 * spacing[0] * spacing[1]))


class VorticityFlow:
    """The right-hand side ∂ω/∂t = f(ω, t) on a plane, in the two parts that schemes treat differently.

    forcing : the steady source f, broadcast against the state.
    """

    def __init__(
        self, plane: Plane, spacing: Sequence[float], *, viscosity: float, drag: float = 0.0, forcing: Any = 0.0
    ) -> None:
        self.plane = plane
        self._spacing = tuple(spacing)
        self._viscosity, self._drag, self._forcing = viscosity, drag, forcing

    def __call__(self, w: Any, t: float = 0.0) -> Any:
        """Return ∂ω/∂t. Collective on slabs."""
        return self.advection(w) + self.diffusion(w)

    def advection(self, w: Any) -> Any:
        """Return -J(ω, ψ) + f. Collective on slabs."""
        psi = self.plane.solve(0.0, 1.0, w)
        return self._forcing - jacobian(self.plane.padded(w), self.plane.padded(psi), self._spacing)

    def diffusion(self, w: Any) -> Any:
        """Return ν ∇²ω - μ ω. Collective on slabs."""
        a, (hx, hy) = self.plane.padded(w), self._spacing
        along_x = (a[..., 2:, 1:-1] - w) - (w - a[..., :-2, 1:-1])
        along_y = (a[..., 1:-1, 2:] - w) - (w - a[..., 1:-1, :-2])
        return self._viscosity * (along_x * (1 / hx**2) + along_y * (1 / hy**2)) - self._drag * w

    def without_diffusion(self, sigma: float, beta: float, a: Any) -> Any:
        """Return w with sigma·w - beta (ν ∇²w - μ w) = a. Collective on slabs."""
        return self.plane.solve(sigma + beta * self._drag, beta * self._viscosity, a)

    def rate(self, w: Any) -> float:
        """Return the sum of max|u|/Δx and max|v|/Δy. Collective on slabs."""
        psi, (hx, hy) = self.plane.padded(self.plane.solve(0.0, 1.0, w)), self._spacing
        along_y, along_x = psi[..., 1:-1, 2:] - psi[..., 1:-1, :-2], psi[..., 2:, 1:-1] - psi[..., :-2, 1:-1]
        return (self.plane.largest(along_y) + self.plane.largest(along_x)) / (2 * hx * hy)


class ImplicitMidpoint(Scheme):
    """Crank-Nicolson with the nonlinear part at the mean state:  ω' - ω = dt f((ω + ω')/2).

    Second order. Without forcing and friction the steps conserve energy and enstrophy to the tolerance.
    tolerance : of the fixed-point iteration, relative to max|ω|.
    """

    num_old, order, implicit = 1, 2, True
    courant = 0.7

    def __init__(self, tolerance: float = 1e-13, max_iterations: int = 100) -> None:
        self._tolerance, self._max_iterations = tolerance, max_iterations

    def residual(self, old: Sequence[Any], new: Any, f: RightHandSideFunction, t: float, dt: float) -> Any:
        """Return (ω' - ω)/dt - f((ω + ω')/2)."""
        return (new - old[-1]) * (1 / dt) - f(0.5 * (old[-1] + new), t + 0.5 * dt)

    def step(
        self, old: Sequence[Any], f: VorticityFlow, t: float, dt: float, solve: ImplicitSolve | None = None
    ) -> Any:
        """Return ω' by iterating on the advection; diffusion is solved for. Collective on slabs.

        Raises
        ------
        DivergenceError : the iteration does not converge; the step is too long for the velocity.
        """
        w = old[-1]
        known = w * (1 / dt) + 0.5 * f.diffusion(w)
        new = w if len(old) == 1 else 2 * w - old[-2]
        allowed = self._tolerance * max(f.plane.largest(w), dt * f.plane.largest(f.advection(w)))
        for _ in range(self._max_iterations):
            previous, new = new, f.without_diffusion(1 / dt, 0.5, known + f.advection(0.5 * (w + new)))
            change = f.plane.largest(new - previous)
            if not math.isfinite(change):
                break
            if change <= allowed:
                return new
        raise DivergenceError(
            f"the implicit midpoint step of {dt:.3g} did not converge in {self._max_iterations} iterations at "
            f"t = {t:.6g}; take a larger steps_per_snapshot"
        )


class AdamsBashforthCrankNicolson(Scheme):
    """Advection extrapolated, diffusion averaged:  ω' - ω = dt (3/2 A(ω) - 1/2 A(ω₋) + 1/2 D(ω) + 1/2 D(ω')).

    Second order with constant steps; the first step takes A(ω) alone.
    """

    num_old, order, implicit = 2, 2, True
    courant = 0.3

    def _known(self, old: Sequence[Any], f: VorticityFlow, dt: float) -> Any:
        advection = f.advection(old[-1])
        if len(old) > 1:
            advection = 1.5 * advection - 0.5 * f.advection(old[-2])
        return old[-1] * (1 / dt) + 0.5 * f.diffusion(old[-1]) + advection

    def residual(self, old: Sequence[Any], new: Any, f: VorticityFlow, t: float, dt: float) -> Any:
        """Return (ω' - ω)/dt minus the averaged right-hand side."""
        return new * (1 / dt) - 0.5 * f.diffusion(new) - self._known(old, f, dt)

    def step(
        self, old: Sequence[Any], f: VorticityFlow, t: float, dt: float, solve: ImplicitSolve | None = None
    ) -> Any:
        """Return ω' from one linear equation. Collective on slabs."""
        return f.without_diffusion(1 / dt, 0.5, self._known(old, f, dt))


IMPLICIT_MIDPOINT = ImplicitMidpoint()
ADAMS_BASHFORTH_CRANK_NICOLSON = AdamsBashforthCrankNicolson()
VORTICITY_SCHEMES = (IMPLICIT_MIDPOINT, ADAMS_BASHFORTH_CRANK_NICOLSON)


def solve_vorticity_by_differences(
    case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator, *,
    viscosity: float, drag: float = 0.0, forcing: Callable[..., np.ndarray] | None = None,
) -> Iterator[Snapshot]:  # fmt: skip
    """Yield the vorticity at the times of a case with one field on a periodic plane. Collective.

    `case.scheme` is one of `VORTICITY_SCHEMES`, the implicit midpoint if it is None; steps are equal between two
    snapshots, and without `case.steps_per_snapshot` chosen from the velocity at the first of them.

    Parameters
    ----------
    viscosity, drag : ν and μ.
    forcing : function (x) -> f on the coordinates of a block, steady.

    Raises
    ------
    ValueError : the case has other fields, axes, boundaries or schemes, or too few points for the ranks.
    DivergenceError : a step found no solution.
    """
    scheme = case.scheme or IMPLICIT_MIDPOINT
    if case.grid.ndim != 2 or not all(case.periodic) or len(case.fields) != 1 or scheme not in VORTICITY_SCHEMES:
        raise ValueError(
            f"Case {case.name}: the vorticity solver takes one field on two periodic axes and one of "
            f"VORTICITY_SCHEMES; it has fields {case.fields}, periodic: {case.periodic}, scheme {scheme!r}."
        )
    blocks = slabs(case.grid.shape, case.periodic, comm)
    plane = SlabPlane(blocks, case.grid.spacing)
    try:
        source = 0.0
        if forcing is not None:
            axes = [case.grid.points(axis, periodic=True)[place] for axis, place in enumerate(blocks.where)]
            source = np.broadcast_to(np.asarray(forcing(tuple(np.ix_(*axes))), dtype=float), blocks.shape)
        flow = VorticityFlow(plane, case.grid.spacing, viscosity=viscosity, drag=drag, forcing=source)
        w = initial_state(case, p, blocks, rng)
        yield Snapshot(step=0, time=0.0, values=w, where=blocks.where)
        interval = case.duration / case.num_snapshots
        old, last_dt = [w], 0.0
        for index, time in enumerate(case.times[1:], start=1):
            count = case.steps_per_snapshot or max(1, math.ceil(interval * flow.rate(old[-1]) / scheme.courant))
            dt = interval / count
            if dt != last_dt:
                old, last_dt = old[-1:], dt
            for n in range(count):
                old = [*old, scheme.step(old, flow, (index - 1) * interval + n * dt, dt)][-2:]
            yield Snapshot(step=index, time=float(time), values=old[-1], where=blocks.where)
    finally:
        plane.free()
