"""The pressure equation ∇·(free ∇φ) = f on the staggered grid, with and without obstacles.

Without obstacles transforms solve it directly. The faces between fluid and solid cut the box's operator L0 into
L = L0 + U Uᵀ, one column of U per cut face; the solution follows from the box's by a small dense system, the
capacitance matrix K = 1 + Uᵀ L0⁻¹ U (Buzbee, Dorr, George and Golub 1971), again directly. With very many cut faces
conjugate gradients, preconditioned by the box's solver, take its place.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from .blocks import Blocks, Exchange
from .mac_grid import Edge, MacGrid
from .mac_operators import laplacian
from .newton import DivergenceError
from .transforms import PoissonSolver

MOST_CUT_FACES = 1500
"""Up to here the dense matrix is made: as many box solutions at the start, and m² numbers."""

_RELATIVE_ZERO = 1e-10
"""Eigenvalues of K below belong to the constant inside of an obstacle."""

_COLUMNS = 16
"""Box solutions at a time when K is made."""


class PressureSolver(ABC):
    """Solves ∇·(free ∇φ) = f, (*block) -> (*block), f zero inside obstacles."""

    @abstractmethod
    def solve(self, f: np.ndarray) -> np.ndarray:
        """Return φ. Collective.

        Raises
        ------
        DivergenceError : no solution within the iterations allowed.
        """


def pressure_solver(
    grid: MacGrid, layer: PressureLayer, *, most_cut_faces: int = MOST_CUT_FACES
) -> PressureSolver:
    """Return the solver: direct, by the capacitance matrix, or by conjugate gradients. Collective."""
    blocks = layer.blocks
    box = PoissonSolver(blocks, grid.ends, grid.spacing)
    faces = grid.cut_faces()
    if not faces:
        return BoxPressure(box)
    cuts = CutFaces(faces, blocks, grid.spacing)
    if len(faces) <= most_cut_faces:
        return CapacitancePressure(box, cuts)
    return ConjugateGradientPressure(box, cuts, layer)


class PressureLayer:
    """A pressure field with one ghost layer on slabs: even at walls, odd at an outflow."""

    def __init__(self, grid: MacGrid, blocks: Blocks) -> None:
        self.blocks, self.spacing = blocks, grid.spacing
        self._buffer = np.zeros((1, *(n + 2 for n in blocks.shape)))
        self._exchange = Exchange(blocks, self._buffer, 1)
        self._sides = [
            (axis, end, -1.0 if edge is Edge.OUTFLOW else 1.0)
            for axis, pair in enumerate(grid.edges)
            for end, edge in enumerate(pair)
            if grid.at_side(axis, end)
        ]

    def padded(self, phi: np.ndarray) -> np.ndarray:
        """Return φ with ghost layers, (*block + 2), valid until the next call. Collective."""
        padded = self._buffer[0]
        padded[(slice(1, -1),) * phi.ndim] = phi
        for axis in range(phi.ndim):
            self._exchange.fill(axis)
            lead = (slice(None),) * axis
            for side, end, sign in self._sides:
                if side == axis:
                    padded[(*lead, -end)] = sign * padded[(*lead, -2 if end else 1)]
        return padded

    def largest(self, a: np.ndarray) -> float:
        """Return max |a| over all ranks. Collective."""
        return float(self.blocks.max(np.array([np.abs(a).max()]))[0])

    def free(self) -> None:
        """Give back what MPI holds."""
        self._exchange.free()


class BoxPressure(PressureSolver):
    """The whole box is fluid."""

    def __init__(self, box: PoissonSolver) -> None:
        self._box = box

    def solve(self, f: np.ndarray) -> np.ndarray:
        """Return φ by transforms. Collective."""
        return self._box.solve(f)


class CutFaces:
    """The matrix U: column j is (e_upper - e_lower)/h of cut face j, rows are the cells of all ranks."""

    def __init__(self, faces: Sequence[tuple[int, int, int]], blocks: Blocks, spacing: Sequence[float]) -> None:
        self.number = len(faces)
        self._blocks = blocks
        scale = np.array([1 / spacing[axis] for _, _, axis in faces])
        rest = int(np.prod(blocks.shape[1:]))
        start = blocks.where[0].start * rest
        self._cells, self._faces, self._values = [], [], []
        for sign, cells in ((-1.0, [low for low, _, _ in faces]), (1.0, [high for _, high, _ in faces])):
            # Slabs are contiguous in the numbering of cells.
            local = np.array(cells) - start
            here = np.flatnonzero((local >= 0) & (local < blocks.shape[0] * rest))
            self._cells.append(local[here])
            self._faces.append(here)
            self._values.append(sign * scale[here])

    def transposed_times(self, fields: np.ndarray) -> np.ndarray:
        """Return Uᵀ a for fields (*lead, *block), (*lead, number), on every rank. Collective.

        Every sum has two terms other than zero, so that its bits do not depend on the ranks.
        """
        lead = fields.shape[: fields.ndim - len(self._blocks.shape)]
        flat = fields.reshape(*lead, -1)
        result = np.zeros((*lead, self.number))
        for cells, faces, values in zip(self._cells, self._faces, self._values, strict=True):
            result[..., faces] += flat[..., cells] * values
        return self._blocks.sum(result)

    def times(self, weights: np.ndarray) -> np.ndarray:
        """Return U y for weights (*lead, number) on this block, (*lead, *block)."""
        lead = weights.shape[:-1]
        flat = np.zeros((int(np.prod(lead)), int(np.prod(self._blocks.shape))))
        rows = np.arange(len(flat))[:, None]
        for cells, faces, values in zip(self._cells, self._faces, self._values, strict=True):
            np.add.at(flat, (rows, cells[None]), weights.reshape(len(flat), -1)[:, faces] * values)
        return flat.reshape(*lead, *self._blocks.shape)


class CapacitancePressure(PressureSolver):
    """Two box solutions and one small dense product:  φ = L0⁻¹ (f - U K⁺ Uᵀ L0⁻¹ f)."""

    def __init__(self, box: PoissonSolver, cuts: CutFaces) -> None:
        self._box, self._cuts = box, cuts
        capacitance = np.eye(cuts.number)
        for start in range(0, cuts.number, _COLUMNS):
            chosen = np.eye(cuts.number)[start : start + _COLUMNS]
            capacitance[start : start + _COLUMNS] += cuts.transposed_times(box.solve(cuts.times(chosen)))
        values, vectors = np.linalg.eigh(0.5 * (capacitance + capacitance.T))
        kept = values > _RELATIVE_ZERO
        self._inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def solve(self, f: np.ndarray) -> np.ndarray:
        """Return φ. Collective."""
        weights = self._inverse @ self._cuts.transposed_times(self._box.solve(f))
        return self._box.solve(f - self._cuts.times(weights))


class ConjugateGradientPressure(PressureSolver):
    """Conjugate gradients for -L φ = -f, preconditioned by the box, starting from the last solution.

    tolerance : of max|L φ - f| relative to max|f|; not asked for below `floor` of the largest f so far.
    """

    def __init__(
        self, box: PoissonSolver, cuts: CutFaces, layer: PressureLayer, *, tolerance: float = 1e-12,
        floor: float = 1e-14, max_iterations: int = 500,
    ) -> None:  # fmt: skip
        self._box, self._cuts, self._layer = box, cuts, layer
        self._tolerance, self._floor, self._max_iterations = tolerance, floor, max_iterations
        self._last: np.ndarray | None = None
        self._scale = 0.0
        self.iterations = 0

    def _operator(self, phi: np.ndarray) -> np.ndarray:
        cut = self._cuts.times(self._cuts.transposed_times(phi))
        return laplacian(self._layer.padded(phi), self._layer.spacing) + cut

    def solve(self, f: np.ndarray) -> np.ndarray:
        """Return φ. Collective.

        Raises
        ------
        DivergenceError : the tolerance is not reached.
        """
        largest, dot = self._layer.largest, self._layer.blocks.dot
        size = largest(f)
        if not math.isfinite(size):
            raise DivergenceError("the divergence of the velocity is not finite")
        self._scale = max(self._scale, size)
        allowed = max(self._tolerance * size, self._floor * self._scale)
        phi = np.zeros_like(f) if self._last is None else self._last.copy()
        r = self._operator(phi) - f
        direction, before = np.zeros_like(f), 1.0
        for _ in range(self._max_iterations):
            if largest(r) <= allowed:
                self._last = phi
                return phi.copy()
            self.iterations += 1
            z = -self._box.solve(r)
            product = dot(r, z)
            direction = z + (product / before) * direction
            advanced = -self._operator(direction)
            alpha = product / dot(direction, advanced)
            phi += alpha * direction
            r -= alpha * advanced
            before = product
        raise DivergenceError(
            f"the pressure did not converge in {self._max_iterations} iterations: "
            f"{largest(r):.3g} is left, {allowed:.3g} allowed"
        )
