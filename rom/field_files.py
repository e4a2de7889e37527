"""Fields of any physics from files, for `regression`: trajectories of the solvers (HDF5), or what meshio reads.

    data = read_fields("heat2d-data/sim-*.h5", "T")
    model = PodRegression().fit(data.parameters, data.values[:, -1])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from .meshio_reader import FormatError, read_point_data, series_files

TRAJECTORY = "headrace-trajectory"
MOST_NUMBERS = 2**31  # 16 GB of fields


@dataclass(frozen=True, kw_only=True)
class Fields:
    """One field of several runs, or one series.

    Attributes
    ----------
    times : (times,).
    values : of runs (runs, times, ...), of a series (times, ...).
    parameters : (runs, number) by `names`; of a series (0, 0).
    """

    times: np.ndarray
    values: np.ndarray
    parameters: np.ndarray
    names: tuple[str, ...]


def read_fields(source: str | Path | Sequence[str | Path], name: str) -> Fields:
    """Return one field of the files of a pattern, of a list, or of one file, in the order of their names.

    HDF5 files are trajectories as docs/hdf5.md describes them, one run each. All other files are the times of one
    series, read by meshio: `name` is then a point data, and times are those of a .pvd or the files' numbers.

    Raises
    ------
    FormatError : no files; files without the field, of other shapes, times or parameters than the first, not finite, or
        together too large.
    """
    files = [Path(source)] if isinstance(source, str | Path) and "*" not in str(source) else None
    if files is None and isinstance(source, str | Path):
        files = sorted(Path(source).parent.glob(Path(source).name))
    files = [Path(path) for path in source] if files is None else files
    if not files:
        raise FormatError(f"No file fits {source}.")
    if files[0].suffix.lower() not in (".h5", ".hdf5"):
        paths, times = series_files(source)
        pieces = [read_point_data(path, name) for path in paths]
        values = _stacked(paths, pieces, name)
        return Fields(times=np.array(times), values=values, parameters=np.zeros((0, 0)), names=())
    runs = [_trajectory(path, name, len(files)) for path in files]
    first = runs[0]
    for path, run in zip(files, runs, strict=True):
        if run.names != first.names or not np.array_equal(run.times, first.times):
            raise FormatError(f"{path} has other parameters or times than {files[0]}.")
    values = _stacked(files, [run.values for run in runs], name)
    parameters = np.array([run.parameters for run in runs]).reshape(len(runs), len(first.names))
    return Fields(times=first.times, values=values, parameters=parameters, names=first.names)


def _trajectory(path: Path, name: str, count: int) -> Fields:
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != TRAJECTORY:
                raise FormatError(f"{path} is no trajectory: its attribute format is not {TRAJECTORY!r}.")
            if name not in file["fields"]:
                raise FormatError(f"{path} has no field {name!r}; it has {', '.join(file['fields'])}.")
            data, given = file["fields"][name], file["parameters"].attrs
            if data.size * count > MOST_NUMBERS:
                raise FormatError(f"{count} files with {data.size} numbers each, as {path} has, are too many at once.")
            scalars = {key: float(value) for key, value in given.items() if np.ndim(value) == 0 and _number(value)}
            return Fields(times=file["times"][()], values=np.asarray(data[()], dtype=float),
                          parameters=np.array(list(scalars.values())), names=tuple(scalars))  # fmt: skip
    except (OSError, KeyError, RuntimeError) as error:
        raise FormatError(f"{path} is missing, damaged, or no trajectory: {error}") from error


def _number(value: object) -> bool:
    return not isinstance(value, str | bytes)


def _stacked(files: Sequence[Path], pieces: Sequence[np.ndarray], name: str) -> np.ndarray:
    for path, piece in zip(files, pieces, strict=True):
        if piece.shape != pieces[0].shape:
            raise FormatError(f"{name} of {path} has shape {piece.shape}, that of {files[0]} {pieces[0].shape}.")
        if not np.all(np.isfinite(piece)):
            place = tuple(np.argwhere(~np.isfinite(piece))[0].tolist())
            raise FormatError(f"{name} of {path} is not finite at {place}.")
    return np.stack(pieces)
