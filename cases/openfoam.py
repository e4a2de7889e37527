"""Reads OpenFOAM's time directories: fields in ASCII, of a single block of cells or at their centres.

The syntax is that of the user guide's section on basic input/output file format: a dictionary whose entry internalField
is "uniform VALUE;" or "nonuniform List<TYPE> COUNT ( ... );".
https://www.openfoam.com/documentation/user-guide/2-openfoam-cases/2.2-basic-inputoutput-file-format
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headrace.solvers import Case

from .onto_grid import Placement, component, name_of

_COMMENTS = re.compile(rb"/\*.*?\*/|//[^\n]*", re.S)
_FORMAT = re.compile(rb"\bformat\s+(\w+)\s*;")
_INTERNAL = re.compile(rb"\binternalField\s+(uniform|nonuniform)\s+")
_LIST = re.compile(rb"List<(\w+)>\s*(\d+)\s*\(")
_LABELS = re.compile(rb"\}\s*(\d+)\s*\(([\d\s]*)\)")
_WIDTHS = {b"scalar": 1, b"vector": 3, b"symmTensor": 6, b"tensor": 9, b"sphericalTensor": 1}
_MOST_BYTES = 2**33


def read_internal_field(path: Path, count: int | None = None) -> np.ndarray:
    """Return the values of a field's cells, (cells, components).

    count : cells of the mesh, for a field that says "uniform".

    Raises
    ------
    ValueError : not ASCII, damaged, or uniform where count is not known; names the file.
    """
    if not path.exists():
        raise ValueError(
            f"{path} does not exist; is the field's name right and writeCompression off?"
        )
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} has more than {_MOST_BYTES} bytes, which are not read at once.")
    text = path.read_bytes()
    found = _FORMAT.search(text[:4096])
    if found and found[1] != b"ascii":
        raise ValueError(f"{path} is {found[1].decode()}; set writeFormat ascii in system/controlDict.")
    text = _COMMENTS.sub(b"", text)
    start = _INTERNAL.search(text)
    if start is None:
        raise ValueError(f"{path} has no internalField.")
    rest = text[start.end() :]
    if start[1] == b"uniform":
        value = _numbers(rest.partition(b";")[0], path)
        if count is None:
            raise ValueError(f"{path} is uniform, and no other field says how many cells there are.")
        return np.tile(value, (count, 1))
    head = _LIST.match(rest)
    if head is None or head[1] not in _WIDTHS:
        raise ValueError(f"{path}: internalField is no list of {', '.join(name.decode() for name in _WIDTHS)}.")
    end = re.compile(rb"\)\s*;").search(rest, head.end())
    if end is None:
        raise ValueError(f"{path} ends within internalField.")
    values = _numbers(rest[head.end() : end.start()], path)
    cells, width = int(head[2]), _WIDTHS[head[1]]
    if values.size != cells * width:
        raise ValueError(f"{path} announces {cells} cells of {width} numbers, but holds {values.size} numbers.")
    return values.reshape(cells, width)


def _numbers(text: bytes, path: Path) -> np.ndarray:
    try:
        return np.array(text.replace(b"(", b" ").replace(b")", b" ").split(), dtype=float)
    except ValueError as error:
        raise ValueError(f"{path}: what should be numbers is not: {error}") from None


@dataclass(frozen=True, kw_only=True)
class OpenFOAMTimes:
    """Reads snapshots from time directories, for `ExternalProgram(snapshot="{time}", read=OpenFOAMTimes(...))`.

    Snapshots are at multiples of writeInterval, which @{interval} in controlDict gives; writeFormat is ascii. The
    directory of time 0 is read as well.

    Parameters
    ----------
    fields : name of each of the case's fields -> OpenFOAM's, with the component of a vector: {"u": "U.x", "p": "p"}.
    cells : "block" for the cells of one blockMesh block, x fastest, which are those of the case's grid (one layer of
        cells along each axis that the grid does not have); "grid" interpolates from the cells' centres onto the grid;
        "points" keeps the cells in their order. The last two need the centres that
        `postProcess -func writeCellCentres -time 0` writes to 0/C.

    Of a parallel run the folders processor0, ... are read, cell by cell to where cellProcAddressing says; give
    snapshot="processor0/{time}". No process begins the next directory before all have written the one before, as time
    steps between the two have sums over all of them.
    """

    fields: Mapping[str, str]
    cells: str = "block"
    _placement: list[Placement] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.cells not in ("block", "grid", "points"):
            raise ValueError(f"cells is {self.cells!r}; it must be 'block', 'grid' or 'points'.")
        if self.cells != "block":
            self._placement.append(Placement(self.cells))

    def __call__(self, folder: Path, step: int, case: Case) -> np.ndarray:
        """Return a snapshot, (fields, *grid).

        Raises
        ------
        ValueError : a field is missing, damaged, or of another mesh.
        """
        time = f"{step * case.duration / case.num_snapshots:g}"
        centres = None if self.cells == "block" else read_internal_field(folder / "0" / "C")
        count = case.grid.num_points if centres is None else len(centres)
        values = []
        for name in case.fields:
            theirs = name_of(self.fields, name)
            values.append(component(_cells(folder, Path(time, theirs.partition(".")[0]), count), theirs))
        if centres is not None:
            return self._placement[0](centres, np.stack(values), case)
        # OpenFOAM counts the cells of a block with x fastest; our axis 0 is x.
        return np.stack([one.reshape(case.grid.shape[::-1]).T for one in values])


def _cells(folder: Path, path: Path, count: int) -> np.ndarray:
    """Return a field of all cells, (cells, components), also where each processor has a part of them."""
    parts = sorted(folder.glob("processor[0-9]*"))
    whole: np.ndarray | None = None
    for part in parts or [folder]:
        cells = _labels(part / "constant" / "polyMesh" / "cellProcAddressing") if parts else np.arange(count)
        values = read_internal_field(part / path, len(cells))
        if len(values) != len(cells) or (len(cells) and not 0 <= cells.min() <= cells.max() < count):
            raise ValueError(f"{part / path} has {len(values)} cells; {len(cells)} of {count} are expected.")
        if whole is None:
            whole = np.full((count, values.shape[1]), np.nan)
        whole[cells] = values
    missing = int(np.isnan(whole).any(axis=1).sum())
    if missing:
        raise ValueError(
            f"{path} has no number in {missing} of {count} cells, in the folders of {len(parts)} processors."
        )
    return whole


def _labels(path: Path) -> np.ndarray:
    """Return a list of whole numbers in ASCII, as cellProcAddressing is one."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; decomposePar writes it.")
    found = _LABELS.search(_COMMENTS.sub(b"", path.read_bytes()))
    labels = np.array(found[2].split(), dtype=np.int64) if found else np.empty(0, np.int64)
    if found is None or len(labels) != int(found[1]):
        raise ValueError(f"{path} is no list of cells in ASCII; set writeFormat ascii before decomposePar.")
    return labels
