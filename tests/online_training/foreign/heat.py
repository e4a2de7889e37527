"""The heat solver of heat.c in Python: `heat.py N STEPS FOLDER` under mpirun."""

import json
import sys

import numpy as np
from mpi4py import MPI

from headrace.online_training.client import STOP, Connection


def main() -> None:
    n, steps, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    comm = MPI.COMM_WORLD
    first, last = n * comm.rank // comm.size, n * (comm.rank + 1) // comm.size
    x, y = np.meshgrid(np.arange(first, last), np.arange(n), indexing="ij")
    up, down = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    simulations = sent = 0
    with Connection({"u": (n, n)}, comm) as connection:
        for stream in connection.simulations():
            nu = stream.parameters.nu
            u = np.sin(2 * np.pi * x / n) * np.cos(4 * np.pi * y / n) + 0.01 * x * y / n
            for step in range(steps):
                where = (slice(first, last), slice(0, n))
                if stream.send(step=step, time=0.1 * step, values=u[None], where=where) == STOP:
                    break
                above = comm.sendrecv(u[0], dest=down, source=up)
                below = comm.sendrecv(u[-1], dest=up, source=down)
                wide = np.vstack([below, u, above])
                around = wide[2:] + wide[:-2] + np.roll(u, -1, 1) + np.roll(u, 1, 1)
                u = u + 0.2 * nu * (around - 4 * u)
            stream.end()
            u.tofile(f"{folder}/{stream.simulation}-{comm.rank}.bin")
            simulations, sent = simulations + 1, sent + stream.bytes_sent
    total = comm.reduce(sent)
    if comm.rank == 0:
        print(json.dumps({"simulations": simulations, "bytes": total}), flush=True)


if __name__ == "__main__":
    main()
