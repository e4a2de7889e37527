"""One voice for many ranks: who talks, and how an error ends all of them alike."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")

_RANK_NAMES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
_SIZE_NAMES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")

USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError)
"""What a wrong input or a missing resource raises; it becomes one line. Anything else is a defect of ours."""


def launched_rank() -> int:
    """Return the rank that mpirun or srun gave this process, 0 without one; needs no MPI library."""
    return next((int(os.environ[name]) for name in _RANK_NAMES if name in os.environ), 0)


def launched_size() -> int:
    """Return the number of ranks that the launcher says it started, 1 without one; needs no MPI library."""
    return next((int(os.environ[name]) for name in _SIZE_NAMES if name in os.environ), 1)


def world() -> MPI.Comm | None:
    """Return COMM_WORLD, or None for a serial run or where no MPI library is installed.

    Raises
    ------
    RuntimeError : mpirun started several ranks, but this Python's MPI library sees only one.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        if launched_size() == 1:
            return None
        raise RuntimeError(
            f"Started on {launched_size()} ranks, but mpi4py finds no MPI library ({error}). "
            "Install one with: pip install 'headrace[mpich]', or load the site's MPI module."
        ) from error
    if MPI.COMM_WORLD.size == 1 and launched_size() > 1:
        from headrace.online_training.solver_job import mpi_library

        raise RuntimeError(
            f"mpirun started {launched_size()} ranks, but each sees only itself: mpirun belongs to another MPI than "
            f"mpi4py, which uses {mpi_library()}. Use the mpirun of that MPI "
            "(`headrace doctor` names it)."
        )
    return MPI.COMM_WORLD if MPI.COMM_WORLD.size > 1 else None


def together(comm: MPI.Comm | None, prepare: Callable[[], T]) -> T:
    """Call a function without communication on every rank; where it fails on one, it fails on all. Collective.

    Raises
    ------
    ValueError : the message of the lowest rank that failed.
    """
    result, message = None, None
    try:
        result = prepare()
    except USER_ERRORS as error:
        if comm is None:
            raise
        message = str(error)
    if comm is not None:
        first = next((said for said in comm.allgather(message) if said is not None), None)
        if first is not None:
            raise ValueError(first)
    return result


def leave(code: int, message: str = "", *, patience: float = 10.0) -> NoReturn:
    """End this process with an exit code, and with it the others of its MPI run. Collective where it succeeded.

    message : why, for the case that this rank is the only one with the error.
    patience : seconds to wait for the others after a failure; where they do not come to the same end, they
        wait in a collective call that this rank will never join, and the whole run is aborted.
    """
    module = sys.modules.get("mpi4py.MPI")
    if code and module is not None and module.COMM_WORLD.size > 1:
        everyone = module.COMM_WORLD.Ibarrier()
        deadline = time.monotonic() + patience
        while not everyone.Test():
            if time.monotonic() > deadline:
                from headrace.online_training.solver_job import abort

                print(f"error on rank {module.COMM_WORLD.rank} alone: {message}", file=sys.__stderr__, flush=True)
                abort(module.COMM_WORLD, code)
            time.sleep(0.01)
    sys.exit(code)
