"""A heat solver with one mistake, for the conformance test: `bad_solver.py MISTAKE N STEPS` under mpirun.

none, once (takes one simulation and ends), shape, dtype, gap, overlap, nan, short, times, deaf (to its parameters),
unrepeatable, halo (wrong at the edges of blocks), stubborn (ignores STOP), dies (in its first simulation), silent.
"""

import os
import sys
import time

import numpy as np
from mpi4py import MPI

from headrace.online_training.client import STOP, Connection

MISTAKE, N, STEPS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def step_on(u: np.ndarray, nu: float, comm: MPI.Comm) -> np.ndarray:
    up, down = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    above = comm.sendrecv(u[0], dest=down, source=up)
    below = comm.sendrecv(u[-1], dest=up, source=down)
    if MISTAKE == "halo":
        above, below = u[-1], u[0]
    wide = np.vstack([below, u, above])
    return u + 0.2 * nu * (wide[2:] + wide[:-2] + np.roll(u, -1, 1) + np.roll(u, 1, 1) - 4 * u)


def simulate(stream, comm: MPI.Comm) -> None:
    first, last = N * comm.rank // comm.size, N * (comm.rank + 1) // comm.size
    x, y = np.meshgrid(np.arange(first, last), np.arange(N), indexing="ij")
    nu = 0.25 if MISTAKE == "deaf" else stream.parameters.nu
    rng = np.random.default_rng(None if MISTAKE == "unrepeatable" else stream.seed)
    u = np.sin(2 * np.pi * x / N) * np.cos(4 * np.pi * y / N) + comm.bcast(rng.random())
    if MISTAKE == "dies" and comm.rank == 0:
        os._exit(7)
    for step in range(STEPS - (MISTAKE == "short")):
        values, rows = u, slice(first, last)
        if MISTAKE == "gap" and comm.rank == comm.size - 1:
            values, rows = u[:-1], slice(first, last - 1)
        if MISTAKE == "overlap" and comm.rank == 0 and comm.size > 1:
            values, rows = np.vstack([u, u[-1:]]), slice(first, last + 1)
        if MISTAKE == "nan" and step == 2:
            values = values + np.nan
        at = 0.1 * step + (0.05 if MISTAKE == "times" else 0.0)
        word = stream.send(step=step, time=at, values=values[None], where=(rows, slice(0, N)))
        if word == STOP and MISTAKE != "stubborn":
            return
        u = step_on(u, nu, comm)
    while MISTAKE == "stubborn" and word == STOP:
        time.sleep(1.0)


def main() -> None:
    comm = MPI.COMM_WORLD
    if MISTAKE == "silent":
        time.sleep(600)
    shape = (N, N + 1) if MISTAKE == "shape" else (N, N)
    with Connection({"u": shape}, comm, dtype="float64" if MISTAKE == "dtype" else "float32") as connection:
        for stream in connection.simulations():
            with stream:
                simulate(stream, comm)
            if MISTAKE == "once":
                break


if __name__ == "__main__":
    main()
