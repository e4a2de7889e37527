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
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from budget_cells import FRACTIONS, MODELS, RATES, breed_cell, cell, cores_of, tuning_cell
from lines import Report


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
    from matplotlib.ticker import LogLocator

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
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 4, 6)))
        axis.yaxis.set_major_formatter("{x:.3g}")
        axis.yaxis.set_minor_formatter("")
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
