"""One cell of online_vs_offline.py: a model and a seed, trained online, and offline with each of the data budgets."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from live import (
    SPAWN,
    LiveSettings,
    held_out,
    prepare,
    train_online,
    trainer_settings,
    windows_per_second,
)

from headrace.cases.catalogue import find_case
from headrace.online_training.design import draw_design
from headrace.online_training.layout import StreamLayout
from headrace.online_training.offline_data import OfflineData
from headrace.online_training.offline_feed import OfflineFeed
from headrace.online_training.training_loop import train
from headrace.online_training.validator import evaluate
from headrace.solvers.hdf5 import HDF5Sink
from headrace.solvers.simulate import simulate
from headrace.surrogates import FNO, MLP, MessagePassing, Problem, Surrogate, UNet, load_surrogate
from headrace.surrogates.stepping import Stepping

FRACTIONS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)

RATES = (3e-4, 1e-3, 3e-3)
TUNING_SEED = 1000

MODELS: dict[str, tuple[tuple[str, Any], Callable[[], Surrogate]]] = {
    "mlp": (("heat2d", (64, 64)), lambda: MLP(hidden=(256, 256))),
    "fno": (("navier_stokes2d", (32, 32)), lambda: FNO(modes=8, width=16, layers=3)),
    # Its few samples of a forcing with twenty numbers are learned by heart; the 25 known states show the forcing too.
    "mp-pde": (
        ("mixed_e3", None),
        lambda: MessagePassing(
            hidden=64, layers=4,
            stepping=Stepping(history=25, bundle=25, pushforward=1, conditioning="film", inputs=("position", "time")),
        ),
    ),
    "unet": (("fisher_kpp", (32, 32)), lambda: UNet(width=8, multipliers=(1, 2, 2), blocks=1)),
}  # fmt: skip
"""Case and surrogate."""
ON_GPU = ("mp-pde",)
"""Models that take too long for a comparison on two cores."""
CORES = {"mp-pde": 4}
"""Cores of a cell where they are not two."""


_warm: dict[str, Any] = {}


def _load(case: tuple[str, Any]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    _warm["case"] = find_case(*case).load()


def _ready() -> int:
    time.sleep(0.5)
    return os.getpid()


def _solve(folder: str, number: int, point: list[float], seed: int, until: float) -> float:
    """Solve one simulation into its file; return when it was complete, infinity where the time was over."""
    if time.time() > until:
        return float("inf")
    case = _warm["case"]
    simulate(
        case, case.draw(point), HDF5Sink(Path(folder) / f"sim-{number:06d}.h5"), study_seed=seed, simulation=number
    )
    return time.time()


def generate(case: tuple[str, Any], folder: Path, seconds: float, seed: int, cores: int) -> list[float]:
    """Generate on some cores for some seconds; return when each simulation was complete, in seconds."""
    folder.mkdir(parents=True)
    loaded = find_case(*case).load()
    points = draw_design(len(loaded.parameters), 4096, seed)
    with ProcessPoolExecutor(cores, mp_context=SPAWN, initializer=_load, initargs=(case,)) as pool:
        wait([pool.submit(_ready) for _ in range(2 * cores)])
        began = time.time()
        running = [
            pool.submit(_solve, str(folder), n, point.tolist(), seed, began + seconds) for n, point in enumerate(points)
        ]
        done = [future.result() - began for future in running]
    late = [n for n, when in enumerate(done) if seconds < when < float("inf")]
    for number in late:
        (folder / f"sim-{number:06d}.h5").unlink()
    return [when for when in done if when <= seconds]


def offline(settings: LiveSettings, make: Callable[[], Surrogate], data: Path, count: int, rate: float) -> dict:
    """Train on the first simulations of a set for the settings' seconds, packing included."""
    case = find_case(*settings.case).load()
    surrogate = make()
    prepare(settings.folder, surrogate, Problem.of(case), settings.seed)
    began = time.monotonic()
    stored = OfflineData(data, StreamLayout.of(case, surrogate.window), limit=count)
    left = settings.seconds - (time.monotonic() - began)
    feed = OfflineFeed(stored, batch_size=settings.batch_size, views=1e9, seed=settings.seed, seconds=left)
    settings = replace(settings, total_windows=max(1000, int(0.9 * rate * left)))
    found = train(trainer_settings(settings), feed)
    return {
        "windows": found["windows"], "unique": len(stored), "seconds": time.monotonic() - began,
        "model": load_surrogate(settings.folder / "model"),
    }  # fmt: skip


def cell(model: str, seed: int, args: argparse.Namespace, results: Path) -> list[dict[str, Any]]:
    """One model, one seed: online, and offline with five data budgets. Runs in a process with its cores alone."""
    rates = tuned(model, results)
    return compare(model, seed, args, FRACTIONS, rates["online"], rates["offline"])


def tuning_cell(model: str, number: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One model with one learning rate of RATES: online, and offline with one data budget."""
    return compare(model, TUNING_SEED, args, (1 / 8,), RATES[number], RATES[number])


def tuned(model: str, results: Path) -> dict[str, float]:
    """Return the learning rates that were best on the tuning's seed, for online and offline; the middle one untuned."""
    best: dict[str, tuple[float, float]] = {}
    for number, rate in enumerate(RATES):
        path = results / f"tune-{model}-{number}.json"
        for line in json.loads(path.read_text()) if path.exists() else []:
            kind = line["what"].split()[0]
            error = line["nrmse"] if line["nrmse"] is not None else float("inf")
            best[kind] = min(best.get(kind, (float("inf"), rate)), (error, rate))
    return {kind: best.get(kind, (0.0, RATES[1]))[1] for kind in ("online", "offline")}


def compare(
    model: str, seed: int, args: argparse.Namespace, fractions: tuple[float, ...], online_rate: float,
    offline_rate: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """Train online, and offline with each of the data budgets; return a line for each."""
    (case, make), seconds, cores = MODELS[model], args.seconds, cores_of(model)
    device = args.device if model in ON_GPU else "cpu"
    truth = held_out(case, 8)
    work = Path(tempfile.mkdtemp(prefix="headrace-cell-"))
    base = {"case": case, "seed": seed, "batch_size": 16 if model != "mlp" else 32, "device": device}
    # With one solver beside it, as online: two processes share memory and caches.
    speed = {
        threads: windows_per_second(case, make, base["batch_size"], threads, device)
        for threads in ((1, 2) if device == "cpu" else (1,))
    }
    threads = max(speed, key=speed.get)
    lines = []
    try:
        problem = Problem.of(find_case(*case).load())
        steps_bytes = 4 * len(problem.fields) * int(np.prod(problem.shape))
        slots = min(4000, int(400e6 / steps_bytes))
        found = train_online(
            LiveSettings(
                **base, folder=work / "online", slots=slots, watermark=slots // 20, seconds=seconds, solvers=cores - 1,
                total_windows=int(0.9 * speed[1] * seconds), learning_rate=online_rate,
            ),
            make(),
        )  # fmt: skip
        lines.append(
            _line("online", found, truth, simulations=found["simulations"], speed=speed, rate=online_rate, on=device)
        )
        when = generate(case, work / "data", max(fractions) * seconds, seed, cores)
        for fraction in fractions:
            budget = fraction * seconds
            count = sum(one <= budget for one in when)
            if not count:
                lines.append({"what": f"offline T/{round(1 / fraction)}", "nrmse": None, "simulations": 0})
                continue
            found = offline(
                LiveSettings(
                    **base, folder=work / f"offline-{count}", seconds=seconds - budget, threads=threads,
                    learning_rate=offline_rate,
                ),
                make, work / "data", count, speed[threads],
            )  # fmt: skip
            what = f"offline T/{round(1 / fraction)}"
            lines.append(_line(what, found, truth, simulations=count, threads=threads, rate=offline_rate, on=device))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [{**line, "total": seconds} for line in lines]


def cores_of(name: str) -> int:
    """Return the cores of a cell, or of a trial of its tuning."""
    return CORES.get(name.removeprefix("tune-"), 2)


def _line(what: str, found: dict[str, Any], truth: list, **more: Any) -> dict[str, Any]:
    errors = evaluate(found["model"], truth)
    kept = {key: found[key] for key in ("windows", "unique", "seconds", "blocked", "start_up") if key in found}
    worst = [one["max_error"] for one in errors["simulations"]]
    return {
        "what": what, "nrmse": errors["nrmse"], "vrmse": errors["vrmse"], "max_error": errors["max_error"],
        "worst": worst, **kept, **more,
    }  # fmt: skip


def breed_cell(sampler: str, seed: int, seconds: float) -> list[dict[str, Any]]:
    """One online training with one sampler to a fixed number of windows; errors on 200 held-out simulations."""
    case, simulations = ("fisher_kpp", (32, 32)), 200
    work = Path(tempfile.mkdtemp(prefix="headrace-breed-"))
    windows = simulations * 51 * 8
    try:
        found = train_online(
            LiveSettings(
                case=case, seed=seed, folder=work / "run", slots=2000, watermark=200, simulations=simulations,
                seconds=seconds, views=8.0, total_windows=windows, learning_rate=1e-3, sampler=sampler,
            ),
            MLP(hidden=(128, 128)),
        )  # fmt: skip
        truth = held_out(case, 200)
        model = found.pop("model")
        errors = evaluate(model, truth)
        nrmse = np.array([one["nrmse"] for one in errors["simulations"]])
        largest = np.array([one["max_error"] for one in errors["simulations"]])
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [
        {
            "what": sampler, "nrmse": errors["nrmse"], "p99": float(np.quantile(nrmse, 0.99)),
            "max_error": float(largest.max()), "windows": found["windows"], "simulations": found["simulations"],
            "seconds": found["seconds"],
        }
    ]  # fmt: skip
