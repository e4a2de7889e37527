"""`headrace solve` and `headrace cases`: one simulation into a file, and what there is to simulate."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from headrace.solvers.blocks import check_split
from headrace.solvers.hdf5 import HDF5Sink, companion_of
from headrace.solvers.simulate import simulate
from headrace.solvers.sink import Sink, Snapshot

from .catalogue import BUILT_IN, REDUCED, find_case, find_rom_case, load_rom_case, unknown_name
from .progress import StepProgress
from .ranks import together, world

if TYPE_CHECKING:
    from mpi4py import MPI

    from headrace.solvers import Case, Parameters
    from headrace.solvers.case_file import CaseReference


def solve_case(
    reference: CaseReference, *, settings: list[str], output: Path | None, plot: Path | None, seed: int, plain: bool
) -> None:
    """Run one simulation of a case into an HDF5 file. Collective over all ranks of mpirun.

    Raises
    ------
    ValueError, OSError : unknown parameter, value out of range, grid that cannot be split, path not writable.
    """
    comm = world()

    def prepare() -> tuple[Case, Parameters]:
        case = reference.load()
        check_split(case.grid.shape, 1 if comm is None else comm.size)
        case.verify()
        return case, case.accept(parse_settings(settings, case))

    case, parameters = together(comm, prepare)
    file = Path(f"{case.name}.h5") if output is None else output
    together(comm, lambda: _require_folder(file, plot))
    start = time.perf_counter()
    with ExitStack() as stack:
        sink: Sink = HDF5Sink(file)
        if comm is None or comm.rank == 0:
            sink = WatchedSink(sink, stack.enter_context(StepProgress(case.name, case.num_snapshots, plain=plain)))
        try:
            simulate(case, parameters, sink, comm=comm, study_seed=seed)
        except (Exception, KeyboardInterrupt) as error:
            # Closing after a failure communicates nothing, and rank 0 removes the unfinished file.
            sink.close(failure=str(error))
            raise
    seconds = time.perf_counter() - start
    if comm is None or comm.rank == 0:
        ranks = 1 if comm is None else comm.size
        grid = " x ".join(map(str, case.grid.shape))
        console = Console(highlight=False, soft_wrap=True)
        console.print(f"{case.name} on {grid} points, {ranks} rank{'s' * (ranks > 1)}, {seconds:.2f} s")
        console.print("  ".join(f"{name}={value:g}" for name, value in parameters.items()))
        console.print(f"wrote {file}, {companion_of(file, '.xdmf').name} and {companion_of(file, '.vtkhdf').name}")
        if _is_at_rest(file):
            console.print("nothing changes in this simulation: other parameters by --set NAME=VALUE")
        if plot is not None:
            from .pictures import draw_trajectory

            draw_trajectory(file, plot)
            console.print(f"drew {plot}")


def parse_settings(settings: Sequence[str], case: Case | None) -> dict[str, float]:
    """Return the values of `--set name=value` flags; without a case any name will do.

    Raises
    ------
    ValueError : no such parameter, or not a number.
    """
    values = {}
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ValueError(f"--set {text!r} is not allowed: write NAME=VALUE, e.g. --set t0=300.")
        if case is not None and name not in case.parameters:
            raise ValueError(unknown_name(f"parameter of case {case.name} named", name, list(case.parameters)))
        try:
            values[name] = float(value)
        except ValueError:
            raise ValueError(f"--set {name}={value!r} is not a number.") from None
    return values


def list_cases() -> None:
    """Print every built-in case with its equation, grid and parameters."""
    console = Console(highlight=False)
    for name in BUILT_IN:
        case = find_case(name).load()
        equation = (inspect.getdoc(case.rhs or case.solver) or "").split("\n")[0]
        grid = f"{' x '.join(map(str, case.grid.shape))} points, {case.num_snapshots} steps to t = {case.duration:g}"
        parameters = described_parameters(case)
        console.print(Text(name, style="bold"))
        for line in (equation, case.description, grid, parameters):
            console.print(Padding(Text(line), (0, 0, 0, 4)))
    for name in REDUCED:
        case = load_rom_case(find_rom_case(name))
        settings = ", ".join(f"{key} = {value}" for key, value in case.defaults.items())
        console.print(Text(name, style="bold"))
        for line in (case.description, settings, f"to reduce: headrace rom compress {name} --out FOLDER"):
            console.print(Padding(Text(line), (0, 0, 0, 4)))


def described_parameters(case: Case) -> str:
    """Return the parameters with their distributions; neighbours with one name but for a number at its end, and one
    distribution, stand together.
    """
    told: list[tuple[list[str], str]] = []
    for name, distribution in case.parameters.items():
        names, before = told[-1] if told else ([], "")
        if before == str(distribution) and name.rstrip("0123456789") == names[0].removesuffix("0"):
            names.append(name)
        else:
            told.append(([name], str(distribution)))
    return ", ".join(f"{' to '.join(dict.fromkeys((names[0], names[-1])))} {each}" for names, each in told)


class WatchedSink(Sink):
    """Passes everything on to another sink and shows the steps to a person."""

    def __init__(self, sink: Sink, progress: StepProgress) -> None:
        self._sink = sink
        self._progress = progress

    def open(self, case: Case, parameters: Parameters, comm: MPI.Comm | None) -> None:
        """Open the other sink."""
        self._sink.open(case, parameters, comm)

    def write(self, snapshot: Snapshot) -> bool:
        """Write to the other sink, then show the step."""
        go_on = self._sink.write(snapshot)
        self._progress.show(snapshot.step)
        return go_on

    def close(self, *, failure: str | None = None) -> None:
        """Close the other sink."""
        self._sink.close(failure=failure)


def _is_at_rest(file: Path) -> bool:
    """Return whether the second and the last snapshot are the first, to nine digits of its largest value."""
    import h5py

    with h5py.File(file, "r") as opened:
        for values in opened["fields"].values():
            if len(values) < 2:  # a solver of one's own may end early
                return False
            first = values[0]
            if not all(abs(values[step] - first).max() <= 1e-9 * abs(first).max() for step in (1, -1)):
                return False
    return True


def _require_folder(file: Path, plot: Path | None) -> None:
    kind = "" if plot is None else plot.suffix.lower().lstrip(".")
    if kind.isalpha() and kind != "png":  # "run-0.5" names no kind
        raise ValueError(f"--plot {plot} is not allowed: plots are PNG; write {plot.with_suffix('.png')}.")
    for path in (file,) if plot is None else (file, plot):
        folder = path.absolute().parent
        if not folder.is_dir():
            raise OSError(f"Cannot write {path}: there is no folder {folder}.")
        if not os.access(folder, os.W_OK):
            raise OSError(f"Cannot write {path}: {folder} takes no files; give another folder.")
        if path.is_dir():
            raise OSError(f"Cannot write {path}: it is a folder; give a file name.")
        if path.exists() and not path.is_file():
            # Its replacement by a file would take a device, say /dev/null, away from everybody.
            raise OSError(f"Cannot write {path}: it is a device or a pipe; give the name of a file.")
