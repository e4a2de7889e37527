"""One rank of the jobs that the launcher's tests start: `job_rank.py SECONDS CODE [FILE]`, both ranks on MPI.

Rank 1 ends with CODE; FILE gets a line for every rank with its process id.
"""

import os
import sys
import time

from mpi4py import MPI

comm = MPI.COMM_WORLD
if len(sys.argv) > 3:
    with open(sys.argv[3], "a") as file:
        file.write(f"{os.getpid()} {comm.rank} {os.environ.get('HEADRACE_JOB')} {os.environ['OMP_NUM_THREADS']}\n")
comm.Barrier()
print(f"rank {comm.rank} of {comm.size} is here", flush=True)
deadline = time.monotonic() + float(sys.argv[1])
while time.monotonic() < deadline:
    time.sleep(0.02)
sys.exit(int(sys.argv[2]) if comm.rank == 1 else 0)
