"""Online against offline training at equal wall clock on equal cores, generation included; and Breed against uniform.

    python benchmarks/online_vs_offline.py [--quick] [--only MODEL ...] [--seeds N] [--seconds T] [--limit S] [--resume]
                                           [--device cpu|cuda]

Models: `mlp` (direct, heat2d), `fno` (navier_stokes2d), `mp-pde` (mixed_e3, on the GPU with --device cuda), `unet`
(fisher_kpp); `breed`: samplers. A cell has two cores, `mp-pde` four, for a simulation takes seconds there. Online: one
core trains, the others solve, for T seconds from the first step that arrives. Offline: all cores generate for a budget
of T/32, T/16, ... T/2 seconds, the data set is packed, and for the rest of T the same loop trains on it with as many
threads as were faster in a trial (1 or 2), the whole in one process so that nothing waits for start-ups; those of
processes are outside the clock on both sides. Same
optimiser, batch size and cosine over the uses that a trial of the optimiser's speed promises (less 10 %, so that the
rate reaches zero). Tuning: the learning rates of RATES, for online and for offline (budget T/8) each, on a seed of
their own; the best of each then serves all seeds and sizes. nRMSE of roll-outs of 8 held-out runs. The offline sizes
come from one generation: a size is what was complete at its moment. Cells run side by side on other cores; --limit
starts none that could not finish in so many seconds, --resume takes up the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lines import Report
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


def run_cells(wanted: list[tuple[str, int]], args: argparse.Namespace, results: Path, deadline: float) -> None:
    """Run cells in processes of their own, each on its own cores, as many as there are cores and time for.

    deadline : of the monotonic clock.
    """
    free = sorted(os.sched_getaffinity(0))
    running: dict[subprocess.Popen, tuple[tuple[str, int], list[int]]] = {}
    waiting = list(wanted)
    while waiting or running:
        left = deadline - time.monotonic()
        fitting = [one for one in waiting if _needs(one[0], args) < left]
        while fitting and cores_of(fitting[0][0]) <= len(free):
            name, seed = fitting.pop(0)
            waiting.remove((name, seed))
            mine, free = free[: cores_of(name)], free[cores_of(name) :]
            command = ["taskset", "-c", ",".join(map(str, mine)), sys.executable, __file__, "--cell", f"{name}:{seed}",
                       "--seconds", str(args.seconds), "--device", args.device]  # fmt: skip
            environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
            log = open(results / f"{name}-{seed}.log", "w")
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            running[process] = ((name, seed), mine)
        for process in [one for one in running if one.poll() is not None]:
            (name, seed), mine = running.pop(process)
            free = sorted(free + mine)
            print(f"# {name} seed {seed}: code {process.returncode}", flush=True)
        if waiting and not running and not fitting:
            print(f"# no time left for {waiting}", flush=True)
            return
        if left < -30:
            for process in running:
                process.kill()
        time.sleep(0.2)


def _needs(name: str, args: argparse.Namespace) -> float:
    """Seconds of one cell, about."""
    if name.startswith("tune"):
        return 2 * args.seconds + 40
    return 60 if name.startswith("breed") else 5.55 * args.seconds + 40


def summarise(report: Report, results: Path, args: argparse.Namespace) -> None:
    """Turn the cells' files into lines."""
    for model in (*MODELS, "breed"):
        kinds = ("breed-uniform", "breed-sobol", "breed-breed") if model == "breed" else (model,)
        by_what: dict[str, list[dict[str, Any]]] = {}
        for path in sorted(path for kind in kinds for path in results.glob(f"{kind}-[0-9]*.json")):
            for line in json.loads(path.read_text()):
                by_what.setdefault(line["what"], []).append(line)
        cores = cores_of(model)
        for what, lines in by_what.items():
            setup, device = setup_of(lines, cores), device_of(lines)
            values = [line["nrmse"] for line in lines if line["nrmse"] is not None]
            report.add(
                f"online_vs_offline/{model}/{what}", float(np.median(values)) if values else None, "nRMSE",
                seeds=len(values), cores=cores, setup=setup, all=values, cells=lines, device=device,
            )  # fmt: skip
        best = {what: np.median([one["nrmse"] for one in lines]) for what, lines in by_what.items()
                if all(one["nrmse"] is not None for one in lines)}  # fmt: skip
        rivals = {what: value for what, value in best.items() if what.startswith("offline")}
        trials = sorted(results.glob(f"tune-{model}-[0-9].json"))
        tried = [line for path in trials for line in json.loads(path.read_text())]
        for what in sorted({line["what"] for line in tried}):
            lines = [line for line in tried if line["what"] == what]
            values = [line["nrmse"] for line in lines if line["nrmse"] is not None]
            setup = f"{setup_of(lines, cores)}; learning rates {RATES} on a seed of their own"
            report.add(
                f"online_vs_offline/{model}/tuning, {what}", min(values, default=None), "nRMSE", cores=cores,
                setup=setup, all=values, cells=lines, device=device_of(lines),
            )  # fmt: skip
        if "online" in best and rivals:
            winner = min(rivals, key=rivals.get)
            online = by_what["online"]
            report.add(
                f"online_vs_offline/{model}/gain over the best offline size", 1 - best["online"] / rivals[winner],
                "of its nRMSE", baseline=winner, seeds=len(online), cores=cores, setup=setup_of(online, cores),
                device=device_of(online),
            )  # fmt: skip
        for rival in ("uniform", "sobol"):
            if not {rival, "breed"} <= set(by_what):
                continue
            for figure in ("p99", "max_error", "nrmse"):
                pairs = zip(by_what["breed"], by_what[rival], strict=False)
                ratios = [one[figure] / other[figure] for one, other in pairs]
                report.add(
                    f"online_vs_offline/breed/{figure} over {rival}'s", float(np.median(ratios)), "ratio",
                    seeds=len(ratios), cores=cores, setup=setup_of(by_what["breed"], cores), all=ratios,
                )  # fmt: skip


def setup_of(lines: list[dict[str, Any]], cores: int) -> str:
    """Say under what the lines of some cells were measured; they all had the same clock."""
    total = {line["total"] for line in lines if "total" in line}
    clock = f"T = {' and '.join(f'{one:g}' for one in sorted(total))} s" if total else "a fixed number of windows"
    return f"{clock}, {cores} cores a cell, {len(os.sched_getaffinity(0))} cores in all"


def device_of(lines: list[dict[str, Any]]) -> str:
    """Return what the trainings of some cells ran on; those that had no data say nothing."""
    return next((line["on"] for line in lines if "on" in line), "cpu")


def draw(report: Report, folder: Path) -> None:
    """Draw the error over the offline data budget, and the online one beside it, from the lines that are there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = [model for model in MODELS if any(f"/{model}/online" in line["name"] for line in report.lines)]
    figure, axes = plt.subplots(1, len(models), figsize=(3 * len(models), 3.4), squeeze=False, constrained_layout=True)
    for axis, model in zip(axes[0], models, strict=True):
        start = f"online_vs_offline/{model}/"
        mine = {one["name"].removeprefix(start): one for one in report.lines if one["name"].startswith(start)}
        for fraction in FRACTIONS:
            line = mine.get(f"offline T/{round(1 / fraction)}")
            if line and line["all"]:
                axis.plot([fraction] * len(line["all"]), line["all"], "o", color="tab:orange", alpha=0.5)
        points = [(f, mine[f"offline T/{round(1 / f)}"]["value"]) for f in FRACTIONS
                  if mine.get(f"offline T/{round(1 / f)}", {}).get("value") is not None]  # fmt: skip
        axis.plot([f for f, _ in points], [v for _, v in points], color="tab:orange", label="offline, median")
        for value in mine.get("online", {}).get("all", []):
            axis.axhline(value, color="tab:blue", alpha=0.3)
        if "online" in mine:
            axis.axhline(mine["online"]["value"], color="tab:blue", label="online, median")
        axis.set(
            xscale="log", yscale="log", title=f"{model}, {MODELS[model][0][0]}", xlabel="time spent generating / T"
        )
        axis.set_xticks(FRACTIONS, [f"1/{round(1 / f)}" for f in FRACTIONS])
        axis.xaxis.set_minor_locator(plt.NullLocator())
        axis.yaxis.set_major_formatter("{x:.3g}")
        axis.yaxis.set_minor_formatter("{x:.2g}")
        axis.tick_params(axis="y", which="minor", labelsize=7)
    axes[0, 0].set_ylabel("nRMSE of roll-outs")
    axes[0, 0].legend()
    figure.savefig(folder / "online_vs_offline.png", dpi=110)


def main() -> None:
    """Measure what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=(*MODELS, "breed"), default=(*MODELS, "breed"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="T")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds that the whole may take")
    parser.add_argument("--cells", type=Path, help="folder of the cells' files; default: beside the results")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="only draw what the results hold")
    args = parser.parse_args()
    if args.pictures:
        draw(Report("online_vs_offline", resume=True), args.pictures)
        return
    if args.quick:
        args.seconds, args.seeds = 4.0, 1
        args.only = args.only if len(args.only) == 1 else ["mlp"]
    report, deadline = Report("online_vs_offline", quick=args.quick, resume=args.resume), time.monotonic() + args.limit
    results = args.cells or Path(os.environ.get("HEADRACE_CELLS", report.path.with_suffix("")))
    results.mkdir(parents=True, exist_ok=True)
    if args.cell:
        name, seed = args.cell.split(":")
        os.environ["OMP_NUM_THREADS"] = "1"
        kind, _, rest = name.partition("-")
        if kind == "breed":
            found = breed_cell(rest, int(seed), 20 * args.seconds)
        elif kind == "tune":
            found = tuning_cell(rest, int(seed), args)
        else:
            found = cell(name, int(seed), args, results)
        part = results / f"{name}-{seed}.part"
        part.write_text(json.dumps(found))
        os.replace(part, results / f"{name}-{seed}.json")
        return
    os.environ["HEADRACE_CELLS"] = str(results)
    models = [model for model in MODELS if model in args.only]
    # Every model is tuned first; then one seed of everything, should the time not suffice.
    tuning = [(f"tune-{model}", number) for number in range(len(RATES)) for model in models if not args.quick]
    wanted = [(model, seed) for seed in range(args.seeds) for model in models]
    if "breed" in args.only:
        seeds = 1 if args.quick else max(5, args.seeds)
        wanted += [(f"breed-{sampler}", seed) for seed in range(seeds) for sampler in ("uniform", "sobol", "breed")]
    for cells in (tuning, wanted):
        left = [(name, seed) for name, seed in cells if not (results / f"{name}-{seed}.json").exists()]
        run_cells(left if args.resume else cells, args, results, deadline)
    summarise(report, results, args)


if __name__ == "__main__":
    main()
