"""`headrace plan`: what a study will need, and what limits it, from its settings and a short measured step."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from headrace.online_training.forecast import Costs, Forecast, forecast, require_seconds
from headrace.online_training.launcher import Job
from headrace.online_training.layout import StreamLayout
from headrace.online_training.local_launcher import LocalLauncher, kind_to_neighbours
from headrace.online_training.study import require_capacity

from . import plan_trial
from .models import make_model
from .study_flags import check_settings

if TYPE_CHECKING:
    from headrace.solvers import Case
    from headrace.solvers.case_file import CaseReference
    from headrace.surrogates import Surrogate

_TRIAL_SECONDS = 5.0
_PATIENCE = 600
_MOST_BATCHES = 20


def plan_study(
    reference: CaseReference, *, model: str, architecture: list[str], simulation_seconds: float | None,
    batch_seconds: float | None, given: dict[str, Any],
) -> None:  # fmt: skip
    """Print the forecast of a study; starts no study, and takes seconds.

    The arguments and errors are those of `forecast_study`.
    """
    needs, costs, sources = forecast_study(
        reference, model=model, architecture=architecture, simulation_seconds=simulation_seconds,
        batch_seconds=batch_seconds, given=given,
    )  # fmt: skip
    _show(needs, costs, sources, check_settings(given).max_running)


def forecast_study(
    reference: CaseReference, *, model: str, architecture: list[str], simulation_seconds: float | None = None,
    batch_seconds: float | None = None, given: dict[str, Any],
) -> tuple[Forecast, Costs, dict[str, str]]:  # fmt: skip
    """Return the forecast of a study, the costs that it follows from, and where these are from.

    simulation_seconds, batch_seconds : costs on the machine where the study will run; None measures them on this one: a
        batch on one core, a simulation on its ranks. Where this node has fewer cores than ranks, the simulation is run
        on one, and taken to be faster in proportion to its ranks.

    Raises
    ------
    ValueError : a setting, the case or the model does not fit, as `headrace train` would say.
    RuntimeError : the case's solver failed in the trial.
    """
    settings = check_settings(given)
    for name, value in (("simulation", simulation_seconds), ("batch", batch_seconds)):
        if value is not None:
            require_seconds(name, value)
    case = reference.load()
    case.verify()
    surrogate = make_model(model, architecture, reference)
    if batch_seconds is None:
        measured, model_bytes = time_batch(surrogate, case, settings.batch_size)
        measured /= settings.workers
    else:
        measured, model_bytes = batch_seconds, _size_of(surrogate, case)
    require_capacity(settings, case, surrogate.window)
    cores = len(os.sched_getaffinity(0))
    ranks = settings.ranks if settings.ranks <= cores else 1
    seconds, rank_bytes = time_simulation(reference, ranks, settings.busy_processes)
    costs = Costs(
        simulation=seconds * ranks / settings.ranks if simulation_seconds is None else simulation_seconds,
        batch=measured, rank_bytes=rank_bytes, model_bytes=model_bytes, cores=cores,
    )  # fmt: skip
    layout = StreamLayout.of(case, surrogate.window)
    on_ranks = f"measured on {ranks} ranks" if ranks > 1 else "measured on one core, ranks taken to help fully"
    sources = {
        "simulation": "given" if simulation_seconds is not None else on_ranks,
        "batch": "given" if batch_seconds is not None else "measured on one core, workers taken to help fully",
    }
    return forecast(layout, settings, costs, on_gpus=_trains_on_gpus(settings.device)), costs, sources


def _trains_on_gpus(device: str) -> bool:
    """Whether workers would have GPUs, as far as this machine tells."""
    if device != "auto":
        return device == "cuda"
    import torch

    return torch.cuda.is_available()


def time_simulation(reference: CaseReference, ranks: int, busy: int) -> tuple[float, float]:
    """Return the seconds of one simulation on a number of ranks here, and the resident memory of one, in bytes.

    Runs the first seconds of a simulation with parameters drawn at random, under mpirun, as a study would.

    busy : processes of the study that want a core of this node.

    Raises
    ------
    RuntimeError : it failed, or was not done in ten minutes; holds its last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, log = Path(folder) / "case.json", Path(folder) / "log"
        path.write_text(json.dumps(reference.to_dict()))
        launcher, codes = LocalLauncher(), {}
        command = [sys.executable, "-P", "-m", plan_trial.__name__, str(path)]
        launcher.start(Job(name="trial", command=command, ranks=ranks, environment=kind_to_neighbours(busy), log=log))
        try:
            deadline = time.monotonic() + _PATIENCE
            while not codes and time.monotonic() < deadline:
                time.sleep(0.05)
                codes = launcher.poll()
        finally:
            launcher.stop_all()
        said = log.read_text(errors="replace")
    if codes.get("trial") != 0:
        raise RuntimeError(f"The trial of the case's solver failed: {said.strip()[-1500:]}")
    result = json.loads(next(line for line in reversed(said.splitlines()) if line.startswith("{")))
    return result["seconds"], result["bytes"]


def time_batch(surrogate: Surrogate, case: Case, batch_size: int) -> tuple[float, float]:
    """Return the seconds of one training step on a batch of random windows on this CPU, and the bytes of the weights.

    The surrogate is set up for the case.
    """
    import torch

    from headrace.surrogates import Problem, WindowBatch

    surrogate.setup(Problem.of(case), seed=0)
    size = _size_of(surrogate, case)
    rng = np.random.default_rng(0)
    shape = (batch_size, surrogate.window, len(case.fields), *case.grid.shape)
    times = np.asarray(case.times, np.float32)[: surrogate.window]
    points = rng.random((batch_size, len(case.parameters)))
    drawn = np.array([list(case.draw(point).values()) for point in points])
    batch = WindowBatch(
        states=torch.from_numpy(rng.random(shape, np.float32)), times=torch.from_numpy(np.tile(times, (batch_size, 1))),
        parameters=torch.from_numpy(drawn.astype(np.float32)),
    )  # fmt: skip
    optimizer = torch.optim.Adam(surrogate.parameters())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: list[float] = []
    try:
        while len(seconds) < 3 or (sum(seconds) < _TRIAL_SECONDS and len(seconds) < _MOST_BATCHES):
            began = time.perf_counter()
            optimizer.zero_grad()
            surrogate.training_loss(batch).mean().backward()
            optimizer.step()
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return float(np.median(seconds[1:])), size


def _size_of(surrogate: Surrogate, case: Case) -> float:
    from headrace.surrogates import Problem

    if surrogate.problem is None:
        surrogate.setup(Problem.of(case), seed=0)
    return float(sum(p.numel() * p.element_size() for p in surrogate.parameters()))


def _show(needs: Forecast, costs: Costs, sources: dict[str, str], jobs: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"one simulation {told_seconds(costs.simulation)} ({sources['simulation']})")
    console.print(f"one batch {told_seconds(costs.batch)} ({sources['batch']})")
    for title, parts in (("memory", needs.memory), ("storage", needs.storage)):
        console.print(f"{title} {told_bytes(sum(parts.values()))}")
        for part, size in parts.items():
            console.print(f"    {part} {told_bytes(size)}")
    console.print(
        f"network {told_bytes(needs.streamed)} from solvers to intake, {told_bytes(needs.rate)}/s; none of it is stored"
    )
    if needs.fetched:
        console.print(f"network {told_bytes(needs.fetched)} at most from the intake to workers on other nodes")
    console.print(f"time {told_seconds(needs.total_seconds)}, beside the start")
    for part, seconds in needs.seconds.items():
        console.print(f"    {part} alone {told_seconds(seconds)}")
    console.print(f"limited by the {needs.limit}")
    if needs.limit == "solvers" and needs.jobs_enough > jobs:
        console.print(f"→ with --jobs {needs.jobs_enough} instead of {jobs} the rest is kept busy")
    elif needs.jobs_enough < jobs:
        console.print(f"→ --jobs {needs.jobs_enough} instead of {jobs} does as well; the others would wait")


def told_bytes(size: float) -> str:
    """Return a size as a person reads it, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def told_seconds(seconds: float) -> str:
    """Return a length of time as a person reads it."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
