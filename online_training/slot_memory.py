"""The reservoir's memory: a private file in shared memory, mapped by the intake and by the trainers of its node."""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import time
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil

from .layout import StreamLayout

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "headrace-"
# Populated: page faults come here, once, and not in the middle of the stream.
_SHARED = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
_KEPT = "headrace-kept-"
_LOCK_SECONDS = 20.0
"""How long a kept file is waited for whose process is just being ended."""
_SURELY_LOCKED = 60.0
"""Seconds after which a file that nobody has locked is an orphan and not one that is being made."""


class SlotMemory:
    """Slots of one step each in a file that is mapped into memory; made by `create` or `attach`.

    array : (num_slots, fields, *grid); read-only where attached.
    path : of the file, for other processes of this node.
    reopened : it is the file of an earlier session, with what that one left in it.
    """

    def __init__(
        self, path: Path, mapping: mmap.mmap, layout: StreamLayout, *, lock: int | None, kept: bool = False,
        reopened: bool = False,
    ) -> None:  # fmt: skip
        self.path = path
        self.layout = layout
        self.reopened = reopened
        self._mapping, self._kept = mapping, kept
        # The creator's descriptor: its lock ends with the process, however that ends.
        self._lock = lock
        count = len(mapping) // layout.step_bytes
        self.array = np.frombuffer(mapping, layout.dtype, count * layout.step_bytes // 4)
        self.array = self.array.reshape(count, *layout.step_shape)

    @classmethod
    def create(
        cls, name: str, layout: StreamLayout, num_bytes: int, *, folder: Path = SHARED_MEMORY,
        fallback: Path | None = None,
    ) -> SlotMemory:  # fmt: skip
        """Make the file and take all of its memory now, so that a lack of it is an error here and not a SIGBUS later.

        Parameters
        ----------
        name : one per study; what an earlier session of the same name left behind is removed, and so are the files
            of other studies of this user whose intake was killed.
        num_bytes : as many whole slots as fit are made.
        fallback : used where `folder` does not exist or has no room; a disk makes it slower.

        Raises
        ------
        ValueError : no slot fits into num_bytes.
        OSError : there is no room, or the folder cannot be written.
        """
        num_slots = num_bytes // layout.step_bytes
        if num_slots < 1:
            raise ValueError(
                f"A buffer of {num_bytes} bytes holds no step of {layout.step_bytes} bytes "
                f"({len(layout.fields)} fields of {layout.shape}). Give it more."
            )
        size = num_slots * layout.step_bytes
        try:
            return cls._create(Path(folder) / f"{_PREFIX}{name}", layout, size)
        except OSError as error:
            if fallback is None:
                raise
            logger.warning("%s The reservoir goes to %s instead, which may be slower.", error.strerror, fallback)
            return cls._create(Path(fallback) / f"{_PREFIX}{name}", layout, size)

    @classmethod
    def keep(cls, path: Path, layout: StreamLayout, num_slots: int) -> SlotMemory:
        """Make the file, or take up the one of an earlier session; it stays after `close` and after a kill.

        A file of another size is replaced.

        Raises
        ------
        OSError : there is no room, or the folder cannot be written.
        """
        size = num_slots * layout.step_bytes
        descriptor = _open_kept(path, size)
        if descriptor is None:
            memory = cls._create(path, layout, size)
            memory._kept = True
            return memory
        return cls(path, mmap.mmap(descriptor, size, flags=_SHARED), layout, lock=descriptor, kept=True, reopened=True)

    def sync(self) -> None:
        """Return when everything that was written is on the disk, where the file lies on one."""
        os.fdatasync(self._lock)

    @classmethod
    def _create(cls, path: Path, layout: StreamLayout, size: int) -> SlotMemory:
        _remove_stale(path)
        _remove_orphans(path.parent)
        _require_room(path.parent, size)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.posix_fallocate(descriptor, 0, size)
            mapping = mmap.mmap(descriptor, size, flags=_SHARED)
        except OSError as error:
            path.unlink()
            os.close(descriptor)
            if error.errno == errno.ENOSPC:
                raise _no_room(path.parent, size, f"{path.parent} is full") from error
            raise
        return cls(path, mapping, layout, lock=descriptor)

    @classmethod
    def attach(cls, path: str | Path, layout: StreamLayout, num_slots: int) -> SlotMemory:
        """Map the slots that another process of this node created, read-only.

        Raises
        ------
        FileNotFoundError : there is no such file on this node.
        ValueError : its size is not that of the slots.
        """
        path, size = Path(path), num_slots * layout.step_bytes
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                errno.ENOENT, "The intake's reservoir is not on this node", str(path)
            ) from error
        try:
            found = os.fstat(descriptor).st_size
            if found != size:
                raise ValueError(f"{path} has {found} bytes; {num_slots} slots of {layout.step_bytes} need {size}.")
            mapping = mmap.mmap(descriptor, size, flags=_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        return cls(path, mapping, layout, lock=None)

    def close(self) -> None:
        """Unmap, and remove the file if it was created here and is not kept; a second call does nothing."""
        if self._lock is not None:
            try:
                # A newer session of the study may have put its own file in this place.
                if not self._kept and self.path.stat().st_ino == os.fstat(self._lock).st_ino:
                    self.path.unlink()
            except FileNotFoundError:
                pass  # somebody cleaned up already
            os.close(self._lock)
            self._lock = None
        self.array = self.array[:0].copy()
        try:
            self._mapping.close()
        except BufferError:
            pass  # somebody still holds a view: the mapping goes with the last one

    def __enter__(self) -> SlotMemory:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def kept_path(study: int, run_dir: Path, durability: str) -> Path:
    """Return where the reservoir of a study lies whose durability is "node" or "disk"."""
    return run_dir / "reservoir" if durability == "disk" else SHARED_MEMORY / f"{_KEPT}{study:016x}"


def _open_kept(path: Path, size: int) -> int | None:
    """Open and lock the file of an earlier session; None where there is none of this size, or another intake has it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    deadline = time.monotonic() + _LOCK_SECONDS
    while os.fstat(descriptor).st_size == size:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    os.close(descriptor)
    logger.warning("%s has another size, or another intake; the steps in it are run again.", path)
    return None


def _remove_stale(path: Path) -> None:
    try:
        path.unlink()
    except FileNotFoundError:
        return
    except PermissionError as error:
        raise PermissionError(
            error.errno, "A file of this name belongs to another user, so the reservoir cannot be made", str(path)
        ) from error
    logger.info("Removed %s, left behind by an earlier session.", path)


def _remove_orphans(folder: Path) -> None:
    """Remove this user's reservoirs whose intake was killed: no live process holds their lock."""
    for path in folder.glob(f"{_PREFIX}*"):
        try:
            status = path.lstat()
            if path.name.startswith(_KEPT):
                continue  # its study will take it up
            if status.st_uid != os.geteuid() or time.time() - status.st_ctime < _SURELY_LOCKED:
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone meanwhile, or not a file of ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            logger.info("Removed %s, left behind by a killed intake.", path)
        except BlockingIOError:
            pass  # its intake is alive
        finally:
            os.close(descriptor)


def _require_room(folder: Path, size: int) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "There is no such folder for the reservoir; name one on a fast disk", str(folder)
        )
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < size:
        raise _no_room(folder, size, f"{folder} has only {_megabytes(free)} free")
    available = psutil.virtual_memory().available
    if folder == SHARED_MEMORY and available < size:
        raise _no_room(folder, size, f"this machine has only {_megabytes(available)} of memory available")


def _no_room(folder: Path, size: int, finding: str) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"The reservoir needs {_megabytes(size)} but {finding}. Take a smaller buffer, or enlarge {folder} "
        "(containers: --shm-size).",
        str(folder),
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
