"""Reads the results of CalculiX as snapshots of a case, for `ExternalProgram(read=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headrace.rom.calculix_reader import CalculixReader
from headrace.solvers import Case

from .onto_grid import Placement, component, name_of


@dataclass(frozen=True, kw_only=True)
class CalculixResults:
    """Reads nodal displacements and temperatures of the increments at the case's snapshots.

    CalculiX writes all increments into one file, so that they are read when it has ended: give `snapshot="JOB.dat"`.
    Increments must end at the times of the snapshots (DIRECT with @{interval}); at time 0 displacements are zero.

    Parameters
    ----------
    deck : name of the .inp file in the folder of the run; it asks for *NODE PRINT (or *NODE FILE) of U, and NT.
    fields : name of each of the case's fields -> "displacement.x", .y, .z or .magnitude, or "temperature".
    on : "grid" interpolates from the nodes onto the case's grid; "points" keeps the nodes, in the order of the deck.
    initial_temperature : at time 0, which CalculiX does not print.
    """

    deck: str
    fields: Mapping[str, str]
    on: str = "grid"
    initial_temperature: float = 20.0
    _placement: list[Placement] = field(default_factory=list, repr=False, compare=False)
    _open: dict[Path, CalculixReader] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._placement.append(Placement(self.on))

    def __call__(self, folder: Path, step: int, case: Case) -> np.ndarray:
        """Return a snapshot, (fields, *grid).

        Raises
        ------
        ValueError : no increment at its time, or results that are damaged or lack what is asked for.
        """
        deck = folder / self.deck
        if deck not in self._open:
            self._open.clear()  # one run at a time; its deck and results are looked through once
            self._open[deck] = CalculixReader(deck, initial_temperature=self.initial_temperature)
        reader = self._open[deck]
        time = step * case.duration / case.num_snapshots
        increment = int(np.argmin(np.abs(reader.times - time)))
        if abs(reader.times[increment] - time) > 1e-5 * case.duration:
            raise ValueError(
                f"{self.deck} has no increment at time {time:g}, the nearest is at {reader.times[increment]:g}; let"
                " increments end at the snapshots: *STATIC, DIRECT with @{interval}."
            )
        values = []
        for name in case.fields:
            theirs = name_of(self.fields, name)
            kind = theirs.partition(".")[0]
            if kind not in ("displacement", "temperature"):
                raise ValueError(
                    f"fields says {theirs!r} of {name!r}; known are displacement.x (.y, .z) and temperature."
                )
            found = reader.displacement(increment) if kind == "displacement" else reader.temperature(increment)
            if found is None:
                raise ValueError(f"{self.deck} does not print temperatures: ask for NT in *NODE PRINT.")
            values.append(component(found, theirs))
        return self._placement[0](reader.mesh.points, np.stack(values), case)
