"""Run a command that the kernel kills when its parent dies: `python -I -S die_with_parent.py COMMAND ...`.

Put before mpirun and before every rank, it leaves no orphans whatever is killed, and whichever MPI is used: Open MPI's
ranks, for one, survive a killed mpirun. The standard library alone is imported, so that it costs milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask Linux to send SIGKILL to this process when the thread that started it ends; elsewhere do nothing.

    The wish survives exec, not fork.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(error)}")
    if os.getppid() == 1:  # the parent died before the wish was made
        sys.exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    try:
        os.execvp(sys.argv[1], sys.argv[1:])
    except OSError as error:
        sys.exit(f"Cannot run {sys.argv[1]}: {error.strerror}")
