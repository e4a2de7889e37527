"""FIFO, FIRO and the reservoir on the heat equation, as published for linear conduction: who forgets, who starves.

    python benchmarks/buffers.py [--quick] [--only ordering|gaps] [--device cpu] [--resume]

Parts: `ordering`, the error of a direct MLP after one pass over the stream of the same simulations through each
buffer, at 64 x 64 and 100 x 100, with beta = 0 (linear conduction) as published; `gaps`, training speed while all
solvers are silent for some seconds, as between two series of jobs, neither side being slowed for the sake of reuse.
Everything is real but Ray and MPI (benchmarks/live.py): solver processes, protocol, intake, shared memory, training.
In `ordering` every training ends after as many windows as were produced; the reservoir gives some of them twice.
`curve` in the lines holds population and draws over time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from lines import Report
from live import SPAWN, LiveSettings, held_out, train_online

from headrace.online_training.validator import evaluate
from headrace.surrogates import MLP

NAMES = ("fifo", "firo", "reservoir")
CORES = len(os.sched_getaffinity(0))


def one(folder: Path, buffer: str, shape: tuple[int, int], seed: int, args: argparse.Namespace) -> dict:
    """Train once through a buffer and evaluate."""
    simulations, solvers = (30, 1) if args.quick else (args.simulations, 2)
    settings = LiveSettings(
        case=("heat2d", shape), folder=folder / f"{buffer}-{seed}", buffer=buffer, slots=simulations * 24,
        watermark=simulations * 4, simulations=simulations, solvers=solvers, seconds=args.seconds, seed=seed,
        batch_size=10, learning_rate=1e-3, schedule="constant", total_windows=simulations * 101,
        most_windows=simulations * 101, views=1.0, fixed=(("beta", 0.0),),
    )  # fmt: skip
    found = train_online(settings, MLP(hidden=(256, 256), activation="relu", log_time=False))
    found["errors"] = evaluate(found.pop("model"), held_out(settings.case, 10, fixed=settings.fixed))
    return found


def ordering(report: Report, folder: Path, args: argparse.Namespace) -> None:
    """Validation errors after the stream, per buffer."""
    shapes = [(32, 32)] if args.quick else [(n, n) for n in args.points]
    seeds = 1 if args.quick else args.seeds
    for shape in shapes:
        label = "x".join(map(str, shape))
        names = {buffer: f"buffers/ordering/{label}/{buffer}" for buffer in NAMES}
        setup = f"heat2d, {args.simulations} simulations, MLP 256-256 relu, batch 10, Adam 1e-3 constant"
        # A training has four processes; several run side by side where there are cores for them.
        with ProcessPoolExecutor(max(1, CORES // 4), mp_context=SPAWN) as pool:
            begun = {
                buffer: [pool.submit(one, folder, buffer, shape, seed, args) for seed in range(seeds)]
                for buffer, name in names.items()
                if not report.has(name)
            }
            for buffer, trainings in begun.items():
                runs = [training.result() for training in trainings]
                found = [run["errors"]["nrmse"] for run in runs]
                report.add(
                    names[buffer], float(np.median(found)), "nRMSE", seeds=seeds, setup=setup, cores=CORES, all=found,
                    windows=[run["windows"] for run in runs], curve=runs[0]["curve"][::2],
                    speed=[run["windows"] / run["seconds"] for run in runs],
                )  # fmt: skip
        errors = {
            line["name"].rsplit("/", 1)[1]: line["all"] for line in report.lines if line["name"] in names.values()
        }
        ratio = np.array(errors["fifo"]) ** 2 / np.array(errors["reservoir"]) ** 2
        report.add(
            f"buffers/ordering/{label}/fifo over reservoir", float(np.median(ratio)), "ratio of mean squared errors",
            goal=3.0, met=bool(np.median(ratio) >= 3), seeds=seeds, all=ratio.tolist(),
        )  # fmt: skip


def gaps(report: Report, folder: Path, args: argparse.Namespace) -> None:
    """Training speed during a silence of the solvers, over that before it."""
    silence = (2.0, 4.0) if args.quick else (8.0, 16.0)
    for buffer in ("fifo", "reservoir") if args.quick else NAMES:
        name = f"buffers/gaps/{buffer}"
        if report.has(name):
            continue
        settings = LiveSettings(
            case=("heat2d", (64, 64)), folder=folder / f"gap-{buffer}", buffer=buffer, slots=3000, watermark=500,
            solvers=1, seconds=silence[1] + 1, batch_size=10, held_back=silence, schedule="constant",
            simulations=20000,
        )  # fmt: skip
        found = train_online(settings, MLP(hidden=(256, 256)))
        curve = [(point["t"], point["draws"]) for point in found["curve"]]

        def rate(first: float, last: float, curve: list[tuple[float, float]] = curve) -> float:
            inside = [point for point in curve if first <= point[0] <= last]
            if len(inside) < 2:
                return float("nan")
            return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])

        # Solver processes start some seconds after the clock: the silence is found in the stream itself.
        steps = [(point["t"], point["steps_accepted"]) for point in found["curve"]]
        still = [b[0] for a, b in itertools.pairwise(steps) if a[1] > 0 and b[1] == a[1]]
        middle = (still[0], still[-1]) if still else silence
        before, during = rate(middle[0] - 2.0, middle[0]), rate(middle[0] + 0.5, middle[1])
        report.add(
            name, during / before if before else None, "speed in the silence over speed before", cores=CORES,
            setup=f"heat2d 64 x 64, one solver, silent for {silence[1] - silence[0]:g} s", before=before, during=during,
            curve=found["curve"],
        )  # fmt: skip


def draw(report: Report, folder: Path) -> None:
    """Draw the population of the buffers, and the uses of windows, over time, from the lines that are there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    parts = (("ordering/64x64", "one pass, 64 x 64"), ("ordering/100x100", "one pass, 100 x 100"),
             ("gaps", "solvers silent for 8 s"))  # fmt: skip
    figure, axes = plt.subplots(2, 3, figsize=(12, 5.2), sharex="col", constrained_layout=True)
    for column, (part, title) in enumerate(parts):
        for name in NAMES:
            curves = [line["curve"] for line in report.lines if line["name"] == f"buffers/{part}/{name}"]
            for curve in curves:
                t = [point["t"] for point in curve]
                axes[0, column].plot(t, [point["population"] for point in curve], label=name)
                axes[1, column].plot(t, [point["draws"] for point in curve], label=name)
        axes[0, column].set_title(title)
        axes[1, column].set_xlabel("seconds")
    axes[0, 0].set_ylabel("windows in the buffer")
    axes[1, 0].set_ylabel("windows drawn")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")  # within it would hide curves
    figure.savefig(folder / "buffers.png", dpi=110)


def main() -> None:
    """Measure what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("ordering", "gaps"))
    parser.add_argument("--device", default="cpu", choices=("cpu",))
    parser.add_argument("--points", type=int, nargs="+", default=[64, 100], help="of each axis, in `ordering`")
    parser.add_argument("--simulations", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of one training")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="only draw what the results hold")
    args = parser.parse_args()
    if args.pictures:
        draw(Report("buffers", resume=True), args.pictures)
        return
    report = Report("buffers", quick=args.quick, resume=args.resume)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for part in (ordering, gaps):
            if args.only in (None, part.__name__):
                part(report, Path(folder), args)
    print(f"# {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
