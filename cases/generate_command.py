"""`headrace generate`: a data set of many simulations, one file each, on all cores."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from headrace.online_training.design import ADAPTIVE, check_sampler, draw_design, extensible, own_sampler
from headrace.online_training.die_with_parent import die_with_parent
from headrace.online_training.run_directory import write_text
from headrace.solvers.hdf5 import HDF5Sink
from headrace.solvers.simulate import simulate

from .output_folder import make_folder
from .progress import StepProgress
from .ranks import USER_ERRORS, together, world

if TYPE_CHECKING:
    from headrace.solvers import Case
    from headrace.solvers.case_file import CaseReference

FORMAT, VERSION = "headrace-dataset", 1
DESCRIPTION = "dataset.json"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def generate_data_set(
    reference: CaseReference, *, simulations: int, held_out: int = 0, folder: Path, seed: int, sampler: str,
    jobs: int | None, plain: bool,
) -> int:  # fmt: skip
    """Run simulations into FOLDER/sim-000000.h5, ...; return 1 where some of them failed. Collective under mpirun.

    Simulation n has the parameters and the random state of simulation n of a study with the same seed and sampler.
    Files that are there already are kept, so that the same command goes on after an interruption, and one with a
    larger number extends the set (not with a Latin hypercube, which is made for its number).

    Parameters
    ----------
    held_out : further simulations into FOLDER/held_out, those that such a study would keep for validation.
    jobs : processes that each solve one simulation at a time; one per core if left out; 1: this one. Under mpirun every
        rank is one.

    Raises
    ------
    ValueError, OSError : the case breaks its contract, or the folder holds a data set of another kind.
    """
    comm = world()

    def prepare() -> tuple[Case, list[Task]]:
        case = reference.load()
        case.verify()
        tasks = _tasks(reference, len(case.parameters), folder, seed=seed, sampler=sampler,
                       simulations=simulations, held_out=held_out)  # fmt: skip
        if comm is None or comm.rank == 0:
            _describe(folder, reference, seed, sampler, simulations)
            if held_out:
                (folder / "held_out").mkdir(exist_ok=True)
        return case, tasks

    case, tasks = together(comm, prepare)
    tasks = [task for task in tasks if not Path(task[0]).exists()]
    if comm is not None:
        tasks = comm.bcast(tasks if comm.rank == 0 else None)
    if comm is None:
        failed = _on_cores(reference, folder, seed, tasks, jobs=min(jobs or _cores(), len(tasks)), plain=plain)
    else:
        own = [(n, solve_into(case, file, seed, n, point)) for file, n, point in tasks[comm.rank :: comm.size]]
        failed = dict(pair for part in comm.allgather([pair for pair in own if pair[1]]) for pair in part)
    if comm is None or comm.rank == 0:
        _tell(case, folder, simulations + held_out, len(tasks), failed)
    return 1 if failed else 0


Task = tuple[str, int, list[float]]
"""File, number of the simulation, and its point of the unit cube."""

Outcomes = Generator[tuple[int, str], None, None]
"""Number of each simulation, in the order in which they end, and what went wrong with it, or nothing."""


def _tasks(
    reference: CaseReference, dims: int, folder: Path, *, seed: int, sampler: str, simulations: int, held_out: int
) -> list[Task]:
    """Return all simulations of a set. Held-out ones that are there stay, whatever number they were made for.

    Their numbers follow those for training. Where all that are there have such numbers, each stands for itself; where
    some are of a set of another size, they stand for as many of the first ones: none says which it is.
    """
    try:
        check_sampler(sampler)
    except ValueError as error:
        raise ValueError(f"--sampler {sampler!r} is not allowed: {error}.") from None
    if sampler == ADAPTIVE:
        raise ValueError(
            f"--sampler {sampler!r} follows the losses of a training, which a data set has not; use sobol."
        )
    own = own_sampler(sampler, reference.load_module())
    own_files = {data_file(folder / "held_out", simulations + n) for n in range(held_out)}
    present = set((folder / "held_out").glob("sim-*.h5"))
    kept = 0 if present <= own_files else len(present)
    tasks: list[Task] = []
    for apart, begin, count in ((False, 0, simulations), (True, kept, held_out)):
        points = draw_design(dims, count, seed, kind=sampler, held_out=apart, own=own)
        where, first = (folder / "held_out", simulations) if apart else (folder, 0)
        tasks += [(str(data_file(where, first + n)), first + n, points[n].tolist()) for n in range(begin, count)]
    return tasks


def data_file(folder: Path, simulation: int) -> Path:
    """Return where a simulation of a data set lies."""
    return folder / f"sim-{simulation:06d}.h5"


def solve_into(case: Case, file: str | Path, seed: int, simulation: int, point: Sequence[float]) -> str:
    """Solve one simulation serially into its file; return what went wrong, or nothing."""
    sink = HDF5Sink(file)
    try:
        simulate(case, case.draw(point), sink, study_seed=seed, simulation=simulation)
    except USER_ERRORS as error:
        sink.close(failure=str(error))
        return str(error)
    except KeyboardInterrupt:
        sink.close(failure="interrupted")
        raise
    return ""


def _describe(folder: Path, reference: CaseReference, seed: int, sampler: str, simulations: int) -> None:
    """Write down what the data set is, or compare with what is written.

    Raises
    ------
    ValueError : the folder holds another one.
    """
    shape = None if reference.shape is None else list(reference.shape)
    own: dict[str, Any] = {
        "format": FORMAT, "version": VERSION, "case": reference.name, "sha256": reference.sha256, "shape": shape,
        "seed": seed, "sampler": sampler,
    }  # fmt: skip
    if not extensible(sampler):
        own["simulations"] = simulations
    file = folder / DESCRIPTION
    if file.exists():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}. Give another folder with --output.") from None
        if not isinstance(found, dict):
            raise ValueError(f"{file} describes no data set. Give another folder with --output.")
        other = [name for name, value in own.items() if found.get(name) != value]
        if other:
            raise ValueError(
                f"{folder} holds a data set with another {other[0]}: {found.get(other[0])!r}, not {own[other[0]]!r}. "
                "Give another folder with --output."
            )
        return
    make_folder(folder)
    reference.copied_to(folder)
    write_text(file, json.dumps(own, indent=2) + "\n")


_case: Case | None = None
"""The case of this worker process."""


def _load(reference: CaseReference, parent: int) -> None:
    global _case
    die_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a key pressed in a terminal is the parent's to answer
    _case = reference.load()


def _task(file: str, seed: int, simulation: int, point: list[float]) -> str:
    assert _case is not None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no unfinished file stays
    try:
        return solve_into(_case, file, seed, simulation, point)
    except KeyboardInterrupt:
        os._exit(1)  # an exception would only be the result of this task, and the next one begin
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_cores(
    reference: CaseReference, folder: Path, seed: int, tasks: list[Task], *, jobs: int, plain: bool
) -> dict[int, str]:
    """Return what went wrong, by simulation."""
    outcomes = _in_processes(reference, seed, tasks, jobs) if jobs > 1 else _one_by_one(reference, seed, tasks)
    failed = {}
    with closing(outcomes), StepProgress(folder.name, len(tasks), plain=plain, unit="simulation") as progress:
        for done, (simulation, reason) in enumerate(outcomes, start=1):
            if reason:
                failed[simulation] = reason
            progress.show(done)
    return failed


def _one_by_one(reference: CaseReference, seed: int, tasks: list[Task]) -> Outcomes:
    case = reference.load()
    for file, n, point in tasks:
        yield n, solve_into(case, file, seed, n, point)


def _in_processes(reference: CaseReference, seed: int, tasks: list[Task], jobs: int) -> Outcomes:
    # Fresh processes: a fork of one that has loaded MPI is not safe.
    context = multiprocessing.get_context("spawn")
    with _one_thread_each():
        before = set(multiprocessing.active_children())  # of whoever calls this
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_load, initargs=(reference, os.getpid()))
        try:
            running = {pool.submit(_task, file, seed, n, point): n for file, n, point in tasks}
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            # Those that run now may take hours, and some that wait are with the workers already.
            for worker in set(multiprocessing.active_children()) - before:
                worker.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes started meanwhile compute on one core each."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tell(case: Case, folder: Path, simulations: int, ran: int, failed: dict[int, str]) -> None:
    for simulation, reason in sorted(failed.items()):
        typer.secho(f"simulation {simulation} failed: {reason}", fg="red", err=True)
    console = Console(highlight=False, soft_wrap=True)
    kept = f", {simulations - ran} were there already" if ran < simulations else ""
    console.print(f"{case.name}: {simulations - len(failed)} of {simulations} simulations in {folder}{kept}")
