"""Boundary conditions as data: what the state is, or how it leaves, at each side of the box."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .grid import AXES, Grid

Value = float | Callable[..., Any]


@dataclass(frozen=True)
class Periodic:
    """The axis closes on itself: u(x + extent) = u(x)."""


@dataclass(frozen=True)
class Dirichlet:
    """The state has a given value on the wall: u = value.

    value : a number, or a function (x, p, t) of coordinates, parameters and time.
    """

    value: Value = 0.0


@dataclass(frozen=True)
class Neumann:
    """The state has a given derivative along the outward normal on the wall: ∂u/∂n = value.

    value : a number, or a function (x, p, t) of coordinates, parameters and time.
    """

    value: Value = 0.0


Side = Periodic | Dirichlet | Neumann
Boundary = Side | Mapping[str, Any]


def sides_of(boundary: Boundary, fields: tuple[str, ...], grid: Grid) -> dict[str, tuple[tuple[Side, Side], ...]]:
    """Return the condition on both sides of every axis for every field.

    A boundary is given in one of three forms: one condition for everything; a mapping from axis
    ("x", "y", "z") to a condition or a (low, high) pair; a mapping from field name to either.

    Raises
    ------
    ValueError : an axis or field is missing or unknown, or an axis is periodic on one side only
        or for one field only.
    """
    axes = AXES[: grid.ndim]
    per_field = isinstance(boundary, Mapping) and not set(boundary) <= set(AXES)
    if per_field and set(boundary) != set(fields):
        raise ValueError(
            f"Boundary names {sorted(boundary)}; give one entry for every axis {list(axes)} "
            f"or one for every field {list(fields)}."
        )
    result = {}
    for field in fields:
        given = boundary[field] if per_field else boundary
        result[field] = tuple(_pair(given, axis, axes) for axis in axes)
    for index, axis in enumerate(axes):
        kinds = {isinstance(side, Periodic) for sides in result.values() for side in sides[index]}
        if len(kinds) > 1:
            raise ValueError(f"Axis {axis} is periodic on some sides or fields only; it must be so on all or none.")
    return result


def _pair(given: Any, axis: str, axes: str) -> tuple[Side, Side]:
    if isinstance(given, Mapping):
        if set(given) != set(axes):
            raise ValueError(f"Boundary names the axes {sorted(given)}; the grid has {list(axes)}.")
        given = given[axis]
    pair = given if isinstance(given, tuple) else (given, given)
    if len(pair) != 2 or not all(isinstance(side, Periodic | Dirichlet | Neumann) for side in pair):
        raise ValueError(
            f"Boundary on axis {axis} is {given!r}; allowed are Periodic(), Dirichlet(value), Neumann(value) "
            "or a (low, high) pair of them."
        )
    return pair
