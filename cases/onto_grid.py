"""Values at scattered points, as somebody else's mesh has them, on the points of a case's grid."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial import Delaunay, cKDTree

from headrace.solvers import Case


class OntoGrid:
    """Interpolates linearly between points along a line, or in a Delaunay triangulation; exact for linear fields.

    Grid points outside of the box of the points, as walls are to the centres of cells, take the value where the box is
    nearest to them; those outside of the points' hull that of the nearest point. Both may be at most one grid spacing
    away. The triangulation is made once for points that stay where they are.

    Parameters
    ----------
    points : (n, d), d at least the grid's axes. Along each further axis only the points of the lowest plane are used.

    Raises
    ------
    ValueError : the grid does not lie where the points are.
    """

    def __init__(self, points: np.ndarray, case: Case) -> None:
        grid = case.grid
        axes = [grid.points(axis, periodic=case.periodic[axis]) for axis in range(grid.ndim)]
        targets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, grid.ndim)
        self._shape = grid.shape
        self._chosen, flat = _in_the_grids_space(np.asarray(points, dtype=float), grid.ndim)
        held = np.clip(targets, flat.min(axis=0), flat.max(axis=0))
        distance = np.linalg.norm(targets - held, axis=1)
        corners, weights = _between(flat[:, 0], held[:, 0]) if grid.ndim == 1 else _in_simplices(flat, held)
        outside = ~np.isfinite(weights).all(axis=1)
        if outside.any():
            distance[outside], nearest = cKDTree(flat).query(targets[outside])
            corners[outside], weights[outside] = nearest[:, None], 0.0
            weights[outside, 0] = 1.0
        if distance.max() > max(grid.spacing):
            raise ValueError(
                f"Grid point {targets[np.argmax(distance)].tolist()} of case {case.name} is {distance.max():g} away"
                " from the nearest of the mesh's points: the grid must lie where the mesh is."
            )
        self._corners, self._weights = corners, weights

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return values (fields, n) on the grid, (fields, *grid)."""
        chosen = np.asarray(values)[:, self._chosen]
        return np.einsum("fnk,nk->fn", chosen[:, self._corners], self._weights).reshape(len(chosen), *self._shape)


def _between(points: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each target the two neighbours among sorted points, and their weights."""
    right = np.clip(np.searchsorted(points, targets), 1, len(points) - 1)
    weight = (targets - points[right - 1]) / (points[right] - points[right - 1])
    return np.stack([right - 1, right], axis=1), np.stack([1 - weight, weight], axis=1)


def _in_simplices(points: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each target the corners of its simplex and their weights, NaN where it is in none."""
    hull = Delaunay(points)
    simplex = hull.find_simplex(targets, tol=1e-9)
    transform = hull.transform[simplex]
    inner = np.einsum("nij,nj->ni", transform[:, :-1], targets - transform[:, -1])
    weights = np.concatenate([inner, 1 - inner.sum(axis=1, keepdims=True)], axis=1)
    weights[simplex < 0] = np.nan
    return hull.simplices[simplex], weights


def _in_the_grids_space(points: np.ndarray, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which points to use, and their coordinates along the grid's axes."""
    if points.ndim != 2 or points.shape[1] < ndim:
        raise ValueError(f"The mesh has points of shape {points.shape}; the grid needs {ndim} coordinates of each.")
    chosen = np.arange(len(points))
    for axis in range(ndim, points.shape[1]):
        along = points[chosen, axis]
        size = np.ptp(points[:, :ndim]) or 1.0
        chosen = chosen[along <= along.min() + 1e-6 * size]
    flat, first = np.unique(points[chosen, :ndim], axis=0, return_index=True)
    if len(flat) <= ndim:
        raise ValueError(f"{len(flat)} points of the mesh span no region of {ndim} dimensions.")
    return chosen[first], flat


class Placement:
    """Brings a mesh's values to a case's fields: interpolated onto its grid, or kept as points.

    on : "grid"; or "points", for a case whose grid has one axis with as many points as the mesh, in the mesh's order.
    """

    def __init__(self, on: str) -> None:
        if on not in ("grid", "points"):
            raise ValueError(f"on is {on!r}; it must be 'grid' or 'points'.")
        self.on = on
        self._known: tuple[bytes, tuple[int, ...], OntoGrid] | None = None

    def __call__(self, points: np.ndarray, values: np.ndarray, case: Case) -> np.ndarray:
        """Return (fields, *grid) of values (fields, n) at points (n, d).

        Raises
        ------
        ValueError : the grid does not lie where the mesh is, or has not as many points.
        """
        if self.on == "points":
            if case.grid.shape != (values.shape[1],):
                raise ValueError(
                    f"The mesh has {values.shape[1]} points; a case that keeps them has Grid(shape="
                    f"({values.shape[1]},), ...), but case {case.name} has {case.grid.shape}."
                )
            return values
        content = np.ascontiguousarray(points).tobytes()
        if self._known is None or self._known[:2] != (content, case.grid.shape):
            self._known = content, case.grid.shape, OntoGrid(points, case)
        return self._known[2](values)


def name_of(fields: Mapping[str, str], name: str) -> str:
    """Return what a reader's `fields` says of a field of the case.

    Raises
    ------
    ValueError : it says nothing.
    """
    if name not in fields:
        raise ValueError(f"fields says nothing of the case's field {name!r}; it names {', '.join(fields) or 'none'}.")
    return fields[name]


def component(values: np.ndarray, name: str) -> np.ndarray:
    """Return one number a point of (n,) or (n, components), by a name such as "U", "U.x", "U.2" or "U.magnitude".

    Raises
    ------
    ValueError : a vector without a component's name, or one that it does not have.
    """
    values = np.asarray(values, dtype=float)
    _, _, wanted = name.partition(".")
    if values.ndim == 1 or values.shape[1] == 1:
        if wanted:
            raise ValueError(f"{name}: the result has one number a point and no component {wanted!r}.")
        return values.reshape(len(values))
    if wanted == "magnitude":
        return np.linalg.norm(values, axis=1)
    place = "xyz".find(wanted) if wanted and wanted in "xyz" else int(wanted) if wanted.isdigit() else -1
    if not 0 <= place < values.shape[1]:
        raise ValueError(
            f"{name}: the result has {values.shape[1]} numbers a point; name one as {name.partition('.')[0]}.x, .y, .z,"
            f" .0 to .{values.shape[1] - 1}, or .magnitude."
        )
    return values[:, place]
