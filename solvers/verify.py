"""Calls a case's functions on small states and names the mistake where one breaks its contract."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from .blocks import Blocks, check_split
from .boundary import Boundary, Dirichlet, Periodic, sides_of
from .case import Case
from .field import Field, GhostLayersExhausted
from .ghosts import GhostLayers, coordinates, wall_value
from .operators import Operators
from .parameters import Parameters
from .right_hand_side import MOST_GHOST_LAYERS, assembled
from .scheme import BDF2, IMPLICIT_EULER, SDIRK2
from .simulate import initial_state
from .whole_grid import BlockGrid, WholeGrid

if TYPE_CHECKING:
    from mpi4py import MPI

POINTS = 12
"""Points along each axis of the grid that the right-hand side is tried on."""


def verify(case: Case, comm: MPI.Comm | None = None) -> None:
    """Check initial, boundary and rhs (or solver) of a case by calling them. Collective over comm.

    Every rank checks everything by itself, on small states; then all ranks agree. An initial state that jumps at a
    wall is no mistake, as some do by intent, but warned of unless the scheme damps jumps.

    Raises
    ------
    ValueError, TypeError : the function, what it did, and what it should do; the same on every rank.
    """
    problem: Exception | None = None
    try:
        check_split(case.grid.shape, 1 if comm is None else comm.size)
        with np.errstate(all="ignore"):
            _verify_here(case)
    except (ValueError, TypeError) as error:
        problem = error
    if comm is not None and comm.size > 1:
        others = comm.allgather(None if problem is None else (isinstance(problem, TypeError), str(problem)))
        if problem is None:
            found = next((other for other in others if other is not None), None)
            problem = found and (TypeError if found[0] else ValueError)(found[1])
    if problem is not None:
        raise problem


def _verify_here(case: Case) -> None:
    p = case.accept({})
    state = _initial(case, p)
    if case.solver is not None:
        _call(case, "solver", inspect.signature(case.solver).bind, case, p, None, np.random.default_rng(0))
        return
    _boundary(case, p)
    _meets_walls(case, p, state)
    small = case.resized(tuple(min(n, POINTS) for n in case.grid.shape))
    picks = [np.linspace(0, n - 1, m).astype(int) for n, m in zip(case.grid.shape, small.grid.shape, strict=True)]
    state = _perturbed(state[np.ix_(range(len(case.fields)), *picks)])
    for name in ("rhs", "stiff"):
        if getattr(case, name) is not None:
            _Trial(small, name, p).check(state)


def _initial(case: Case, p: Parameters) -> np.ndarray:
    blocks = Blocks(case.grid.shape, case.periodic, smallest=1)
    results = []
    for _ in range(2):
        rng = np.random.default_rng(np.random.SeedSequence([0, 0]))
        results.append(_call(case, "initial", initial_state, case, p, blocks, rng))
    untouched = np.random.default_rng(np.random.SeedSequence([0, 0]))
    if case.seeds and rng.bit_generator.state == untouched.bit_generator.state:
        raise ValueError(
            f"Case {case.name} declares the seed {case.seeds[0]}, but initial draws nothing from its generator rng. "
            "Use rng (rng.normal(...), gaussian_random_field(x[0].shape, rng)), or leave the Seed out."
        )
    if not np.isfinite(results[0]).all():
        raise ValueError(f"Case {case.name}: initial returned values that are not finite at {p}.")
    if not np.array_equal(*results):
        raise ValueError(
            f"Case {case.name}: initial returned different states for the same parameters and the same generator. Draw "
            "random numbers from the rng it receives, nowhere else: they must be the same on every rank."
        )
    return results[0]


def _meets_walls(case: Case, p: Parameters, state: np.ndarray) -> None:
    """Warn of an initial state that jumps at a wall, unless the scheme damps jumps."""
    if case.scheme in (BDF2, SDIRK2, IMPLICIT_EULER):
        return
    x = coordinates(case, tuple(slice(0, n) for n in case.grid.shape), 0)
    sides = sides_of(case.boundary, case.fields, case.grid)
    for (axis, end), (index, field) in product(product(range(case.grid.ndim), (0, 1)), enumerate(case.fields)):
        side = sides[field][axis][end]
        if not isinstance(side, Dirichlet):
            continue
        position = case.grid.origin[axis] + end * case.grid.extent[axis]
        wall = np.asarray(wall_value(side, x, axis=axis, position=position, p=p, t=0.0), dtype=np.float64)
        lines = np.moveaxis(state[index], axis, 0)
        near, next_ = (lines[0], lines[1]) if end == 0 else (lines[-1], lines[-2])
        reached = np.expand_dims(1.5 * near - 0.5 * next_, axis)
        jump = np.abs(reached - wall).max()
        size = max(state[index].max(), wall.max()) - min(state[index].min(), wall.min())
        if jump > 0.1 * size:
            warnings.warn(
                f"Case {case.name}: at t = 0 field {field} is up to {jump:.3g} away from its boundary value at the "
                f"{('lower', 'upper')[end]} end of axis {axis}. Start from a state that has the boundary values; if "
                "the jump is meant, scheme=BDF2 damps what it stirs up.",
                stacklevel=2,
            )


def _perturbed(state: np.ndarray) -> np.ndarray:
    """Return the state with one per cent of noise, so that derivatives do not vanish by chance."""
    noise = np.random.default_rng(0).uniform(-1, 1, state.shape)
    scale = np.abs(state).max(axis=tuple(range(1, state.ndim)), keepdims=True)
    return state + 0.01 * noise * np.where(scale > 0, scale, 1.0)


def _boundary(case: Case, p: Parameters) -> None:
    blocks = Blocks(case.grid.shape, case.periodic, smallest=1)
    x = coordinates(case, blocks.where, 1)
    for field, sides in sides_of(case.boundary, case.fields, case.grid).items():
        for axis, pair in enumerate(sides):
            for end, side in enumerate(pair):
                if isinstance(side, Periodic):
                    continue
                name = f"boundary of field {field} at the {('lower', 'upper')[end]} end of axis {axis}"
                position = case.grid.origin[axis] + end * case.grid.extent[axis]
                value = _call(case, name, wall_value, side, x, axis=axis, position=position, p=p, t=0.0)
                layer = tuple(1 if a == axis else n + 2 for a, n in enumerate(case.grid.shape))
                try:
                    np.broadcast_to(np.asarray(value, dtype=np.float64), layer)
                except (ValueError, TypeError):
                    raise ValueError(
                        f"Case {case.name}: {name} returned {value!r}; return a number, or an expression in the "
                        "coordinates x[0], x[1], ..., the parameters p and the time t."
                    ) from None


class _Trial:
    """Evaluates one right-hand side on a small grid, as one block and as two."""

    def __init__(self, case: Case, name: str, p: Parameters) -> None:
        self._case, self._name, self._p = case, name, p
        self._function: Callable[..., Any] = getattr(case, name)
        self._blocks = Blocks(case.grid.shape, case.periodic, smallest=1)
        self._whole = _Recorder(BlockGrid(case, self._blocks))

    def check(self, state: np.ndarray) -> None:
        buffer, halo = self._filled(state)
        whole = self._evaluate(buffer, halo, self._blocks.where, self._whole)
        if not np.isfinite(whole).all():
            raise ValueError(
                f"{self._label} returned values that are not finite on the initial state with 1 % of noise, at "
                f"{self._p}. Guard roots, logarithms and divisions, e.g. with np.maximum(u, 0.0)."
            )
        if not np.array_equal(self._evaluate(buffer, halo, self._blocks.where, self._whole), whole):
            raise ValueError(f"{self._label} returned two different results for the same state: it must depend on its "
                             "arguments alone, not on random numbers, counters or earlier calls.")  # fmt: skip
        self._check_dtype(buffer, halo)
        self._check_blocks(buffer, halo, whole)
        if self._name == "stiff":
            self._check_linear(state)

    @property
    def _label(self) -> str:
        return f"Case {self._case.name}: {self._name}"

    def _filled(self, state: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the state with as many ghost layers as the function needs."""
        deepest = min(MOST_GHOST_LAYERS, *self._blocks.shape)
        for halo in range(1, deepest + 1):
            ghosts = GhostLayers(self._case, self._blocks, halo)
            ghosts.interior[...] = state
            ghosts.fill(self._p, 0.0)
            try:
                self._evaluate(ghosts.buffer, halo, self._blocks.where, self._whole)
            except GhostLayersExhausted:
                continue
            return ghosts.buffer, halo
        raise ValueError(
            f"{self._label} nests operators that reach more than {deepest} points away; {MOST_GHOST_LAYERS} at most "
            "are possible, and no more than the shortest axis has. Add an unknown for an inner derivative, use "
            "a compact operator such as d.laplacian, or take a larger grid."
        )

    def _evaluate(
        self, buffer: np.ndarray, halo: int, where: Sequence[slice], whole: WholeGrid
    ) -> np.ndarray:
        case = self._case
        shape = tuple(s.stop - s.start for s in where)
        u = buffer.copy()
        # A write into u would change the state behind the solver's back, or the neighbour's ghost layers.
        u.flags.writeable = False
        x = tuple(Field(f.array.astype(buffer.dtype), halo, case.grid.ndim) for f in coordinates(case, where, halo))
        d = Operators(case.grid.spacing, shape, x, whole, case.accuracy)
        self._whole.rewind()
        field = Field(u, halo, case.grid.ndim, components=True)
        result = _call(case, self._name, self._function, field, d, self._p, 0.0)
        self._result = result
        try:
            return assembled(result, case.fields, shape, np.empty((len(case.fields), *shape)))
        except GhostLayersExhausted:
            raise
        except (ValueError, TypeError) as error:
            text = str(error).replace("The right-hand side", self._name)
            raise type(error)(f"Case {case.name}: {text}") from error

    def _check_linear(self, state: np.ndarray) -> None:
        """Compare stiff(2u - 3v) with 2 stiff(u) - 3 stiff(v), apart from what boundary values contribute."""
        other = np.random.default_rng(1).permuted(state, axis=-1)

        def stiff(u: np.ndarray) -> np.ndarray:
            buffer, halo = self._filled(u)
            return self._evaluate(buffer, halo, self._blocks.where, self._whole)

        nothing = stiff(0 * state)
        expected = 2 * (stiff(state) - nothing) - 3 * (stiff(other) - nothing)
        error = np.abs(stiff(2 * state - 3 * other) - nothing - expected).max()
        if not error <= 1e-9 * np.abs(expected).max():
            raise ValueError(
                f"{self._label} is not linear in u: 2u - 3v gives another result than its parts, off by {error:.3g} of "
                f"{np.abs(expected).max():.3g}. It must hold linear terms only, such as p.nu * d.laplacian(u); leave "
                "the others to rhs, which holds all terms."
            )

    def _check_dtype(self, buffer: np.ndarray, halo: int) -> None:
        self._evaluate(buffer.astype(np.float32), halo, self._blocks.where, self._whole)
        parts = self._result if isinstance(self._result, tuple | list) else (self._result,)
        for part in parts:
            if isinstance(part, Field) and part.array.dtype != np.float32:
                raise TypeError(
                    f"{self._label} turned a float32 state into {part.array.dtype}: losses are computed in the state's "
                    "precision. Use Python numbers and parameters, and leave the conversion to the framework."
                )
        # What the float32 trial asked of the whole grid must not reach the comparison of the blocks.
        self._evaluate(buffer, halo, self._blocks.where, self._whole)

    def _check_blocks(self, buffer: np.ndarray, halo: int, whole: np.ndarray) -> None:
        """Compare with two blocks along every axis, whose ghost layers hold what an exchange would bring."""
        for axis, n in enumerate(self._case.grid.shape):
            for part in (slice(0, n // 2), slice(n // 2, n)):
                where = list(self._blocks.where)
                where[axis] = part
                index = [slice(None)] * buffer.ndim
                index[1 + axis] = slice(part.start, part.stop + 2 * halo)
                block = self._evaluate(buffer[tuple(index)], halo, where, _Replay(self._whole, where))
                expected = whole[(slice(None), *where)]
                error = np.abs(block - expected).max()
                if error > 1e-10 * np.abs(whole).max():
                    raise ValueError(
                        f"{self._label} gives another result on two blocks than on one, off by {error:.3g} of "
                        f"{np.abs(whole).max():.3g}: something in it looks at a whole array (a maximum, a mean, an "
                        "array's shape). On MPI ranks it would see one block only; use d.mean and the operators of d."
                    )


class _Recorder(WholeGrid):
    """Keeps what the right-hand side asked of the whole grid, in order."""

    def __init__(self, whole: WholeGrid) -> None:
        self._whole = whole
        self.results: list[tuple[np.ndarray, int | None]] = []
        self.position = 0

    def rewind(self) -> None:
        """Begin a new evaluation."""
        self.position = 0

    def mean(self, array: np.ndarray) -> np.ndarray:
        """Return and keep the mean."""
        return self._kept(self._whole.mean(array), None)

    def derivative(self, array: np.ndarray, axis: int, order: int, halo: int) -> np.ndarray:
        """Return and keep the derivative."""
        return self._kept(self._whole.derivative(array, axis, order, halo), halo)

    def inverse_laplacian(self, array: np.ndarray, halo: int, boundary: Boundary | None) -> np.ndarray:
        """Return and keep the potential."""
        return self._kept(self._whole.inverse_laplacian(array, halo, boundary).astype(array.dtype), halo)

    def _kept(self, result: np.ndarray, halo: int | None) -> np.ndarray:
        self.results[self.position :] = [(result, halo)]
        self.position += 1
        return result


class _Replay(WholeGrid):
    """Answers for one block with its part of what a recorder kept: the block alone does not know it."""

    def __init__(self, recorder: _Recorder, where: Sequence[slice]) -> None:
        self._recorder, self._where = recorder, where

    def mean(self, array: np.ndarray) -> np.ndarray:
        """Return the mean over all blocks."""
        return self._part()

    def derivative(self, array: np.ndarray, axis: int, order: int, halo: int) -> np.ndarray:
        """Return the derivative on this block."""
        return self._part()

    def inverse_laplacian(self, array: np.ndarray, halo: int, boundary: Boundary | None) -> np.ndarray:
        """Return the potential on this block."""
        return self._part()

    def _part(self) -> np.ndarray:
        result, halo = self._recorder.results[self._recorder.position]
        self._recorder.position += 1
        if halo is None:
            return result
        return result[(..., *(slice(s.start, s.stop + 2 * halo) for s in self._where))]


def _call(case: Case, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a user's function; an exception inside becomes one that names the case, the function and the line."""
    try:
        return function(*args, **kwargs)
    except GhostLayersExhausted:
        raise
    except Exception as error:
        text = str(error)
        if isinstance(error, ValueError) and "read-only" in text:
            text = "it writes into u in place; compute a new field instead"
        kind = TypeError if isinstance(error, TypeError) else ValueError
        prefix = f"Case {case.name}: "
        if text.startswith(prefix):
            raise kind(text) from error
        raise kind(f"{prefix}{name}{_line(error)} raised {type(error).__name__}: {text}") from error


def _line(error: Exception) -> str:
    """Return where in the user's code it happened."""
    here = __file__.rsplit("verify", 1)[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(here)]
    return f" (line {frames[-1].lineno}: {frames[-1].line})" if frames and frames[-1].line else ""
