"""Run under mpirun: solves several cases on all ranks and writes the trajectories, gathered, to the file named."""

import sys

import numpy as np
from mpi4py import MPI

from headrace.cases.heat2d import case as heat
from headrace.solvers import Dirichlet, Grid, MemorySink, Neumann, Periodic
from headrace.solvers.blocks import Blocks, Exchange
from headrace.solvers.exponential import ETDRK4
from headrace.solvers.imex import SBDF2
from headrace.solvers.newton import DivergenceError
from headrace.solvers.scheme import BDF2, DORMAND_PRINCE, RK4
from headrace.solvers.simulate import simulate
from tests.solvers import problems


def cases():
    """Name -> case, parameters."""
    explicit = {"rhs": problems.arithmetic, "scheme": RK4, "steps_per_snapshot": 5, "duration": 0.02}
    grids = {1: ((23,), (1.0,)), 2: ((19, 14), (1.0, 0.8)), 3: ((9, 10, 8), (1.0, 0.8, 0.7))}
    result = {}
    for ndim, (shape, extent) in grids.items():
        grid = Grid(shape=shape, extent=extent)
        for kind, boundary in (("walls", problems.mixed_boundary(ndim)), ("periodic", Periodic())):
            case = problems.make_case(grid=grid, boundary=boundary, **explicit)
            result[f"exact {kind} {ndim}"] = case, {"nu": 0.02}
    for accuracy in (2, 4, "spectral"):
        wide = {**explicit, "rhs": problems.transport, "accuracy": accuracy, "num_snapshots": 2}
        result[f"exact nonlocal {accuracy}"] = problems.make_case(**wide), {"nu": 0.02}
    walls = {"x": (Neumann(), Dirichlet()), "y": Dirichlet()}
    result["exact nonlocal walls"] = problems.make_case(**{**wide, "accuracy": 2}, boundary=walls), {"nu": 0.02}
    result["krylov nonlocal walls of fourth order"] = (
        problems.make_case(**{**wide, "accuracy": 4, "rhs": problems.stirred}, boundary=walls), {"nu": 0.02}
    )  # fmt: skip
    fine = {**explicit, "accuracy": 4, "boundary": problems.mixed_boundary(2), "rhs": problems.fisher}
    result["exact walls of fourth order"] = problems.make_case(**fine), {"nu": 0.02}
    split = {"stiff": problems.diffusion, "num_snapshots": 2}
    result["exact exponential"] = problems.make_case(**split, scheme=ETDRK4, steps_per_snapshot=3), {"nu": 0.02}
    result["krylov split"] = problems.make_case(**split, scheme=SBDF2, steps_per_snapshot=5), {"nu": 0.02}
    result["exact adaptive"] = problems.make_case(scheme=DORMAND_PRINCE, num_snapshots=2), {"nu": 0.02}
    several = dict(fields=("a", "b"), initial=problems.two_bumps, rhs=problems.gray_scott)
    result["exact fields"] = problems.make_case(**several, steps_per_snapshot=6), {"nu": 0.01}
    walls = problems.walls_of_each_field()
    result["exact walls of each field"] = problems.make_case(**several, boundary=walls, steps_per_snapshot=6), {}
    result["exact stable step"] = problems.make_case(rhs=problems.arithmetic, duration=0.01), {"nu": 0.02}
    result["close stable step"] = problems.make_case(rhs=problems.everything, duration=0.01), {"nu": 0.02}
    noise = problems.make_case(initial=lambda x, p, rng: rng.normal(size=x[0].shape), num_snapshots=1)
    result["exact random"] = noise, {}
    short = dict(duration=heat.duration / 10, num_snapshots=10)
    result["krylov heat"] = (
        problems.make_case(grid=Grid(shape=(31, 22), extent=(1.0, 1.0)), fields=heat.fields, boundary=heat.boundary,
                           parameters=heat.parameters, initial=heat.initial, rhs=heat.rhs, scheme=heat.scheme, **short),
        {"t0": 450, "t_left": 120, "beta": 1.7},
    )  # fmt: skip
    return result


def solve(case, values, comm):
    """Return the whole trajectory on rank 0, (snapshots, fields, *grid), else None."""
    sink = MemorySink()
    simulate(case, case.accept(values), sink, comm=comm, study_seed=7, simulation=3)
    if comm is None:
        return sink.values
    pieces = comm.gather((sink.where, sink.values))
    if comm.rank:
        return None
    whole = np.full((*sink.values.shape[:2], *case.grid.shape), np.nan)
    for where, values in pieces:
        whole[(slice(None), slice(None), *where)] = values
    return whole


def same_error(comm, kind, action):
    """Return the message of an error that every rank raises alike."""
    try:
        action()
    except kind as error:
        messages = comm.allgather(str(error))
    assert len(set(messages)) == 1, messages
    return messages[0]


def same_divergence(comm, case, values):
    """Return the message of a simulation that must diverge, the same on every rank and in its sink."""
    sink = MemorySink()
    message = same_error(comm, DivergenceError, lambda: simulate(case, case.accept(values), sink, comm=comm))
    assert sink.failure == message
    return message


def explodes(u, d, p, t):
    """∂u/∂t = ν ∇²u + 50 u²."""
    return p.nu * d.laplacian(u) + 50 * u * u


def main(path):
    comm = MPI.COMM_WORLD
    results = {name: solve(case, values, comm) for name, (case, values) in cases().items()}

    diverged = []
    for changes in ({}, {"scheme": BDF2}, {"scheme": DORMAND_PRINCE, "steps_per_snapshot": None},
                    {"scheme": SBDF2, "stiff": problems.diffusion}, {"scheme": ETDRK4, "stiff": problems.diffusion}):
        given = {"rhs": explodes, "duration": 1.0, "steps_per_snapshot": 20, **changes}
        diverged.append(same_divergence(comm, problems.make_case(**given), {"nu": 0.05}))
    unsplit = same_error(comm, ValueError, lambda: Blocks((2 * comm.size - 1,), (True,), comm))

    def looks_at_rank(u, d, p, t):
        if comm.rank == comm.size - 1:
            raise KeyError("on the last rank only")
        return u

    one_rank = same_error(comm, ValueError, lambda: problems.make_case(rhs=looks_at_rank).verify(comm))
    heat.verify(comm)

    Exchange.fill = lambda self, axis, meanwhile=None: None
    stale = solve(*cases()["exact periodic 2"], comm)
    if comm.rank == 0:
        np.savez(path, **results, stale=stale, diverged=diverged, errors=[unsplit, one_rank],
                 modules=[name for name in ("torch", "ray") if name in sys.modules])  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
