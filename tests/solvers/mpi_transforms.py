"""Run under mpirun: transforms fields on slabs over all ranks and writes what came out, gathered, to the file named."""

import sys

import numpy as np

from headrace.solvers.transforms import Ends, PoissonSolver, SlabTransform, slabs

LAYOUTS = {
    "line": ((17,), (Ends.PERIODIC,)),
    "torus": ((18, 13), (Ends.PERIODIC, Ends.PERIODIC)),
    "channel": ((12, 15), (Ends.PERIODIC, Ends.NEUMANN)),
    "outflow": ((13, 16), (Ends.NEUMANN_DIRICHLET, Ends.PERIODIC)),
    "box": ((9, 8, 10), (Ends.NEUMANN, Ends.DIRICHLET, Ends.DIRICHLET_NEUMANN)),
    "duct": ((10, 9, 7), (Ends.PERIODIC, Ends.NEUMANN, Ends.PERIODIC)),
}


def gathered(comm, where, values, shape):
    """Return the parts (*lead, *block) of all ranks as one array, on every rank."""
    if comm is None:
        return values
    whole = np.full((*values.shape[: values.ndim - len(shape)], *shape), np.nan, dtype=values.dtype)
    for place, part in comm.allgather((where, values)):
        whole[(..., *place)] = part
    return whole


def fields(shape):
    return np.random.default_rng(5).normal(size=(2, *shape))


def compute(comm):
    """Return, for every layout, the spectrum, the fields transformed back, and a solution of Poisson's equation."""
    results = {}
    for name, (shape, ends) in LAYOUTS.items():
        blocks = slabs(shape, [e is Ends.PERIODIC for e in ends], comm)
        transform = SlabTransform(blocks, ends)
        here = fields(shape)[(slice(None), *blocks.where)]
        spectrum = transform.forward(here)
        modes = [n // 2 + 1 if a == transform.halved else n for a, n in enumerate(shape)]
        results[f"{name} spectrum"] = gathered(comm, transform.where, spectrum, modes)
        results[f"{name} back"] = gathered(comm, blocks.where, transform.inverse(spectrum), shape)
        solution = PoissonSolver(blocks, ends, [1 / n for n in shape]).solve(here[0])
        results[f"{name} poisson"] = gathered(comm, blocks.where, solution, shape)
    return results


if __name__ == "__main__":
    from mpi4py import MPI

    found = compute(MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        np.savez(sys.argv[1], **found)
