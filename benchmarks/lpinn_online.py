"""The Lagrangian PINN in online studies: error against time with and without the stream, and on 50 unseen parameters.

    python benchmarks/lpinn_online.py [--quick] [--only unseen|stream] [--seeds N] [--side N] [--resume]
                                      [--pictures FOLDER]

Whole studies, `headrace train CASE --model lpinn`: solvers, stream, trainer and validator.

stream : moving shocks, `transport_burgers`, learned from equation and stream together, from the stream alone
    (residual_weight=0) and from the equation alone (data_weight=0; the stream then only counts the steps). VRMSE on
    held-out simulations over the seconds since training began; those simulations are the solver's, so that no curve
    can show less than the solver's own error, which is measured beside.
unseen : `transport_convection_diffusion`, c in [1, 50], nu in [0.01, 0.1]: the largest nRMSE of 50 held-out
    simulations, as the study's validator counts it; 100 steps of Levenberg-Marquardt end the training.

--side studies run at the same time, each on cores of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lines import Report, flags

from headrace.cases import transport
from headrace.cases.catalogue import find_case
from headrace.cases.evaluation import evaluate_held_out
from headrace.cases.run_data import RunData
from headrace.online_training.validator import read_held_out
from headrace.surrogates import Problem

SOURCES = {"both": [], "stream": ["residual_weight=0"], "equation": ["data_weight=0"]}
SETTINGS = {
    "stream": dict(case="transport_burgers", simulations=60, held_out=12, views=100, learning_rate=3e-3,
                   architecture=["hidden=32,32,32", "harmonics=2", "points=64"]),
    "unseen": dict(case="transport_convection_diffusion", simulations=60, held_out=50, views=25, learning_rate=5e-3,
                   architecture=["hidden=20,20", "harmonics=1", "points=64", "refine=100"]),
}  # fmt: skip
QUICK = {"simulations": 8, "held_out": 4, "views": 10}


def study(run_dir: Path, seed: int, more: list[str], cores: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """Run one study to its end; return its validation over time, and the errors of each held-out simulation."""
    shutil.rmtree(run_dir, ignore_errors=True)
    flat = [part for key in ("simulations", "held_out", "views", "learning_rate")
            for part in (f"--{key.replace('_', '-')}", str(settings[key]))]  # fmt: skip
    for value in [*settings["architecture"], *more]:
        flat += ["--architecture", value]
    command = [
        sys.executable, "-m", "headrace.cases", "train", settings["case"], "--model", "lpinn",
        "--run-dir", str(run_dir), "--seed", str(seed), "--ranks", "1", "--jobs", "1", "--device", "cpu",
        "--checkpoint-every", "4", "--plain", *flat,
    ]  # fmt: skip
    with (run_dir.parent / f"{run_dir.name}.txt").open("w") as log:
        ended = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
    if ended.returncode:
        tail = (run_dir.parent / f"{run_dir.name}.txt").read_text()[-2000:]
        raise RuntimeError(f"The study {run_dir.name} ended with {ended.returncode}: {tail}")
    trained, validated = (
        [json.loads(line) for line in (run_dir / f"{name}.jsonl").read_text().splitlines()]
        for name in ("metrics", "validation")
    )
    began = trained[0]["time"]
    curve = [(round(one["time"] - one["seconds"] - began, 2), one["vrmse"], one["windows"]) for one in validated]
    errors = evaluate_held_out(RunData.read(run_dir)).errors
    return {
        "curve": curve, "vrmse": errors["vrmse"], "worst": errors["worst_nrmse"], "median": errors["median_nrmse"],
        "seconds": (run_dir / "model" / "config.json").stat().st_mtime - began, "windows": trained[-1]["windows"],
    }  # fmt: skip


def solver_error(run_dir: Path, name: str) -> float:
    """Return the VRMSE of a study's held-out simulations against the exact solutions."""
    case, squares, spread = find_case(name).load(), [], []
    x = (case.grid.points(0, periodic=case.periodic[0])[::16],)
    for path in sorted((run_dir / "held_out").glob("*.h5")):
        one = read_held_out(path, Problem.of(case))
        p = case.accept(dict(zip(case.parameters, one.parameters, strict=True)))
        truth = np.stack([transport.exact(case.name, x, t, p) for t in one.times])
        squares.append(np.mean((one.states[:, 0, ::16] - truth) ** 2))
        spread.append(truth)
    return float(np.sqrt(np.mean(squares) / np.var(spread)))


def measure(report: Report, part: str, folder: Path, seeds: int, side: int, quick: bool) -> None:
    """Run the studies of a part, some at the same time, and report them."""
    settings = SETTINGS[part] | (QUICK if quick else {})
    sources = {"both": []} if part == "unseen" else SOURCES
    wanted = [(source, seed) for seed in range(seeds) for source in sources
              if not report.has(f"lpinn_online/{part}/{source}/seed {seed}")]  # fmt: skip
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // side)
    free = [cores[i * each : (i + 1) * each] for i in range(side)]

    def one(source: str, seed: int) -> tuple[str, int, dict[str, Any], float]:
        mine = free.pop()
        try:
            run = folder / f"{part}-{source}-{seed}"
            found = study(run, seed, sources[source], mine, settings)
            return source, seed, found, solver_error(run, settings["case"]) if part == "stream" else 0.0
        finally:
            free.append(mine)

    setup = (f"{settings['case']}, {settings['simulations']} simulations, {settings['held_out']} held out, "
             f"{settings['views']} views, {', '.join(settings['architecture'])}")  # fmt: skip
    with ThreadPoolExecutor(side) as pool:
        for task in [pool.submit(one, *which) for which in wanted]:
            try:
                source, seed, found, floor = task.result()
            except RuntimeError as error:
                print(f"# {error}", flush=True)
                continue
            value, unit = (found["worst"], "largest nRMSE") if part == "unseen" else (found["vrmse"], "VRMSE")
            report.add(
                f"lpinn_online/{part}/{source}/seed {seed}", value, unit, cores=each, setup=setup, source=source,
                seconds=found["seconds"], windows=found["windows"], curve=found["curve"], solver=floor,
                median_nrmse=found["median"],
            )  # fmt: skip
    for source in sources:
        lines = [line for line in report.lines if line["name"].startswith(f"lpinn_online/{part}/{source}/seed")]
        if lines:
            values = [line["value"] for line in lines]
            goal = 1e-4 if part == "unseen" else None
            report.add(
                f"lpinn_online/{part}/{source}", statistics.median(values), lines[0]["unit"], goal=goal, setup=setup,
                met=max(values) <= goal if goal else None, worst=max(values), seeds=len(values), cores=each,
                seconds=[round(line["seconds"], 1) for line in lines],
            )  # fmt: skip


def draw(report: Report, folder: Path) -> None:
    """Draw the errors over time from the lines that are there."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = {"both": "equation and stream", "stream": "stream alone", "equation": "equation alone"}
    for colour, (source, name) in zip(("tab:blue", "tab:orange", "tab:green"), names.items(), strict=True):
        lines = [one for one in report.lines if one["name"].startswith(f"lpinn_online/stream/{source}/seed")]
        for number, line in enumerate(lines):
            seconds, error, windows = zip(*line["curve"], strict=True)
            for axis, along in zip(axes, (seconds, windows), strict=True):
                axis.semilogy(along, error, color=colour, label=None if number else name, linewidth=1, marker=".")
    axes[0].set(xlabel="seconds of training", ylabel="VRMSE on held-out simulations")
    axes[1].set(xlabel="windows used")
    axes[0].legend()
    figure.savefig(folder / "lpinn_online.png", dpi=110)


def main() -> None:
    """Measure what the flags say."""
    parser = flags(__doc__, SETTINGS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--side", type=int, default=1, help="studies at the same time")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="only draw what the results hold")
    options = parser.parse_args()
    if options.pictures:
        draw(Report("lpinn_online"), options.pictures)
        return
    report = Report("lpinn_online", quick=options.quick, resume=options.resume)
    with tempfile.TemporaryDirectory() as folder:
        for part in ("unseen",) if options.quick and not options.only else SETTINGS:
            if options.only in (None, part):
                seeds = 1 if options.quick else options.seeds
                measure(report, part, Path(folder), seeds, options.side, options.quick)


if __name__ == "__main__":
    main()
