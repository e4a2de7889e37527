"""A new loading from a table: rows are the ends of increments, columns the factors of named loads and supports.

    time, pressure:right
    0,    0
    0.25, 1
    0.5,  0

A column holds what the amplitude of that load or support is (for a centrifugal load the angular speed). Loads that have
no column keep their own amplitudes.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from .loads import Amplitude
from .problem import Problem

LARGEST = 16 * 2**20  # bytes of a table


class LoadingError(ValueError):
    """A table that cannot be read, or that names loads which the problem does not have; names file and row."""


def load_names(problem: Problem) -> list[str]:
    """Return a name for each load, then for each support, such as "pressure:right" and "support:x0:y".

    A name that comes again gets a number: "pressure:right", "pressure:right#2".
    """
    names: list[str] = []
    for load in problem.loads:
        where = getattr(load, "faces", None) or getattr(load, "nodes", None)
        names.append(type(load).__name__.lower() + (f":{where}" if where else ""))
    names += [f"support:{s.nodes}:{s.direction}" for s in problem.supports]
    return [name if (n := names[:k].count(name)) == 0 else f"{name}#{n + 1}" for k, name in enumerate(names)]


def with_loading(problem: Problem, path: str | Path) -> tuple[Problem, np.ndarray]:
    """Return the problem under the loading of a table (.csv), and its times.

    Raises
    ------
    LoadingError : see above.
    """
    path = Path(path)
    header, values = read_table(path)
    if "time" not in header:
        raise LoadingError(f"{path}: the first row must name the columns, `time` among them, not {header}.")
    times = values[:, header.index("time")]
    if len(times) < 2 or np.any(np.diff(times) <= 0):
        row = int(np.argmax(np.diff(times) <= 0)) + 3 if len(times) > 1 else 2
        raise LoadingError(f"{path}: times must be at least two and increase; row {row} does not.")
    names = load_names(problem)
    if strange := [name for name in header if name != "time" and name not in names]:
        raise LoadingError(f"{path} has a column {strange[0]!r}; this problem has {', '.join(names)}.")
    parts = [*problem.loads, *problem.supports]
    for k, name in enumerate(names):
        if name in header:
            parts[k] = replace(parts[k], amplitude=Amplitude(times, values[:, header.index(name)]))
    count = len(problem.loads)
    return replace(problem, loads=tuple(parts[:count]), supports=tuple(parts[count:])), times


def read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the names of the columns of a .csv file and its numbers, (rows, columns).

    Raises
    ------
    LoadingError : no such file, one that is too large, a column named twice, or a cell that is no finite number; names
        the row.
    """
    if not path.is_file():
        raise LoadingError(f"There is no table {path}.")
    if path.stat().st_size > LARGEST:
        raise LoadingError(f"{path} has {path.stat().st_size} bytes; a table has at most {LARGEST}.")
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = csv.reader(file)
            whole = [(lines.line_num, [cell.strip() for cell in row]) for row in lines]
    except (UnicodeDecodeError, csv.Error) as error:
        raise LoadingError(f"{path} is no table of text: {error}.") from error
    rows = [(number, row) for number, row in whole if any(row)]
    if not rows:
        raise LoadingError(f"{path} is empty.")
    names = rows.pop(0)[1]
    if len(set(names)) < len(names):
        raise LoadingError(f"{path}: the first row must name the columns once each, not {names}.")
    numbers = np.empty((len(rows), len(names)))
    for k, (number, row) in enumerate(rows):
        try:
            if len(row) != len(names):
                raise ValueError(f"{len(row)} cells")
            numbers[k] = [float(cell) for cell in row]
        except ValueError as error:
            raise LoadingError(f"{path}, row {number}: {len(names)} numbers are needed; it is {row}.") from error
        if not np.all(np.isfinite(numbers[k])):
            raise LoadingError(f"{path}, row {number}: a number is not finite: {row}.")
    return names, numbers
