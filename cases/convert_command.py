"""`headrace convert`: files of blocks, written by a solver without a study, as trajectories in HDF5."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from headrace.online_training.block_files import BlockFileError, BlockFiles
from headrace.solvers import Case, Grid, Parameters, Snapshot
from headrace.solvers.hdf5 import HDF5Sink

from .solve_command import parse_settings

if TYPE_CHECKING:
    from headrace.solvers.case_file import CaseReference


def convert(
    folder: Path, *, case: CaseReference | None = None, output: Path | None = None, settings: Sequence[str] = ()
) -> list[Path]:
    """Write the steps of a folder of blocks and return the files: one, or one for each shape that its fields have.

    case : whose grid the fields live on; None: points at 0, 1, 2, ... along each axis.
    settings : NAME=VALUE of parameters of the run, to be kept in the file; the blocks do not know them.

    Raises
    ------
    BlockFileError : the blocks are damaged, incomplete, or not the case's.
    """
    blocks = BlockFiles(folder)
    if not blocks.times:
        raise BlockFileError(f"{folder} holds no step that is complete on all ranks.")
    if not blocks.finished:
        typer.echo(
            f"note: the run did not come to its end; its first {len(blocks.times)} steps are complete.", err=True
        )
    if blocks.unequal_times is not None:
        step, least, largest = blocks.unequal_times
        typer.echo(
            f"note: ranks differ in the time of step {step}, {least:g} to {largest:g}; that of the first rank that "
            "sent a block of it is kept. Where their steps differ too, the fields are of several times.", err=True
        )  # fmt: skip
    if blocks.failure:
        typer.echo(f"note: the run failed: {blocks.failure}", err=True)
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, shape in blocks.fields.items():
        groups[shape].append(name)
    parameters = parse_settings(settings, None if case is None else case.load())
    whole = Path(folder).resolve()
    target = output or whole.with_name(f"{whole.name}.h5")
    made = []
    for shape, names in groups.items():
        path = target if len(groups) == 1 else target.with_name(f"{target.stem}-{'-'.join(names)}{target.suffix}")
        described = _described(names, shape, len(blocks.times)) if case is None else _own(case, blocks.fields)
        _write(path, described, parameters, _snapshots(blocks, names))
        typer.echo(str(path))
        made.append(path)
    return made


def _write(path: Path, case: Case, parameters: Mapping[str, float], snapshots: Iterator[Snapshot]) -> None:
    sink = HDF5Sink(path)
    sink.open(case, Parameters(parameters), None)
    try:
        for snapshot in snapshots:
            sink.write(snapshot)
    except BaseException as error:
        sink.close(failure=str(error) or type(error).__name__)
        raise
    sink.close()


def _snapshots(blocks: BlockFiles, names: list[str]) -> Iterator[Snapshot]:
    everywhere = tuple(slice(0, n) for n in blocks.fields[names[0]])
    for step, time in enumerate(blocks.times):
        fields = blocks.step(step)
        values = np.stack([fields[name] for name in names]).astype(np.float64)
        yield Snapshot(step=step, time=time, values=values, where=everywhere)


def _described(names: list[str], shape: tuple[int, ...], steps: int) -> Case:
    """Return what stands for the case of somebody else's solver: its fields, and points one apart."""

    def unknown(*_: Any) -> Any:
        raise NotImplementedError("The equation is known to the solver alone.")

    unknown.__doc__ = ""
    return Case(
        name="blocks", fields=tuple(names), grid=Grid(shape=shape, extent=tuple(map(float, shape))), initial=unknown,
        duration=1.0, num_snapshots=max(1, steps - 1), solver=unknown,
    )  # fmt: skip


def _own(reference: CaseReference, fields: Mapping[str, tuple[int, ...]]) -> Case:
    case = reference.load()
    expected = dict.fromkeys(case.fields, case.grid.shape)
    if dict(fields) != expected:
        raise BlockFileError(
            f"The blocks hold {dict(fields)}, but case {case.name} has {expected}; --shape changes its grid."
        )
    return case

