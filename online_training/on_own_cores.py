"""Run a command of one MPI rank on cores of its own: `python -I -S on_own_cores.py COMMAND ...`.

HEADRACE_CORES holds the cores of each rank of the job, as "0,1;2,3"; the rank is what mpirun says it is. Put before the
command, it binds alike under every MPI, and jobs beside one another get different cores, of which no mpirun knows.
"""

import os
import sys

CORES = "HEADRACE_CORES"
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")


def bind() -> None:
    """Bind this process, and what it becomes, to its rank's cores.

    Raises
    ------
    SystemExit : mpirun does not tell the rank.
    """
    rank = next((int(os.environ[name]) for name in _RANKS if name in os.environ), None)
    if rank is None:
        sys.exit(f"None of {', '.join(_RANKS)} is set, so this rank's cores are not known. Do not use --bind-cores.")
    os.sched_setaffinity(0, {int(core) for core in os.environ[CORES].split(";")[rank].split(",")})


if __name__ == "__main__":
    bind()
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        sys.exit(f"Cannot run {sys.argv[1]}: {error.strerror}")
