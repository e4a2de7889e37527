"""NeuralStagger: speed of staggered networks, errors without data, and classical solvers on the same device.

    python benchmarks/neuralstagger.py [--quick] [--device cpu|cuda]
                                       [--only speed|processes|classical|training|comparison|control|streamed]
                                       [--row N ...] [--minutes M] [--seed S ...] [--resume] [--seconds S]

Parts: `speed`, 256 x 256 points, time per simulated frame of all parts on one device, one after another, and of one
part alone, over the plain network in its fastest form, all as CUDA graphs on a GPU, and beside them the time that
launching alone takes (`floor`, the same network on the smallest grid it allows); `processes`, latency with the parts
in processes of their own on CPU cores; `classical`, error against time of pseudo-spectral solvers, coarse, and on each
part by itself without training; `training`, the networks of `staggered.training.ROWS` trained without data for M
minutes each, kept in results/neuralstagger-states and continued there by --resume, S seconds a call; `comparison`, for
every network in the results, its time and the fastest classical solver that reaches its error; `control`, a flow that
mixes a dye best, chosen through two of the trained networks and replayed in our solver; `streamed`, two online studies
with and without the states of the stream. Errors are relative L2 norms over simulations that no training saw, to our
discrete solution and to truth (spectral, finer; in the cavity our solver). One JSON line per figure, also in
benchmarks/results/neuralstagger-DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from staggered.classical import MANY, curve, measure_classical
from staggered.control import measure_control
from staggered.figures import Figure
from staggered.planes import HELD_OUT, Plane
from staggered.ranks import measure_ranks
from staggered.speed import measure_speed
from staggered.training import PROBLEMS, ROWS, Budget, Row, Run

RESULTS = Path(os.environ.get("OUT", Path(__file__).parent / "results"))


def results(device: str) -> list[dict[str, Any]]:
    """Return the lines that are there already."""
    path = RESULTS / f"neuralstagger-{device}.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def measure_training(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield errors at t = 10 after so many minutes of training without data, and what classical solvers do."""
    device = options.device
    state = RESULTS / "neuralstagger-states"
    state.mkdir(parents=True, exist_ok=True)
    budget = Budget(
        minutes=options.minutes or (0.05 if options.quick else 1.0), state=state,
        resume=options.resume, graph=not options.eager, until=time.perf_counter() + options.seconds,
        beside=os.environ.get("BESIDE", ""),
    )  # fmt: skip
    for number in options.row or (range(2) if options.quick else range(len(ROWS))):
        for seed in options.seed or [0]:
            run = Run(ROWS[number], replace(budget, seed=seed), device)
            run.train()
            if run.spent < 60 * budget.minutes:
                print(f"# {run.row.name}, seed {seed}: {run.spent:.0f} s so far; --resume goes on", flush=True)
                continue
            yield from run.figures(1 if options.quick else HELD_OUT)


def measure_comparison(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield times of the networks whose errors are in the results, and classical solvers that reach these errors."""
    known, count = {line["name"]: line for line in results(options.device)}, 1 if options.quick else HELD_OUT
    for row in ROWS:
        name = f"{row.name}, seed 0"
        trained = known.get(f"{name}: error to truth at t = 10")
        if trained is None or not isinstance(PROBLEMS[row.problem], Plane):
            continue
        run, error = Run(row, Budget(0.0), options.device), trained["value"]
        minutes = known[f"{name}: training"]["value"]
        reached = [point for point in curve(run.problem, options.device, count) if point.error <= error]
        for batch in (1, MANY) if options.device == "cuda" else (1,):
            seconds = run.seconds(batch)
            which = f"in a batch of {batch}" if batch > 1 else "alone"
            yield (f"{name}: time to t = 10 {which}, all parts on one device", seconds, "s", None, None, "")
            if not reached:
                continue
            best = min(reached, key=lambda point: point.seconds if batch == 1 else point.each)
            classical = best.seconds if batch == 1 else best.each
            saved = classical - seconds
            words = (f"{best.name}: error {best.error:.3g}, {1e3 * classical:.3g} ms; "
                     f"network: {error:.3g}, {1e3 * seconds:.3g} ms")  # fmt: skip
            yield (f"{name}: speed-up over the fastest classical solver of this error, {which}", classical / seconds,
                   "x", 1.0, classical, words)  # fmt: skip
            yield (f"{name}: solves until training is paid back, {which}", 60 * minutes / saved if saved > 0 else None,
                   "1", None, None, words if saved > 0 else f"never; {words}")  # fmt: skip


def measure_control_through(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield what control through the plain and the (2,2,2) networks of P1 and P0 comes to, where weights are kept."""
    budget = Budget(0.0, state=RESULTS / "neuralstagger-states", resume=True)
    rows = [row for row in ROWS if row in (Row("P1", 1), Row("P1", 2), Row("P0", 1), Row("P0", 2))]
    for row in rows[:1] if options.quick else rows:
        run = Run(row, budget, options.device)
        if not run.steps:
            print(f"# {row.name}: no weights in {budget.state}; train it first", flush=True)
            continue
        few = {"starts": 1, "steps": 1, "horizons": (1,)} if options.quick else {}
        yield from measure_control(f"control, {row.name}", run.network, run.problem, row.factor, options.device, **few)


def measure_streams(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield errors with and without streamed states; nothing where it should be quick, as it starts two studies."""
    if not options.quick:
        from staggered.streamed import measure_streamed

        yield from measure_streamed(options.device)


PRECISION = {
    "classical": "float64", "speed": "TF32 on a GPU, else float32", "training": "float32",
    "comparison": "networks float32, solvers float64", "streamed": "float32", "control": "float64",
    "processes": "float32",
}  # fmt: skip
PARTS = {
    "classical": lambda options: measure_classical(options.quick, options.device),
    "speed": lambda options: measure_speed(options.quick, options.device),
    "processes": lambda options: measure_ranks(options.quick),
    "training": measure_training,
    "comparison": measure_comparison,
    "control": measure_control_through,
    "streamed": measure_streams,
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--eager", action="store_true", help="train without CUDA graphs")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--row", type=int, nargs="+", choices=range(len(ROWS)), metavar="N")
    parser.add_argument("--seed", type=int, nargs="+")
    options = parser.parse_args()
    path = RESULTS / f"neuralstagger-{options.device}.json"
    kept = results(options.device)
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu"
    for part in [options.only] if options.only else PARTS:
        for name, value, unit, goal, baseline, setup in PARTS[part](options):
            met = None if goal is None else value >= goal if unit == "x" else value <= goal
            line = {"name": name, "value": value, "unit": unit, "goal": goal, "met": met, "baseline": baseline,
                    "seeds": 1, "cores": os.cpu_count(), "device": hardware, "precision": PRECISION[part],
                    "quick": options.quick, "setup": setup}  # fmt: skip
            print(json.dumps(line), flush=True)
            kept = [old for old in kept if old["name"] != name] + [line]
            path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))


if __name__ == "__main__":
    main()
