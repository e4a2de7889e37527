"""Small flows on staggered grids that the tests share."""

from dataclasses import replace

import numpy as np

from headrace.cases.karman import case as karman
from headrace.cases.karman import cylinder
from headrace.solvers import Case, Dirichlet, Grid, MemorySink, Neumann, Periodic
from headrace.solvers.mac import solve_mac
from headrace.solvers.simulate import simulate

COMPONENTS = ("u", "v", "w")


def run(case, values=None, comm=None):
    """Return the trajectory of this rank, (snapshots, fields, *block)."""
    sink = MemorySink()
    simulate(case, case.accept(values or {}), sink, comm=comm, simulation=3)
    return sink.values


def make_case(shape, extent, *, boundary=None, initial=None, viscosity=0.01, force=None, solid=None, **options):
    """Return a case; boundary : None for periodic, else field -> conditions."""
    ndim = len(shape)

    def flow(case, p, comm, rng):
        return solve_mac(case, p, comm, rng, viscosity=viscosity, force=force, solid=solid)

    def rest(x, p, rng):
        return [np.zeros(x[0].shape)] * (ndim + 1)

    options = {"duration": 0.2, "num_snapshots": 1, **options}
    return Case(
        name="flow", fields=(*COMPONENTS[:ndim], "pressure"), grid=Grid(shape=shape, extent=extent),
        boundary=Periodic() if boundary is None else boundary, initial=initial or rest, solver=flow, **options,
    )  # fmt: skip


def box_boundary(ndim, walls):
    """Return the boundary of a box with no-slip walls at the axes in `walls`, the others periodic.

    walls : axis -> {(component, end): velocity of the wall}.
    """
    boundary = {name: {} for name in (*COMPONENTS[:ndim], "pressure")}
    for axis in range(ndim):
        for component, name in enumerate(COMPONENTS[:ndim]):
            sides = Periodic()
            if axis in walls:
                sides = tuple(Dirichlet(walls[axis].get((component, end), 0.0)) for end in (0, 1))
            boundary[name]["xyz"[axis]] = sides
        boundary["pressure"]["xyz"[axis]] = Neumann(0.0) if axis in walls else Periodic()
    return boundary


def lid(x, p, t):
    """A lid whose velocity varies in space and time."""
    return np.sin(3.0) + 0.5 * x[0] * (1 + t)


def driven_box(shape=(12, 10), **options):
    """A box with a moving lid at the upper y side."""
    boundary = box_boundary(2, {0: {}, 1: {(0, 1): lid}})
    return make_case(shape, (1.0, 0.8), boundary=boundary, **options)


def duct(shape=(8, 9, 7), **options):
    """Flow in three dimensions between walls in y, one sliding along z, pushed along x, around a block."""
    options = {"solid": lambda x: (abs(x[0] - 0.5) < 0.2) & (x[1] < 0.4) & (abs(x[2] - 0.4) < 0.2), **options}
    return make_case(
        shape, (1.0, 0.9, 0.8), boundary=box_boundary(3, {1: {(2, 1): 0.7}}), force=lambda x, t: (1.0 + t, 0.0, 0.0),
        **options,
    )  # fmt: skip


def eddies(x, p, rng):
    """The flow of Taylor and Green, with a third component and no divergence."""
    a, b, c = (2 * np.pi * line for line in x)
    return np.sin(b) * np.cos(c), np.sin(c) * np.cos(a), np.sin(a) * np.cos(b), 0 * a


def pipe(shape=(9, 7, 8), **options):
    """Flow in three dimensions that enters along y with a profile and leaves, past a block."""
    boundary = box_boundary(3, {0: {}, 1: {}, 2: {}})
    for name in COMPONENTS:
        boundary[name]["y"] = (Dirichlet(0.0), Neumann(0.0))
    boundary["v"]["y"] = (Dirichlet(lambda x, p, t: x[0] * (1 - x[0]) * (1 + x[2])), Neumann(0.0))
    boundary["pressure"]["y"] = (Neumann(0.0), Dirichlet(0.0))
    options = {"solid": lambda x: (abs(x[0] - 0.5) < 0.2) & (abs(x[1] - 0.4) < 0.15) & (x[2] < 0.4), **options}
    return make_case(shape, (1.0, 0.9, 0.8), boundary=boundary, **options)


def street(shape=(32, 16), **options):
    """The cylinder in a stream, short."""
    options = {"duration": 0.5, "num_snapshots": 2, **options}
    return replace(karman.resized(shape), **options)


def max_divergence(states, case, lower):
    """Return max |∇·u| of every snapshot; lower : axis -> normal velocity at the lower side, None if periodic."""
    total = 0.0
    for axis, given in enumerate(lower):
        u = states[:, axis]
        below = np.roll(u, 1, axis + 1)
        if given is not None:
            below[(slice(None), *[slice(None)] * axis, 0)] = given
        total = total + (u - below) / case.grid.spacing[axis]
    return np.abs(total).max(axis=tuple(range(1, total.ndim)))


__all__ = [
    "box_boundary", "cylinder", "driven_box", "duct", "eddies", "make_case", "max_divergence", "pipe", "run", "street",
]  # fmt: skip
