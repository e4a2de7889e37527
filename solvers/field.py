"""What a right-hand side sees in place of arrays: a field on a block of the grid, ghost layers included."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_TORCH_NAMES = {"equal": "eq", "absolute": "abs", "fabs": "abs", "power": "pow", "rint": "round"}
_REDUCTIONS = {"sum", "mean", "max", "min", "amax", "amin", "prod", "any", "all", "std", "var", "median", "norm", "dot"}
_NO_REDUCTION = "would be taken over one block only, and differ between ranks; use d.mean(u) for the mean over the grid"


class GhostLayersExhausted(Exception):
    """An operator needs one more ghost layer than its operand has left; the framework then adds one and repeats."""


class Field:
    """One unknown, or all of them, on a block with ghost layers; numpy arrays and torch tensors alike.

    It takes arithmetic, comparisons, `u[i]`, `a, b = u`, and numpy functions (`np.exp(u)`, `np.where(...)`).
    Comparisons give 1 where they hold and 0 elsewhere, in the precision of what is compared. Operands with different
    numbers of ghost layers are cropped to the smaller one.

    array : (fields, *batch, *grid) where `components`, else (*batch, *grid); grid axes include the
        ghost layers; a grid axis of length 1 is constant along it.
    halo : ghost layers on each side of each grid axis; None where the value is the same in all of space.
    ndim : number of grid axes.
    components : whether axis 0 counts the unknowns.
    """

    __slots__ = ("array", "components", "halo", "ndim")

    def __init__(self, array: Any, halo: int | None, ndim: int, components: bool = False) -> None:
        self.array = array
        self.halo = halo
        self.ndim = ndim
        self.components = components

    def cropped(self, halo: int | None) -> Field:
        """Return the field with fewer ghost layers; a view."""
        if self.halo is None or halo is None or self.halo == halo:
            return self
        cut = self.halo - halo
        inner = tuple(slice(cut, -cut) if n > 1 else slice(None) for n in self.array.shape[-self.ndim :])
        return Field(self.array[(..., *inner)], halo, self.ndim, self.components)

    # --- components

    def __len__(self) -> int:
        if not self.components:
            raise TypeError("This is a single field: it has no components to count or unpack.")
        return len(self.array)

    def __getitem__(self, index: Any) -> Field:
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise TypeError(
                f"Field indexed with {index!r}: fields are indexed by number, u[0] is the first unknown. Space "
                "cannot be sliced, a block knows only its own part; use the operators of d, d.x for coordinates, "
                "np.where for regions."
            )
        if not self.components:
            raise TypeError(f"u[{index}] of a single field: it has no components, and space is not indexed; use d.x.")
        if not -len(self.array) <= index < len(self.array):
            raise IndexError(f"u[{index}]: there are {len(self.array)} fields, 0 to {len(self.array) - 1}.")
        return Field(self.array[int(index)], self.halo, self.ndim)

    def __iter__(self) -> Iterator[Field]:
        return (self[i] for i in range(len(self)))

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("Fields are never written in place; compute a new one, e.g. with np.where(condition, a, b).")

    # --- refusals

    def __bool__(self) -> bool:
        raise TypeError("`if` on a field has no single answer, every point has its own; use np.where(condition, a, b).")

    def __float__(self) -> float:
        raise TypeError("A field is not one number; use np functions (np.sin, not math.sin), d.mean(u) for its mean.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("A field does not turn into an array: ghost layers would be lost. Use it in formulas as it is.")

    def __getattr__(self, name: str) -> Any:
        hint = f": a reduction {_NO_REDUCTION}" if name in _REDUCTIONS else ""
        raise AttributeError(
            f"A field has no attribute {name!r}{hint}. It takes arithmetic, u[i], numpy functions and operators of d."
        )

    # --- numpy and torch protocols

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Field:
        if method != "__call__":
            raise TypeError(f"np.{ufunc.__name__}.{method} of a field {_NO_REDUCTION}.")
        if kwargs or ufunc.nout != 1:
            refused = sorted(kwargs) or "second result"
            raise TypeError(f"np.{ufunc.__name__} of a field takes no {refused}; compute a new field.")
        return _combine(_LOGIC.get(ufunc.__name__) or for_operands(ufunc, ufunc.__name__), *inputs)

    def __array_function__(self, function: Callable, types: Any, args: Any, kwargs: Any) -> Field:
        name = function.__name__
        if name in _REDUCTIONS:
            raise TypeError(f"np.{name} of a field {_NO_REDUCTION}.")
        if kwargs or name not in _FUNCTIONS:
            call = f"np.{name}({', '.join(kwargs)}=...)" if kwargs else f"np.{name}"
            others = ", ".join(sorted("np." + name for name in _FUNCTIONS))
            raise TypeError(f"{call} is not defined for fields. Elementwise ones such as np.exp are, and {others}.")
        return _FUNCTIONS[name](*args)

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Field:
        # A tensor on the left of a field arrives here: p * u.
        name = function.__name__.strip("_")
        if name in _OPERATORS and len(args) == 2 and not kwargs:
            return _combine(_OPERATORS[name], *args)
        if name.startswith("r") and name[1:] in _OPERATORS and len(args) == 2 and not kwargs:
            return _combine(_OPERATORS[name[1:]], *reversed(args))
        raise TypeError(
            f"torch.{name} of a field: a right-hand side is written once for solvers and losses; use np.{name} "
            "(it works on tensors here, gradients included)."
        )

    def __repr__(self) -> str:
        return f"Field(array of shape {tuple(self.array.shape)}, halo={self.halo})"


def uniform(value: Any, ndim: int) -> Field:
    """Return a field that is the same in all of space; value : (*batch, 1, ..., 1) with ndim ones."""
    return Field(value, None, ndim)


def _constant(value: Any) -> Any:
    """Return a number as it may enter field arithmetic: Python scalars never change the field's dtype."""
    if isinstance(value, float | int):
        # np.float64 is a float too, and would turn float32 fields into float64.
        return value if type(value) in (float, int, bool) else value.item()
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if hasattr(value, "ndim") and value.ndim == 0:
        return value
    raise TypeError(
        f"A field met {type(value).__name__}{list(getattr(value, 'shape', []))} in a formula. Allowed are numbers, "
        "parameters and fields: an array of your own has no ghost layers and no blocks; build it from d.x."
    )


def _combine(operation: Callable, *operands: Any) -> Field:
    fields = [operand for operand in operands if isinstance(operand, Field)]
    halos = [field.halo for field in fields if field.halo is not None]
    halo = min(halos) if halos else None
    arrays = [o.cropped(halo).array if isinstance(o, Field) else _constant(o) for o in operands]
    result = _numbers(operation(*arrays), fields[0].array)
    return Field(result, halo, fields[0].ndim, any(field.components for field in fields))


def _numbers(result: Any, like: Any) -> Any:
    """Return truth values as 1 and 0 in the precision of another array, and anything else as it is."""
    if hasattr(result, "requires_grad"):
        return result.to(like.dtype) if result.dtype == sys.modules["torch"].bool else result
    return result.astype(like.dtype) if isinstance(result, np.ndarray) and result.dtype == bool else result


def for_operands(numpy_function: Callable, name: str) -> Callable:
    """Return the function that serves numpy arrays as they are and tensors by torch's function of the same name."""

    def apply(*arrays: Any) -> Any:
        tensor = next((a for a in arrays if hasattr(a, "requires_grad")), None)
        if tensor is None:
            return numpy_function(*arrays)
        torch = sys.modules["torch"]
        torch_function = getattr(torch, _TORCH_NAMES.get(name, name), None)
        if torch_function is None:
            raise TypeError(f"np.{name} has no counterpart in torch, so a loss cannot use this right-hand side.")
        as_tensor = [
            a if hasattr(a, "requires_grad") else torch.as_tensor(a, dtype=tensor.dtype, device=tensor.device)
            for a in arrays
        ]
        return torch_function(*as_tensor)

    return apply


def _where(condition: Any, a: Any, b: Any) -> Field:
    def choose(condition: Any, a: Any, b: Any) -> Any:
        if hasattr(condition, "dtype") and not (hasattr(a, "dtype") or hasattr(b, "dtype")):
            # Between two numbers: they have the precision of what the condition compares.
            a = condition * 0 + a
        if hasattr(condition, "requires_grad"):
            return sys.modules["torch"].where(condition != 0, a, b)
        return np.where(condition != 0, a, b)

    return _combine(choose, condition, a, b)


_FUNCTIONS: dict[str, Callable[..., Field]] = {
    "where": _where,
    "clip": lambda u, low, high: np.minimum(np.maximum(u, low), high),
    "zeros_like": lambda u: u * 0,
    "ones_like": lambda u: u * 0 + 1,
    "full_like": lambda u, value: u * 0 + value,
}

_LOGIC: dict[str, Callable] = {
    "and": lambda a, b: (a != 0) & (b != 0), "or": lambda a, b: (a != 0) | (b != 0),
    "xor": lambda a, b: (a != 0) != (b != 0), "not": lambda a: a == 0,
}  # fmt: skip
_LOGIC |= {f"{kind}_{name}": function for kind in ("logical", "bitwise") for name, function in _LOGIC.items()}
_LOGIC["invert"] = _LOGIC["not"]

_OPERATORS: dict[str, Callable] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "pow": operator.pow, "mod": operator.mod,
    "truediv": operator.truediv, "div": operator.truediv, "and": _LOGIC["and"], "or": _LOGIC["or"],
    "xor": _LOGIC["xor"], "gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le,
    "eq": operator.eq, "ne": operator.ne,
}  # fmt: skip


def _binary(operation: Callable) -> Callable:
    def method(self: Field, other: Any) -> Field:
        # The two cases that make up nearly all arithmetic come first: this is called many times a step.
        if type(other) is Field and other.halo == self.halo:
            array = operation(self.array, other.array)
            return Field(array, self.halo, self.ndim, self.components or other.components)
        if type(other) is float or type(other) is int:
            return Field(operation(self.array, other), self.halo, self.ndim, self.components)
        return _combine(operation, self, other)

    return method


def _reflected(operation: Callable) -> Callable:
    def method(self: Field, other: Any) -> Field:
        if type(other) is float or type(other) is int:
            return Field(operation(other, self.array), self.halo, self.ndim, self.components)
        return _combine(operation, other, self)

    return method


def _logical(operation: Callable) -> Callable:
    return lambda self, *others: _combine(operation, self, *others)


def _unary(operation: Callable) -> Callable:
    def method(self: Field) -> Field:
        return Field(operation(self.array), self.halo, self.ndim, self.components)

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "mod"):
    setattr(Field, f"__{_name}__", _binary(_OPERATORS[_name]))
    setattr(Field, f"__r{_name}__", _reflected(_OPERATORS[_name]))
for _name in ("gt", "ge", "lt", "le", "eq", "ne", "and", "or", "xor"):
    setattr(Field, f"__{_name}__", _logical(_OPERATORS[_name]))
Field.__rand__, Field.__ror__, Field.__rxor__ = Field.__and__, Field.__or__, Field.__xor__  # type: ignore[attr-defined]
Field.__invert__ = _logical(_LOGIC["not"])  # type: ignore[attr-defined]
for _name in ("neg", "pos", "abs"):
    setattr(Field, f"__{_name}__", _unary(getattr(operator, _name)))
Field.__hash__ = None  # type: ignore[assignment]  # == compares point by point
