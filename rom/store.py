"""The HDF5 store: one file per subdomain, written increment by increment, readable on another number of ranks.

STEM.json names the files and is written last; STEM-0003-of-0008.h5 holds what rank 3 had. docs/rom.md has the layout.
Every array carries a checksum, and HDF5's own structures too, so that damage is found where it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from .atomic import write_text
from .communicator import Communicator, communicator
from .mesh import Mesh
from .reader import Reader
from .subdomain import Subdomain, distribute

if TYPE_CHECKING:
    from mpi4py import MPI

FORMAT, VERSION = "headrace-rom", 1
ROWS = ("nodes", "elements", "points", "whole")


class StoreError(RuntimeError):
    """A store that is missing, unfinished, damaged, or of a newer version. The message names the file and the array."""


def stem_of(path: str | Path) -> Path:
    """Return the path without .json."""
    path = Path(path)
    return path.with_suffix("") if path.suffix == ".json" else path


class StoreWriter:
    """Writes one rank's share of a store; a context manager. Files get their names when it closes without an error.

    Parameters
    ----------
    path : STEM or STEM.json; an older store of this name is replaced on closing.
    subdomain : this rank's share of the mesh; its communicator is used.
    attributes : anything JSON can hold: tolerances, where the data came from.

    Example: `with StoreWriter("cube", solver.subdomain) as store: store.append(t, u, stress=stress, p=p)`.
    """

    def __init__(self, path: str | Path, subdomain: Subdomain, attributes: Mapping[str, Any] | None = None) -> None:
        self.stem, self.subdomain, self.comm = stem_of(path), subdomain, subdomain.comm
        self.attributes = dict(attributes or {})
        self.times: list[float] = []
        self._fields: dict[str, str] = {}
        self.name = f"{self.stem.name}-{self.comm.rank:04d}-of-{self.comm.size:04d}.h5"
        self._part = self.stem.with_name(self.name + ".part")
        error = None
        try:
            self.stem.parent.mkdir(parents=True, exist_ok=True)
            # The latest format has checksums in all of its own structures.
            self._file = h5py.File(self._part, "w", libver="latest")
            self._file.attrs.update(format=FORMAT, version=VERSION, rank=self.comm.rank, size=self.comm.size)
            self._mesh()
        except OSError as caught:
            error = StoreError(f"{self._part} cannot be written: {caught}")
        self.comm.raise_together(error, StoreError)

    def append(
        self, time: float, displacement: np.ndarray, *, temperature: np.ndarray | None = None, **fields: np.ndarray
    ) -> None:
        """Write one increment: local displacement (nodes, 3), temperature (nodes,), fields at quadrature points.

        Raises
        ------
        ValueError : time that does not increase, shapes that do not fit, numbers that are not finite.
        """
        if self.times and time <= self.times[-1]:
            raise ValueError(
                f"Increment {len(self.times)} at time {time:g} follows {self.times[-1]:g}; times increase."
            )
        group = f"snapshots/{len(self.times):06d}"
        mesh = self.subdomain.mesh
        arrays = {"displacement": (displacement, "nodes", mesh.num_nodes)}
        if temperature is not None:
            arrays["temperature"] = (temperature, "nodes", mesh.num_nodes)
        arrays |= {name: (values, "points", len(self.subdomain.points)) for name, values in fields.items()}
        for name, (values, rows, count) in arrays.items():
            if len(values) != count or not np.all(np.isfinite(values)):
                raise ValueError(f"{name} of increment {len(self.times)} has shape {np.shape(values)} and must have "
                                 f"{count} rows of finite numbers.")  # fmt: skip
            self._fields.setdefault(name, rows)
            self.put(f"{group}/{name}", values, rows=rows)
        self._file[group].attrs["time"] = float(time)
        self.times.append(float(time))
        self._file.flush()

    def put(self, name: str, values: np.ndarray, *, rows: str = "whole", **attributes: Any) -> None:
        """Write one array, such as "basis/displacement".

        rows : what its first axis counts: local "nodes", "elements" or "points"; "whole" is the same on every rank.
            Modes of displacements have shape (nodes, 3, modes) here.

        Raises
        ------
        ValueError : unknown rows, or an array that does not have as many.
        """
        counts = {"nodes": len(self.subdomain.nodes), "elements": len(self.subdomain.elements),
                  "points": len(self.subdomain.points)}  # fmt: skip
        values = np.ascontiguousarray(values)
        if rows not in ROWS or (rows != "whole" and len(values) != counts[rows]):
            raise ValueError(f"{name} has shape {values.shape}; rows {rows!r} must be one of {ROWS} and fit {counts}.")
        data = self._file.create_dataset(name, data=values)
        data.attrs.update(rows=rows, crc32=zlib.crc32(values.tobytes()), **attributes)

    def close(self) -> None:
        """Give the files their names, then write STEM.json. Collective.

        A store that was there before stays whole until every rank has come here, and is none any more from then on.
        """
        self._file.close()
        with open(self._part, "rb") as handle:
            os.fsync(handle.fileno())
        self.comm.sum(1.0)
        if self.comm.rank == 0:  # its index would be taken for that of files of two runs
            self.stem.with_name(self.stem.name + ".json").unlink(missing_ok=True)
        self.comm.sum(1.0)
        os.replace(self._part, self.stem.with_name(self.name))
        self.comm.sum(1.0)  # the index is written when every file has its name
        if self.comm.rank == 0:
            self._index()
        self.comm.sum(1.0)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()

    def _mesh(self) -> None:
        sub, mesh = self.subdomain, self.subdomain.mesh
        arrays = {"points": mesh.points, "node_labels": mesh.node_labels, "element_labels": mesh.element_labels,
                  "nodes": sub.nodes, "elements": sub.elements, "quadrature_points": sub.points}  # fmt: skip
        for kind in ("cells", "node_sets", "element_sets", "face_sets"):
            # A slash would make a group of the name.
            arrays |= {f"{kind}/{name.replace('/', '%2F')}": values for name, values in getattr(mesh, kind).items()}
        for name, values in arrays.items():
            block = list(mesh.cells).index(name[6:]) if name.startswith("cells/") else -1
            self.put(f"mesh/{name}", values, **({"block": block} if block >= 0 else {}))

    def _index(self) -> None:
        sub = self.subdomain
        index = {
            "format": FORMAT, "version": VERSION, "times": self.times, "fields": self._fields,
            "files": [f"{self.stem.name}-{k:04d}-of-{self.comm.size:04d}.h5" for k in range(self.comm.size)],
            "nodes": sub.num_nodes, "elements": sub.num_elements, "points": sub.num_points,
            "attributes": self.attributes,
        }  # fmt: skip
        index["sha256"] = _digest(index)
        write_text(self.stem.with_name(self.stem.name + ".json"), json.dumps(index, indent=1))


class Store(Reader):
    """An open store on the ranks of a communicator: a reader of this rank's share of the mesh, of all of it on one.

    Parameters
    ----------
    path : STEM or STEM.json.
    comm : any number of ranks; None is one.
    parts : part of each element, as in `distribute`; default: as stored if the number of ranks is the same.

    Attributes
    ----------
    subdomain : this rank's share; all arrays come in its order.
    attributes : what the writer gave.

    Raises
    ------
    StoreError : missing, unfinished or damaged files. Collective; on every rank.
    """

    def __init__(
        self, path: str | Path, comm: MPI.Comm | Communicator | None = None, parts: np.ndarray | None = None
    ) -> None:
        self.stem, ranks = stem_of(path), communicator(comm)
        self._files: list[h5py.File] = []
        error = whole = None
        try:
            self.index = self._read_index()
            self._files = [self._open(k, name) for k, name in enumerate(self.index["files"])]
            whole, stored = self._whole_mesh()
        except (StoreError, ValueError) as caught:
            error = StoreError(str(caught))
        try:
            ranks.raise_together(error, StoreError)
        except StoreError:
            self.close()
            raise
        if parts is None and len(self._files) == ranks.size:
            parts = stored
        self.attributes = self.index["attributes"]
        self.subdomain = distribute(whole, ranks, parts)
        self._times = np.array(self.index["times"])
        self._maps = {rows: self._sources(rows) for rows in ("nodes", "elements", "points")}

    @property
    def mesh(self) -> Mesh:
        """The mesh of this rank's share."""
        return self.subdomain.mesh

    @property
    def times(self) -> np.ndarray:
        """Times of all increments."""
        return self._times

    def displacement(self, increment: int) -> np.ndarray:
        """Return the displacement of the local nodes, (num_local_nodes, 3)."""
        return self.get(f"snapshots/{self._number(increment):06d}/displacement")

    def temperature(self, increment: int) -> np.ndarray | None:
        """Return the temperature of the local nodes, or None."""
        return self._optional("temperature", increment, "nodes")

    def point_field(self, name: str, increment: int) -> np.ndarray | None:
        """Return a field at the local quadrature points, or None."""
        return self._optional(name, increment, "points")

    def names(self, group: str = "") -> list[str]:
        """Return the names of all arrays in a group."""
        found: list[str] = []
        root = self._files[0][group] if group in self._files[0] else self._files[0] if not group else None
        if root is not None:
            root.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        return found

    def get(self, name: str) -> np.ndarray:
        """Return an array: local rows in the order of `subdomain`, or the whole where it was written so.

        Raises
        ------
        StoreError : no such array, or damage.
        """
        first = self._files[0]
        if not _has(first, name):
            raise StoreError(f"{self.stem} has no array {name!r}. It has the groups {', '.join(first)}.")
        try:
            rows = str(first[name].attrs["rows"])
        except (OSError, RuntimeError, KeyError) as error:
            raise StoreError(f"{first.filename}: {name} is damaged: {error}") from error
        if rows == "whole":
            return _checked(first, name)
        if rows not in self._maps:
            raise StoreError(f"{first.filename}: {name} is damaged: it has no rows {rows!r}.")
        result: np.ndarray | None = None
        for file, source, target in self._maps[rows]:
            piece = _checked(file, name)
            if result is None:
                result = np.empty((len(self._numbers(rows)), *piece.shape[1:]), dtype=piece.dtype)
            if source.size and source.max() >= len(piece):
                raise StoreError(f"{file.filename}: {name} has {len(piece)} rows, fewer than its mesh.")
            result[target] = piece[source]
        return result

    def array_attributes(self, name: str) -> dict[str, Any]:
        """Return what the writer attached to an array."""
        return {k: v for k, v in self._files[0][name].attrs.items() if k not in ("rows", "crc32")}

    def verify(self) -> int:
        """Read every array of every file, check its sum, and return how many there are.

        Raises
        ------
        StoreError : at the first damaged array.
        """
        count = 0
        for file in self._files:
            names: list[str] = []
            try:
                file.visititems(
                    lambda name, item, names=names: names.append(name) if isinstance(item, h5py.Dataset) else None
                )
            except (OSError, RuntimeError, KeyError) as error:
                raise StoreError(f"{file.filename} is damaged: {error}") from error
            for name in names:
                _checked(file, name)
            count += len(names)
        return count

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *rest: object) -> None:
        self.close()

    def _optional(self, name: str, increment: int, rows: str) -> np.ndarray | None:
        if self.index["fields"].get(name) != rows:
            return None
        return self.get(f"snapshots/{self._number(increment):06d}/{name}")

    def _number(self, increment: int) -> int:
        number = range(len(self._times))[increment]
        group = f"snapshots/{number:06d}"
        if not all(_has(file, group) for file in self._files):
            raise StoreError(
                f"{self.stem} lacks increment {number} (time {self._times[number]:g}) in one of its files."
            )
        return number

    def _read_index(self) -> dict[str, Any]:
        path = self.stem.with_name(self.stem.name + ".json")
        if not path.exists():
            parts = sorted(p.name for p in self.stem.parent.glob(f"{self.stem.name}-*-of-*.h5.part"))
            why = f"; a writer was interrupted and left {', '.join(parts)}: run it again" if parts else ""
            raise StoreError(f"There is no store {path}{why}.")
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            digest = index.pop("sha256")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise StoreError(f"{path} is damaged: {type(error).__name__}: {error}.") from error
        if digest != _digest(index):
            raise StoreError(f"{path} is damaged or was edited: its checksum does not fit.")
        if index["format"] != FORMAT or index["version"] > VERSION:
            raise StoreError(f"{path} has format {index['format']} {index['version']}; this Headrace reads {FORMAT} up "
                             f"to version {VERSION}. Update Headrace.")  # fmt: skip
        return index

    def _open(self, number: int, name: str) -> h5py.File:
        path = self.stem.with_name(name)
        try:
            file = h5py.File(path, "r")
            head = (str(file.attrs["format"]), int(file.attrs["rank"]), int(file.attrs["size"]))
        except (OSError, RuntimeError, KeyError) as error:
            raise StoreError(f"{path} is missing, truncated or damaged: {error}") from error
        expected = (FORMAT, number, len(self.index["files"]))
        if head != expected:
            raise StoreError(f"{path} says it is {head}; {self.stem.name}.json asks for {expected}.")
        return file

    def _whole_mesh(self) -> tuple[Mesh, np.ndarray]:
        """Return the whole mesh, put together from all files, and the file that has each element."""
        points, node_labels = np.full((self.index["nodes"], 3), np.nan), np.zeros(self.index["nodes"], dtype=int)
        element_labels = np.zeros(self.index["elements"], dtype=int)
        parts = np.full(self.index["elements"], -1)
        cells: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        sets: dict[str, dict[str, list[np.ndarray]]] = {"node_sets": {}, "element_sets": {}, "face_sets": {}}
        for number, file in enumerate(self._files):
            nodes, elements = _checked(file, "mesh/nodes"), _checked(file, "mesh/elements")
            points[nodes], node_labels[nodes] = _checked(file, "mesh/points"), _checked(file, "mesh/node_labels")
            element_labels[elements], parts[elements] = _checked(file, "mesh/element_labels"), number
            first = 0
            for kind in _members(file, "cells"):
                block = _checked(file, f"mesh/cells/{kind}")
                cells.setdefault(kind, []).append((elements[first : first + len(block)], nodes[block]))
                first += len(block)
            for group, found in sets.items():
                for name in _members(file, group):
                    values = _checked(file, f"mesh/{group}/{name}")
                    if group == "face_sets":
                        values = np.stack([elements[values[:, 0]], values[:, 1]], axis=1)
                    else:
                        values = (nodes if group == "node_sets" else elements)[values]
                    found.setdefault(name.replace("%2F", "/"), []).append(values)
        if np.any(parts < 0):
            raise StoreError(f"{self.stem}: element {int(np.argmin(parts))} is in none of the files.")
        blocks = {kind: (np.concatenate([e for e, _ in pieces]), np.concatenate([n for _, n in pieces]))
                  for kind, pieces in cells.items()}  # fmt: skip
        ordered = sorted(blocks, key=lambda kind: blocks[kind][0].min())
        mesh = Mesh(
            points=points, node_labels=node_labels, element_labels=element_labels,
            cells={kind: blocks[kind][1][np.argsort(blocks[kind][0])] for kind in ordered},
            node_sets={name: np.unique(np.concatenate(s)) for name, s in sets["node_sets"].items()},
            element_sets={name: np.concatenate(s) for name, s in sets["element_sets"].items()},
            face_sets={name: np.unique(np.concatenate(s), axis=0) for name, s in sets["face_sets"].items()},
        )  # fmt: skip
        return mesh, parts

    def _numbers(self, rows: str) -> np.ndarray:
        return {"nodes": self.subdomain.nodes, "elements": self.subdomain.elements,
                "points": self.subdomain.points}[rows]  # fmt: skip

    def _sources(self, rows: str) -> list[tuple[h5py.File, np.ndarray, np.ndarray]]:
        """Return (file, rows in it, rows here) of every file that has some of this rank's rows."""
        wanted = self._numbers(rows)
        found = []
        for file in self._files:
            there = _checked(file, f"mesh/{'quadrature_points' if rows == 'points' else rows}")
            _, source, target = np.intersect1d(there, wanted, return_indices=True)
            if source.size:
                found.append((file, source, target))
        return found


def _members(file: h5py.File, group: str) -> list[str]:
    """Return the names in a group of the mesh; element types in the order in which elements are numbered."""
    path = f"mesh/{group}"
    try:
        names = list(file[path]) if path in file else []
        if group == "cells":
            names.sort(key=lambda name: int(file[f"{path}/{name}"].attrs["block"]))  # HDF5 lists them by alphabet
    except (OSError, RuntimeError, KeyError) as error:
        raise StoreError(f"{file.filename} is damaged: {error}") from error
    return names


def _has(file: h5py.File, name: str) -> bool:
    """Return whether a file has an array or group; raises StoreError where its structure is damaged."""
    try:
        return name in file
    except (OSError, RuntimeError, KeyError) as error:
        raise StoreError(f"{file.filename} is damaged: {error}") from error


def _checked(file: h5py.File, name: str) -> np.ndarray:
    """Return an array after checking its sum."""
    try:
        data = file[name]
        values, expected = data[()], int(data.attrs["crc32"])
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise StoreError(f"{file.filename}: {name} is missing or damaged: {error}") from error
    values = np.asarray(values)
    if zlib.crc32(np.ascontiguousarray(values).tobytes()) != expected:
        raise StoreError(f"{file.filename}: {name} is damaged: its checksum does not fit.")
    return values


def _digest(index: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
