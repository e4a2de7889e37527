"""A case's right-hand side as a function of plain arrays: f(u, t) on MPI blocks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .blocks import Blocks
from .case import Case
from .compiled import combination, compiled, traced, unsigned
from .exponential import BlockSemilinear, TensorSemilinear
from .field import Field, GhostLayersExhausted, uniform
from .ghosts import GhostLayers, coordinates, padded
from .operators import Operators
from .parameters import Parameters
from .whole_grid import BlockGrid, TensorGrid

log = logging.getLogger(__name__)

MOST_GHOST_LAYERS = 6


def assembled(result: Any, fields: tuple[str, ...], owned: tuple[int, ...], out: np.ndarray) -> np.ndarray:
    """Write what a right-hand side returned, without its ghost layers, into out : (fields, *owned).

    Raises
    ------
    TypeError, ValueError : it is not one field with all components, nor one field or number per unknown.
    """
    ndim = len(owned)
    expected = f"return one field per unknown {fields}, as a tuple, or an expression in u as a whole"
    if isinstance(result, Field) and (result.components or len(fields) > 1):
        if not result.components:
            raise ValueError(f"The right-hand side returned a single field; {expected}.")
        array = result.cropped(0).array
        if len(array) != len(fields):
            raise ValueError(f"The right-hand side returned {len(array)} fields; {expected}.")
        out[...] = array
        return out
    parts = tuple(result) if isinstance(result, tuple | list) else (result,)
    if len(parts) != len(fields):
        raise ValueError(f"The right-hand side returned {len(parts)} fields; {expected}.")
    for name, part, target in zip(fields, parts, out, strict=True):
        if isinstance(part, Field):
            array = part.cropped(0).array
            if part.components:
                if len(array) != 1:
                    raise ValueError(f"The right-hand side returned all of u in the place of field {name}; {expected}.")
                array = array[0]
            if array.ndim > ndim:
                raise ValueError(f"The right-hand side returned shape {array.shape} for field {name}; {expected}.")
            target[...] = array
        elif isinstance(part, int | float):
            target[...] = part
        else:
            raise TypeError(f"The right-hand side returned {type(part).__name__} for field {name}; {expected}.")
    return out


class RightHandSide:
    """f(u, t) of one simulation on this rank's block; every call is collective.

    u and the result : (fields, *block) float64, owned points only.

    name : which function of the case, "rhs" or "stiff".
    """

    stiff: RightHandSide
    """The case's linear part, where it has one."""

    def __init__(
        self, case: Case, parameters: Parameters, blocks: Blocks, halo: int, *, name: str = "rhs"
    ) -> None:  # fmt: skip
        self._function = getattr(case, name)
        self._semilinear: BlockSemilinear | None = None
        self.case = case
        self.parameters = parameters
        self.blocks = blocks
        self.calls = 0
        self._ghosts = GhostLayers(case, blocks, halo)
        self._field = Field(self._ghosts.buffer, halo, case.grid.ndim, components=True)
        self._whole = BlockGrid(case, blocks)
        self._operators = Operators(case.grid.spacing, blocks.shape, self._ghosts.x, self._whole, case.accuracy)
        self._halo = halo
        self._kernel: Callable[..., None] | None = None

    @property
    def compiled(self) -> bool:
        """Whether machine code serves it."""
        return self._kernel is not None

    def compile(self) -> str:
        """Let machine code serve it from now on, where that is possible; return the reason where it is not."""
        try:
            kernel = compiled(traced(self.case, self._function, self.blocks.shape, self._halo))
            self._lines = tuple(np.ascontiguousarray(x.array.reshape(-1)) for x in self._ghosts.x)
            self._values = np.array([self.parameters[name] for name in self.case.parameters], dtype=np.float64)
            ndim = self.case.grid.ndim
            kernel(self._ghosts.buffer, np.empty((len(self.case.fields), *self.blocks.shape)), self._lines,
                   self._values, 0.0, unsigned((0,) * ndim), unsigned((0,) * ndim))  # fmt: skip
        except ImportError:
            return "numba is not installed (pip install headrace[fast])"
        except Exception as error:
            # Whatever a user's function does with symbols, or numba with the result: arrays can serve it.
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        self._kernel = kernel
        return ""

    def __call__(self, u: np.ndarray, t: float) -> np.ndarray:
        """Return ∂u/∂t. Collective."""
        self.calls += 1
        self._ghosts.interior[...] = u
        if self._kernel is not None:
            return self._by_kernel(t)
        self._ghosts.fill(self.parameters, t)
        result = self._function(self._field, self._operators, self.parameters, t)
        return assembled(result, self.case.fields, self.blocks.shape, np.empty_like(self._ghosts.interior, order="C"))

    @property
    def combined(self) -> Callable[..., np.ndarray] | None:
        """What computes u + dt Σ weights_i k_i in one pass, where machine code serves it; else None."""
        return _in_one_pass if self.compiled else None

    def _by_kernel(self, t: float) -> np.ndarray:
        """Compute what needs no ghost layers while those of the first axis are on their way, then the rest."""
        shape, halo = self.blocks.shape, self._halo
        out = np.empty((len(self.case.fields), *shape))

        def box(low: tuple[int, ...], high: tuple[int, ...]) -> None:
            self._kernel(self._ghosts.buffer, out, self._lines, self._values, float(t), *map(unsigned, (low, high)))

        low, high = (halo,) * len(shape), tuple(n - halo for n in shape)
        if not self._ghosts.exchanges(0) or any(a >= b for a, b in zip(low, high, strict=True)):
            self._ghosts.fill(self.parameters, t)
            box((0,) * len(shape), shape)
            return out
        self._ghosts.fill(self.parameters, t, meanwhile=lambda: box(low, high))
        for axis, n in enumerate(shape):
            # Shells: whole along later axes, without what is done along earlier ones.
            before, after = low[:axis], high[:axis]
            box((*before, 0, *(0,) * (len(shape) - axis - 1)), (*after, halo, *shape[axis + 1 :]))
            box((*before, n - halo, *(0,) * (len(shape) - axis - 1)), (*after, n, *shape[axis + 1 :]))
        return out

    def semilinear(self, u: np.ndarray) -> BlockSemilinear:
        """Return the linear part in Fourier space; blocks are slabs. Collective."""
        if self._semilinear is None:
            self._semilinear = BlockSemilinear(self.stiff, self.blocks, len(self.case.fields))
        return self._semilinear

    def free(self) -> None:
        """Give back what MPI holds."""
        if hasattr(self, "stiff"):
            self.stiff.free()
        self._ghosts.free()
        self._whole.free()


def right_hand_side(
    case: Case, parameters: Parameters, blocks: Blocks, state: np.ndarray, *, name: str = "rhs"
) -> RightHandSide:
    """Return f with as many ghost layers as the case's operators need, found by calling it on a state. Collective.

    name : "rhs" gives the whole, with the linear part as `f.stiff` where the case has one; "stiff" that part.

    Raises
    ------
    ValueError : more nested operators than ghost layers are possible.
    """
    smallest = min(n // d for n, d in zip(blocks.grid_shape, blocks.dims, strict=True))
    deepest = min(MOST_GHOST_LAYERS, smallest)
    for halo in range(1, deepest + 1):
        f = RightHandSide(case, parameters, blocks, halo, name=name)
        try:
            f(state, 0.0)
        except GhostLayersExhausted:
            f.free()
            continue
        if case.compiled:
            why_not = f.compile()
            if why_not:
                log.warning("Case %s: %s stays uncompiled, slower but as right: %s", case.name, name, why_not)
        if name == "rhs" and case.stiff is not None:
            f.stiff = right_hand_side(case, parameters, blocks, state, name="stiff")
        return f
    raise ValueError(
        f"Case {case.name}: its operators are nested deeper than {deepest} ghost layers reach. At most "
        f"{MOST_GHOST_LAYERS} are possible, and no more than the smallest block has points along an axis, {smallest}."
    )


def _in_one_pass(u: np.ndarray, dt: float, weights: Sequence[float], slopes: Sequence[np.ndarray]) -> np.ndarray:
    """Return u + dt Σ weights_i k_i, the bits of the sum term by term."""
    terms = [(dt * weight, k) for weight, k in zip(weights, slopes, strict=True) if weight]
    if not terms:
        return u
    out = np.empty(u.shape)
    factors, arrays = zip(*terms, strict=True)
    flat = tuple(np.ascontiguousarray(k).reshape(-1) for k in arrays)
    combination(len(terms))(out.reshape(-1), np.ascontiguousarray(u).reshape(-1), flat, factors)
    return out


class TensorRightHandSide:
    """f(u, t) on torch tensors that hold the whole grid: the same case, the same stencils, gradients kept.

    parameters : (batch, parameters) in the case's order; one row serves every batch size.
    u and the result : (fields, batch, *grid), in u's precision and on its device.
    """

    def __init__(self, case: Case, parameters: Any, *, name: str = "rhs") -> None:
        self._case = case
        self._function = getattr(case, name)
        self._semilinear: dict[Any, TensorSemilinear] = {}
        self._ndim = case.grid.ndim
        self._parameters = parameters
        self._halo = 1

    @cached_property
    def stiff(self) -> TensorRightHandSide:
        """The case's linear part."""
        return TensorRightHandSide(self._case, self._parameters, name="stiff")

    def semilinear(self, u: Any) -> TensorSemilinear:
        """Return the linear part in Fourier space, for tensors of the kind of u."""
        kind = (u.dtype, u.device)
        if kind not in self._semilinear:
            self._semilinear[kind] = TensorSemilinear(self.stiff, u, len(self._parameters))
        return self._semilinear[kind]

    def __call__(self, u: Any, t: Any) -> Any:
        """Return ∂u/∂t; t : a number, or (batch,)."""
        while True:
            try:
                return self._evaluated(u, t)
            except GhostLayersExhausted:
                if self._halo == min(MOST_GHOST_LAYERS, *self._case.grid.shape):
                    raise ValueError(
                        f"Case {self._case.name}: its operators are nested deeper than {self._halo} ghost layers reach "
                        f"on {self._case.grid.shape} points."
                    ) from None
                self._halo += 1

    def _evaluated(self, u: Any, t: Any) -> Any:
        case, halo, ndim = self._case, self._halo, self._ndim
        whole = tuple(slice(0, n) for n in case.grid.shape)
        x = tuple(Field(u.new_tensor(f.array), halo, ndim) for f in coordinates(case, whole, halo))
        columns = self._parameters.to(dtype=u.dtype, device=u.device).unbind(dim=1)
        p = Parameters({name: self._uniform(c) for name, c in zip(case.parameters, columns, strict=True)})
        time = self._uniform(t.to(dtype=u.dtype)) if getattr(t, "ndim", 0) else t
        state = Field(padded(case, u, halo, x=x, p=p, t=time), halo, ndim, components=True)
        d = Operators(case.grid.spacing, case.grid.shape, x, TensorGrid(case), case.accuracy)
        result = self._function(state, d, p, time)
        several = isinstance(result, tuple | list) or len(case.fields) > 1
        parts = list(result) if several else [result]
        pieces = []
        for part in parts:
            array = part.cropped(0).array if isinstance(part, Field) else part
            if isinstance(part, Field) and part.components:
                array = array[0]
            # A part that is constant in space or along the batch is broadcast; the sum keeps its gradient.
            pieces.append(u.new_zeros(u.shape[1:]) + array)
        return sys.modules["torch"].stack(pieces)

    def _uniform(self, column: Any) -> Field:
        return uniform(column.reshape(-1, *(1,) * self._ndim), self._ndim)
