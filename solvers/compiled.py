"""A right-hand side traced once and compiled by numba: one loop over the points, without temporaries.

The case's function is called with fields whose arrays are symbols. A symbol knows how it came about, and how far it is
shifted against the block; stencils are pure slicing, so every value at a point becomes an expression in the points
around it. What cannot be written so (means, spectra, inverse Laplacians, numpy functions without a counterpart) raises
`Untraceable`, and the array path, which stays the reference, serves the case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from .case import Case
from .field import Field, uniform
from .operators import Operators
from .parameters import Parameters
from .whole_grid import WholeGrid

MOST_STATEMENTS = 4000
"""Longest loop body that is compiled: nested wide stencils repeat their inner ones at every shift."""

_INDEX = "ijk"
_INFIX = {
    "add": "+", "subtract": "-", "multiply": "*", "divide": "/", "true_divide": "/", "greater": ">",
    "greater_equal": ">=", "less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!=", "bitwise_and": "&",
    "bitwise_or": "|", "logical_and": "&", "logical_or": "|",
}  # fmt: skip
_CALLS = {
    "sin", "cos", "tan", "arcsin", "arccos", "arctan", "arctan2", "sinh", "cosh", "tanh", "exp", "expm1", "log",
    "log1p", "log10", "log2", "sqrt", "maximum", "minimum", "floor", "ceil", "hypot", "power", "absolute",
    "logical_not",
}  # fmt: skip


class Untraceable(Exception):
    """A right-hand side holds something that is not an expression in neighbouring points; the text says what."""


class Symbol:
    """An array that is not computed but written down.

    op, arguments : how its value at a point follows from others; leaves are "u", "x", "p" and "t".
    grid : its points along each grid axis, ghost layers included; 1 where it is constant along one.
    shift : its first point along each axis, counted in the points of its arguments.
    components : number of unknowns that it holds; None for a single one.
    """

    __slots__ = ("arguments", "components", "grid", "op", "shift")

    def __init__(
        self, op: str, arguments: tuple[Any, ...], grid: tuple[int, ...], *, shift: tuple[int, ...] | None = None,
        components: int | None = None,
    ) -> None:  # fmt: skip
        self.op, self.arguments, self.grid = op, arguments, grid
        self.shift = (0,) * len(grid) if shift is None else shift
        self.components = components

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that it stands for."""
        return self.grid if self.components is None else (self.components, *self.grid)

    @property
    def ndim(self) -> int:
        """Number of axes of that array."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Symbol:
        if isinstance(index, int) and self.components is not None:
            return Symbol("pick", (self, index), self.grid)
        if not isinstance(index, tuple) or index[:1] != (Ellipsis,) or len(index) != 1 + len(self.grid):
            raise Untraceable(f"an array is indexed with {index!r}")
        shift, grid = list(self.shift), []
        for axis, (part, n) in enumerate(zip(index[1:], self.grid, strict=True)):
            start, stop, step = part.indices(n)
            if step != 1:
                raise Untraceable(f"an array is indexed with {index!r}")
            shift[axis] += start
            grid.append(stop - start)
        return Symbol(self.op, self.arguments, tuple(grid), shift=tuple(shift), components=self.components)

    def __iter__(self) -> Iterator[Symbol]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        raise Untraceable("the program asks whether a value is true")

    def __float__(self) -> float:
        raise Untraceable("the program asks for the value of a parameter, the time or a field")

    __int__ = __index__ = __float__  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Symbol:
        if method != "__call__" or kwargs or ufunc.nout != 1:
            raise Untraceable(f"np.{ufunc.__name__}.{method} is called with {sorted(kwargs)}")
        return combined(ufunc.__name__, *inputs)

    def __array_function__(self, function: Callable, types: Any, args: Any, kwargs: Any) -> Symbol:
        if function is np.where and len(args) == 3:
            return combined("where", *args)
        if function is np.broadcast_to and isinstance(args[1], tuple):
            grid = tuple(args[1][-len(self.grid) :])
            return Symbol("same", (self,), grid, components=self.components)
        raise Untraceable(f"np.{function.__name__} is called")


def combined(name: str, *operands: Any) -> Symbol:
    """Return a function of symbols and numbers, point by point."""
    if name not in _INFIX and name not in _CALLS and name not in ("where", "negative", "positive", "invert"):
        raise Untraceable(f"np.{name} is called")
    symbols = [one for one in operands if isinstance(one, Symbol)]
    grid = np.broadcast_shapes(*(one.grid for one in symbols))
    counts = {one.components for one in symbols} - {None}
    for one in operands:
        if not isinstance(one, Symbol | int | float | np.bool_ | np.floating | np.integer):
            raise Untraceable(f"an array {type(one).__name__} enters a formula")
    if len(counts) > 1:
        raise Untraceable(f"fields with {counts} components meet")
    return Symbol(name, operands, grid, components=counts.pop() if counts else None)


def _operator(name: str, reflected: bool = False) -> Callable:
    def method(self: Symbol, other: Any) -> Symbol:
        return combined(name, other, self) if reflected else combined(name, self, other)

    return method


for _python, _numpy in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "and": "bitwise_and",
    "or": "bitwise_or",
}.items():  # fmt: skip
    setattr(Symbol, f"__{_python}__", _operator(_numpy))
    setattr(Symbol, f"__r{_python}__", _operator(_numpy, reflected=True))
for _python, _numpy in {
    "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "eq": "equal", "ne": "not_equal",
}.items():  # fmt: skip
    setattr(Symbol, f"__{_python}__", _operator(_numpy))
Symbol.__neg__ = lambda self: combined("negative", self)  # type: ignore[attr-defined]
Symbol.__pos__ = lambda self: self  # type: ignore[attr-defined]
Symbol.__abs__ = lambda self: combined("absolute", self)  # type: ignore[attr-defined]
Symbol.__invert__ = lambda self: combined("logical_not", self)  # type: ignore[attr-defined]
Symbol.__hash__ = object.__hash__  # type: ignore[assignment]  # == writes a comparison down


class _NoWholeGrid(WholeGrid):
    """Refuses what needs more than neighbouring points."""

    def mean(self, array: Any) -> Any:
        """Refuse."""
        raise Untraceable("d.mean looks at the whole grid")

    def derivative(self, array: Any, axis: int, order: int, halo: int) -> Any:
        """Refuse."""
        raise Untraceable("spectral derivatives look at whole lines")

    def inverse_laplacian(self, array: Any, halo: int, boundary: Any) -> Any:
        """Refuse."""
        raise Untraceable("d.inverse_laplacian looks at the whole grid")


def traced(case: Case, function: Callable[..., Any], block: tuple[int, ...], halo: int) -> str:
    """Return the text of a function kernel(u, out, x, p, t, low, high) that computes a right-hand side on a box.

    u : (fields, *block + 2·halo).  out : (fields, *block).  x : one line of coordinates per axis.
    p : parameters in the case's order.  low, high : the box, per axis, in points of out, np.uint64.

    Raises
    ------
    Untraceable : it cannot be written so.
    GhostLayersExhausted : it needs more ghost layers.
    """
    ndim = len(block)
    full = tuple(n + 2 * halo for n in block)
    once = (1,) * ndim

    def line(axis: int) -> Field:
        grid = tuple(n if a == axis else 1 for a, n in enumerate(full))
        return Field(Symbol("x", (axis,), grid), halo, ndim)

    u = Field(Symbol("u", (), full, components=len(case.fields)), halo, ndim, components=True)
    d = Operators(case.grid.spacing, block, tuple(map(line, range(ndim))), _NoWholeGrid(), case.accuracy)
    p = Parameters({name: uniform(Symbol("p", (k,), once), ndim) for k, name in enumerate(case.parameters)})
    result = function(u, d, p, uniform(Symbol("t", (), once), ndim))
    writer = _Writer(ndim)
    for k, value in enumerate(_parts(result, len(case.fields))):
        writer.store(k, value)
    return writer.text()


def _parts(result: Any, fields: int) -> list[Any]:
    """Return one symbol or number per unknown."""
    if isinstance(result, Field) and result.components:
        array = result.cropped(0).array
        return [array[k] for k in range(fields)]
    parts = list(result) if isinstance(result, tuple | list) else [result]
    if len(parts) != fields:
        raise Untraceable(f"{len(parts)} fields are returned")
    values = []
    for part in parts:
        value = part.cropped(0).array if isinstance(part, Field) else part
        values.append(value[0] if isinstance(value, Symbol) and value.components else value)
    return values


class _Writer:
    """Writes expressions as statements, each once, in the outermost loop that knows what it needs."""

    def __init__(self, ndim: int) -> None:
        self._ndim = ndim
        self._lines: list[list[str]] = [[] for _ in range(ndim + 1)]
        self._known: dict[tuple, tuple[str, int]] = {}
        self._alive: list[Symbol] = []

    def store(self, field: int, value: Any) -> None:
        """Write the value of an unknown."""
        name, _ = self._written(value, None, (0,) * self._ndim)
        self._lines[self._ndim].append(f"out[{field}, {', '.join(_INDEX[: self._ndim])}] = {name}")

    def text(self) -> str:
        """Return the function."""
        lines = ["def kernel(u, out, x, p, t, low, high):", *(f"    {line}" for line in self._lines[0])]
        for axis in range(self._ndim):
            indent = "    " * (axis + 1)
            lines.append(f"{indent}for {_INDEX[axis]} in range(low[{axis}], high[{axis}]):")
            lines += [f"{indent}    {line}" for line in self._lines[axis + 1]]
        return "\n".join(lines) + "\n"

    def _written(self, value: Any, component: int | None, shift: tuple[int, ...]) -> tuple[str, int]:
        """Return the name of a value at the loop's point moved by shift, and the loop level that knows it."""
        if not isinstance(value, Symbol):
            return repr(value.item() if isinstance(value, np.generic) else value), 0
        shift = tuple(a + b if n > 1 else 0 for a, b, n in zip(value.shift, shift, value.grid, strict=True))
        if value.op == "pick":
            return self._written(value.arguments[0], value.arguments[1], shift)
        if value.op == "same":
            return self._written(value.arguments[0], component, shift)
        component = component if value.components is not None else None
        # Views of one value share their tuple of arguments; leaves are known by what they are.
        identity = (value.op, value.arguments) if value.op in ("u", "x", "p", "t") else id(value.arguments)
        key = (value.op, identity, component, shift)
        if key not in self._known:
            self._alive.append(value)
            text, level = self._expression(value, component, shift)
            if len(self._known) > MOST_STATEMENTS:
                raise Untraceable(f"it takes more than {MOST_STATEMENTS} statements a point")
            name = f"v{len(self._known)}"
            self._lines[level].append(f"{name} = {text}")
            self._known[key] = name, level
        return self._known[key]

    def _expression(self, value: Symbol, component: int | None, shift: tuple[int, ...]) -> tuple[str, int]:
        if value.op == "u":
            place = ", ".join(f"{i} + _{s}" for i, s in zip(_INDEX, shift, strict=False))
            return f"u[{component}, {place}]", self._ndim
        if value.op == "x":
            axis = value.arguments[0]
            return f"x[{axis}][{_INDEX[axis]} + _{shift[axis]}]", axis + 1
        if value.op == "p":
            return f"p[{value.arguments[0]}]", 0
        if value.op == "t":
            return "t", 0
        names, levels = zip(*(self._written(one, component, shift) for one in value.arguments), strict=True)
        return _spelled(value.op, names, value.arguments), max(levels)


def _spelled(op: str, names: tuple[str, ...], arguments: tuple[Any, ...]) -> str:
    if op in _INFIX:
        return f"({names[0]}) {_INFIX[op]} ({names[1]})"
    if op == "power" and not isinstance(arguments[1], Symbol):
        # As numpy does: squares are products, 0.5 is a root.
        if arguments[1] == 2:
            return f"({names[0]}) * ({names[0]})"
        if arguments[1] == 0.5:
            return f"np.sqrt({names[0]})"
    if op == "where":
        return f"({names[1]}) if ({names[0]}) else ({names[2]})"
    if op in ("negative", "positive", "invert"):
        return f"{dict(negative='-', positive='+', invert='not ')[op]}({names[0]})"
    return f"np.{op}({', '.join(names)})"


def unsigned(corner: tuple[int, ...]) -> tuple[np.uint64, ...]:
    """Return a corner of a box as a kernel takes it."""
    return tuple(map(np.uint64, corner))


@lru_cache(maxsize=16)
def combination(count: int) -> Callable[..., None]:
    """Return the machine code of out = u + c_0 k_0 + ... + c_{count-1} k_{count-1}, summed from the left, in one pass.

    Arguments : out, u, the tuple of the k, the tuple of the c; all arrays flat.
    """
    terms = "".join(f" + c[{n}] * k[{n}][i]" for n in range(count))
    return compiled(f"def kernel(out, u, k, c):\n    for i in range(u.size):\n        out[i] = u[i]{terms}\n")


@lru_cache(maxsize=32)
def compiled(text: str) -> Callable[..., None]:
    """Return the machine code of a kernel; half a second or more, once in a process.

    Raises
    ------
    ImportError : numba is not installed.
    """
    import numba

    # Indices without a sign: numba would ask of every other one whether it counts from the end, three times as slow.
    scope: dict[str, Any] = {"np": np, **{f"_{n}": np.uint64(n) for n in range(32)}}
    exec(compile(text, "<right-hand side>", "exec"), scope)
    # Divisions as numpy's: infinite where the divisor is zero. No fastmath: the order of the array path is kept.
    return numba.njit(error_model="numpy", nogil=True)(scope["kernel"])
