"""A PDE problem as data: the one object from which solver, physics loss and surrogate are derived."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from .boundary import Boundary, Periodic, sides_of
from .grid import Grid
from .parameters import Declared, Parameters, component_names, flattened

if TYPE_CHECKING:
    from mpi4py import MPI

    from .scheme import Scheme


_KINDS: dict[str, tuple[Any, str]] = {
    "name": (str, "a text"),
    "fields": (Sequence, "a tuple of names"),
    "grid": (Grid, "a Grid"),
    "parameters": (Mapping, "a mapping of names to distributions"),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family of PDE problems: an equation on a grid, with parameters that vary.

    Main arguments
    --------------
    name : a short identifier, letters, digits and underscores.
    fields : names of the unknowns.
    grid : the grid they live on.
    boundary : one condition, or one per axis, or one per field (see `boundary.sides_of`).
    parameters : name -> distribution; a simulation draws one value of each. A `Vector` is kept as its components
        name_0, name_1, ...; a `Seed` moves to `seeds`.
    initial : function (x, p, rng) -> one array per field, on the coordinates x[0], x[1], ...
    rhs : function (u, d, p, t) -> ∂u/∂t, written with the operators of d; its docstring is the equation.
    duration : end time.
    num_snapshots : recorded steps; snapshot k is at k·duration / num_snapshots, k = 0 included.

    Other arguments
    ---------------
    scheme : the time scheme; None lets the solver choose.
    steps_per_snapshot : fixed number of time steps between two snapshots; None lets the scheme choose a stable one.
    stiff : linear part of rhs, same signature, to be treated implicitly.
    solver : function (case, p, comm, rng) -> iterator of `Snapshot`, in place of rhs, where the PDE needs its own;
        rng is what `initial` takes, the same on all ranks; its docstring is the equation.
    correction : function (case) -> function (old, new, t, dt, p) -> error of new after one step, for arrays or tensors
        (batch, fields, *grid) and parameters that broadcast against them; it lets surrogates learn from the equation
        of a case that has a solver in place of rhs (see `step_correction`).
    frame_velocity : function (u, d, p, t) -> velocity of the Lagrangian frame.
    description : one sentence for people; cost and source included.
    accuracy : order of the central operators of d: 2, 4, or "spectral" where every axis is periodic.
    compiled : whether numba may translate rhs (extra `fast`); what it cannot translate runs as it is. Pays from some
        seconds a process on, as translation takes about one.
    seeds : names of the `Seed` parameters; filled from `parameters`.

    Raises
    ------
    ValueError, TypeError : where the pieces do not fit; `verify` checks the functions by calling them.
    """

    name: str
    fields: tuple[str, ...]
    grid: Grid
    initial: Callable[..., Any]
    duration: float
    num_snapshots: int
    boundary: Boundary = field(default_factory=Periodic)
    parameters: Mapping[str, Declared] = field(default_factory=dict)
    rhs: Callable[..., Any] | None = None
    scheme: Scheme | None = None
    steps_per_snapshot: int | None = None
    stiff: Callable[..., Any] | None = None
    solver: Callable[..., Any] | None = None
    correction: Callable[..., Any] | None = None
    frame_velocity: Callable[..., Any] | None = None
    description: str = ""
    accuracy: int | str = 2
    compiled: bool = False
    seeds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_kinds()
        object.__setattr__(self, "fields", tuple(self.fields))
        try:
            scalars, seeds = flattened(self.parameters)
        except (TypeError, ValueError) as error:
            raise type(error)(f"Case {self.name}: {error}") from None
        object.__setattr__(self, "parameters", scalars)
        object.__setattr__(self, "seeds", tuple(dict.fromkeys((*self.seeds, *seeds))))
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", self.name):
            raise ValueError(f"Case name {self.name!r} must start with a letter; letters, digits and _ may follow.")
        if (self.rhs is None) == (self.solver is None):
            raise ValueError(f"Case {self.name}: give either rhs or solver, not {'both' if self.rhs else 'neither'}.")
        if not 0 < self.duration < math.inf:
            raise ValueError(f"Case {self.name}: duration {self.duration} must be positive and finite.")
        for count in ("num_snapshots", "steps_per_snapshot"):
            value = getattr(self, count)
            if not (isinstance(value, Integral) and value >= 1) and (value, count) != (None, "steps_per_snapshot"):
                raise ValueError(f"Case {self.name}: {count} {value!r} must be a whole number, at least 1.")
        sides_of(self.boundary, self.fields, self.grid)
        if self.accuracy not in (2, 4, "spectral"):
            raise ValueError(f"Case {self.name}: accuracy {self.accuracy!r} is not possible; use 2, 4 or 'spectral'.")
        if self.accuracy == "spectral" and not all(self.periodic):
            raise ValueError(f"Case {self.name}: accuracy 'spectral' needs periodic axes; between walls use 2 or 4.")
        walls = [n for n, periodic in zip(self.grid.shape, self.periodic, strict=True) if not periodic]
        if self.accuracy == 4 and walls and min(walls) < 4:
            raise ValueError(f"Case {self.name}: accuracy 4 needs 4 points between walls; {self.grid.shape} has fewer.")

    def _check_kinds(self) -> None:
        for name, (kind, wanted) in _KINDS.items():
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"Case {self.name}: {name} {getattr(self, name)!r} must be {wanted}.")
        if isinstance(self.fields, str):
            raise TypeError(f"Case {self.name}: fields {self.fields!r} must be a tuple of names, ({self.fields!r},).")
        names = tuple(self.fields)
        if not names or len(set(names)) != len(names):
            raise ValueError(f"Case {self.name}: fields {names} must be one or more different names.")
        if not all(isinstance(one, str) and one for one in names):
            raise ValueError(f"Case {self.name}: fields {names} must be texts.")

    @property
    def times(self) -> np.ndarray:
        """Times of all snapshots, the initial state included, shape (num_snapshots + 1,)."""
        return np.arange(self.num_snapshots + 1) * (self.duration / self.num_snapshots)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Which axes are periodic."""
        sides = sides_of(self.boundary, self.fields, self.grid)[self.fields[0]]
        return tuple(isinstance(low, Periodic) for low, _ in sides)

    def draw(self, unit_point: Sequence[float]) -> Parameters:
        """Return the parameters at a point of the unit cube, one coordinate per parameter in order.

        Raises
        ------
        ValueError : another number of coordinates.
        """
        if len(unit_point) != len(self.parameters):
            raise ValueError(
                f"Case {self.name} has {len(self.parameters)} parameters; the point has {len(unit_point)} coordinates."
            )
        pairs = zip(self.parameters.items(), unit_point, strict=True)
        return Parameters({name: distribution.from_unit(float(q)) for (name, distribution), q in pairs})

    def accept(self, values: Mapping[str, Any]) -> Parameters:
        """Return values as `Parameters` in the case's order; those left out take their median.

        A vector is given by its components, name_0, name_1, ..., or as a sequence under its name.

        Raises
        ------
        ValueError : unknown name, or a value outside its distribution.
        """
        values = dict(values)
        for name in [name for name in values if name not in self.parameters and np.ndim(values[name]) == 1]:
            parts = values.pop(name)
            values |= dict(zip(component_names(name, len(parts)), parts, strict=True))
        unknown = sorted(set(values) - set(self.parameters))
        if unknown:
            known = ", ".join(f"{name} {distribution}" for name, distribution in self.parameters.items())
            raise ValueError(f"Case {self.name} has no parameter {unknown[0]!r}. It has: {known or 'none'}.")
        accepted = {}
        for name, distribution in self.parameters.items():
            value = float(values.get(name, distribution.from_unit(0.5)))
            if not distribution.contains(value):
                raise ValueError(f"Parameter {name} = {value:g} of case {self.name} must lie {distribution}.")
            accepted[name] = value
        return Parameters(accepted)

    def resized(self, shape: tuple[int, ...]) -> Case:
        """Return the same case on a grid with another number of points.

        Raises
        ------
        ValueError : another number of axes, or too few points.
        """
        if len(shape) != self.grid.ndim:
            given, own = ("x".join(map(str, each)) for each in (shape, self.grid.shape))
            raise ValueError(f"Shape {given} is not allowed: case {self.name} wants one number per axis, as {own}.")
        return replace(self, grid=self.grid.resized(shape))

    def verify(self, comm: MPI.Comm | None = None) -> None:
        """Call the user's functions on small states and name the mistake where one breaks the contract.

        Collective over comm where one is given.

        Raises
        ------
        ValueError, TypeError : with the function, what it did, and what it should do.
        """
        from .verify import verify

        verify(self, comm)
