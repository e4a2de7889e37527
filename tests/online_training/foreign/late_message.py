"""Rank 0 leaves a message in the hands of MPI and waits for the study; rank 1 needs it before it can send its block."""

import numpy as np
from mpi4py import MPI

from headrace.online_training.client import connect

comm = MPI.COMM_WORLD
values, request = np.zeros(2**20), MPI.REQUEST_NULL
with connect({"u": (2,)}, comm) as stream:
    for step in range(2):
        if step == 0 and comm.rank == 0:
            request = comm.Isend(values, 1)
        elif step == 0:
            comm.Recv(values, 0)
        where = (slice(comm.rank, comm.rank + 1),)
        stream.send(step=step, time=float(step), values=np.full((1, 1), step), where=where)
    request.Wait()
