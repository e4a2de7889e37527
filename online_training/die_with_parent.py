"""Run a command that the kernel kills when its parent dies: `python -I -S die_with_parent.py PARENT COMMAND ...`.

PARENT is the process id of the one that starts it, or 0 where that is not known beforehand, as under mpirun.
Put before mpirun and before every rank, it leaves no orphans whatever is killed, and whichever MPI is used: Open MPI's
ranks, for one, survive a killed mpirun. The standard library alone is imported, so that it costs milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def wrapper(parent: int = 0) -> list[str]:
    """Return what stands before a command that is to die with a process."""
    return [sys.executable, "-I", "-S", __file__, str(parent)]


def die_with_parent(parent: int) -> None:
    """Ask Linux to send SIGKILL to this process when the thread that started it ends; elsewhere do nothing.

    The wish survives exec, not fork.

    parent : process id of the parent; 0: any but 1, which adopts orphans. In a container process 1 may be the parent.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(error)}")
    if os.getppid() != parent if parent else os.getppid() == 1:  # the parent died before the wish was made
        sys.exit(128 + signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"Cannot run {sys.argv[2]}: {error.strerror}")
