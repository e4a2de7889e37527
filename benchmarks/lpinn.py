"""Accuracy and time of the Lagrangian PINN on transport problems with exact solutions.

    python benchmarks/lpinn.py [--quick] [--only PART] [--device cpu|cuda] [--threads N] [--seeds N] [--resume]

The error is the relative L2 norm in space and time against the exact solution, the mean speed C taken off, on a regular
grid that no training sees; the time leaves the evaluations out, and starts with the network. On one CPU thread it is
that of the processor, so that other work on the same cores lengthens it little; beside rivals, on several threads and
on GPUs it is wall time. `eulerian` is a PINN with the same conditions, derivatives and optimiser: what the frame alone
brings. `contains the solution` marks problems that an untrained network of ours solves: listed, not counted. A part is
the first word of its rows' names; `baseline` are physics-informed networks as they are usually trained
(benchmarks/lagrangian/baselines.py), `rivals` other programs in environments of their own
(benchmarks/lagrangian/rivals.py says how they are made).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lagrangian.baselines import METHODS, measure_baselines
from lagrangian.findings import breaking_time, inverse_lines
from lagrangian.rivals import draw, measure_rivals
from lines import Report, flags, processor

from headrace.cases import transport
from headrace.solvers import Case
from headrace.surrogates import Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.least_squares import Fit, levenberg_marquardt
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.places import Points
from headrace.surrogates.time_slabs import TimeSlabs, march
from headrace.surrogates.transport_network import TransportNetwork

MARKS = (1e-2, 1e-4, 1e-6, 1e-7)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One row: a problem, a frame, a network, a budget of seconds, and the error aimed at.

    early : seconds on the way and the error aimed at by then, a line of its own from the same runs.
    """

    name: str
    case: Case
    values: dict[str, float]
    frame: str
    goal: float
    seconds: float = 30.0
    widths: tuple[int, ...] = (20, 20, 20)
    paths: tuple[int, ...] | None = None
    count: int = 2000
    floor: float = 0.1
    harmonics: int = 1
    dtype: torch.dtype = torch.float64
    duration: float | None = None
    note: str = ""
    resample_every: int = 10
    only_gpu: bool = False
    early: tuple[float, float] | None = None
    vary: tuple[str, ...] = field(default=())
    longest: float | None = None
    """Of a slab of time; None: one slab."""


def setups() -> list[Setup]:
    """Return the rows of the table."""
    t, rows = transport, []
    for beta in (30.0, 40.0, 50.0, 80.0):
        for dtype, goal in ((torch.float64, 1e-10), (torch.float32, 5e-6)):
            bits = str(dtype).removeprefix("torch.")
            rows.append(Setup(name=f"convection beta={beta:g} {bits}", case=t.convection, values={"c": beta},
                              frame="galilean", goal=goal, seconds=3, dtype=dtype, widths=(12, 12),
                              note="contains the solution"))  # fmt: skip
    for nu in (0.01, 0.1):
        for c in (0.0, 30.0, 70.0):
            rows.append(Setup(name=f"convection-diffusion nu={nu:g} c={c:g}", case=t.convection_diffusion,
                              values={"c": c, "nu": nu}, frame="galilean", goal=1e-6, seconds=12, widths=(12, 12),
                              count=800))  # fmt: skip
    for rate in (1.0, -1.0):
        rows.append(Setup(name=f"variable speed rate={rate:g}", case=t.stretching, values={"nu": 0.05, "rate": rate},
                          frame="lagrangian", goal=1e-5, seconds=105))  # fmt: skip
        rows.append(Setup(name=f"variable speed rate={rate:g}, traced", case=t.stretching, goal=1e-5, seconds=60,
                          values={"nu": 0.05, "rate": rate}, frame="traced", widths=(16, 16)))  # fmt: skip
    rows.append(Setup(name="variable speed rate=-1, traced, 30 s", case=t.stretching, goal=1e-6, seconds=30,
                      values={"nu": 0.05, "rate": -1.0}, frame="traced", count=8000, resample_every=20,
                      only_gpu=True))  # fmt: skip
    rows.append(Setup(name="reaction-convection rho=5 c=30", case=t.reaction, values={"c": 30.0, "rho": 5.0},
                      frame="galilean", goal=1e-5, seconds=60, harmonics=2))  # fmt: skip
    rows.append(Setup(name="inviscid Burgers to 0.9 of breaking", case=t.breaking, values={"C": 1.0},
                      frame="lagrangian", goal=1e-6, seconds=5, widths=(12, 12), count=600,
                      note="contains the solution"))  # fmt: skip
    for C in (0.0, 10.0, 50.0, 70.0):
        for T, goal in ((1.0, 1e-5), (2.0, 1e-4)):
            rows.append(Setup(name=f"Burgers sin + C nu=0.01 C={C:g} T={T:g}", case=t.burgers, goal=goal, duration=T,
                              values={"nu": 0.01, "C": C}, frame="limited", seconds=120))  # fmt: skip
    shock = dict(case=t.standing_shock, values={"nu": 0.01 / math.pi, "C": 0.0}, duration=1.0)
    # Networks, points and floor were chosen at nu = 0.015/pi.
    rows.append(Setup(name="viscous Burgers nu=0.01/pi, 2 cores", frame="limited", goal=1e-5, seconds=300,
                      widths=(16,) * 4, harmonics=3, count=2500, **shock))  # fmt: skip
    rows.append(Setup(name="viscous Burgers nu=0.01/pi, 300 s", frame="limited", goal=1e-7, seconds=300,
                      early=(60.0, 1e-6), widths=(24,) * 4, harmonics=3, count=8000, only_gpu=True,
                      **shock))  # fmt: skip
    rows.append(Setup(name="viscous Burgers nu=0.01/pi, eulerian", frame="eulerian", goal=1e-6, seconds=60,
                      widths=(24,) * 4, harmonics=3, count=8000, only_gpu=True, **shock))  # fmt: skip
    turn, once = dict(case=t.rotation, goal=1e-4), {"omega": 2 * math.pi, "nu": 0.0}
    rows.append(Setup(name="2-D solid rotation, one turn", frame="traced", seconds=30, widths=(12, 12), count=800,
                      values=once, note="contains the solution", **turn))  # fmt: skip
    rows.append(Setup(name="2-D solid rotation, one turn, frame learned", frame="lagrangian", seconds=120,
                      values=once, widths=(8, 8), paths=(32,), count=800, longest=0.1, resample_every=25,
                      **turn))  # fmt: skip
    rows.append(Setup(name="2-D rotation and diffusion nu=0.005, one turn", frame="traced", seconds=300,
                      widths=(16,) * 3, values=once | {"nu": 0.005}, count=2500, resample_every=30,
                      **turn))  # fmt: skip
    rows.append(Setup(name="Burgers sin + 1 nu=0.1 to T=2 by new labels", case=t.burgers, goal=1e-4, duration=2.0,
                      values={"nu": 0.1, "C": 1.0}, frame="lagrangian", seconds=120, widths=(16, 16), count=1000,
                      longest=0.5))  # fmt: skip
    rows.append(Setup(name="variable speed rate=-1 to T=4 by new labels", case=t.stretching, goal=1e-4, duration=4.0,
                      values={"nu": 0.05, "rate": -1.0}, frame="lagrangian", seconds=120, widths=(16, 16), count=1000,
                      longest=0.5))  # fmt: skip
    rows.append(Setup(name="parametric convection-diffusion, 50 unseen", case=t.convection_diffusion, frame="galilean",
                      values={}, vary=("c", "nu"), goal=1e-4, seconds=30, widths=(20, 20), count=3000))  # fmt: skip
    return rows


def evaluation_rows(setup: Setup, case: Case) -> list[list[float]]:
    """Return the parameters at which the error is taken."""
    if not setup.vary:
        return [list(setup.values.values())]
    generator = np.random.default_rng(7)
    return [[generator.uniform(1, 50), generator.uniform(0.01, 0.1)] for _ in range(50)]


class Judge:
    """Exact values on a grid that no training sees, and the errors of a network there."""

    def __init__(self, setup: Setup, case: Case, device: str) -> None:
        n = {1: 211, 2: 41}[case.grid.ndim]
        axes = [o + (np.arange(n) + 0.37) * e / n for o, e in zip(case.grid.origin, case.grid.extent, strict=True)]
        x = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
        times = (np.arange(21) / 20) * case.duration
        self._shape = (len(times), x.shape[1])
        self._parts = []
        for row in evaluation_rows(setup, case):
            p = replace_values(case, row)
            truth = np.stack([transport.exact(case.name, tuple(x), t, p) for t in times])
            tensors = (torch.tensor(np.tile(x, len(times))), torch.tensor(np.repeat(times, x.shape[1])),
                       torch.tensor([row]))  # fmt: skip
            labels, when, rows = (a.to(device, setup.dtype) for a in tensors)
            zero = torch.zeros(len(when), dtype=torch.long, device=device)
            offset = setup.values.get("C", 0.0)
            self._parts.append((Points(labels=labels, times=when, rows=rows, row_of=zero), truth, offset))

    @torch.no_grad()
    def error(self, network: TransportNetwork | TimeSlabs) -> float:
        """Return the largest relative L2 error over the rows of parameters."""
        worst = 0.0
        for points, truth, offset in self._parts:
            try:
                found = network.values_at(points)[0].double().cpu().numpy().reshape(self._shape)
            except ArithmeticError:  # labels have crossed, or not yet found their ways
                return math.inf
            worst = max(worst, float(np.linalg.norm(found - truth) / np.linalg.norm(truth - offset)))
        return worst


def replace_values(case: Case, row: list[float]) -> Any:
    """Return parameters of a case by order."""
    from headrace.solvers import Parameters

    return Parameters(dict(zip(case.parameters, row, strict=True)))


def clock(device: str) -> Callable[[], float]:
    """Return what tells the seconds of a training: of the processor where it has one thread, else of the wall."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def measure(
    setup: Setup, seed: int, device: str, seconds: float, told: Callable[[], float] | None = None
) -> dict[str, Any]:
    """Train once; return the last error, the seconds to each mark, and how training ended.

    told : the clock; None takes that of `clock`.
    """
    told = told or clock(device)
    case = setup.case if setup.duration is None else replace(setup.case, duration=setup.duration)
    judge = Judge(setup, case, device)
    if setup.longest is not None:
        return in_slabs(setup, case, judge, seed, device, seconds)
    problem = Problem.of(case)
    if not setup.vary:  # the network need not see what stays the same
        problem = replace(problem, parameters={})
    network = TransportNetwork(
        problem, widths=setup.widths, paths=setup.paths, harmonics=setup.harmonics,
        lagrangian=setup.frame == "lagrangian", seed=seed,
    )  # fmt: skip
    network.use(MovingFrame(case, frame=setup.frame, floor=setup.floor, open_walls=not any(case.periodic)))
    network.to(device, setup.dtype)

    def drawn(generator: torch.Generator) -> torch.Tensor:
        unit = torch.rand(64, 2, generator=generator, device=device, dtype=setup.dtype)
        return torch.stack((1 + 49 * unit[:, 0], 0.01 + 0.09 * unit[:, 1]), 1)

    fixed = torch.tensor(evaluation_rows(setup, case)[:1], dtype=setup.dtype, device=device)
    sampler = Sampler(network, drawn if setup.vary else fixed, setup.count, seed=seed)
    untrained = judge.error(network)
    reached: dict[float, float] = {}
    state = {"best": math.inf, "judged": 0.0, "next": 0.0}
    stop = setup.early[0] if setup.early else math.inf
    curve: list[tuple[float, float]] = []
    began = told()

    def watch(step: int, residual: float) -> bool:
        now = told() - began - state["judged"]
        if now >= state["next"]:
            start = told()
            state["best"] = judge.error(network)
            if math.isfinite(state["best"]):
                curve.append((round(now, 2), state["best"]))
            for mark in MARKS:
                if state["best"] <= mark and mark not in reached:
                    reached[mark] = now
            state["judged"] += told() - start
            state["next"] = now * 1.15 + 0.2
            if now < stop < state["next"]:
                state["next"] = stop
        return now > seconds

    fit = levenberg_marquardt(network, sampler, steps=100_000, watch=watch, resample_every=setup.resample_every)
    used = told() - began - state["judged"]
    labels, error = sampler.uniform(4000, fixed), judge.error(network)
    return {
        "error": error, "curve": [*curve, (round(used, 2), error)], "untrained": untrained, "seconds": used,
        "residual": fit.residual, "steps": fit.steps, "reason": fit.reason,
        "reached": {f"{m:g}": round(s, 2) for m, s in reached.items()},
        "min_jacobian": network.min_jacobian(labels)[0], "weights": sum(p.numel() for p in network.parameters()),
    }  # fmt: skip


def in_slabs(setup: Setup, case: Case, judge: Judge, seed: int, device: str, seconds: float) -> dict[str, Any]:
    """Train slab by slab, each for its share of the time."""
    rows = torch.tensor(evaluation_rows(setup, case)[:1], dtype=setup.dtype, device=device)
    fits: list[Fit] = []
    told = clock(device)

    def train(network: TransportNetwork) -> None:
        share, start = seconds * network.moving.length / case.duration, told()
        fits.append(levenberg_marquardt(
            network, Sampler(network, rows, setup.count, seed=seed), steps=100_000,
            watch=lambda step, residual: told() - start > share, resample_every=setup.resample_every,
        ))  # fmt: skip

    began = told()
    slabs = march(case, rows, train, frame=setup.frame, longest=setup.longest, open_walls=not any(case.periodic),
                  widths=setup.widths, paths=setup.paths, harmonics=setup.harmonics, seed=seed)  # fmt: skip
    used = told() - began
    return {
        "error": judge.error(slabs), "untrained": None, "seconds": used, "residual": max(f.residual for f in fits),
        "steps": sum(f.steps for f in fits), "reached": {},
        "reason": f"{len(slabs.ends)} slabs, {len(slabs.relabellings)} cut short by labels that drew near",
        "min_jacobian": None, "weights": sum(p.numel() for p in slabs.parameters()),
    }  # fmt: skip


def line(setup: Setup, runs: list[dict[str, Any]], device: str, threads: int) -> dict[str, Any]:
    """Return the JSON line of a row."""
    errors = [run["error"] for run in runs]
    paths = f"{'x'.join(map(str, setup.paths))} for the paths, " if setup.paths else ""
    return {
        "name": setup.name, "value": statistics.median(errors), "unit": "relative L2", "goal": setup.goal,
        "met": statistics.median(errors) <= setup.goal, "worst": max(errors), "baseline": runs[0]["untrained"],
        "baseline_is": "untrained network", "seeds": len(runs), "seconds": [round(r["seconds"], 1) for r in runs],
        "seconds_of": "processor" if device == "cpu" and threads == 1 else "wall", "steps": [r["steps"] for r in runs],
        "reached": [r["reached"] for r in runs], "frame": setup.frame, "note": setup.note,
        "cores": threads, "device": hardware(device),
        "precision": str(setup.dtype).removeprefix("torch."),
        "setup": f"{'x'.join(map(str, setup.widths))} tanh, {paths}{runs[0]['weights']} weights, {setup.count} points, "
                 f"Levenberg-Marquardt, floor {setup.floor}, {setup.harmonics} harmonics",
        "stopped": [r["reason"] for r in runs], "min_jacobian": runs[0]["min_jacobian"],
    }  # fmt: skip


def further_lines(part: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the lines of a part that is no row of the table."""
    shared = {"cores": options.threads, "device": hardware(options.device)}
    seconds = min(options.seconds, 8 if options.quick else 100)
    if part == "inverse":
        yield from inverse_lines(options.seeds, options.threads)
    elif part == "breaking":
        yield breaking_time(options.threads)
    elif part == "baseline":
        for name, value, more in measure_baselines(seconds=seconds, seeds=options.seeds, device=options.device,
                                                   methods=tuple(METHODS)[: 1 if options.quick else None]):  # fmt: skip
            yield {"name": name, "value": value, "unit": "relative L2", "goal": None, "met": None, "baseline": None,
                   **shared, **more}  # fmt: skip
    else:
        for name, value, unit, more in measure_rivals(
            lambda problem, seed: course(problem, seed, options.device, seconds), seconds=seconds, seeds=options.seeds,
            device=options.device, threads=options.threads,
        ):  # fmt: skip
            goal = more.get("goal")
            yield {"name": name, "value": value, "unit": unit, "goal": goal,
                   "met": None if goal is None else value >= goal, "baseline": None, **shared, **more}  # fmt: skip


def course(problem: str, seed: int, device: str, seconds: float) -> list[tuple[float, float]]:
    """Return the errors over seconds of our own training on a problem of the rivals."""
    burgers = "viscous Burgers nu=0.01/pi, " + ("300 s" if device == "cuda" else "2 cores")
    variable = "variable speed rate=-1"
    traced = f"{variable}, traced" + (", 30 s" if device == "cuda" else "")
    name = {"burgers": burgers, "transport": variable, "transport traced": traced}[problem]
    row = next(row for row in setups() if row.name == name)
    return measure(row, seed, device, seconds, time.perf_counter)["curve"]


def on_the_way(setup: Setup, runs: list[dict[str, Any]]) -> tuple[Setup, list[dict[str, Any]]]:
    """Return the row and the runs as they stood at the early mark."""
    seconds, goal = setup.early
    stood = []
    for run in runs:
        now, error = next((now, error) for now, error in run["curve"] if now >= min(seconds, run["curve"][-1][0]))
        stood.append({**run, "error": error, "seconds": now, "reason": f"goes on to {run['seconds']:.0f} s"})
    return replace(setup, name=f"{setup.name.rpartition(',')[0]}, {seconds:g} s", goal=goal), stood


def hardware(device: str) -> str:
    """Return the name of the processor or of the card."""
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def main() -> None:
    """Measure the chosen rows and write them."""
    table = setups()
    parts = {row.name.split()[0]: None for row in table} | dict.fromkeys(("inverse", "breaking", "baseline", "rivals"))
    parser = flags(__doc__, parts, devices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no new row starts")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of a training, at most")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="only draw what the results hold of the rivals")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_default_dtype(torch.float64)
    report = Report("lpinn", device=options.device, quick=options.quick, resume=options.resume)
    if options.pictures:
        return draw(report.lines, options.pictures / f"lpinn_rivals_{options.device}.png")
    began = time.monotonic()
    if options.quick:
        options.seeds = 1
        names = ("convection-diffusion nu=0.1 c=30", "inviscid Burgers to 0.9 of breaking",
                 "Burgers sin + C nu=0.01 C=50 T=1")  # fmt: skip
        table = [replace(row, seconds=min(row.seconds, 8)) for row in table if row.name in names]
    for row in table:
        wanted = options.only in (None, row.name.split()[0]) and (options.device == "cuda" or not row.only_gpu)
        if not wanted or report.has(row.name):
            continue
        if time.monotonic() - began > options.limit:
            return
        seconds = min(row.seconds, options.seconds)
        runs = [measure(row, seed, options.device, seconds) for seed in range(options.seeds)]
        report.add(**line(row, runs, options.device, options.threads))
        if row.early:
            report.add(**line(*on_the_way(row, runs), options.device, options.threads))
    for part in ("inverse", "breaking", "baseline", "rivals"):
        if options.only == part or (options.only is None and not options.quick and options.device == "cpu"):
            for found in further_lines(part, options):
                report.add(**found)


if __name__ == "__main__":
    main()
