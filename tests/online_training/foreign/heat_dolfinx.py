"""Heat on the unit square by dolfinx, in linear triangles and by Crank-Nicolson.

It knows nothing of Headrace but the client in one file, headrace_client.py beside it. dolfinx numbers its nodes as it
likes and gives each rank some here and there; the grid's number of a node follows from where it lies.

mpirun -n 2 /usr/bin/python3 heat_dolfinx.py N STEPS INTERVAL: N x N nodes, snapshots 0 to STEPS.
"""

import json
import sys

import numpy as np
import ufl
from dolfinx import fem, mesh
from dolfinx.fem.petsc import LinearProblem
from headrace_client import STOP, connect
from mpi4py import MPI
from petsc4py import PETSc

INNER_STEPS = 4


def main() -> None:
    n, steps, interval = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    comm = MPI.COMM_WORLD
    square = mesh.create_unit_square(comm, n - 1, n - 1)
    space = fem.FunctionSpace(square, ("Lagrange", 1))
    owned = space.dofmap.index_map.size_local
    i, j = np.rint(space.tabulate_dof_coordinates()[:owned, :2].T * (n - 1)).astype(np.int64)
    nodes = i * n + j
    walls = fem.locate_dofs_topological(
        space, 1, mesh.locate_entities_boundary(square, 1, lambda x: np.full(x.shape[1], True))
    )
    with connect(fields={"T": (n, n)}, comm=comm) as stream:
        kappa = fem.Constant(square, PETSc.ScalarType(stream.parameters.get("kappa", 0.3)))
        dt = interval / INNER_STEPS
        old = fem.Function(space)
        old.interpolate(lambda x: np.sin(np.pi * x[0]) * np.sin(np.pi * x[1]))
        u, v = ufl.TrialFunction(space), ufl.TestFunction(space)
        half = 0.5 * dt * kappa
        left = u * v * ufl.dx + half * ufl.dot(ufl.grad(u), ufl.grad(v)) * ufl.dx
        right = old * v * ufl.dx - half * ufl.dot(ufl.grad(old), ufl.grad(v)) * ufl.dx
        problem = LinearProblem(
            left, right, bcs=[fem.dirichletbc(PETSc.ScalarType(0), walls, space)],
            petsc_options={"ksp_type": "cg", "pc_type": "jacobi", "ksp_rtol": 1e-10},
        )  # fmt: skip
        for step in range(steps + 1):
            values = old.x.array[:owned]
            if stream.send(step=step, time=step * interval, values=values[None], where=nodes) == STOP:
                break
            for _ in range(INNER_STEPS if step < steps else 0):
                old.x.array[:] = problem.solve().x.array
    total = comm.reduce(stream.bytes_sent)
    if comm.rank == 0:
        print(json.dumps({"simulations": 1, "bytes": total}), flush=True)


if __name__ == "__main__":
    main()
