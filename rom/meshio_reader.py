"""Meshes and results in any format that meshio reads: VTK and VTU series, XDMF, MED, Gmsh, Ansys, Abaqus and more.

`read_mesh` is for meshes; `MeshioReader` for series of files, or an XDMF file with time steps, that hold displacements.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import meshio
import numpy as np

from .calculix_deck import read_deck
from .elements import element_type
from .mesh import Mesh
from .reader import Reader

TYPES = {"tetra": "tet4", "tetra10": "tet10", "hexahedron": "hex8", "hexahedron20": "hex20"}
# The same elements listed by programs that go round the base the other way (MED does).
MIRRORED = {
    "tet4": (0, 2, 1, 3),
    "tet10": (0, 2, 1, 3, 6, 5, 4, 7, 9, 8),
    "hex8": (0, 3, 2, 1, 4, 7, 6, 5),
    "hex20": (0, 3, 2, 1, 4, 7, 6, 5, 11, 10, 9, 8, 15, 14, 13, 12, 16, 19, 18, 17),
}


class FormatError(ValueError):
    """A file that meshio cannot read, or that does not hold what is needed; names the file."""


def read_mesh(path: str | Path, *, reduced: bool = False) -> Mesh:
    """Return the mesh of a file with its named groups; reduced: 20-node hexahedra are hex20r.

    Groups of volume cells become element sets, groups of surface cells face sets, groups of points node sets (Gmsh's
    physical groups, MED's families, the sets of other formats). Elements that are all mirrored are turned. .inp files
    go to `read_deck`, which knows more of them.

    Raises
    ------
    FormatError, ValueError : see `Mesh`; no volume cells; unknown formats.
    """
    path = Path(path)
    if path.suffix.lower() == ".inp":
        return read_deck(path)
    return from_meshio(_read(path), where=str(path), reduced=reduced)[0]


def from_meshio(mesh: meshio.Mesh, *, where: str = "mesh", reduced: bool = False) -> tuple[Mesh, np.ndarray]:
    """Return our mesh of meshio's, and which of its points are in it (those of volume cells), increasing.

    Raises
    ------
    FormatError : no volume cells, or kinds of them that we do not have.
    """
    kinds = [block.type for block in mesh.cells]
    solid = [k for k, block in enumerate(mesh.cells) if block.type in TYPES]
    if not solid:
        raise FormatError(f"{where} has no volume cells of type {', '.join(TYPES)}; it has {sorted(set(kinds))}.")
    if strange := [k for k in kinds if k.startswith(("wedge", "pyramid", "hexahedron27", "tetra1")) and k not in TYPES]:
        raise FormatError(f"{where} has cells of type {strange[0]!r}; read are {', '.join(TYPES)}.")
    points = np.asarray(mesh.points, dtype=float)
    used = np.unique(np.concatenate([mesh.cells[k].data.ravel() for k in solid]))
    number = np.full(len(points), -1)
    number[used] = np.arange(len(used))
    blocks: dict[str, list[np.ndarray]] = {}
    for k in solid:
        blocks.setdefault(TYPES[mesh.cells[k].type], []).append(number[mesh.cells[k].data])
    cells = {kind: _turned(kind, np.concatenate(pieces), points[used]) for kind, pieces in blocks.items()}
    first_of, first = {}, 0  # element number of the first cell of each of meshio's blocks
    for kind in cells:
        for k in solid:
            if TYPES[mesh.cells[k].type] == kind:
                first_of[k] = first
                first += len(mesh.cells[k].data)
    if reduced and "hex20" in cells:
        cells = {("hex20r" if kind == "hex20" else kind): block for kind, block in cells.items()}
    bare = Mesh(points=points[used], cells=cells, node_labels=used + 1)
    element_sets: dict[str, list[np.ndarray]] = {}
    face_sets: dict[str, list[np.ndarray]] = {}
    faces: dict[tuple[int, ...], int] | None = None
    pairs = bare.all_faces()
    for name, per_block in _groups(mesh).items():
        for k, members in enumerate(per_block):
            members = np.asarray(members, dtype=int)
            if not len(members):
                continue
            if k in first_of:
                element_sets.setdefault(name, []).append(first_of[k] + members)
            elif kinds[k].startswith(("triangle", "quad")):
                if faces is None:
                    faces = {tuple(corners): row for row, corners in enumerate(pairs[1].tolist())}
                face_sets.setdefault(name, []).append(_sides(mesh.cells[k], members, number, faces, pairs[0]))
    full = Mesh(
        points=bare.points, cells=bare.cells, node_labels=bare.node_labels,
        node_sets={name: (n := number[np.asarray(s, dtype=int)])[n >= 0] for name, s in mesh.point_sets.items()},
        element_sets={name: np.concatenate(pieces) for name, pieces in element_sets.items()},
        face_sets={name: np.concatenate(pieces) for name, pieces in face_sets.items()},
    )  # fmt: skip
    return full, used


def _turned(kind: str, block: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return the block, mirrored where every element of it is inside out."""
    reference = element_type(kind)
    jacobian = np.linalg.det(np.swapaxes(points[block], 1, 2) @ reference.gradients[0])
    return block[:, MIRRORED[kind]] if np.all(jacobian < 0) else block


def _groups(mesh: meshio.Mesh) -> dict[str, list[np.ndarray]]:
    """Return named groups of cells, for each the members in every block."""
    groups = {name: [[] if s is None else s for s in sets] for name, sets in mesh.cell_sets.items()
              if not name.startswith("gmsh:")}  # fmt: skip
    names = {int(tag): name for name, (tag, *_) in mesh.field_data.items()} if "gmsh:physical" in mesh.cell_data else {}
    for tag, name in names.items():
        dimension = int(mesh.field_data[name][1])
        groups.setdefault(name, [
            np.flatnonzero(tags == tag) if _dimension(block.type) == dimension else np.zeros(0, dtype=int)
            for block, tags in zip(mesh.cells, mesh.cell_data["gmsh:physical"], strict=True)
        ])  # fmt: skip
    for tag, families in getattr(mesh, "cell_tags", {}).items():
        for name in families:
            found = [np.flatnonzero(np.asarray(tags) == tag) for tags in mesh.cell_data["cell_tags"]]
            before = groups.get(name, [np.zeros(0, dtype=int)] * len(found))
            groups[name] = [np.concatenate([a, b]).astype(int) for a, b in zip(before, found, strict=True)]
    return groups


def _dimension(kind: str) -> int:
    return (
        2 if kind.startswith(("triangle", "quad")) else 1 if kind.startswith("line") else 0 if kind == "vertex" else 3
    )


def _sides(
    block: Any, members: np.ndarray, number: np.ndarray, faces: dict[tuple[int, ...], int], pairs: np.ndarray
) -> np.ndarray:
    """Return (element, face) of surface cells."""
    corners = 3 if block.type.startswith("triangle") else 4
    keys = np.full((len(members), 4), -1)
    keys[:, :corners] = np.sort(number[block.data[members][:, :corners]], axis=1)
    rows = [faces[key] for key in map(tuple, keys.tolist()) if key in faces]
    return pairs[rows] if rows else np.zeros((0, 2), dtype=int)


def read_point_data(path: str | Path, name: str) -> np.ndarray:
    """Return a point data of a file, (points, ...).

    Raises
    ------
    FormatError : an unreadable file, or one without it.
    """
    data = _read(Path(path)).point_data
    if name not in data:
        raise FormatError(f"{path} has no point data {name!r}; it has {', '.join(data) or 'none'}.")
    return np.asarray(data[name], dtype=float)


def _read(path: Path) -> meshio.Mesh:
    if not path.exists():
        raise FormatError(f"There is no file {path}.")
    try:
        return meshio.read(path)
    except SystemExit as error:  # meshio ends the process where it does not know what to do
        raise FormatError(f"{path} cannot be read by meshio; is it damaged, or of another format?") from error
    except Exception as error:
        raise FormatError(f"{path} cannot be read by meshio: {error!r}") from error


class MeshioReader(Reader):
    """Displacements in a series of files, a .pvd collection, or an XDMF file with time steps.

    Parameters
    ----------
    source : a .xdmf or .pvd file, a list of files in order, or a pattern such as "run/step_*.vtu", whose files are
        sorted by number and must be numbered without gaps.
    times : of the files; default: those in .xdmf and .pvd, else 1, 2, ... or the files' numbers. Where the
        first is above 0, the state of rest at 0 is added.
    displacement, temperature : names of the point data.
    reduced : 20-node hexahedra are hex20r.

    Raises
    ------
    FormatError : files missing in the numbering, no such point data, files of another mesh.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        *,
        times: Sequence[float] | None = None,
        displacement: str = "displacement",
        temperature: str | None = None,
        reduced: bool = False,
    ) -> None:
        self._names = (displacement, temperature)
        self._xdmf: Path | None = None
        if isinstance(source, str | Path) and Path(source).suffix.lower() in (".xdmf", ".xmf"):
            self._xdmf = Path(source)
            self._files: list[Path] = []
            found, first = self._xdmf_steps()
        else:
            self._files, found = series_files(source)
            first = _read(self._files[0])
        given = np.asarray(found if times is None else times, dtype=float)
        steps = len(found)
        if len(given) != steps or np.any(np.diff(given) <= 0):
            raise FormatError(f"{source}: {len(given)} times for {steps} increments; they must increase: {given}.")
        self._at_rest = given[0] > 0
        self._times = np.concatenate([[0.0], given]) if self._at_rest else given
        self._mesh, self._used = from_meshio(first, where=str(self._xdmf or self._files[0]), reduced=reduced)
        self._points = len(first.points)

    @property
    def mesh(self) -> Mesh:
        """The mesh of the first file."""
        return self._mesh

    @property
    def times(self) -> np.ndarray:
        """Times of all increments, the state of rest included."""
        return self._times

    def displacement(self, increment: int) -> np.ndarray:
        """Return the displacement of all nodes, (num_nodes, 3)."""
        number = range(len(self._times))[increment]
        if self._at_rest and number == 0:
            return np.zeros((self._mesh.num_nodes, 3))
        values = self._data(number - self._at_rest, self._names[0])
        if values.ndim != 2 or values.shape[1] != 3:
            raise FormatError(f"{self._names[0]} of increment {number} has shape {values.shape}; it needs 3 columns.")
        return values

    def temperature(self, increment: int) -> np.ndarray | None:
        """Return the temperature of all nodes, or None; at the added state of rest that of the first file."""
        if self._names[1] is None:
            return None
        number = range(len(self._times))[increment]
        return self._data(max(number - self._at_rest, 0), self._names[1]).reshape(-1)

    def _data(self, step: int, name: str) -> np.ndarray:
        if self._xdmf is not None:
            with meshio.xdmf.TimeSeriesReader(self._xdmf) as reader:
                reader.read_points_cells()
                _, data, _ = reader.read_data(step)
            where, points = f"{self._xdmf}, step {step}", self._points
        else:
            where, mesh = str(self._files[step]), _read(self._files[step])
            data, points = mesh.point_data, len(mesh.points)
            if points == self._points and not np.allclose(
                mesh.points[self._used], self._mesh.points, rtol=0, atol=1e-6 * np.ptp(self._mesh.points)
            ):
                raise FormatError(f"{where}: its points are not where those of {self._files[0]} are. Is it another "
                                  "mesh, or in another order?")  # fmt: skip
        if name not in data:
            raise FormatError(f"{where} has no point data {name!r}; it has {', '.join(data) or 'none'}.")
        if points != self._points or len(data[name]) != self._points:
            raise FormatError(f"{where} has {points} points and {len(data[name])} values; the mesh {self._points}.")
        values = np.asarray(data[name], dtype=float)[self._used]
        if not np.all(np.isfinite(values)):
            node = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise FormatError(f"{where}: {name} is not finite at point {self._used[node]}.")
        return values

    def _xdmf_steps(self) -> tuple[list[float], meshio.Mesh]:
        if not self._xdmf.exists():
            raise FormatError(f"There is no file {self._xdmf}.")
        try:
            with meshio.xdmf.TimeSeriesReader(self._xdmf) as reader:
                points, cells = reader.read_points_cells()
                times = [float(reader.read_data(k)[0]) for k in range(reader.num_steps)]
        except (Exception, SystemExit) as error:
            raise FormatError(f"{self._xdmf} cannot be read as a series of time steps: {error!r}") from error
        if not times:
            raise FormatError(f"{self._xdmf} has no time steps.")
        return times, meshio.Mesh(points, cells)


def series_files(source: str | Path | Sequence[str | Path]) -> tuple[list[Path], list[float]]:
    """Return the files of a series and their times: of a list, of a .pvd, or of a pattern without gaps.

    Raises
    ------
    FormatError : no files, or gaps in their numbers, or two files of one number.
    """
    if not isinstance(source, str | Path):
        files = [Path(path) for path in source]
        if not files:
            raise FormatError("A series of files needs at least one.")
        return files, [float(k) for k in range(1, len(files) + 1)]
    path = Path(source)
    if path.suffix.lower() == ".pvd":
        if not path.exists():
            raise FormatError(f"There is no file {path}.")
        try:
            sets = ElementTree.parse(path).getroot().findall(".//DataSet")
        except ElementTree.ParseError as error:
            raise FormatError(f"{path} is damaged: {error}.") from error
        try:
            found = [(path.parent / s.attrib["file"], float(s.attrib["timestep"])) for s in sets]
        except (KeyError, ValueError) as error:
            raise FormatError(f"{path} needs a file and a timestep in every DataSet: {error}.") from error
        if not found:
            raise FormatError(f"{path} has no DataSet.")
        return [file for file, _ in found], [time for _, time in found]
    numbered: dict[int, Path] = {}
    for file in sorted(path.parent.glob(path.name)):
        digits = re.findall(r"\d+", file.stem)
        if not digits:
            continue
        other = numbered.setdefault(int(digits[-1]), file)
        if other != file:
            raise FormatError(f"{path}: {other.name} and {file.name} have one number, {int(digits[-1])}, the last in a "
                              "name. Give a pattern for one series, or a list of files.")  # fmt: skip
    if not numbered:
        raise FormatError(f"No file with a number in its name fits {path}.")
    numbers = sorted(numbered)
    steps = np.diff(numbers)
    stride = int(steps.min()) if len(steps) else 1
    if len(steps) and np.any(steps != stride):
        k = int(np.argmax(steps != stride))
        raise FormatError(f"{path}: files {numbers[k] + stride} to {numbers[k + 1] - stride} are missing between "
                          f"{numbered[numbers[k]].name} and {numbered[numbers[k + 1]].name}; the law needs every "
                          "increment.")  # fmt: skip
    return [numbered[k] for k in numbers], [float(k) for k in numbers]
