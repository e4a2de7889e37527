"""Shared memory of MPI libraries in /dev/shm: which is a process's own, and goes when the process is ended by force.

MPICH and Open MPI keep a named file there while a job runs, and remove it in MPI_Finalize: of a job that is killed, or
ends itself by MPI_Abort, it stays, 2 MB of memory for two ranks of MPICH.
"""

from __future__ import annotations

from pathlib import Path

# of MPICH, of Open MPI 3 and 4, of Open MPI 5
_NAMES = ("/dev/shm/mpich_shm_", "/dev/shm/vader_segment.", "/dev/shm/sm_segment.")


def segments_of(pid: int | str) -> set[Path]:
    """Return the files of an MPI library that a process has mapped now; none where it is gone or another user's.

    pid : its number, or "self".
    """
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    # address, rights, offset, device, inode, path
    paths = [line.split(maxsplit=5)[5] for line in lines if line.count(" /dev/shm/") == 1]
    return {Path(path) for path in paths if path.startswith(_NAMES) and not path.endswith(" (deleted)")}


def remove(segments: set[Path]) -> None:
    """Remove files that `segments_of` has named, whose processes are gone or about to be; some may be gone by now."""
    for path in segments:
        path.unlink(missing_ok=True)
