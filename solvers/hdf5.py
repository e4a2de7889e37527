"""Trajectories in HDF5 files: written by all ranks through one, atomically, with a companion for viewers.

The layout is described in docs/hdf5.md.
"""

from __future__ import annotations

import errno
import fcntl
import inspect
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakSet

import h5py
import numpy as np

from .case import Case
from .grid import AXES
from .parameters import Parameters
from .sink import Sink, Snapshot
from .vtkhdf import vtkhdf

if TYPE_CHECKING:
    from mpi4py import MPI

FORMAT, VERSION = "headrace-trajectory", 1


_REASONS = {
    errno.ENOSPC: "free some space or write elsewhere; the unfinished file was removed",
    errno.EDQUOT: "free some space or write elsewhere; the unfinished file was removed",
    errno.EFBIG: "raise the limit (ulimit -f) or write elsewhere; the unfinished file was removed",
    errno.ENOENT: "make the folder first",
    errno.EACCES: "choose a folder that you may write to",
    errno.EROFS: "choose another file system",
    errno.EISDIR: "give a file name",
    errno.EAGAIN: "another process is writing it: wait for its end, or give another file name",
}


class HDF5Sink(Sink):
    """Writes one simulation to one HDF5 file and an .xdmf and a .vtkhdf file beside it.

    The blocks of every snapshot are gathered on rank 0 and written at once: no more than one snapshot is held in
    memory. The file grows under the name `<file>.part` and gets its own name when it is complete; a simulation that
    fails leaves no file. While one process writes it, another that would write the same is refused.

    Parameters
    ----------
    path : the file, by custom ending in .h5; an existing one is replaced when the new one is complete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._part = self.path.with_name(self.path.name + ".part")
        self._file: h5py.File | None = None
        self._disk: _GuardedFile | None = None
        self._comm: MPI.Comm | None = None
        self._where: list[tuple[slice, ...]] | None = None
        self._open = False

    def open(self, case: Case, parameters: Parameters, comm: MPI.Comm | None) -> None:
        """Create the file with its description. Collective.

        Raises
        ------
        OSError : the path cannot be written; the same on every rank.
        """
        self._comm = comm if comm is not None and comm.size > 1 else None
        self._case = case
        self._where = None
        self._written = 0
        self._times = np.full(case.num_snapshots + 1, np.nan)
        self._open = True
        self._on_rank_0(lambda: self._create(case, parameters))

    def write(self, snapshot: Snapshot) -> bool:
        """Gather the snapshot on rank 0 and write it. Collective.

        Raises
        ------
        OSError : the disk is full or gone; the same on every rank, and the unfinished file is removed.
        """
        whole = self._gathered(snapshot)
        self._on_rank_0(lambda: self._append(snapshot, whole))
        return True

    def close(self, *, failure: str | None = None) -> None:
        """Finish the file, or remove it after a failure. Collective.

        Raises
        ------
        OSError : the last bytes could not be written; the same on every rank.
        """
        if not self._open:
            return
        if failure is None:
            self._on_rank_0(self._finish)
        elif self._rank == 0:
            self._discard()
        self._open = False

    @property
    def _rank(self) -> int:
        return 0 if self._comm is None else self._comm.rank

    def _on_rank_0(self, action: Any) -> None:
        """Do something on rank 0 and raise its error on every rank."""
        problem = None
        if self._rank == 0:
            try:
                action()
                if self._disk is not None:
                    self._disk.check()
            except OSError as error:
                self._discard()
                problem = (error.errno, f"Cannot write {self.path}: {_reason(error)}")
        if self._comm is not None:
            problem = self._comm.bcast(problem)
        if problem is not None:
            self._open = False
            raise OSError(*problem) if problem[0] else OSError(problem[1])

    def _create(self, case: Case, parameters: Parameters) -> None:
        self._disk = _GuardedFile(self._part)
        # From this format on HDF5's own structures have checksums too.
        self._file = file = h5py.File(self._disk, "w", libver=("v110", "v110"))
        grid = case.grid
        equation = inspect.getdoc(case.rhs or case.solver) or ""
        file.attrs.update({"format": FORMAT, "version": VERSION, "case": case.name, "equation": equation})
        file.attrs["fields"] = list(case.fields)
        file.create_group("parameters", track_order=True).attrs.update(dict(parameters))
        described = file.create_group("grid")
        described.attrs.update({"shape": grid.shape, "extent": grid.extent, "origin": grid.origin})
        described.attrs["periodic"] = np.array(case.periodic)
        points = [grid.points(axis, periodic=case.periodic[axis]) for axis in range(grid.ndim)]
        for name, values in zip(AXES, points, strict=False):
            described[name] = values
        file["viewer/points"] = np.stack(np.meshgrid(*_at_least_2d(points), indexing="ij"), axis=-1)
        file.create_dataset("times", shape=(0,), maxshape=(None,), dtype="f8", chunks=(1024,), fletcher32=True)
        for name in case.fields:
            file.create_dataset(
                f"fields/{name}", shape=(0, *grid.shape), maxshape=(None, *grid.shape), dtype="f8",
                chunks=_chunks(grid.shape), fletcher32=True,
            )  # fmt: skip

    def _append(self, snapshot: Snapshot, whole: np.ndarray) -> None:
        n = self._written
        self._file["times"].resize(n + 1, axis=0)
        self._file["times"][n] = snapshot.time
        for name, values in zip(self._case.fields, whole, strict=True):
            dataset = self._file[f"fields/{name}"]
            dataset.resize(n + 1, axis=0)
            dataset[n] = values
        self._file.flush()
        self._written += 1

    def _finish(self) -> None:
        times = self._file["times"][...]
        self._file.close()
        self._file = None
        self._disk.sync()
        # The files for viewers first, so that nothing stands under its name where the disk has no room for them.
        case = self._case
        points = [case.grid.points(axis, periodic=case.periodic[axis]) for axis in range(case.grid.ndim)]
        viewers = [companion_of(self.path, suffix) for suffix in (".xdmf", ".vtkhdf")]
        # Named after the trajectory, whose lock this process holds: what a killed one left is overwritten.
        parts = [self.path.with_name(f"{self.path.name}{file.suffix}.part") for file in viewers]
        placed: list[Path] = []
        try:
            parts[0].write_text(xdmf(case, times, self.path.name), encoding="utf-8")
            parts[1].write_bytes(vtkhdf(self.path.name, fields=case.fields, points=points, times=times))
            for part, file in zip(parts, viewers, strict=True):
                os.replace(part, file)
                placed.append(file)
            os.replace(self._part, self.path)
        except OSError:
            for file in placed:  # they describe a trajectory that is not there
                file.unlink(missing_ok=True)
            raise
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        self._disk.close()  # and not before: without its lock another process could take the name
        self._disk = None

    def _discard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._disk is not None:
            self._disk.close()
            self._disk = None
            self._part.unlink(missing_ok=True)

    def _gathered(self, snapshot: Snapshot) -> np.ndarray | None:
        """Return the fields on the whole grid, (fields, *grid), on rank 0. Collective."""
        if self._comm is None:
            return snapshot.values
        if self._where is None:
            self._where = self._comm.allgather(snapshot.where)
        blocks = np.ascontiguousarray(snapshot.values, dtype=np.float64)
        if self._rank != 0:
            self._comm.Gatherv(blocks, None)
            return None
        fields = len(self._case.fields)
        shapes = [tuple(s.stop - s.start for s in where) for where in self._where]
        counts = [fields * int(np.prod(shape)) for shape in shapes]
        received = np.empty(sum(counts))
        self._comm.Gatherv(blocks, [received, counts])
        whole = np.empty((fields, *self._case.grid.shape))
        for where, shape, part in zip(self._where, shapes, np.split(received, np.cumsum(counts)[:-1]), strict=True):
            whole[(slice(None), *where)] = part.reshape(fields, *shape)
        return whole


class _GuardedFile(io.RawIOBase):
    """A file for HDF5 that keeps the first error of a write and swallows what follows.

    HDF5 cannot close a file that it could not write, and crashes at the end of the process. So it never hears of a
    full disk; `check` tells us. A forked child has none of it: neither the lock, which would outlive this process, nor
    a way to write.
    """

    _opened: ClassVar[WeakSet[_GuardedFile]] = WeakSet()

    def __init__(self, path: Path) -> None:
        self._error: OSError | None = None
        self._file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b", buffering=0)
        self._opened.add(self)
        try:
            self._take(path)
            self._file.truncate(0)
        except BaseException:
            self._file.close()
            raise

    def _take(self, path: Path) -> None:
        """Keep other writers away until the file is closed, where the file system knows locks."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            return
        # Between opening and locking it may have been finished by another process, and renamed.
        if not (path.exists() and os.path.samestat(os.fstat(self._file.fileno()), path.stat())):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    @classmethod
    def leave_to_parent(cls) -> None:
        """Put the null device in the place of every open file, in a child that was forked."""
        files = [each._file for each in list(cls._opened) if not each._file.closed]
        if not files:
            return  # most forks are those of others, who may have no descriptor left
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for file in files:
            os.dup2(null, file.fileno(), inheritable=False)
        os.close(null)

    def check(self) -> None:
        """Raise the error of an earlier write."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """Write all of data, or keep the error."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self._error is None:
            try:
                done += self._file.write(view[done:])
            except OSError as error:
                self._error = error
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Read as a file does; after an error the content is of no account."""
        return self._file.readinto(buffer) if self._error is None else len(memoryview(buffer).cast("B"))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move as a file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def truncate(self, size: int) -> int:
        """Cut or extend the file, or keep the error."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size

    def flush(self) -> None:
        """Do nothing: writes are not buffered here."""

    def sync(self) -> None:
        """Bring everything to the disk."""
        self.check()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close without looking back."""
        self._file.close()
        super().close()


os.register_at_fork(after_in_child=_GuardedFile.leave_to_parent)


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One simulation as read from its file.

    times : (snapshots,).  values : (snapshots, fields, *grid) float64.
    """

    case: str
    equation: str
    fields: tuple[str, ...]
    parameters: dict[str, float]
    shape: tuple[int, ...]
    extent: tuple[float, ...]
    origin: tuple[float, ...]
    periodic: tuple[bool, ...]
    times: np.ndarray
    values: np.ndarray


def read_trajectory(path: str | Path) -> Trajectory:
    """Return a simulation that `HDF5Sink` wrote.

    Raises
    ------
    OSError : the file is missing, damaged, or no trajectory.
    """
    path = Path(path)
    try:
        with h5py.File(path, "r") as file:
            found, version = file.attrs.get("format"), file.attrs.get("version")
            if found != FORMAT or version != VERSION:
                raise OSError(f"it says format {found!r}, version {version!r}; {FORMAT!r} {VERSION} is read here")
            grid = file["grid"].attrs
            fields = tuple(str(name) for name in file.attrs["fields"])
            shape, times = tuple(int(n) for n in grid["shape"]), file["times"][...]
            values = np.stack([file[f"fields/{name}"][...] for name in fields], axis=1)
            if values.shape != (len(times), len(fields), *shape):
                raise OSError(f"it has {len(times)} times and a grid of {shape}, but values of shape {values.shape}")
            return Trajectory(
                case=str(file.attrs["case"]), equation=str(file.attrs["equation"]), fields=fields,
                parameters={name: float(value) for name, value in file["parameters"].attrs.items()},
                shape=shape, times=times, values=values, extent=tuple(float(v) for v in grid["extent"]),
                origin=tuple(float(v) for v in grid["origin"]), periodic=tuple(bool(v) for v in grid["periodic"]),
            )  # fmt: skip
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"There is no file {path}.") from None
    except (OSError, LookupError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise OSError(f"{path} is not a readable trajectory: {error}. Solve it again, or restore the file.") from error


def companion_of(path: Path, suffix: str) -> Path:
    """Return the file for viewers beside a trajectory: one.xdmf of one.h5, and nu0.1.xdmf of nu0.1."""
    return path.with_suffix(suffix) if path.suffix == ".h5" else path.with_name(path.name + suffix)


def xdmf(case: Case, times: np.ndarray, file: str) -> str:
    """Return the XDMF text that shows ParaView the fields over time.

    XDMF counts axes slowest first and our axis 0 is x, so the grid is given as a structured mesh with explicit
    points: nothing has to be transposed, and x is x in the picture.
    """
    shape = case.grid.shape if case.grid.ndim > 1 else (*case.grid.shape, 1)
    dims, ndim, snapshots = " ".join(map(str, shape)), len(shape), len(times)
    geometry = "XY" if ndim == 2 else "XYZ"
    numbers = 'NumberType="Float" Precision="8" Format="HDF"'
    points = f'<DataItem Dimensions="{dims} {ndim}" {numbers}>{file}:/viewer/points</DataItem>'
    lines = ['<?xml version="1.0"?>', '<Xdmf Version="3.0">', "<Domain>"]
    lines.append(f'<Grid Name="{case.name}" GridType="Collection" CollectionType="Temporal">')
    own = " ".join(map(str, case.grid.shape))
    axes = case.grid.ndim + 1
    for k, time in enumerate(times):
        lines += [
            f'<Grid Name="{case.name}" GridType="Uniform">', f'<Time Value="{float(time)!r}"/>',
            f'<Topology TopologyType="{ndim}DSMesh" Dimensions="{dims}"/>',
            f'<Geometry GeometryType="{geometry}">{points}</Geometry>',
        ]  # fmt: skip
        for name in case.fields:
            start, stride = f"{k}{' 0' * (axes - 1)}", " ".join("1" * axes)
            lines += [
                f'<Attribute Name="{name}" AttributeType="Scalar" Center="Node">',
                f'<DataItem ItemType="HyperSlab" Dimensions="{dims}">',
                f'<DataItem Dimensions="3 {axes}" NumberType="Int" Format="XML">{start} {stride} 1 {own}</DataItem>',
                f'<DataItem Dimensions="{snapshots} {own}" {numbers}>{file}:/fields/{name}</DataItem>',
                "</DataItem>", "</Attribute>",
            ]  # fmt: skip
        lines.append("</Grid>")
    return "\n".join([*lines, "</Grid>", "</Domain>", "</Xdmf>", ""])


def _at_least_2d(points: list[np.ndarray]) -> list[np.ndarray]:
    return points if len(points) > 1 else [*points, np.zeros(1)]


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One snapshot a chunk, cut along x where that would exceed 4 MiB."""
    per_row = 8 * int(np.prod(shape[1:]))
    return (1, max(1, min(shape[0], 2**22 // per_row)), *shape[1:])


def _reason(error: OSError) -> str:
    text = (error.strerror or str(error)).rstrip(".")
    return f"{text}; {_REASONS[error.errno]}." if error.errno in _REASONS else f"{text}."
