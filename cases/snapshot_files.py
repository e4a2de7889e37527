"""Readers of one file for each snapshot: VTK and what meshio reads, and HDF5; for `ExternalProgram(read=...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from headrace.solvers import Case

from .onto_grid import Placement, component, name_of

_MOST_BYTES = 2**34


@dataclass(frozen=True, kw_only=True)
class MeshFiles:
    """Reads meshes with values at their points or cells: .vtk, .vtu, .xdmf and all else that meshio reads.

    Parameters
    ----------
    file : name of a snapshot's file, as in `ExternalProgram.snapshot`.
    fields : name of each of the case's fields -> name in the file, with the component of a vector: {"u": "velocity.x"}.
    on : "grid" interpolates onto the case's grid; "points" keeps the mesh's own points (or cells), in their order.
    at : "points" or "cells"; cells stand for their centres.
    """

    file: str
    fields: Mapping[str, str]
    on: str = "grid"
    at: str = "points"
    _placement: list[Placement] = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.at not in ("points", "cells"):
            raise ValueError(f"at is {self.at!r}; it must be 'points' or 'cells'.")
        self._placement.append(Placement(self.on))

    def __call__(self, folder: Path, step: int, case: Case) -> np.ndarray:
        """Return a snapshot, (fields, *grid).

        Raises
        ------
        ValueError : the file is damaged, or lacks a field.
        """
        import meshio

        path = folder / self.file.format(step=step)
        _check_size(path)
        try:
            mesh = meshio.read(path)
        except (meshio.ReadError, IndexError, UnicodeDecodeError) as error:
            raise ValueError(f"{path.name} is not readable: {error}") from error
        known = mesh.point_data if self.at == "points" else mesh.cell_data
        points, values = mesh.points, []
        if self.at == "cells":
            points = np.concatenate([mesh.points[block.data].mean(axis=1) for block in mesh.cells])
        for name in case.fields:
            theirs = name_of(self.fields, name)
            key = theirs.partition(".")[0]
            if key not in known:
                raise ValueError(f"{path.name} has no {key!r} at its {self.at}; it has {', '.join(known) or 'none'}.")
            data = known[key] if self.at == "points" else np.concatenate(known[key])
            values.append(component(data, theirs))
        return self._placement[0](points, np.stack(values), case)


@dataclass(frozen=True, kw_only=True)
class HDF5Files:
    """Reads arrays on the case's own grid from a file for each snapshot.

    file : name of a snapshot's file, as in `ExternalProgram.snapshot`.
    fields : name of each of the case's fields -> path of its dataset in the file.
    axes : "xyz" where axis 0 of the datasets is x; "zyx" where the last one is.
    """

    file: str
    fields: Mapping[str, str]
    axes: str = "xyz"

    def __post_init__(self) -> None:
        if self.axes not in ("xyz", "zyx"):
            raise ValueError(f"axes is {self.axes!r}; it must be 'xyz' or 'zyx'.")

    def __call__(self, folder: Path, step: int, case: Case) -> np.ndarray:
        """Return a snapshot, (fields, *grid).

        Raises
        ------
        ValueError : a dataset is missing or has another shape.
        OSError : the file is damaged.
        """
        path = folder / self.file.format(step=step)
        try:
            return self._values(path, case)
        except (KeyError, RuntimeError, OSError) as error:  # all of which h5py says
            if getattr(error, "errno", None) is not None:
                raise  # no damage, but what the system says, as of a file that is not there; it names the file
            raise OSError(f"{path.name} is damaged: {error}") from error

    def _values(self, path: Path, case: Case) -> np.ndarray:
        values = []
        with h5py.File(path, "r") as file:
            for name in case.fields:
                theirs = name_of(self.fields, name)
                dataset = file[theirs] if theirs in file else None
                if not isinstance(dataset, h5py.Dataset):  # but a group, for one
                    raise ValueError(f"{path.name} has no dataset {theirs!r} for field {name!r}.")
                expected = case.grid.shape if self.axes == "xyz" else case.grid.shape[::-1]
                if dataset.shape != expected:
                    raise ValueError(f"{theirs} in {path.name} has shape {dataset.shape} instead of {expected}.")
                values.append(dataset[...] if self.axes == "xyz" else dataset[...].T)
        return np.stack(values)


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{path.name} has {size} bytes; more than {_MOST_BYTES} are not read at once.")
