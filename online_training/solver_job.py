"""A solver job: MPI ranks that ask their study for parameters, solve, stream, and ask again until none are left.

Started by a launcher as `mpirun ... python -m headrace.online_training.solver_job CASE.json`, where CASE.json is
a `CaseReference`. One start of Python and MPI serves many simulations.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import stat
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace.solvers.case import Case
from headrace.solvers.case_file import CaseReference
from headrace.solvers.parameters import Parameters
from headrace.solvers.simulate import simulate

from .client import Connection, Stream
from .mpi_segments import remove, segments_of
from .stream_sink import StreamSink

if TYPE_CHECKING:
    from mpi4py import MPI

log = logging.getLogger(__name__)

RANKS = "HEADRACE_RANKS"
"""Variable with the number of ranks that the launcher was to start."""

_AGREEMENT_SECONDS = 5.0
_FORWARDING_SECONDS = 0.5
_READING_SECONDS = 10.0


class RanksDisagree(RuntimeError):
    """A simulation failed on some ranks only; the others may wait for them inside MPI, so the job cannot go on."""


def run_job(case: Case, comm: MPI.Comm) -> None:
    """Run simulations for the study named in the environment until it has none left. Collective over comm.

    A simulation that fails on every rank is reported, and the job goes on with the next one.

    Raises
    ------
    RuntimeError : there is no study, or it refuses this case.
    ConnectionError : the study does not answer.
    RanksDisagree : a simulation failed on some ranks only; end the job with `comm.Abort`.
    """
    fields = {name: case.grid.shape for name in case.fields}
    agreement = comm.Dup()  # its messages never meet those that a failed solver left behind
    with Connection(fields, comm, steps=case.num_snapshots + 1) as connection:
        if connection.link is None:
            raise RuntimeError(
                "A solver job belongs to a study, and HEADRACE_ADDRESS names none. "
                "To run one simulation by hand, use headrace solve."
            )
        for stream in connection.simulations():
            _run_simulation(case, stream, comm, agreement)
    agreement.Free()


def _run_simulation(case: Case, stream: Stream, comm: MPI.Comm, agreement: MPI.Comm) -> None:
    # Whatever a user's case raises must end the simulation, not the job.
    failure: Exception | None = None
    parameters = Parameters({name: stream.parameters[name] for name in case.parameters})
    try:
        simulate(
            case, parameters, StreamSink(stream), comm=comm, study_seed=stream.seed, simulation=stream.simulation
        )
    except Exception as error:
        failure = error
    _require_agreement(failure, agreement)
    if failure is not None:
        log.error(
            "Simulation %d, attempt %d, failed with %s: %s", stream.simulation, stream.attempt, parameters, failure,
            exc_info=failure,
        )  # fmt: skip
        stream.end(failure=f"{type(failure).__name__}: {failure}")


def _require_agreement(failure: Exception | None, comm: MPI.Comm) -> None:
    """Return where the simulation ended alike on all ranks. Collective.

    A failed rank waits for the others for five seconds, others without limit: the failed one ends the job.
    """
    failed = np.array([failure is not None], dtype=np.int32)
    total = np.empty(1, dtype=np.int32)
    request = comm.Iallreduce(failed, total)
    deadline = time.monotonic() + _AGREEMENT_SECONDS
    while not request.Test():
        if failure is not None and time.monotonic() > deadline:
            raise RanksDisagree("The other ranks do not come to the end of this simulation.") from failure
        time.sleep(0.0005)
    if total[0] not in (0, comm.size):
        raise RanksDisagree(f"The simulation failed on {total[0]} of {comm.size} ranks.") from failure


def mpi_library() -> str:
    """Return the first line of what the MPI library says of itself."""
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().splitlines()[0].strip("\0").split())  # Open MPI ends it with a zero


def _require_ranks(comm: MPI.Comm) -> None:
    """Find out that mpirun is not of the MPI that mpi4py has loaded: then each rank believes to be the only one."""
    wanted = os.environ.get(RANKS)
    if wanted is not None and comm.size != int(wanted):
        raise RuntimeError(
            f"MPI says that this job has {comm.size} ranks, but {wanted} were started. Its library is {mpi_library()};"
            " what started them may be another MPI's. Take the mpirun of this MPI, or let MPI4PY_LIBMPI name the other."
        )


def abort(comm: MPI.Comm, code: int) -> None:
    """End all ranks from this one, after what it has said of the reason.

    mpirun drops words that it has not read when it hears of an abort: up to one in eight errors came without any. So
    this waits until the pipe is empty, ten seconds at most, and half a second more for who passes on by another way.
    """
    sys.stderr.flush()
    deadline = time.monotonic() + _READING_SECONDS
    while _unread(2) and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(_FORWARDING_SECONDS)
    remove(segments_of("self"))  # an abort leaves them
    comm.Abort(code)


def _unread(descriptor: int) -> int:
    """Return the bytes that the other end of a pipe has not read yet; 0 for what is no pipe."""
    try:
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            return 0
        return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)
    except OSError:
        return 0  # it is closed, or nobody reads it any more


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of every rank; a failure ends all ranks with code 1."""
    parser = argparse.ArgumentParser(prog="headrace.online_training.solver_job", description=__doc__)
    parser.add_argument("case", type=Path, help="JSON file of a CaseReference")
    path = parser.parse_args(arguments).case

    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO if comm.rank == 0 else logging.ERROR,
        format=f"%(asctime)s rank {comm.rank}: %(message)s",
    )  # fmt: skip
    try:
        _require_ranks(comm)
        reference = CaseReference.from_dict(json.loads(path.read_text(encoding="utf-8")), folder=path.parent)
        run_job(reference.load(), comm)
    except Exception:
        # The other ranks may be waiting inside MPI: only Abort reaches them.
        log.exception("This rank of the solver job failed; all ranks end.")
        abort(comm, 1)


if __name__ == "__main__":
    main()
