"""What a right-hand side can ask of the whole grid: means, spectral derivatives, the inverse Laplacian.

On blocks these are collective; on tensors that hold the whole grid they are plain functions with gradients.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import numpy as np

from .blocks import Blocks
from .boundary import Boundary, Dirichlet, Neumann, Periodic, sides_of
from .case import Case
from .ghosts import GhostLayers, coordinates, padded
from .grid import Grid
from .krylov import Gmres
from .parameters import Parameters
from .preconditioner import eigenpairs
from .redistribution import Redistribution
from .stencils import central, reach_of
from .transforms import Ends, SlabTransform, slabs


class WholeGrid(ABC):
    """The grid beyond one block; arrays are (*lead, *block), with ghost layers where `halo` is an argument."""

    @abstractmethod
    def mean(self, array: Any) -> Any:
        """Return the mean over the grid of (*lead, *block), shape (*lead, 1, ..., 1). Collective on ranks."""

    @abstractmethod
    def derivative(self, array: Any, axis: int, order: int, halo: int) -> Any:
        """Return ∂^order/∂x_axis^order along a periodic axis by its spectrum, ghost layers kept. Collective."""

    @abstractmethod
    def inverse_laplacian(self, array: Any, halo: int, boundary: Boundary | None) -> Any:
        """Return ψ with ∇²ψ = array, without ghost layers -> with `halo` of them. Collective."""


class BlockGrid(WholeGrid):
    """The grid of a case on MPI blocks."""

    def __init__(self, case: Case, blocks: Blocks) -> None:
        self._case = case
        self._blocks = blocks
        self._solvers: dict[tuple[int, int, str], _BlockPoisson | _IteratedPoisson] = {}

    def mean(self, array: np.ndarray) -> np.ndarray:
        """Return the mean. Collective."""
        axes = tuple(range(-self._case.grid.ndim, 0))
        return self._blocks.sum(np.sum(array, axis=axes, keepdims=True)) / self._case.grid.num_points

    def derivative(self, array: np.ndarray, axis: int, order: int, halo: int) -> np.ndarray:
        """Return the derivative; the blocks of a line are gathered, and each rank keeps its part. Collective."""
        lane = axis - self._case.grid.ndim
        place = self._blocks.where[axis]
        inner = [slice(None)] * -lane
        inner[0] = slice(halo, halo + place.stop - place.start)
        moved = np.ascontiguousarray(np.moveaxis(array[(..., *inner)], lane, 0))
        line = self._blocks.gather_line(moved.reshape(len(moved), -1), axis)
        extent = self._case.grid.extent[axis]
        import scipy.fft  # most solvers do without it

        spectrum = scipy.fft.rfft(line, axis=0)
        spectrum *= derivative_symbol(len(line), extent, order)[:, None]
        whole = scipy.fft.irfft(spectrum, n=len(line), axis=0)
        rows = np.arange(place.start - halo, place.stop + halo) % len(line)
        return np.moveaxis(whole[rows].reshape(len(rows), *moved.shape[1:]), 0, lane)

    def inverse_laplacian(self, array: np.ndarray, halo: int, boundary: Boundary | None) -> np.ndarray:
        """Return ψ by direct transforms on slabs, between walls of fourth order by iterations. Collective."""
        ndim = self._case.grid.ndim
        lead = array.shape[:-ndim]
        key = (math.prod(lead), halo, repr(boundary))
        if key not in self._solvers:
            potential = _potential_case(self._case, key[0], boundary)
            iterate = potential.accuracy == 4 and not all(potential.periodic)
            kind = _IteratedPoisson if iterate else _BlockPoisson
            self._solvers[key] = kind(potential, self._blocks, halo)
        psi = self._solvers[key].solve(array.reshape(-1, *array.shape[-ndim:]))
        return psi.reshape(*lead, *psi.shape[1:])

    def free(self) -> None:
        """Give back what MPI holds."""
        for solver in self._solvers.values():
            solver.free()
        self._solvers.clear()


class _BlockPoisson:
    """Blocks to slabs, transform, divide by the symbol, and back; then the ghost layers."""

    def __init__(self, potential: Case, blocks: Blocks, halo: int) -> None:
        case = potential
        ends = [_ends(pair) for pair in _sides(case)]
        slab = slabs(case.grid.shape, case.periodic, blocks.comm)
        self._transform = SlabTransform(slab, ends)
        lines = [
            modified_symbol(one.second_difference(n, h)[place], h, case.accuracy, n)
            for one, n, h, place in zip(
                ends, case.grid.shape, case.grid.spacing, self._transform.where, strict=True
            )
        ]
        self._factor = _inverse(sum(np.ix_(*lines)[1:], np.ix_(*lines)[0]))
        self._to_slabs, self._to_blocks = Redistribution(blocks, slab), Redistribution(slab, blocks)
        self._ghosts = GhostLayers(case, blocks, halo)

    def solve(self, f: np.ndarray) -> np.ndarray:
        self._ghosts.interior[...] = self.without_ghosts(f)
        self._ghosts.fill(Parameters({}), 0.0)
        return self._ghosts.buffer.copy()

    def without_ghosts(self, f: np.ndarray) -> np.ndarray:
        spectrum = self._transform.forward(self._to_slabs(f))
        spectrum *= self._factor
        return self._to_blocks(self._transform.inverse(spectrum))

    def free(self) -> None:
        self._ghosts.free()


class _IteratedPoisson:
    """Between walls the Laplacian of fourth order is not diagonal: GMRES, preconditioned by the compact one's inverse.

    Where no wall fixes the constant, the mean of ψ is added to the equation, which makes it regular; it then takes up
    what of f has no solution.
    """

    def __init__(self, potential: Case, blocks: Blocks, halo: int) -> None:
        self._case, self._blocks = potential, blocks
        self._compact = _BlockPoisson(replace(potential, accuracy=2), blocks, 1)
        self._inner = GhostLayers(potential, blocks, reach_of(2, 4))
        self._ghosts = GhostLayers(potential, blocks, halo)
        self._shape = (len(potential.fields), *blocks.shape)
        self._gmres = Gmres(blocks, math.prod(self._shape), 200)
        sides = [side for pair in _sides(potential) for side in pair]
        self._free = not any(isinstance(side, Dirichlet) for side in sides)
        self._scale = 1 / max(potential.grid.extent) ** 2

    def _mean(self, u: np.ndarray) -> np.ndarray:
        axes = tuple(range(1, u.ndim))
        return self._blocks.sum(u.sum(axis=axes, keepdims=True)) / self._case.grid.num_points

    def _laplacian(self, u: np.ndarray) -> np.ndarray:
        self._inner.interior[...] = u
        self._inner.fill(Parameters({}), 0.0)
        grid, reach = self._case.grid, reach_of(2, 4)
        return sum(
            central(self._inner.buffer, grid.ndim, axis, h, order=2, accuracy=4, reach=reach)
            for axis, h in enumerate(grid.spacing)
        )

    def _apply(self, v: np.ndarray) -> np.ndarray:
        u = v.reshape(self._shape)
        result = self._laplacian(u)
        if self._free:
            result = result - self._scale * self._mean(u)
        return result.ravel()

    def _precondition(self, v: np.ndarray) -> np.ndarray:
        f = v.reshape(self._shape)
        u = self._compact.without_ghosts(f)
        if self._free:
            u = u - self._mean(f) / self._scale
        return u.ravel()

    def solve(self, f: np.ndarray) -> np.ndarray:
        b = np.ascontiguousarray(f).ravel()
        psi = np.zeros_like(b)
        size = math.sqrt(self._blocks.dot(b, b))
        # Restarted from the true residual: rounding leaves it far above the estimate of a single run.
        for _ in range(4):
            defect = b - self._apply(psi) if psi.any() else b
            norm = math.sqrt(self._blocks.dot(defect, defect))
            if not norm > 1e-14 * size:
                break
            relative = max(1e-14 * size / norm, 1e-8)
            psi = psi + self._gmres.solve(self._apply, self._precondition, defect, norm_b=norm, relative=relative)[0]
        u = psi.reshape(self._shape)
        self._ghosts.interior[...] = u - self._mean(u) if self._free else u
        self._ghosts.fill(Parameters({}), 0.0)
        return self._ghosts.buffer.copy()

    def free(self) -> None:
        for part in (self._compact, self._inner, self._ghosts):
            part.free()


class TensorGrid(WholeGrid):
    """The grid of a case on torch tensors that hold all of it."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def mean(self, array: Any) -> Any:
        """Return the mean."""
        return array.mean(dim=tuple(range(-self._case.grid.ndim, 0)), keepdim=True)

    def derivative(self, array: Any, axis: int, order: int, halo: int) -> Any:
        """Return the derivative."""
        torch = sys.modules["torch"]
        n, lane = self._case.grid.shape[axis], axis - self._case.grid.ndim
        line = array.narrow(lane, halo, n).movedim(lane, -1)
        symbol = torch.as_tensor(derivative_symbol(n, self._case.grid.extent[axis], order), device=array.device)
        spectrum = torch.fft.rfft(line)
        whole = torch.fft.irfft(spectrum * symbol.to(spectrum.dtype), n=n).movedim(-1, lane)
        rows = torch.arange(-halo, n + halo, device=array.device) % n
        return whole.index_select(lane, rows)

    def inverse_laplacian(self, array: Any, halo: int, boundary: Boundary | None) -> Any:
        """Return ψ by dense transforms along every axis."""
        torch = sys.modules["torch"]
        case = _potential_case(self._case, 1, boundary)
        ndim, grid = case.grid.ndim, case.grid
        if case.accuracy == 4 and not all(case.periodic):
            psi = _fourth_order_between_walls(case, array)
            everywhere = tuple(slice(0, n) for n in grid.shape)
            return padded(case, psi[None], halo, x=coordinates(case, everywhere, halo), p=Parameters({}), t=0.0)[0]
        values, psi, matrices = [], array, []
        for axis, (low, high) in enumerate(_sides(case)):
            Q, line = eigenpairs(grid.shape[axis], _kind(low), _kind(high), grid.spacing[axis])
            values.append(modified_symbol(-line, grid.spacing[axis], case.accuracy, grid.shape[axis]))
            matrices.append(torch.as_tensor(Q, dtype=array.dtype, device=array.device))
            psi = torch.tensordot(psi, matrices[-1], dims=([axis - ndim], [0])).movedim(-1, axis - ndim)
        total = sum(np.ix_(*values)[1:], np.ix_(*values)[0])
        # Eigenvalues that are zero come out of the dense solver as rounding.
        total[np.abs(total) < 1e-10 * np.abs(total).max()] = 0.0
        psi = psi * torch.as_tensor(_inverse(total), dtype=array.dtype, device=array.device)
        for axis, Q in enumerate(matrices):
            psi = torch.tensordot(psi, Q, dims=([axis - ndim], [1])).movedim(-1, axis - ndim)
        everywhere = tuple(slice(0, n) for n in grid.shape)
        x = coordinates(case, everywhere, halo)
        return padded(case, psi[None], halo, x=x, p=Parameters({}), t=0.0)[0]


def _fourth_order_between_walls(case: Case, f: Any) -> Any:
    """Return ψ with ∇²ψ = f for a tensor: every axis's matrix, not symmetric at walls, by its own eigenvectors."""
    torch = sys.modules["torch"]
    ndim, grid = case.grid.ndim, case.grid
    values, left, right = [], [], []
    for axis in range(ndim):
        line = replace(case, grid=Grid(shape=grid.shape[axis : axis + 1], extent=grid.extent[axis : axis + 1]),
                       boundary={"x": _sides(case)[axis]})  # fmt: skip
        unit = np.eye(grid.shape[axis])[None]
        ghosts = padded(line, unit, 2, x=coordinates(line, (slice(0, grid.shape[axis]),), 2), p=Parameters({}), t=0.0)
        matrix = central(ghosts[0], 1, 0, grid.spacing[axis], order=2, accuracy=4, reach=2).T
        eigenvalues, vectors = np.linalg.eig(matrix)
        values.append(eigenvalues)
        left.append(np.linalg.inv(vectors))
        right.append(vectors)
    total = sum(np.ix_(*values)[1:], np.ix_(*values)[0])
    total[np.abs(total) < 1e-10 * np.abs(total).max()] = 0.0
    kind = torch.complex64 if f.dtype == torch.float32 else torch.complex128
    psi = f.to(kind)
    for matrices, factor in ((left, _inverse(total)), (right, np.ones(()))):
        for axis, matrix in enumerate(matrices):
            M = torch.as_tensor(matrix, dtype=kind, device=f.device)
            psi = torch.tensordot(psi, M, dims=([axis - ndim], [1])).movedim(-1, axis - ndim)
        psi = psi * torch.as_tensor(factor, dtype=kind, device=f.device)
    psi = psi.real
    if not any(isinstance(side, Dirichlet) for pair in _sides(case) for side in pair):
        psi = psi - psi.mean(dim=tuple(range(-ndim, 0)), keepdim=True)
    return psi


def derivative_symbol(n: int, extent: float, order: int) -> np.ndarray:
    """Return (2πi k / extent)^order for k = 0 ... n // 2; odd derivatives of the highest of an even number are 0."""
    k = 2 * np.pi / extent * np.arange(n // 2 + 1)
    symbol = k**order * (1j**order)
    if order % 2 and n % 2 == 0:
        symbol[-1] = 0.0
    return symbol


def modified_symbol(second_difference: np.ndarray, spacing: float, accuracy: int | str, points: int) -> np.ndarray:
    """Return the eigenvalues of a second derivative of some accuracy from those of the compact one (<= 0).

    points : along the axis, of which `second_difference` may hold a part.
    """
    scaled = np.minimum(-second_difference * spacing**2, 4.0)
    if accuracy == 4:
        return second_difference * (1 + scaled / 12)
    if accuracy == "spectral":
        # The wavenumber is a whole one: rounding to it makes up for the digits that arcsin loses near 1.
        k = np.rint(points / np.pi * np.arcsin(np.sqrt(scaled) / 2))
        return -((2 * np.pi * k / (points * spacing)) ** 2)
    return second_difference


def _potential_case(case: Case, fields: int, boundary: Boundary | None) -> Case:
    """Return a case that is nothing but `fields` unknowns with the homogeneous boundary of a potential.

    Raises
    ------
    ValueError : a value that is not 0, or another periodicity.
    """
    if boundary is None:
        pairs = sides_of(case.boundary, case.fields, case.grid)[case.fields[0]]
        boundary = {axis: tuple(_homogeneous(side) for side in pair) for axis, pair in zip("xyz", pairs, strict=False)}
    names = tuple(f"potential{index}" for index in range(fields))
    result = replace(case, name="potential", fields=names, boundary=boundary, parameters={}, rhs=_nothing, solver=None)
    for pair in sides_of(boundary, names, case.grid)[names[0]]:
        if any(not isinstance(side, Periodic) and side.value != 0 for side in pair):
            raise ValueError(f"d.inverse_laplacian takes walls with value 0; got {pair}. Add the rest as a lifting.")
    if result.periodic != case.periodic:
        raise ValueError("d.inverse_laplacian: the axes that are periodic for u are so for its result, and no other.")
    return result


def _nothing(u: Any, d: Any, p: Any, t: Any) -> Any:
    return u


def _homogeneous(side: Any) -> Any:
    return side if isinstance(side, Periodic) else type(side)(0.0)


def _sides(case: Case) -> tuple[tuple[Any, Any], ...]:
    return sides_of(case.boundary, case.fields, case.grid)[case.fields[0]]


def _kind(side: Any) -> str:
    return {Periodic: "periodic", Dirichlet: "dirichlet", Neumann: "neumann"}[type(side)]


def _ends(pair: tuple[Any, Any]) -> Ends:
    return {
        ("periodic", "periodic"): Ends.PERIODIC, ("neumann", "neumann"): Ends.NEUMANN,
        ("dirichlet", "dirichlet"): Ends.DIRICHLET, ("neumann", "dirichlet"): Ends.NEUMANN_DIRICHLET,
        ("dirichlet", "neumann"): Ends.DIRICHLET_NEUMANN,
    }[_kind(pair[0]), _kind(pair[1])]  # fmt: skip


def _inverse(symbol: np.ndarray) -> np.ndarray:
    constant = symbol == 0
    return np.where(constant, 0.0, 1 / np.where(constant, 1.0, symbol))
