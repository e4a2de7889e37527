"""A data set in the layout of The Well (Ohana et al. 2024), which its reader `the_well` opens.

    FOLDER/well/data/train/NAME.hdf5, .../valid/NAME.hdf5, .../test/NAME.hdf5, FOLDER/well/stats.yaml

Every file holds all simulations of its part: fields (simulations, times, x, y, ...) in single precision, parameters as
scalars that vary from sample to sample. All unknowns are scalar fields there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import typer

from headrace.online_training.run_directory import write_text
from headrace.online_training.running_statistics import RunningStatistics
from headrace.solvers.boundary import Periodic, sides_of
from headrace.solvers.grid import AXES
from headrace.solvers.hdf5 import read_trajectory

from .ranks import together, world

if TYPE_CHECKING:
    from headrace.solvers import Case
    from headrace.solvers.case_file import CaseReference

PARTS = ("train", "valid", "test")


def lay_out(reference: CaseReference, folder: Path) -> None:
    """Write FOLDER/well from the simulations in FOLDER. Under mpirun rank 0 works, the others wait.

    Raises
    ------
    ValueError, OSError : too few simulations, or a file that cannot be read or written; the same on every rank.
    """
    comm = world()

    def work() -> None:
        if comm is None or comm.rank == 0:
            files = [sorted(place.glob("sim-*.h5")) for place in (folder, folder / "held_out")]
            written = write_well(reference.load(), split_in_parts(*files), folder / "well")
            typer.echo(f"wrote {', '.join(str(file) for file in written)}")

    together(comm, work)


def split_in_parts(simulations: Sequence[Path], held_out: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files of every part: held-out ones are for validation and test, else a tenth of all for each.

    Raises
    ------
    ValueError : there are too few for three parts.
    """
    if held_out:
        half = (len(held_out) + 1) // 2
        parts = [list(simulations), list(held_out[:half]), list(held_out[half:])]
    else:
        tenth = max(1, len(simulations) // 10)
        rest = len(simulations) - 2 * tenth
        parts = [list(simulations[:rest]), list(simulations[rest : rest + tenth]), list(simulations[rest + tenth :])]
    if not all(parts):
        raise ValueError(
            f"{len(simulations)} simulations and {len(held_out)} held out cannot fill train, valid and test; "
            "--layout well needs --simulations 3, or --held-out 2."
        )
    return dict(zip(PARTS, parts, strict=True))


def write_well(case: Case, parts: dict[str, list[Path]], folder: Path) -> list[Path]:
    """Write trajectories of a case into FOLDER/data/PART/NAME.hdf5 and FOLDER/stats.yaml; return the files.

    Raises
    ------
    OSError : a trajectory cannot be read, or a file not written.
    """
    written = []
    sums = {suffix: RunningStatistics(len(case.fields)) for suffix in ("", "_delta")}
    for part, files in parts.items():
        target = folder / "data" / part / f"{case.name}.hdf5"
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            with h5py.File(unfinished, "w") as file:
                _describe(file, case, len(files))
                _fill(file, case, files, sums if part == "train" else {})
            os.replace(unfinished, target)
        finally:
            unfinished.unlink(missing_ok=True)
        written.append(target)
    stats = folder / "stats.yaml"
    write_text(stats, _statistics(case.fields, sums))
    return [*written, stats]


def _describe(file: h5py.File, case: Case, count: int) -> None:
    """Write everything but the values."""
    grid, axes = case.grid, AXES[: case.grid.ndim]
    file.attrs.update({
        "dataset_name": case.name, "grid_type": "cartesian", "n_spatial_dims": grid.ndim, "n_trajectories": count,
        "simulation_parameters": list(case.parameters),
    })  # fmt: skip
    dimensions = file.create_group("dimensions")
    dimensions.attrs["spatial_dims"] = list(axes)
    lines = {name: grid.points(axis, periodic=case.periodic[axis]) for axis, name in enumerate(axes)}
    for name, line in {"time": case.times, **lines}.items():
        dimensions[name] = line.astype(np.float32)
        dimensions[name].attrs.update({"sample_varying": False, "time_varying": False})
    conditions = file.create_group("boundary_conditions")
    sides = sides_of(case.boundary, case.fields, grid)[case.fields[0]]
    for name, (low, _) in zip(axes, sides, strict=True):
        kind = "PERIODIC" if isinstance(low, Periodic) else "WALL"
        group = conditions.create_group(f"{name}_{kind.lower()}")
        group.attrs.update({
            "bc_type": kind, "associated_dims": [name], "sample_varying": False, "time_varying": False,
        })  # fmt: skip
        group.attrs["associated_fields"] = np.array([], dtype=h5py.string_dtype())
        mask = np.zeros(len(lines[name]), dtype=bool)
        mask[[0, -1]] = True
        group["mask"] = mask
    scalars = file.create_group("scalars")
    scalars.attrs["field_names"] = np.array(list(case.parameters), dtype=h5py.string_dtype())
    for name in case.parameters:
        scalars.create_dataset(name, shape=(count,), dtype="f4")
        scalars[name].attrs.update({"sample_varying": True, "time_varying": False})
    for rank in range(3):
        group = file.create_group(f"t{rank}_fields")
        names = list(case.fields) if rank == 0 else []
        group.attrs["field_names"] = np.array(names, dtype=h5py.string_dtype())
    for name in case.fields:
        values = file["t0_fields"].create_dataset(
            name, shape=(count, len(case.times), *grid.shape), dtype="f4", chunks=(1, 1, *grid.shape)
        )  # fmt: skip
        values.attrs.update({"dim_varying": [True] * grid.ndim, "sample_varying": True, "time_varying": True})


def _fill(file: h5py.File, case: Case, files: Sequence[Path], sums: Mapping[str, RunningStatistics]) -> None:
    for row, path in enumerate(files):
        run = read_trajectory(path)
        for name, value in run.parameters.items():
            file["scalars"][name][row] = value
        for index, name in enumerate(case.fields):
            file["t0_fields"][name][row] = run.values[:, index]
        for one, values in zip(sums.values(), (run.values, np.diff(run.values, axis=0)), strict=False):
            one.add(values.swapaxes(0, 1))


def _statistics(fields: Sequence[str], sums: Mapping[str, RunningStatistics]) -> str:
    """Return the text of stats.yaml: mean, standard deviation and root mean square of fields and of their changes."""
    lines = []
    for suffix, one in sums.items():
        for kind, values in (("mean", one.mean), ("std", one.std), ("rms", np.hypot(one.mean, one.std))):
            lines.append(f"{kind}{suffix}:")
            lines += [f"  {name}: {value!r}" for name, value in zip(fields, values.tolist(), strict=True)]
    return "\n".join([*lines, ""])
