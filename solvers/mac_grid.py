"""The staggered (marker-and-cell) grid: faces, walls, inflow, outflow and solid obstacles of a flow.

Every array has the shape of the grid. The pressure of cell i is at its centre; velocity component c of cell i is at
the middle of its upper face along axis c, at x_c + h/2 (Harlow and Welch 1965). The lower faces of the first cells
lie on a wall or inflow, where the velocity is given, or are the upper faces of the last cells of a periodic axis.

What a side of the box is follows from the boundary conditions of a case with the fields velocity..., pressure:

    wall, lid, inflow   velocity: Dirichlet (tangential: Neumann for free slip)     pressure: Neumann
    outflow             velocity: Neumann                                           pressure: Dirichlet(0)

An outflow may be at an upper side only.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .boundary import Dirichlet, Neumann, Periodic, Side, sides_of
from .case import Case
from .transforms import Ends


class Edge(enum.Enum):
    """What one side of the box is to the flow."""

    PERIODIC = "periodic"
    WALL = "wall"
    OUTFLOW = "outflow"


Solid = Callable[[tuple[np.ndarray, ...]], np.ndarray]


class MacGrid:
    """The staggered grid of a case on one block of cells.

    Parameters
    ----------
    case : its fields are the velocity components, one per axis, and the pressure.
    where : the block, one slice per axis.
    solid : function (x) -> whether a cell centre lies in an obstacle, on the coordinates of all cells; None: no
        obstacle. An obstacle is made of whole cells, its surface of faces at rest.

    Raises
    ------
    ValueError : other fields, or conditions that are no wall, inflow or outflow.
    """

    def __init__(self, case: Case, where: Sequence[slice], solid: Solid | None = None) -> None:
        self.ndim = case.grid.ndim
        self.spacing = case.grid.spacing
        self.where = tuple(where)
        self.shape = tuple(s.stop - s.start for s in self.where)
        self._grid = case.grid
        self._periodic = case.periodic
        if self.ndim < 2 or len(case.fields) != self.ndim + 1:
            raise ValueError(
                f"Case {case.name}: a staggered grid takes 2 or 3 axes and the fields velocity..., pressure, one "
                f"component per axis; the case has {self.ndim} axes and the fields {case.fields}."
            )
        sides = sides_of(case.boundary, case.fields, case.grid)
        self.sides = [sides[name] for name in case.fields[:-1]]
        pressure = sides[case.fields[-1]]
        self.edges = [
            tuple(self._edge(case, axis, end, pressure[axis][end]) for end in (0, 1)) for axis in range(self.ndim)
        ]
        kinds = {Edge.PERIODIC: Ends.PERIODIC, Edge.WALL: Ends.NEUMANN, Edge.OUTFLOW: Ends.NEUMANN_DIRICHLET}
        self.ends = tuple(kinds[high] for _, high in self.edges)
        """What the pressure does at the ends of every axis."""
        self._coordinates: dict[tuple[int | None, int], list[np.ndarray]] = {}
        self._tensors: dict[tuple[Any, ...], tuple[np.ndarray, Any]] = {}
        self._walls: dict[tuple[int, int, int], tuple[np.ndarray, ...]] = {}
        self.solid = self._evaluated(case, solid)
        """Which cells of the whole grid are solid; None without obstacles."""
        self.free, self.friction = self._masks()

    def _edge(self, case: Case, axis: int, end: int, pressure: Side) -> Edge:
        normal, others = self.sides[axis][axis][end], [side[axis][end] for side in self.sides]
        if isinstance(pressure, Periodic):
            return Edge.PERIODIC
        if isinstance(normal, Dirichlet) and pressure == Neumann(0.0):
            return Edge.WALL
        if all(isinstance(side, Neumann) for side in others) and pressure == Dirichlet(0.0) and end == 1:
            return Edge.OUTFLOW
        name = f"{'lower' if end == 0 else 'upper'} {'xyz'[axis]} side"
        raise ValueError(
            f"Case {case.name}: at the {name} the velocity has {others} and the pressure {pressure}. Allowed are "
            "a given normal velocity, Dirichlet, with Neumann(0) for the pressure, and, at an upper side, an "
            "outflow: Neumann for the velocity with Dirichlet(0) for the pressure."
        )

    def at_side(self, axis: int, end: int) -> bool:
        """Return whether the block ends at a side of the box that is not periodic."""
        if self._periodic[axis]:
            return False
        return self.where[axis].start == 0 if end == 0 else self.where[axis].stop == self._grid.shape[axis]

    def coordinates(self, component: int | None, ghosts: int = 0) -> list[np.ndarray]:
        """Return the points of a velocity component (None: of cell centres) on the block, one open mesh per axis."""
        if (component, ghosts) not in self._coordinates:
            lines = []
            for axis, place in enumerate(self.where):
                index = np.arange(place.start - ghosts, place.stop + ghosts)
                centre = 0.5
                if self._periodic[axis]:
                    index, centre = index % self._grid.shape[axis], 0.0
                shift = centre + (0.5 if axis == component else 0.0)
                lines.append(self._grid.origin[axis] + (index + shift) * self.spacing[axis])
            self._coordinates[component, ghosts] = list(np.ix_(*lines))
        return self._coordinates[component, ghosts]

    def constant(self, a: np.ndarray, like: Any, *, lead: bool = True) -> Any:
        """Return an array of this grid, (ndim, *grid), as a tensor where `like` is one, with axes for its batch.

        Tensors are kept, because an upload in every call costs time and cannot be part of a CUDA graph.
        """
        if not hasattr(like, "new_tensor"):
            return of_kind(a, like, lead=lead)
        key = (id(a), like.dtype, like.device, like.ndim * lead)
        if key not in self._tensors:
            self._tensors[key] = (a, of_kind(a, like, lead=lead))
        return self._tensors[key][1]

    def wall_value(self, component: int, axis: int, end: int, p: Any, t: Any, like: Any) -> Any:
        """Return what the condition of a component says at a side, over the padded layer where it is a function.

        like : an array or a tensor; coordinates and value are of its kind.
        """
        value = self.sides[component][axis][end].value
        if not callable(value):
            return value
        key = (component, axis, end)
        if key not in self._walls:
            x = list(self.coordinates(component, 1))
            position = self._grid.origin[axis] + end * self._grid.extent[axis]
            x[axis] = np.full([1] * self.ndim, position)
            self._walls[key] = tuple(x)
        return value(tuple(self.constant(line, like, lead=False) for line in self._walls[key]), p, t)

    def ghost(self, component: int, axis: int, end: int, value: Any, nearest: Any, second: Any) -> Any:
        """Return the ghost layer of a component beyond a side.

        value : from `wall_value`. nearest, second : the owned layers next to the side.
        """
        side, h = self.sides[component][axis][end], self.spacing[axis]
        if component != axis:
            return 2 * value - nearest if isinstance(side, Dirichlet) else nearest + h * value
        if end == 0:
            return 0 * nearest + value  # the lower face of the first cell is the wall
        # The upper face of the last cell is on the side itself: at a wall nothing depends on what lies behind.
        return 2 * value - second if isinstance(side, Dirichlet) else nearest + h * value

    def _evaluated(self, case: Case, solid: Solid | None) -> np.ndarray | None:
        if solid is None:
            return None
        axes = [case.grid.points(axis, periodic=periodic) for axis, periodic in enumerate(case.periodic)]
        found = np.broadcast_to(np.asarray(solid(tuple(np.ix_(*axes))), dtype=bool), case.grid.shape)
        return found if found.any() else None

    def _moved(self, a: np.ndarray, axis: int, by: int) -> np.ndarray:
        """Return what the cell `by` further along an axis holds; False beyond a side that is not periodic."""
        moved = np.roll(a, -by, axis)
        if not self._periodic[axis]:
            edge = [slice(None)] * a.ndim
            edge[axis] = slice(-1, None) if by > 0 else slice(0, 1)
            moved[tuple(edge)] = False
        return moved

    def _masks(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return 1 on faces that move freely, 0 elsewhere, and the friction Σ 1/h² of tangential neighbours in solids.

        A neighbour inside a solid lies half a cell behind its surface; it stands for -u so that the surface is at
        rest. Stored values in solids are zero, hence the second -u as a friction.
        """
        free = np.ones((self.ndim, *self.shape))
        friction = None
        if self.solid is not None:
            friction = np.zeros_like(free)
            for component in range(self.ndim):
                upper = self._moved(self.solid, component, 1)
                free[component] = ~(self.solid | upper)[self.where]
                inside = self.solid & upper
                for axis in range(self.ndim):
                    if axis != component:
                        count = self._moved(inside, axis, 1).astype(float) + self._moved(inside, axis, -1)
                        friction[component] += count[self.where] / self.spacing[axis] ** 2
        for axis, (_, high) in enumerate(self.edges):
            if high is Edge.WALL and self.at_side(axis, 1):
                free[(axis, *[slice(None)] * axis, -1)] = 0.0
        return free, friction

    def cut_faces(self) -> list[tuple[int, int, int]]:
        """Return every face between a fluid and a solid cell of the whole grid as (lower cell, upper cell, axis)."""
        if self.solid is None:
            return []
        number = np.arange(self.solid.size).reshape(self.solid.shape)
        faces = []
        for axis in range(self.ndim):
            differ = self.solid != self._moved(self.solid, axis, 1)
            if not self._periodic[axis]:
                differ[(*[slice(None)] * axis, -1)] = False
            upper = np.roll(number, -1, axis)
            faces += [(int(a), int(b), axis) for a, b in zip(number[differ], upper[differ], strict=True)]
        return faces


def of_kind(a: np.ndarray, like: Any, *, lead: bool = True) -> Any:
    """Return an array (ndim, *grid) as a tensor where `like` is one, with axes for its batch."""
    if lead:
        a = a.reshape(a.shape[0], *[1] * (like.ndim - a.ndim), *a.shape[1:])
    return like.new_tensor(a) if hasattr(like, "new_tensor") else a
