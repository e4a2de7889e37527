"""A data set on disk as training windows: packed once into float32 for memory mapping, or read from the HDF5 files."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from headrace.solvers.hdf5 import FORMAT, VERSION

from .layout import StreamLayout
from .running_statistics import RunningStatistics

PACKED, INDEX = "packed.f32", "packed.json"
_OPEN_FILES = 200  # of one process, of the 1024 that it may usually have


@dataclass(frozen=True, kw_only=True)
class StoredSimulation:
    """One file of a data set.

    times : of its steps, (steps,). parameters : in the order of the layout.
    """

    path: Path
    number: int
    times: np.ndarray
    parameters: np.ndarray


class OfflineData:
    """The simulations of a folder that `headrace generate` wrote, drawn as windows of float32 states.

    Memory-mapped: the files are copied once, step by step, to one file of float32 numbers beside them, which all
    processes map; a window is then one copy from the page cache and nothing is read that is not wanted. Unmapped: each
    step is read from its own chunk of the HDF5 file, and checked and converted there.

    Parameters
    ----------
    layout : of the stream that such a study would have.
    limit : simulations to use, in the order of their numbers; the others are not touched.
    mapped : whether to pack and map. The packed file is made anew when a file of the set is newer.

    Raises
    ------
    ValueError : the folder has no simulation, or one that does not fit the layout; names what differs.
    OSError : a file is damaged or the packed one cannot be written.
    """

    def __init__(self, folder: str | Path, layout: StreamLayout, *, limit: int, mapped: bool = True) -> None:
        self.folder, self.layout, self.mapped = Path(folder), layout, mapped
        self.simulations = [_describe(path, layout) for path in simulation_files(self.folder)[:limit]]
        if not self.simulations:
            raise ValueError(f"{self.folder} holds no simulations sim-NUMBER.h5; make some with `headrace generate`.")
        starts = [max(0, len(one.times) - layout.window + 1) for one in self.simulations]
        # A row for each window: place of its simulation, its first step.
        self.windows = np.array([(i, t) for i, n in enumerate(starts) for t in range(n)], dtype=np.int64)
        if not len(self.windows):
            raise ValueError(f"No simulation in {self.folder} has the {layout.window} steps of one window.")
        self._first = np.concatenate([[0], np.cumsum([len(one.times) for one in self.simulations])])
        self._states: np.ndarray | None = None
        self._files: dict[int, h5py.File] = {}
        if mapped:
            self._pack()

    def __len__(self) -> int:
        return len(self.windows)

    def __getstate__(self) -> dict[str, Any]:
        # Processes that are started fresh map and open for themselves.
        return {**self.__dict__, "_states": None, "_files": {}}

    def statistics(self) -> dict[str, Any]:
        """Return {"count", "mean", "std"} of each field over all steps, by the same sums as those of a stream."""
        index = self._index() if self.mapped else None
        if index is not None:
            return index["statistics"]
        sums = RunningStatistics(len(self.layout.fields))
        for place, one in enumerate(self.simulations):
            for step in range(len(one.times)):
                sums.add(self._read(place, step, step + 1)[0])
        return sums.to_dict()

    def gather(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Return windows by their rows: states (batch, window, fields, *grid) float32, times, parameters, simulation
        numbers and starts."""
        chosen, k = self.windows[np.asarray(rows, dtype=np.int64)], self.layout.window
        states = np.empty((len(chosen), k, *self.layout.step_shape), np.float32)
        for target, (place, start) in zip(states, chosen, strict=True):
            target[...] = self._read(place, start, start + k)
        picked = [self.simulations[place] for place in chosen[:, 0]]
        return {
            "states": states,
            "times": np.stack([one.times[start : start + k] for one, start in zip(picked, chosen[:, 1], strict=True)]),
            "parameters": np.stack([one.parameters for one in picked]),
            "simulation": np.array([one.number for one in picked], dtype=np.uint64),
            "start": chosen[:, 1].astype(np.uint32),
        }

    def _read(self, place: int, first: int, last: int) -> np.ndarray:
        """Steps first..last-1 of a simulation, (steps, fields, *grid) float32."""
        if self.mapped:
            if self._states is None:
                shape = (int(self._first[-1]), *self.layout.step_shape)
                self._states = np.memmap(self.folder / PACKED, np.float32, "r", shape=shape)
            begin = int(self._first[place])
            return self._states[begin + first : begin + last]
        out = np.empty((last - first, *self.layout.step_shape), np.float32)
        with _damage_named(self.simulations[place].path):
            file = self._files.get(place)
            if file is None:
                while len(self._files) >= _OPEN_FILES:
                    self._files.pop(next(iter(self._files))).close()
                # The chunks of a window are read once: HDF5's own cache would only cost memory.
                file = self._files[place] = h5py.File(self.simulations[place].path, "r", rdcc_nbytes=0)
            for field, name in enumerate(self.layout.fields):
                file[f"fields/{name}"].read_direct(out, np.s_[first:last], np.s_[:, field])
        return out

    # -- packing -------------------------------------------------------------------------------------------------

    def _identity(self) -> dict[str, Any]:
        files = [[one.path.name, one.path.stat().st_size, one.path.stat().st_mtime_ns] for one in self.simulations]
        return {"files": files, "fields": list(self.layout.fields), "shape": list(self.layout.shape)}

    def _index(self) -> dict[str, Any] | None:
        """What lies packed, where it is of these very files."""
        try:
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        same = all(index.get(key) == value for key, value in self._identity().items())
        size = int(self._first[-1]) * self.layout.step_bytes
        packed = self.folder / PACKED
        return index if same and packed.exists() and packed.stat().st_size == size else None

    def _pack(self) -> None:
        if self._index() is not None:
            return
        sums = RunningStatistics(len(self.layout.fields))
        part = self.folder / f"{PACKED}.{os.getpid()}"
        try:
            with open(part, "wb") as target:
                for one in self.simulations:
                    for state in _states(one, self.layout):
                        sums.add(state)
                        target.write(state)
                target.flush()
                os.fsync(target.fileno())
            os.replace(part, self.folder / PACKED)
        finally:
            part.unlink(missing_ok=True)
        index = self.folder / f"{INDEX}.{os.getpid()}"
        index.write_text(json.dumps({**self._identity(), "statistics": sums.to_dict()}), encoding="utf-8")
        os.replace(index, self.folder / INDEX)


def simulation_files(folder: str | Path) -> list[Path]:
    """Return the files sim-NUMBER.h5 of a folder in the order of their numbers."""
    return sorted(Path(folder).glob("sim-*.h5"), key=_number)


def _number(path: Path) -> int:
    return int(re.sub(r"\D", "", path.stem) or 0)


def _describe(path: Path, layout: StreamLayout) -> StoredSimulation:
    with _damage_named(path), h5py.File(path, "r") as file:
        found, version = file.attrs.get("format"), file.attrs.get("version")
        if (found, version) != (FORMAT, VERSION):
            raise OSError(f"it says format {found!r}, version {version!r}; {FORMAT!r} {VERSION} is read here")
        fields, shape = tuple(file.attrs["fields"]), tuple(int(n) for n in file["grid"].attrs["shape"])
        values = file["parameters"].attrs
        if fields != layout.fields or shape != layout.shape or set(values) != set(layout.parameters):
            raise ValueError(
                f"{path} holds {', '.join(fields)} on {shape} with parameters {', '.join(values)}; this study "
                f"needs {', '.join(layout.fields)} on {layout.shape} with {', '.join(layout.parameters)}."
            )
        return StoredSimulation(
            path=path, number=_number(path), times=np.asarray(file["times"], dtype=np.float64),
            parameters=np.array([float(values[name]) for name in layout.parameters]),
        )  # fmt: skip


def _states(one: StoredSimulation, layout: StreamLayout) -> Iterator[np.ndarray]:
    """Yield the states of a simulation, (fields, *grid) float32, from its own file."""
    with _damage_named(one.path):
        file = h5py.File(one.path, "r")
    with file:
        for step in range(len(one.times)):
            with _damage_named(one.path):
                state = np.stack([file[f"fields/{name}"][step] for name in layout.fields]).astype(np.float32)
            yield state


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what h5py says of a damaged file, by errors of many kinds, into an OSError that names it."""
    try:
        yield
    except (OSError, LookupError, TypeError, RuntimeError) as error:
        raise OSError(f"{path} is no sound simulation of a data set: {error}.") from error
