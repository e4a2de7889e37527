"""A uniform Cartesian grid as data."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace

import numpy as np

AXES = "xyz"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A uniform grid of points on a box, axis 0 is x.

    On a periodic axis the points are x_i = origin + i·h with h = extent / n (the end point is
    the first point again). On an axis with walls they are cell centres, x_i = origin + (i + 1/2)·h,
    so that both walls lie half a cell outside the outermost points.

    Parameters
    ----------
    shape : points along each axis, 1 to 3 axes, each at least 2.
    extent : length of the box along each axis, in the user's units.
    origin : lower corner of the box; zeros if left out.

    Raises
    ------
    ValueError, TypeError : where the three do not fit together, are not positive, or no numbers.
    """

    shape: tuple[int, ...]
    extent: tuple[float, ...]
    origin: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        try:
            shape = tuple(operator.index(n) for n in self.shape)
            extent = tuple(float(length) for length in self.extent)
            origin = tuple(float(o) for o in self.origin) or (0.0,) * len(shape)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"Grid shape {self.shape!r} must be whole numbers, extent {self.extent!r} and origin {self.origin!r} "
                "numbers, one per axis, as shape=(64, 64), extent=(1.0, 1.0)."
            ) from None
        if not 1 <= len(shape) <= 3:
            raise ValueError(f"Grid shape {shape} has {len(shape)} axes; 1, 2 or 3 are allowed.")
        if not len(shape) == len(extent) == len(origin):
            raise ValueError(
                f"Grid shape {shape}, extent {extent} and origin {origin} must name the same number of axes."
            )
        if min(shape) < 2:
            raise ValueError(f"Grid shape {shape} needs at least 2 points along every axis.")
        if not all(math.isfinite(length) and length > 0 for length in extent):
            raise ValueError(f"Grid extent {extent} must be positive and finite along every axis.")
        if not all(map(math.isfinite, origin)):
            raise ValueError(f"Grid origin {origin} must be finite along every axis.")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "extent", extent)
        object.__setattr__(self, "origin", origin)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def num_points(self) -> int:
        """Number of points in all."""
        return math.prod(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance h between neighbouring points along each axis."""
        return tuple(length / n for length, n in zip(self.extent, self.shape, strict=True))

    def points(self, axis: int, *, periodic: bool) -> np.ndarray:
        """Return the coordinates along one axis, shape (shape[axis],), float64."""
        shift = 0.0 if periodic else 0.5
        return self.origin[axis] + (np.arange(self.shape[axis]) + shift) * self.spacing[axis]

    def resized(self, shape: tuple[int, ...]) -> Grid:
        """Return the same box with another number of points."""
        return replace(self, shape=shape)
