"""NeuralStagger: speed of staggered networks, errors without data, and classical solvers on the same device.

    python benchmarks/neuralstagger.py [--quick] [--device cpu|cuda]
                                       [--only speed|processes|classical|training|comparison|control|shedding|streamed]
                                       [--row N ...] [--minutes M] [--seed S ...] [--resume] [--seconds S]
                                       [--unroll K] [--rate R]

Parts: `speed`, 256 x 256 points, time per simulated frame of all parts on one device, one after another, and of one
part alone, over the plain network in its fastest form, all as CUDA graphs on a GPU, and beside them the time that
launching alone takes (`floor`, the same network on the smallest grid it allows); `processes`, latency with the parts
in processes of their own on CPU cores; `classical`, error against time of pseudo-spectral solvers, coarse, and on each
part by itself without training, of the planes of these rows; `training`, the networks of `staggered.training.ROWS`
trained without data for M minutes each, kept in results/neuralstagger-states and continued there by --resume, S
seconds a call; `comparison`, for every network in the results, its time and the fastest classical solver that reaches
its error; `control`, a flow that mixes a dye best, chosen through two of the trained networks and replayed in our
solver; `shedding`, the inflow of a channel so that vortices are shed at a wanted frequency, likewise; `streamed`, two
online studies with and without the states of the stream. Errors are relative L2 norms over simulations that no
training saw, to our discrete solution and to truth (spectral, finer; in the cavity our solver). One JSON line per
figure, also in benchmarks/results/neuralstagger-DEVICE.json.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from lines import Figure, Report, flags, record
from staggered.classical import MANY, measure_classical, told, usable
from staggered.control import measure_control
from staggered.figures import Rival
from staggered.planes import HELD_OUT
from staggered.ranks import measure_ranks
from staggered.shedding import measure_shedding
from staggered.speed import KINDS, measure_speed
from staggered.training import PROBLEMS, ROWS, Budget, Row, Run, end_of, train


def report_of(options: argparse.Namespace) -> Report:
    """Return the lines that are there already."""
    return Report("neuralstagger", device=options.device, quick=options.quick)


def measure_training(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield errors at t = 10 after so many minutes of training without data, and what classical solvers do."""
    device = options.device
    state = report_of(options).path.parent / "neuralstagger-states"
    state.mkdir(parents=True, exist_ok=True)
    budget = Budget(
        minutes=options.minutes or (0.05 if options.quick else 1.0), state=state, resume=options.resume,
        graph=not options.eager, streams=options.streams, until=time.perf_counter() + options.seconds,
        beside=os.environ.get("BESIDE", ""), unroll=options.unroll, rate=options.rate,
    )  # fmt: skip
    rows = [ROWS[number] for number in options.row or (range(2) if options.quick else range(len(ROWS)))]
    pairs = [(row, seed) for row in rows for seed in options.seed or [0]]
    size = len(pairs) if options.together else 1
    for group in (pairs[k : k + size] for k in range(0, len(pairs), size)):
        beside = budget.beside + (f", {len(group)} trainings at a time on one GPU" if len(group) > 1 else "")
        runs = [Run(row, replace(budget, seed=seed, beside=beside), device) for row, seed in group]
        train(runs)
        for run in runs:
            if run.spent < 60 * budget.minutes:
                told = f"{run.row.name}, seed {run.budget.seed}: {run.spent:.0f} s so far"
                print(f"# {told}; --resume goes on", flush=True)
                continue
            yield from run.figures(1 if options.quick else HELD_OUT)
            yield from over_plain(run, {line["name"]: line["value"] for line in report_of(options).lines})


def over_plain(run: Run, known: dict[str, float]) -> Iterator[Figure]:
    """Yield the error of a step of a staggered network past a block over that of the plain one of its seed."""
    what, seed = "error of a step over the state, root mean square", f"seed {run.budget.seed}"
    mine = known.get(f"{run.row.name}, {seed}: {what}")
    plain = known.get(f"{replace(run.row, factor=1, shared=False, exchange=0, common=0).name}, {seed}: {what}")
    if run.row.factor > 1 and mine and plain:
        goal = run.problem.goals.get("residual")
        yield f"{run.row.name}, {seed}: error of a step over the plain network's", mine / plain, "1", goal, plain, ""


def measure_comparison(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield times of the networks, and of the classical solvers that reach the errors of those in the results.

    Errors of solvers that are in the results are not computed again. With --resume neither are times, nor errors of
    more solvers of a problem: what follows from them needs no GPU.
    """
    known, count = {line["name"]: line for line in report_of(options).lines}, 1 if options.quick else HELD_OUT
    batches = (1, MANY) if options.device == "cuda" else (1,)
    solvers: dict[str, list[tuple[Rival, float]]] = {}
    measured: set[str] = set()

    def once(name: str, measure: Callable[[], float], setup: str = "") -> Iterator[Figure]:
        if name not in measured and not (options.resume and name in known):
            measured.add(name)
            known[name] = {"value": measure()}
            yield name, known[name]["value"], "s", None, None, setup

    for row in ROWS if options.row is None else [ROWS[number] for number in options.row]:
        name, problem = f"{row.name}, seed 0", PROBLEMS[row.problem]
        trained = known.get(f"{name}: {problem.judged}")
        if trained is None and options.row is None:
            continue
        error = None if trained is None else trained["value"]
        if problem.name not in solvers:
            solvers[problem.name] = list(usable(problem, options.device, count, known, more=not options.resume))
            for rival, its_error in solvers[problem.name]:
                if told(problem, rival) not in known:
                    yield told(problem, rival), its_error, "1", None, None, ""
        # Parts with weights of their own are batched, on streams or one after another, whichever is fastest.
        parts = row.factor**problem.ndim * row.frames
        ways = (0, 1, parts) if options.device == "cuda" and parts > 1 and not row.shared else (0,)

        def seconds(batch: int, row: Row = row, ways: tuple[int, ...] = ways) -> float:
            return min(Run(row, Budget(0.0, streams=streams), options.device).seconds(batch) for streams in ways)

        for batch in batches:
            which = f"in a batch of {batch}" if batch > 1 else "alone"
            network = f"{name}: time to t = {end_of(problem):g} {which}, all parts on one device"
            suffix = f"time of each of {batch}" if batch > 1 else "time"
            lines = {f"{problem.name}: {rival.name}: {suffix}": rival for rival, _ in solvers[problem.name]}
            if options.device == "cuda" and not torch.cuda.is_available() and not {network, *lines} <= known.keys():
                continue
            yield from once(network, partial(seconds, batch))
            for line, rival in lines.items():
                yield from once(line, partial(rival.seconds, batch), "as long as the network's")
            times = {rival.name: known[line]["value"] for line, rival in lines.items()}
            if error is not None:
                yield from compared(name, which, (error, known[network]["value"]), times, solvers[problem.name],
                                    known[f"{name}: training"]["value"])  # fmt: skip


def compared(name: str, which: str, network: tuple[float, float], times: dict[str, float],
             solvers: list[tuple[Rival, float]], minutes: float) -> Iterator[Figure]:  # fmt: skip
    """Yield how much faster a network of this error and these seconds is than the fastest solver that reaches it."""
    error, seconds = network
    reached = [(times[rival.name], rival.name, its) for rival, its in solvers if its <= error]
    if not reached:
        words = "; ".join(f"{rival.name}: {its:.3g}, {1e3 * times[rival.name]:.3g} ms" for rival, its in solvers)
        yield f"{name}: no classical solver of those tried reaches this error, {which}", error, "1", None, None, words
        return
    classical, best, its = min(reached)
    saved = classical - seconds
    words = f"{best}: error {its:.3g}, {1e3 * classical:.3g} ms; network: {error:.3g}, {1e3 * seconds:.3g} ms"
    yield (f"{name}: speed-up over the fastest classical solver of this error, {which}", classical / seconds, "x",
           1.0, classical, words)  # fmt: skip
    yield (f"{name}: solves until training is paid back, {which}", 60 * minutes / saved if saved > 0 else None, "1",
           None, None, words if saved > 0 else f"never; {words}")  # fmt: skip


def measure_control_through(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield what control through networks of P1 and P0 comes to, where weights are kept."""
    budget = Budget(0.0, state=report_of(options).path.parent / "neuralstagger-states", resume=True)
    until = time.perf_counter() + options.seconds
    rows = [Row("P1", 1), Row("P1", 2, shared=True), Row("P1", 2), Row("P0", 1), Row("P0", 2)]
    rows = rows if options.row is None else [ROWS[number] for number in options.row]
    for row in rows[:1] if options.quick else rows:
        run = Run(row, budget, options.device)
        if not run.steps:
            print(f"# {row.name}: no weights in {budget.state}; train it first", flush=True)
            continue
        name = f"control, {row.name}"
        yield from measure_control(
            name, run.network, run.problem, row.factor, options.device, until=until, quick=options.quick
        )


def measure_shedding_through(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield what control of the shedding through the networks of P5 comes to, where weights are kept."""
    budget = Budget(0.0, state=report_of(options).path.parent / "neuralstagger-states", resume=True)
    until = time.perf_counter() + options.seconds
    rows = [row for row in ROWS if row.problem == "P5"]
    rows = rows if options.row is None else [ROWS[number] for number in options.row]
    for row, seed in ((row, seed) for row in rows for seed in options.seed or [0]):
        run = Run(row, replace(budget, seed=seed), options.device)
        name = f"shedding, {row.name}" + (f", seed {seed}" if seed else "")
        if not run.steps:
            print(f"# {name}: no weights in {budget.state}; train it first", flush=True)
            continue
        yield from measure_shedding(name, run.network, run.problem, options.device, until=until, quick=options.quick)


def measure_streams(options: argparse.Namespace) -> Iterator[Figure]:
    """Yield errors with and without streamed states; nothing where it should be quick, as it starts two studies."""
    if not options.quick:
        from staggered.streamed import measure_streamed

        yield from measure_streamed(options.device)


PRECISION = {
    "classical": "float64", "speed": "TF32 on a GPU, else float32", "training": "float32",
    "comparison": "networks and explicit steps float32, spectral solvers float64",
    "streamed": "float32", "control": "float64", "shedding": "float32, gradients float64", "processes": "float32",
}  # fmt: skip
PARTS = {
    "classical": lambda options: measure_classical(
        options.quick, options.device, {ROWS[number].problem for number in options.row or ()}
    ),
    "speed": lambda options: measure_speed(options.quick, options.device, options.network),
    "processes": lambda options: measure_ranks(options.quick),
    "training": measure_training,
    "comparison": measure_comparison,
    "control": measure_control_through,
    "shedding": measure_shedding_through,
    "streamed": measure_streams,
}


def main() -> None:
    """Measure and write."""
    parser = flags(__doc__, PARTS, devices=("cpu", "cuda"))
    parser.add_argument("--eager", action="store_true", help="train without CUDA graphs")
    parser.add_argument("--together", action="store_true", help="on a GPU, train all rows and seeds at the same time")
    parser.add_argument("--streams", type=int, default=0, help="train networks of parts on so many streams")
    parser.add_argument("--unroll", type=int, default=1, help="frames past a block that are graded as one roll-out")
    parser.add_argument("--rate", type=float, default=Budget.rate, help="that the learning rate falls from")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--row", type=int, nargs="+", choices=range(len(ROWS)), metavar="N")
    parser.add_argument("--seed", type=int, nargs="+")
    parser.add_argument("--network", nargs="+", choices=list(KINDS), help="of these kinds only the speed")
    options = parser.parse_args()
    report = report_of(options)
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() and options.device == "cuda" else ""
    if options.device == "cuda" and not hardware:  # what follows from recorded times is of the GPU that they are of
        hardware = next((line["device"] for line in reversed(report.lines) if line["unit"] == "s"), "")
    for part in [options.only] if options.only else PARTS:
        for figure in PARTS[part](options):
            report.add(**record(figure, device=hardware, precision=PRECISION[part], cores=os.cpu_count()))


if __name__ == "__main__":
    main()
