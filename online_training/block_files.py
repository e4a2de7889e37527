"""Reads the blocks that the ranks of a run without a study left in files, step by step."""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from .cell_list import CellList
from .client import (
    BY_INDEX,
    DTYPE_CODES,
    DTYPES,
    HEADER_SIZE,
    MAX_FRAME,
    MAX_NDIM,
    OLDEST_VERSION,
    BlockFile,
    Header,
    Kind,
    WireError,
)

_MOST_FIELDS = 4096
_MOST_CELLS = 2**34


class BlockFileError(ValueError):
    """Files that do not belong together, are damaged, or do not cover their fields; names file or step."""


class _Found(NamedTuple):
    """Where the content of a block lies."""

    file: int
    position: int
    header: Header
    cells: CellList | None


class BlockFiles:
    """The files of one run; only headers are read until a step is asked for.

    folder : holds blocks-000000.hdrc, ..., one for each rank. Where a run was killed they end in .part; the steps that
        are complete on all ranks are there then.

    fields, dtype : shape of each field, and type of all values.
    times : of the complete steps, each as the first rank that sent a block of it says.
    unequal_times : (step, smallest, largest) of the first step that ranks give different times; None where they agree.
    finished : whether all ranks came to their end.
    failure : what a rank said that failed; "" where none did.

    Raises
    ------
    BlockFileError : see there.
    """

    def __init__(self, folder: str | Path) -> None:
        self._paths = sorted([*Path(folder).glob("blocks-*.hdrc"), *Path(folder).glob("blocks-*.hdrc.part")])
        if not self._paths:
            raise BlockFileError(f"{folder} holds no blocks-*.hdrc; a run with HEADRACE_OUTPUT={folder} writes them.")
        self.fields: dict[str, tuple[int, ...]] = {}
        self.dtype = np.dtype("f4")
        self.finished, self.failure = True, ""
        self._found: dict[int, list[_Found]] = defaultdict(list)
        self._ranks: dict[int, int] = {}
        for number in range(len(self._paths)):
            self._index(number)
        if not self._ranks:
            raise BlockFileError(f"{folder} holds a run that was killed at its start: none of the files says a word.")
        # Each rank is there once and less than its run's number: as many as that are all of them.
        if {len(self._ranks)} != set(self._ranks.values()):
            ranks = max(self._ranks.values())
            raise BlockFileError(f"{folder} has files of ranks {sorted(self._ranks)}, but the run had {ranks}.")
        told = list(self._complete_times())
        self.times = [times[0] for times in told]
        # Ranks that add up their steps may differ by rounding.
        rounding = 1e-9 * max(map(abs, self.times), default=0.0)
        odd = (step for step, times in enumerate(told) if max(times) - min(times) > rounding)
        self.unequal_times = next(((step, min(told[step]), max(told[step])) for step in odd), None)

    def step(self, step: int) -> dict[str, np.ndarray]:
        """Return the fields at a step, each of its own shape.

        Raises
        ------
        BlockFileError : a damaged block, or cells that two ranks sent.
        """
        values = {name: np.empty(shape, self.dtype) for name, shape in self.fields.items()}
        taken = {name: np.zeros(shape, bool) for name, shape in self.fields.items()}
        names = list(self.fields)
        for found in self._found[step]:
            header = found.header
            parts = self._content(found).reshape(-1, *header.block_shape)
            for name, part in zip(names[header.field :], parts, strict=False):
                if found.cells is not None:
                    place: Any = found.cells.part(header.offset[0], header.block_shape[0])
                    value, mark = values[name].reshape(-1), taken[name].reshape(-1)
                else:
                    place = tuple(slice(o, o + n) for o, n in zip(header.offset, header.block_shape, strict=True))
                    value, mark = values[name], taken[name]
                if mark[place].any():
                    raise BlockFileError(f"Step {step} of field {name} has cells that were sent twice.")
                value[place], mark[place] = part, True
        return values

    def _content(self, found: _Found) -> np.ndarray:
        with open(self._paths[found.file], "rb") as file:
            file.seek(found.position)
            data = file.read(found.header.payload_length)
        if zlib.crc32(data) != found.header.checksum:
            raise BlockFileError(f"{self._paths[found.file]} is damaged at step {found.header.step}; run again.")
        return np.frombuffer(data, self.dtype)

    def _complete_times(self) -> Iterator[list[float]]:
        """Yield what the blocks of each step say its time is, as long as no value is missing."""
        total = sum(math.prod(shape) for shape in self.fields.values())
        for step in range(len(self._found)):
            found = self._found.get(step, [])
            cells = sum(one.header.payload_length for one in found) // self.dtype.itemsize
            if cells < total and self.finished:
                raise BlockFileError(
                    f"The blocks of all ranks leave {total - cells} of {total} values of step {step} out."
                )
            if cells < total:
                return
            times = [one.header.time for one in found]
            if not all(map(math.isfinite, times)):
                raise BlockFileError(f"A rank gave step {step} a time that is no finite number; run again.")
            yield times

    def _index(self, number: int) -> None:
        path, cells, ended = self._paths[number], None, False
        with open(path, "rb") as file:
            for header, position in _messages(file, path):
                try:
                    if header.kind == Kind.HELLO:
                        self._greet(json.loads(_payload(file, header)))
                    elif header.kind == Kind.DECLARE:
                        self._declare(json.loads(_payload(file, header)))
                    elif header.kind == Kind.CELLS:
                        if header.offset == (0,):
                            shape = next(iter(self.fields.values()))
                            cells = CellList(
                                0 if cells is None else cells.number + 1, *header.global_shape, math.prod(shape)
                            )
                        cells.add(header, _payload(file, header))
                    elif header.kind == Kind.BLOCK:
                        own = cells if header.flags & BY_INDEX else None
                        self._check(header, own)
                        self._found[header.step].append(_Found(number, position, header, own))
                    elif header.kind == Kind.END:
                        ended = True
                        self.failure = self.failure or str(json.loads(_payload(file, header)).get("reason", ""))
                except (ValueError, OverflowError, LookupError, TypeError, AttributeError, StopIteration) as error:
                    raise BlockFileError(
                        f"{path} is no file of blocks, or damaged: {error!r} at byte {position}."
                    ) from None
        self.finished &= ended

    def _greet(self, content: dict[str, Any]) -> None:
        if content["format"] != "headrace-blocks" or content["version"] != 1:
            raise WireError(f"format {content['format']!r}, version {content['version']!r}; known is headrace-blocks 1")
        rank, ranks = int(content["rank"]), int(content["ranks"])
        if not 0 <= rank < ranks or rank in self._ranks:
            raise WireError(f"rank {rank} of {ranks}")
        self._ranks[rank] = ranks

    def _declare(self, content: dict[str, Any]) -> None:
        fields = {str(one["name"]): tuple(int(n) for n in one["shape"]) for one in content["fields"]}
        dtype = DTYPES[DTYPE_CODES[content["fields"][0]["dtype"]]]
        sizes = [math.prod(shape) for shape in fields.values()]
        shapes_fit = all(len(shape) <= MAX_NDIM and min(shape, default=0) > 0 for shape in fields.values())
        if len(fields) > _MOST_FIELDS or sum(sizes) > _MOST_CELLS or not shapes_fit:
            raise WireError("fields")
        if self.fields and (fields, dtype) != (self.fields, self.dtype):
            raise WireError("other fields than those of the first rank")
        self.fields, self.dtype = fields, dtype

    def _check(self, header: Header, cells: CellList | None) -> None:
        shapes = list(self.fields.values())
        shape = shapes[header.field] if not header.flags & BY_INDEX else cells.shape
        box = zip(header.offset, header.block_shape, shape, strict=True)
        if header.global_shape != shape or any(n < 1 or o + n > full for o, n, full in box):
            raise WireError("block")
        count, rest = divmod(header.payload_length, math.prod(header.block_shape) * self.dtype.itemsize)
        if (
            rest
            or not 1 <= count <= len(shapes) - header.field
            or set(shapes[header.field : header.field + count]) > {shape}
        ):
            raise WireError("length")
        if DTYPES.get(header.dtype) != self.dtype:
            raise WireError("dtype")


def _messages(file: BinaryIO, path: Path) -> Iterator[tuple[Header, int]]:
    """Yield header and place of each payload; a torn end ends the file of a killed rank, and is an error otherwise."""
    size = file.seek(0, 2)
    position = 0
    while position + HEADER_SIZE <= size:
        file.seek(position)
        frame = file.read(HEADER_SIZE)
        length = int.from_bytes(frame[168:176], "little")
        signed = frame[180] & 1
        if length > MAX_FRAME or position + HEADER_SIZE + length > size:
            break
        try:
            payload: Any = file.read(length) if signed else _Length(length)
            header = Header.verify(frame, BlockFile.TOKEN, 0, payload, oldest=OLDEST_VERSION)
        except WireError as error:
            raise BlockFileError(f"{path} is damaged at byte {position}: {error}. Run again.") from None
        position += HEADER_SIZE
        yield header, position
        position += length
    if position < size and path.suffix != ".part":
        raise BlockFileError(f"{path} ends in the middle of a message; run again.")


def _payload(file: BinaryIO, header: Header) -> bytes:
    file.seek(-header.payload_length, 1)
    return file.read(header.payload_length)


class _Length:
    """Stands for a payload that is not read."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length
