"""Accuracy and time of the Lagrangian PINN on transport problems with exact solutions.

    python benchmarks/lpinn.py [--quick] [--only NAME] [--device cpu|cuda] [--threads N] [--seeds N] [--resume]

The error is the relative L2 norm in space and time against the exact solution, the mean speed C taken off, on a regular
grid that no training sees; the wall time leaves the evaluations out, and starts with the network. `eulerian` is a PINN
with the same conditions, derivatives and optimiser: what the frame alone brings. `contains the solution` marks problems
that an untrained network of ours solves: listed, not counted. One JSON line per figure, also in
benchmarks/results/lpinn-DEVICE.json, or in the folder that HEADRACE_RESULTS names.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.cases import transport
from headrace.solvers import Case
from headrace.surrogates import Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.least_squares import levenberg_marquardt
from headrace.surrogates.moving_frame import MovingFrame, Points
from headrace.surrogates.transport_network import TransportNetwork

RESULTS = Path(os.environ.get("HEADRACE_RESULTS", Path(__file__).parent / "results"))
MARKS = (1e-2, 1e-4, 1e-6, 1e-7)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One row: a problem, a frame, a network, a budget of seconds, and the error aimed at."""

    name: str
    case: Case
    values: dict[str, float]
    frame: str
    goal: float
    seconds: float = 30.0
    widths: tuple[int, ...] = (20, 20, 20)
    count: int = 2000
    floor: float = 0.1
    harmonics: int = 1
    dtype: torch.dtype = torch.float64
    duration: float | None = None
    note: str = ""
    only_gpu: bool = False
    vary: tuple[str, ...] = field(default=())


def setups() -> list[Setup]:
    """Return the rows of the table."""
    t, rows = transport, []
    for beta in (30.0, 40.0, 50.0, 80.0):
        for dtype, goal in ((torch.float64, 1e-10), (torch.float32, 5e-6)):
            bits = str(dtype).removeprefix("torch.")
            rows.append(Setup(name=f"convection beta={beta:g} {bits}", case=t.convection, values={"c": beta, "nu": 0.0},
                              frame="galilean", goal=goal, seconds=3, dtype=dtype, widths=(12, 12),
                              note="contains the solution"))  # fmt: skip
    for nu in (0.01, 0.1):
        for c in (0.0, 30.0, 70.0):
            rows.append(Setup(name=f"convection-diffusion nu={nu:g} c={c:g}", case=t.convection_diffusion,
                              values={"c": c, "nu": nu}, frame="galilean", goal=1e-6, seconds=12, widths=(12, 12),
                              count=800))  # fmt: skip
    for rate in (1.0, -1.0):
        rows.append(Setup(name=f"variable speed rate={rate:g}", case=t.stretching, values={"nu": 0.05, "rate": rate},
                          frame="lagrangian", goal=1e-5, seconds=60))  # fmt: skip
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
    rows.append(Setup(name="viscous Burgers nu=0.01/pi, 2 cores", frame="limited", goal=1e-5, seconds=135, floor=0.05,
                      widths=(20, 20, 20), count=2500, **shock))  # fmt: skip
    rows.append(Setup(name="viscous Burgers nu=0.01/pi, 60 s", frame="limited", goal=1e-6, seconds=60, floor=0.05,
                      widths=(30, 30, 30), count=8000, only_gpu=True, **shock))  # fmt: skip
    rows.append(Setup(name="viscous Burgers nu=0.01/pi, 120 s", frame="limited", goal=1e-7, seconds=120, floor=0.05,
                      widths=(40, 40, 40), count=12000, only_gpu=True, **shock))  # fmt: skip
    rows.append(Setup(name="viscous Burgers nu=0.01/pi, eulerian", frame="eulerian", goal=1e-5, seconds=60,
                      widths=(30, 30, 30), count=4000, **shock))  # fmt: skip
    rows.append(Setup(name="2-D solid rotation, one turn", case=t.rotation, values={"omega": 2 * math.pi}, goal=1e-4,
                      frame="lagrangian", seconds=120, widths=(20, 20, 20), count=2500))  # fmt: skip
    rows.append(Setup(name="parametric convection-diffusion, 50 unseen", case=t.convection_diffusion, frame="galilean",
                      values={}, vary=("c", "nu"), goal=1e-4, seconds=60, widths=(20, 20), count=3000))  # fmt: skip
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
    def error(self, network: TransportNetwork) -> float:
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


def measure(setup: Setup, seed: int, device: str, seconds: float) -> dict[str, Any]:
    """Train once; return the last error, the seconds to each mark, and how training ended."""
    case = setup.case if setup.duration is None else replace(setup.case, duration=setup.duration)
    judge = Judge(setup, case, device)
    problem = Problem.of(case)
    if not setup.vary:  # the network need not see what stays the same
        problem = replace(problem, parameters={})
    network = TransportNetwork(
        problem, widths=setup.widths, harmonics=setup.harmonics, lagrangian=setup.frame == "lagrangian", seed=seed
    )
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
    began = time.perf_counter()

    def watch(step: int, residual: float) -> bool:
        now = time.perf_counter() - began - state["judged"]
        if now >= state["next"]:
            start = time.perf_counter()
            state["best"] = judge.error(network)
            for mark in MARKS:
                if state["best"] <= mark and mark not in reached:
                    reached[mark] = now
            state["judged"] += time.perf_counter() - start
            state["next"] = now * 1.15 + 0.2
        return now > seconds

    fit = levenberg_marquardt(network, sampler, steps=100_000, watch=watch)
    used = time.perf_counter() - began - state["judged"]
    labels = sampler.uniform(4000, fixed)
    return {
        "error": judge.error(network), "untrained": untrained, "seconds": used, "residual": fit.residual,
        "steps": fit.steps, "reason": fit.reason, "reached": {f"{m:g}": round(s, 2) for m, s in reached.items()},
        "min_jacobian": network.min_jacobian(labels)[0], "weights": sum(p.numel() for p in network.parameters()),
    }  # fmt: skip


def line(setup: Setup, runs: list[dict[str, Any]], device: str, threads: int) -> dict[str, Any]:
    """Return the JSON line of a row."""
    errors = [run["error"] for run in runs]
    return {
        "name": setup.name, "value": statistics.median(errors), "unit": "relative L2", "goal": setup.goal,
        "met": statistics.median(errors) <= setup.goal, "worst": max(errors), "baseline": runs[0]["untrained"],
        "baseline_is": "untrained network", "seeds": len(runs), "seconds": [round(r["seconds"], 1) for r in runs],
        "reached": [r["reached"] for r in runs], "frame": setup.frame, "note": setup.note,
        "cores": threads, "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
        "precision": str(setup.dtype).removeprefix("torch."),
        "setup": f"{'x'.join(map(str, setup.widths))} tanh, {runs[0]['weights']} weights, {setup.count} points, "
                 f"Levenberg-Marquardt, floor {setup.floor}",
        "stopped": [r["reason"] for r in runs], "min_jacobian": runs[0]["min_jacobian"],
    }  # fmt: skip


def main() -> None:
    """Measure the chosen rows and write them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, three rows, a few seconds each")
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds after which no new row starts")
    parser.add_argument("--seconds", type=float, default=math.inf, help="of a training, at most")
    parser.add_argument("--resume", action="store_true", help="leave out rows that the results hold")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_default_dtype(torch.float64)
    path = RESULTS / f"lpinn-{given.device}.json"
    lines = json.loads(path.read_text()) if path.exists() else []
    began = time.monotonic()
    rows = [row for row in setups() if given.only in row.name and (given.device == "cuda" or not row.only_gpu)]
    if given.quick:
        names = ("convection-diffusion nu=0.1 c=30", "inviscid Burgers to 0.9 of breaking",
                 "Burgers sin + C nu=0.01 C=50 T=1")  # fmt: skip
        rows = [replace(row, seconds=min(row.seconds, 8)) for row in rows if row.name in names]
    for row in (replace(row, seconds=min(row.seconds, given.seconds)) for row in rows):
        if given.resume and any(one["name"] == row.name for one in lines):
            continue
        if time.monotonic() - began > given.limit:
            break
        runs = [measure(row, seed, given.device, row.seconds) for seed in range(1 if given.quick else given.seeds)]
        result = line(row, runs, given.device, given.threads)
        print(json.dumps(result), flush=True)
        if not given.quick:
            lines = [one for one in lines if one["name"] != row.name] + [result]
            RESULTS.mkdir(exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(lines, indent=1) + "\n")
            temporary.replace(path)


if __name__ == "__main__":
    main()
