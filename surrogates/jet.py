"""What a right-hand side sees at scattered points: a value with its first and second derivatives in space, a jet."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import torch

_NO_REDUCTION = "would be taken over scattered points; the mean over space is not known there"

Partial = torch.Tensor | float | None
"""A derivative: None where it is zero everywhere."""


class DerivativesExhausted(ValueError):
    """A right-hand side needs more derivatives than the jet of a network carries."""


class Jet:
    """One unknown, or all of them, at scattered points, with derivatives; gradients to network weights are kept.

    It takes what `headrace.solvers.field.Field` takes: arithmetic, comparisons, `u[i]`, `a, b = u`, numpy functions.

    value : (points,), or (fields, points) where `components`.
    gradient : per axis the derivative, shaped like value; None where it is zero.
    hessian : (i, j) with i <= j -> second derivative; None where it is zero.
    order : derivatives that are known, 0, 1 or 2.
    """

    __slots__ = ("components", "gradient", "hessian", "order", "value")
    __hash__ = None  # type: ignore[assignment]  # == compares point by point

    def __init__(
        self, value: torch.Tensor, gradient: Sequence[Partial], hessian: dict[tuple[int, int], Partial],
        order: int = 2, components: bool = False,
    ) -> None:  # fmt: skip
        self.value = value
        self.gradient = tuple(gradient)
        self.hessian = hessian
        self.order = order
        self.components = components

    @property
    def ndim(self) -> int:
        """Axes of space."""
        return len(self.gradient)

    # --- components

    def __len__(self) -> int:
        if not self.components:
            raise TypeError("This is a single field: it has no components to count or unpack.")
        return len(self.value)

    def __getitem__(self, index: Any) -> Jet:
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise TypeError(
                f"Field indexed with {index!r}: fields are indexed by number, u[0] is the first unknown. Space cannot "
                "be sliced; use the operators of d, d.x for coordinates, np.where for regions."
            )
        if not self.components:
            raise TypeError(f"u[{index}] of a single field: it has no components, and space is not indexed; use d.x.")
        if not -len(self.value) <= index < len(self.value):
            raise IndexError(f"u[{index}]: there are {len(self.value)} fields, 0 to {len(self.value) - 1}.")
        return self.mapped(lambda a: a[int(index)] if torch.is_tensor(a) and a.ndim == self.value.ndim else a, False)

    def __iter__(self) -> Iterator[Jet]:
        return (self[i] for i in range(len(self)))

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("Fields are never written in place; compute a new one, e.g. with np.where(condition, a, b).")

    def mapped(self, function: Callable[[Any], Any], components: bool | None = None) -> Jet:
        """Return the jet with a linear function applied to the value and to each derivative that is not zero."""

        def apply(a: Any) -> Any:
            return None if a is None else function(a)

        hessian = {key: apply(part) for key, part in self.hessian.items()}
        kept = self.components if components is None else components
        return Jet(function(self.value), [apply(part) for part in self.gradient], hessian, self.order, kept)

    def derivative(self, axis: int, order: int = 1) -> Jet:
        """Return ∂^order u / ∂x_axis^order, order 1 or 2.

        Raises
        ------
        DerivativesExhausted : more derivatives are needed than are known.
        """
        if order > self.order:
            raise DerivativesExhausted(
                f"The right-hand side needs {order} more derivatives of a network's output here, {self.order} are "
                "left. Jets carry two in all; add an unknown for an inner derivative."
            )
        axes = range(self.ndim)
        if order == 1:
            gradient = [self.hessian[min(axis, j), max(axis, j)] if self.order == 2 else None for j in axes]
            return Jet(self._full(self.gradient[axis]), gradient, {}, self.order - 1, self.components)
        return Jet(self._full(self.hessian[axis, axis]), [None] * self.ndim, {}, 0, self.components)

    def _full(self, part: Partial) -> torch.Tensor:
        if part is None:
            return torch.zeros_like(self.value)
        return part if torch.is_tensor(part) and part.shape == self.value.shape else torch.zeros_like(self.value) + part

    # --- refusals

    def __bool__(self) -> bool:
        raise TypeError("`if` on a field has no single answer, every point has its own; use np.where(condition, a, b).")

    def __float__(self) -> float:
        raise TypeError("A field is not one number; use np functions (np.sin, not math.sin).")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("A field does not turn into an array: derivatives would be lost. Use it in formulas as it is.")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the points: initial states are written with np.zeros(x[0].shape)."""
        return tuple(self.value.shape)

    # --- numpy and torch protocols

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Jet:
        name = ufunc.__name__
        if method != "__call__":
            raise TypeError(f"np.{name}.{method} of a field {_NO_REDUCTION}.")
        if kwargs or name not in FUNCTIONS:
            refused = f"{name} with {sorted(kwargs)}" if kwargs else name
            known = ", ".join("np." + known for known in sorted(FUNCTIONS))
            raise TypeError(f"np.{refused} of a field has no derivatives here. There are {known}.")
        return FUNCTIONS[name](*inputs)

    def __array_function__(self, function: Callable, types: Any, args: Any, kwargs: Any) -> Jet:
        name = function.__name__
        if kwargs or name not in FUNCTIONS:
            known = ", ".join("np." + known for known in sorted(FUNCTIONS))
            raise TypeError(f"np.{name} of a field is not defined: {_NO_REDUCTION}. There are {known}.")
        return FUNCTIONS[name](*args)

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Jet:
        name = function.__name__.strip("_")
        operation = {"rsub": "subtract", "sub": "subtract", "mul": "multiply", "rmul": "multiply", "div": "divide",
                     "truediv": "divide", "rtruediv": "divide", "rdiv": "divide", "add": "add", "radd": "add"}.get(name)
        if operation is None or kwargs or len(args) != 2:
            raise TypeError(f"torch.{name} of a field: a right-hand side is written once; use np.{name}.")
        return FUNCTIONS[operation](*(reversed(args) if name.startswith("r") else args))

    def __repr__(self) -> str:
        return f"Jet(value of shape {tuple(self.value.shape)}, order={self.order})"


def pairs(ndim: int) -> list[tuple[int, int]]:
    """Return (i, j) with i <= j: the entries of a Hessian that a jet holds."""
    return list(combinations_with_replacement(range(ndim), 2))


def constant(value: torch.Tensor, ndim: int, components: bool = False) -> Jet:
    """Return a jet that is the same in all of space; value : (points,) or (fields, points)."""
    return Jet(value, [None] * ndim, dict.fromkeys(pairs(ndim)), 2, components)


def stacked(jets: Sequence[Jet]) -> Jet:
    """Return single fields as one jet with components."""
    like = jets[0].value

    def together(parts: Sequence[Partial]) -> Partial:
        if all(part is None for part in parts):
            return None
        return torch.stack([torch.zeros_like(like) + (0.0 if part is None else part) for part in parts])

    order = min(jet.order for jet in jets)
    ndim = jets[0].ndim
    gradient = [together([jet.gradient[i] for jet in jets]) if order else None for i in range(ndim)]
    hessian = {key: together([jet.hessian[key] for jet in jets]) for key in pairs(ndim)} if order == 2 else {}
    return Jet(together([jet.value for jet in jets]), gradient, hessian, order, True)


# --- sums and products of parts that may be zero (None)


def _plus(a: Partial, b: Partial) -> Partial:
    return b if a is None else a if b is None else a + b


def _times(a: Partial, b: Partial) -> Partial:
    return None if a is None or b is None else a * b


def _number(value: Any) -> Any:
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, float | int) or (torch.is_tensor(value) and value.ndim == 0):
        return value
    raise TypeError(
        f"A field met {type(value).__name__}{list(getattr(value, 'shape', []))} in a formula. Allowed are numbers, "
        "parameters and fields: an array of your own has no derivatives; build it from d.x."
    )


def _chain(u: Jet, value: torch.Tensor, slope: Partial, curvature: Partial) -> Jet:
    """f(u) with f' and f'' at u."""
    gradient = [_times(slope, part) for part in u.gradient] if u.order else [None] * u.ndim
    hessian = {}
    if u.order == 2:
        for i, j in pairs(u.ndim):
            bend = _times(curvature, _times(u.gradient[i], u.gradient[j]))
            hessian[i, j] = _plus(_times(slope, u.hessian[i, j]), bend)
    return Jet(value, gradient, hessian, u.order, u.components)


def _sum(a: Any, b: Any, sign: float = 1.0) -> Jet:
    if not isinstance(b, Jet):
        return Jet(a.value + sign * _number(b), a.gradient, a.hessian, a.order, a.components)
    if not isinstance(a, Jet):
        return _sum(b if sign > 0 else b.mapped(operator.neg), a)
    b = b if sign > 0 else b.mapped(operator.neg)
    order = min(a.order, b.order)
    gradient = [_plus(x, y) for x, y in zip(a.gradient, b.gradient, strict=True)]
    hessian = {key: _plus(a.hessian[key], b.hessian[key]) for key in pairs(a.ndim)} if order == 2 else {}
    return Jet(a.value + b.value, gradient, hessian, order, a.components or b.components)


def _product(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    if not isinstance(b, Jet):
        factor = _number(b)
        return a.mapped(lambda part: part * factor)
    order = min(a.order, b.order)
    gradient = [_plus(_times(x, b.value), _times(a.value, y)) for x, y in zip(a.gradient, b.gradient, strict=True)]
    hessian = {}
    if order == 2:
        for i, j in pairs(a.ndim):
            cross = _plus(_times(a.gradient[i], b.gradient[j]), _times(a.gradient[j], b.gradient[i]))
            outer = _plus(_times(a.hessian[i, j], b.value), _times(a.value, b.hessian[i, j]))
            hessian[i, j] = _plus(outer, cross)
    return Jet(a.value * b.value, gradient, hessian, order, a.components or b.components)


def _reciprocal(u: Jet) -> Jet:
    r = 1 / u.value
    return _chain(u, r, -r * r, 2 * r * r * r)


def _quotient(a: Any, b: Any) -> Jet:
    return _product(a, _reciprocal(b)) if isinstance(b, Jet) else _product(a, 1 / _number(b))


def _power(a: Any, b: Any) -> Jet:
    if isinstance(b, Jet):
        return _exp(_product(_log(a) if isinstance(a, Jet) else float(np.log(_number(a))), b))
    n = _number(b)
    if n == 2:
        return _product(a, a)
    v = a.value
    return _chain(a, v**n, n * v ** (n - 1) if n else None, n * (n - 1) * v ** (n - 2) if n not in (0, 1) else None)


def _exp(u: Jet) -> Jet:
    e = torch.exp(u.value)
    return _chain(u, e, e, e)


def _log(u: Jet) -> Jet:
    r = 1 / u.value
    return _chain(u, torch.log(u.value), r, -r * r)


def _unary(function: Callable, slope: Callable, curvature: Callable) -> Callable[[Jet], Jet]:
    return lambda u: _chain(u, function(u.value), slope(u.value), curvature(u.value))


def _tanh(u: Jet) -> Jet:
    y = torch.tanh(u.value)
    s = 1 - y * y
    return _chain(u, y, s, -2 * y * s)


def _arctan(u: Jet) -> Jet:
    s = 1 / (1 + u.value**2)
    return _chain(u, torch.atan(u.value), s, -2 * u.value * s * s)


def _sign(u: Jet) -> Jet:
    return constant(torch.sign(u.value), u.ndim, u.components)


def _absolute(u: Jet) -> Jet:
    sign = torch.sign(u.value)
    return u.mapped(lambda part: sign * part)


def _where(condition: Any, a: Any, b: Any) -> Jet:
    """a or b point by point; derivatives are those of the one chosen."""
    like = next(part for part in (a, b, condition) if isinstance(part, Jet))
    mask, full = _truth(condition), torch.zeros_like(like.value)
    a, b = (part if isinstance(part, Jet) else constant(full + _number(part), like.ndim) for part in (a, b))
    order = min(a.order, b.order)

    def choose(x: Partial, y: Partial) -> Partial:
        if x is None and y is None:
            return None
        return torch.where(mask, full + (0.0 if x is None else x), full + (0.0 if y is None else y))

    gradient = [choose(x, y) for x, y in zip(a.gradient, b.gradient, strict=True)]
    hessian = {key: choose(a.hessian[key], b.hessian[key]) for key in pairs(a.ndim)} if order == 2 else {}
    return Jet(choose(a.value, b.value), gradient, hessian, order, a.components or b.components)


def _compared(operation: Callable) -> Callable[[Any, Any], Jet]:
    def compare(a: Any, b: Any) -> Jet:
        jet = a if isinstance(a, Jet) else b
        values = [part.value if isinstance(part, Jet) else _number(part) for part in (a, b)]
        # 1 and 0 in the precision of what is compared, as those of a `Field`.
        return constant(operation(*values).to(jet.value.dtype), jet.ndim, jet.components)

    return compare


def _truth(condition: Any) -> Any:
    return condition.value != 0 if isinstance(condition, Jet) else condition != 0


FUNCTIONS: dict[str, Callable[..., Jet]] = {
    "add": _sum, "subtract": lambda a, b: _sum(a, b, -1.0), "multiply": _product, "divide": _quotient,
    "true_divide": _quotient, "power": _power, "float_power": _power, "square": lambda u: _product(u, u),
    "negative": lambda u: u.mapped(operator.neg), "positive": lambda u: u, "reciprocal": _reciprocal,
    "exp": _exp, "log": _log, "tanh": _tanh, "arctan": _arctan, "sign": _sign, "absolute": _absolute,
    "sin": _unary(torch.sin, torch.cos, lambda v: -torch.sin(v)),
    "cos": _unary(torch.cos, lambda v: -torch.sin(v), lambda v: -torch.cos(v)),
    "sinh": _unary(torch.sinh, torch.cosh, torch.sinh), "cosh": _unary(torch.cosh, torch.sinh, torch.cosh),
    "sqrt": lambda u: _power(u, 0.5), "where": _where,
    "maximum": lambda a, b: _where(_compared(operator.ge)(a, b), a, b),
    "minimum": lambda a, b: _where(_compared(operator.le)(a, b), a, b),
    "clip": lambda u, low, high: FUNCTIONS["minimum"](FUNCTIONS["maximum"](u, low), high),
    "zeros_like": lambda u: u * 0, "ones_like": lambda u: u * 0 + 1, "full_like": lambda u, value: u * 0 + value,
}  # fmt: skip
"""The numpy functions that know their derivatives; at kinks, those of one side."""

_OPERATORS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power"}


def _method(function: Callable, reflected: bool = False) -> Callable[[Jet, Any], Jet]:
    return (lambda self, other: function(other, self)) if reflected else (lambda self, other: function(self, other))


for _name, _function in _OPERATORS.items():
    setattr(Jet, f"__{_name}__", _method(FUNCTIONS[_function]))
    setattr(Jet, f"__r{_name}__", _method(FUNCTIONS[_function], reflected=True))
for _name, _function in {
    "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "eq": "equal", "ne": "not_equal",
}.items():  # fmt: skip
    FUNCTIONS[_function] = _compared(getattr(operator, _name))
    setattr(Jet, f"__{_name}__", _method(FUNCTIONS[_function]))
for _name, _logic in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
    FUNCTIONS[f"logical_{_name}"] = _compared(lambda a, b, logic=_logic: logic(a != 0, b != 0))
    FUNCTIONS[f"bitwise_{_name}"] = FUNCTIONS[f"logical_{_name}"]
    setattr(Jet, f"__{_name}__", _method(FUNCTIONS[f"logical_{_name}"]))
    setattr(Jet, f"__r{_name}__", _method(FUNCTIONS[f"logical_{_name}"], reflected=True))
Jet.__neg__ = FUNCTIONS["negative"]  # type: ignore[attr-defined]
Jet.__pos__ = FUNCTIONS["positive"]  # type: ignore[attr-defined]
Jet.__abs__ = FUNCTIONS["absolute"]  # type: ignore[attr-defined]
FUNCTIONS["logical_not"] = FUNCTIONS["invert"] = lambda self: self == 0
Jet.__invert__ = FUNCTIONS["logical_not"]  # type: ignore[attr-defined]
