"""Results of CalculiX: displacements, temperatures and point fields of every increment from .dat (or .frd) files.

The .dat file has seven digits, and fields at the quadrature points; the .frd file has six digits at the nodes. The file
is scanned once for where its blocks lie, and each block is read when it is asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .calculix_deck import deck_options, read_deck
from .mesh import Mesh
from .reader import Reader

HEADER = re.compile(rb"^ (\S[^(]*?) *\(.*\) *for set (\S+) and time +(\S+)")
TEMPERATURES = re.compile(rb"^ (temperatures) for set (\S+) and time +(\S+)")
KINDS = {"displacements": "displacement", "temperatures": "temperature", "stresses": "stress",
         "strains": "strain", "equivalent plastic strain": "p"}  # fmt: skip
NARROW = re.compile(rb"(\d)([+-]\d{3})\b")  # Fortran drops the E where the exponent has three digits


class ResultError(ValueError):
    """Results that do not belong to the mesh, are incomplete or not finite; names file, increment and node."""


@dataclass(frozen=True)
class _Block:
    """Where a block of numbers lies: bytes from `first` to `last`, at a time."""

    time: float
    first: int
    last: int


class CalculixReader(Reader):
    """The results of one CalculiX run as a reader.

    Parameters
    ----------
    deck : the .inp file; STEM.dat, STEM.frd and STEM.sta beside it are read where they exist.
    results : "dat" or "frd" for the displacements; default: .dat where it has them.
    initial_temperature : where temperatures are printed, that of the start (CalculiX does not print it).

    Raises
    ------
    DeckError : see `read_deck`.
    ResultError : no results; increments that CalculiX made (.sta) and did not print; times that do not increase.
    """

    def __init__(
        self, deck: str | Path, *, results: str | None = None, initial_temperature: float | np.ndarray = 20.0
    ) -> None:
        self.deck = Path(deck)
        self._mesh = read_deck(self.deck)
        self._order = np.argsort(self._mesh.node_labels)
        self._initial = initial_temperature
        dat, frd = self.deck.with_suffix(".dat"), self.deck.with_suffix(".frd")
        self._blocks = scan_dat(dat) if dat.exists() else {}
        if results not in (None, "dat", "frd"):
            raise ValueError(f"results {results!r} must be 'dat' or 'frd'.")
        self._source = results or ("dat" if self._blocks.get("displacement") else "frd")
        self._path = dat if self._source == "dat" else frd
        self.digits = 7 if self._source == "dat" else 6
        if self._source == "frd":
            if not frd.exists():
                raise ResultError(f"{self.deck} has results neither in {dat.name} nor in {frd.name}. Ask CalculiX for "
                                  "*NODE PRINT, NSET=all of them / U.")  # fmt: skip
            self._blocks = {**self._blocks, "displacement": scan_frd(frd)}
        blocks = self._blocks.get("displacement", [])
        if not blocks:
            raise ResultError(f"{self._path} has no displacements; ask for *NODE PRINT / U (or *NODE FILE / U).")
        self._times = np.array([0.0, *(block.time for block in blocks)])
        self._check_times()

    @property
    def mesh(self) -> Mesh:
        """The mesh of the deck."""
        return self._mesh

    @property
    def times(self) -> np.ndarray:
        """Total times of all increments, with 0 for the start."""
        return self._times

    def displacement(self, increment: int) -> np.ndarray:
        """Return the displacement of all nodes, (num_nodes, 3)."""
        number = range(len(self._times))[increment]
        if number == 0:
            return np.zeros((self._mesh.num_nodes, 3))
        block = self._blocks["displacement"][number - 1]
        if self._source == "frd":
            return self._by_node(_frd_numbers(self._path, block, 3), number, "displacement")
        return self._by_node(_numbers(self._path, block, 4), number, "displacement")

    def temperature(self, increment: int) -> np.ndarray | None:
        """Return the temperature of all nodes, or None where it was not printed."""
        number = range(len(self._times))[increment]
        if not self._blocks.get("temperature"):
            return None
        if number == 0:
            return np.broadcast_to(np.asarray(self._initial, dtype=float), (self._mesh.num_nodes,)).copy()
        block = self._at("temperature", number)
        return self._by_node(_numbers(self.deck.with_suffix(".dat"), block, 2), number, "temperature")[:, 0]

    def point_field(self, name: str, increment: int) -> np.ndarray | None:
        """Return "stress", "strain" (engineering shear), "p" or "temperature" at all quadrature points, or None.

        Temperatures there are what CalculiX takes: see `Problem.plain_temperature`.
        """
        number = range(len(self._times))[increment]
        if name == "temperature":
            nodal = self.temperature(number)
            if nodal is None:
                return None
            pieces = [(nodal[block] @ kind.plain_values.T).ravel() for kind, _, block in self._mesh.blocks()]
            return np.concatenate(pieces)
        if name not in ("stress", "strain", "p") or not self._blocks.get(name):
            return None
        width = 1 if name == "p" else 6
        if number == 0:
            values = np.zeros((self._mesh.num_points, width))
        else:
            values = self._by_point(
                _numbers(self.deck.with_suffix(".dat"), self._at(name, number), 2 + width), number, name
            )
        if name == "strain":
            values[:, 3:] *= 2.0  # CalculiX prints the tensor's components
        return values[:, 0] if name == "p" else values

    def _at(self, name: str, number: int) -> _Block:
        time = self._times[number]
        for block in self._blocks[name]:
            if abs(block.time - time) <= 1e-6 * abs(time):
                return block
        raise ResultError(f"{self.deck.with_suffix('.dat')} has no {name} at increment {number} (time {time:g}).")

    def _by_node(self, rows: np.ndarray, number: int, name: str) -> np.ndarray:
        where = f"{self._path}, increment {number} (time {self._times[number]:g}), {name}"
        labels = rows[:, 0].astype(np.int64)
        known = self._mesh.node_labels[self._order]
        place = np.minimum(np.searchsorted(known, labels), len(known) - 1)
        ours = known[place] == labels
        values = np.full((self._mesh.num_nodes, rows.shape[1] - 1), np.nan)
        # Nodes that no element has are not in the mesh; nodes beyond those mean results of another mesh.
        values[self._order[place[ours]]] = rows[ours, 1:]
        missing = np.isnan(values).any(axis=1)
        present = np.isin(self._mesh.node_labels, labels)
        if not present.all():
            raise ResultError(f"{where}: node {self._mesh.node_labels[~present][0]} ({np.sum(~present)} in all) "
                              "is not in the results. Are they those of another mesh?")  # fmt: skip
        if missing.any():
            raise ResultError(f"{where}: not a number at node {self._mesh.node_labels[missing][0]}.")
        return values

    def _by_point(self, rows: np.ndarray, number: int, name: str) -> np.ndarray:
        where = f"{self._path}, increment {number} (time {self._times[number]:g}), {name}"
        order = np.argsort(self._mesh.element_labels)
        known = self._mesh.element_labels[order]
        labels = rows[:, 0].astype(np.int64)
        place = np.minimum(np.searchsorted(known, labels), len(known) - 1)
        if np.any(known[place] != labels):
            raise ResultError(f"{where}: element {labels[known[place] != labels][0]} is not in the mesh.")
        starts = self._mesh.element_points()
        elements = order[place]
        points = starts[elements] + rows[:, 1].astype(np.int64) - 1
        if np.any(points >= starts[elements + 1]):
            raise ResultError(f"{where}: element {labels[points >= starts[elements + 1]][0]} has more quadrature "
                              "points than its type; was it computed with another type?")  # fmt: skip
        values = np.full((self._mesh.num_points, rows.shape[1] - 2), np.nan)
        values[points] = rows[:, 2:]
        if np.isnan(values).any():
            point = int(np.argwhere(np.isnan(values))[0, 0])
            element = int(np.searchsorted(starts, point, side="right")) - 1
            raise ResultError(f"{where}: element {self._mesh.element_labels[element]} lacks its quadrature point "
                              f"{point - starts[element] + 1}, or has no number there.")  # fmt: skip
        return values

    def _check_times(self) -> None:
        steps = np.diff(self._times)
        if np.any(steps <= 0):
            k = int(np.argmax(steps <= 0))
            raise ResultError(f"{self._path}: increment {k + 1} at time {self._times[k + 1]:g} does not follow "
                              f"{self._times[k]:g}. "
                              "Was a node set printed twice, or are these results of two runs?")  # fmt: skip
        sta = self.deck.with_suffix(".sta")
        made = converged_times(sta) if sta.exists() else np.zeros(0)
        # The .sta file has six digits of the time, which late in a run may be more than a millionth of it.
        lost = [t for t in made if np.min(np.abs(self._times - t)) > 6e-6 * max(abs(t), 1e-12)]
        if lost:
            card = "NODE PRINT" if self._source == "dat" else "NODE FILE"
            often = [o["FREQUENCY"] for o in deck_options(self.deck, card) if o.get("FREQUENCY", "1") != "1"]
            why = f" The deck says *{card}, FREQUENCY={often[0]}; it must be 1." if often else ""
            raise ResultError(f"{self._path} lacks {len(lost)} of the {len(made)} increments that CalculiX made, "
                              f"the first at time {lost[0]:g}, but the law needs every one.{why}")  # fmt: skip


def converged_times(path: str | Path) -> np.ndarray:
    """Return the total times of the increments in a .sta file; of several attempts the last one counts."""
    times: dict[tuple[int, int], float] = {}
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.split()
        if len(parts) >= 7 and parts[0].isdigit():
            times[int(parts[0]), int(parts[1])] = float(parts[4])
    return np.array(list(times.values()))


def scan_dat(path: str | Path) -> dict[str, list[_Block]]:
    """Return where each kind of block lies in a .dat file; blocks of several sets at one time are refused later."""
    found: dict[str, list[_Block]] = {}
    with open(path, "rb") as file:
        name, time, first = "", 0.0, 0
        while True:
            at = file.tell()
            line = file.readline()
            if not line or line[1:2].isalpha():
                match = HEADER.match(line) or TEMPERATURES.match(line)
                if name:
                    found.setdefault(name, []).append(_Block(time, first, at))
                    name = ""
                if match is not None:
                    name = KINDS.get(match.group(1).decode().strip(), "")
                    time, first = float(match.group(3)), file.tell()
            if not line:
                return found


def scan_frd(path: str | Path) -> list[_Block]:
    """Return where the displacements of each increment lie in an .frd file written as text."""
    found = []
    with open(path, "rb") as file:
        time, inside, first = 0.0, False, 0
        while line := file.readline():
            if line.startswith(b"  100C"):
                time = float(line[12:24])
            elif line.startswith(b" -4"):
                inside, first = line[5:13].strip() == b"DISP", 0
            elif inside and line.startswith(b" -1") and not first:
                first = file.tell() - len(line)
            elif inside and line.startswith(b" -3"):
                found.append(_Block(time, first, file.tell() - len(line)))
                inside = False
    return found


def _piece(path: Path, block: _Block) -> bytes:
    with open(path, "rb") as file:
        file.seek(block.first)
        return file.read(block.last - block.first)


def _numbers(path: Path, block: _Block, width: int) -> np.ndarray:
    """Return the numbers of a block, (rows, width)."""
    text = _piece(path, block)
    try:
        values = np.array(text.split(), dtype=float)
    except ValueError:
        try:
            values = np.array(NARROW.sub(rb"\1E\2", text).split(), dtype=float)
        except ValueError as error:
            raise ResultError(f"{path}, time {block.time:g}: what should be numbers is not: {error}") from error
    if values.size % width:
        raise ResultError(
            f"{path}, time {block.time:g}: {values.size} numbers are not rows of {width}; is it truncated?"
        )
    return values.reshape(-1, width)


def _frd_numbers(path: Path, block: _Block, width: int) -> np.ndarray:
    """Return node and values of a block of fixed columns, (rows, 1 + width)."""
    lines = _piece(path, block).splitlines()
    try:
        return np.array([[float(line[3:13]), *(float(line[13 + 12 * k : 25 + 12 * k]) for k in range(width))]
                         for line in lines])  # fmt: skip
    except ValueError as error:
        raise ResultError(f"{path}, time {block.time:g}: what should be numbers is not: {error}") from error
