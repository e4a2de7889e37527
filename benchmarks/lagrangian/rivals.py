"""DeepXDE, PINA and jinns beside ours: seconds to the same error on the same hardware, one after the other.

    for name in deepxde pina jinns; do python -m venv .rivals/$name; done
    .rivals/deepxde/bin/pip install deepxde==1.15.0 torch
    .rivals/pina/bin/pip install pina-mathlab==0.3.2
    .rivals/jinns/bin/pip install jinns==1.9.3 jax==0.8.1

Settings stand in benchmarks/rivals/*_pinn.py, problems in benchmarks/rivals/pinn.py. A rival without an environment is
left out. HEADRACE_RIVALS names one interpreter for all rivals, where the packages are in its path.
Python 3.12 ends with a fault at the bound of a type variable in jinns' optimizers/_utils_ngd.py; without it jinns runs.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from headrace.cases import transport
from headrace.solvers import Parameters

HERE = Path(__file__).resolve().parents[1]
VERSIONS = {"deepxde": "DeepXDE 1.15.0", "pina": "PINA 0.3.2", "jinns": "jinns 1.9.3"}
STRETCHED = (transport.stretching, {"nu": 0.05, "rate": -1.0})
PROBLEMS = {
    "burgers": (transport.standing_shock, {"nu": 0.01 / math.pi, "C": 0.0}),
    "transport": STRETCHED, "transport traced": STRETCHED,
}  # fmt: skip
"""Rivals know a problem by its first word; the others say how ours is set up."""

Curve = list[tuple[float, float]]
Line = tuple[str, float, str, dict[str, Any]]


def interpreter(name: str) -> Path:
    """Return the interpreter of a rival's environment."""
    return Path(os.environ.get("HEADRACE_RIVALS", HERE.parent / ".rivals" / name / "bin" / "python"))


def write_exact(problem: str, path: Path) -> None:
    """Write the exact solution on a grid that no training sees."""
    case, values = PROBLEMS[problem]
    x = case.grid.origin[0] + (np.arange(211) + 0.37) * case.grid.extent[0] / 211
    times, p = np.arange(21) / 20, Parameters(values)
    np.savez(path, x=x, t=times, u=np.stack([transport.exact(case.name, (x,), t, p) for t in times]))


def run_rival(name: str, problem: str, *, seconds: float, seed: int, device: str, threads: int, file: Path) -> Any:
    """Return what a rival reports: its curve and setup."""
    command = [str(interpreter(name)), str(HERE / "rivals" / f"{name}_pinn.py"), problem.split()[0], f"{seconds:g}",
               str(seed), device, str(file)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"curve"')]
    if not lines:
        raise SystemExit(f"{VERSIONS[name]} failed on {problem}:\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def time_to(curve: Curve, error: float) -> float:
    """Return the seconds after which an error is reached; infinite if never."""
    return next((seconds for seconds, value in curve if value <= error), math.inf)


def measure_rivals(
    ours: Callable[[str, int], Curve], *, seconds: float, seeds: int, device: str, threads: int
) -> Iterator[Line]:
    """Yield name, value, unit and further entries of lines: errors of each, and their time over ours.

    ours : problem, seed -> the curve of our own training.
    """
    for problem in PROBLEMS:
        mine = [ours(problem, seed) for seed in range(seeds)]
        yield our_line(problem, mine)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "exact.npz"
            write_exact(problem, file)
            for name in VERSIONS:
                if not interpreter(name).exists():
                    continue
                told = [run_rival(name, problem, seconds=seconds, seed=seed, device=device, threads=threads, file=file)
                        for seed in range(seeds)]  # fmt: skip
                yield from compare(name, problem, mine, told)


def our_line(problem: str, mine: list[Curve]) -> Line:
    """Return the line of our own error."""
    error = float(np.median([curve[-1][1] for curve in mine]))
    return f"rivals: {problem}, ours", error, "relative L2", {
        "seeds": len(mine), "precision": "float64", "setup": f"{mine[0][-1][0]:.0f} s", "curve": mine}  # fmt: skip


def compare(name: str, problem: str, mine: list[Curve], told: list[Any]) -> Iterator[Line]:
    """Yield the line of a rival's error, and that of the time to the error that both reach, over ours."""
    curves, shared = [one["curve"] for one in told], {"seeds": len(told), "precision": "float64"}
    seconds, setup = curves[0][-1][0], told[0]["setup"]
    error = float(np.median([curve[-1][1] for curve in curves]))
    yield f"rivals: {problem}, {VERSIONS[name]}", error, "relative L2", {
        **shared, "setup": f"{seconds:.0f} s, {setup}", "curve": curves}  # fmt: skip
    ratios, common = [], []
    for our_curve, curve in zip(mine, curves, strict=True):
        common.append(max(min(value for _, value in curve), min(value for _, value in our_curve)))
        ratios.append(time_to(curve, common[-1]) / time_to(our_curve, common[-1]))
    yield f"rivals: {problem}, time of {VERSIONS[name]} over ours", float(np.median(ratios)), "x", {
        **shared, "goal": 1.0 if name == "jinns" else 10.0, "baseline": 1.0,
        "setup": "to errors of " + ", ".join(f"{value:.2g}" for value in common) + ", the smallest that both reach, "
                 "of each seed"}  # fmt: skip


def draw(lines: list[dict[str, Any]], file: Path) -> None:
    """Draw the errors over seconds that lines hold, one panel per problem."""
    from matplotlib.figure import Figure

    there = [problem for problem in PROBLEMS if any(one["name"] == f"rivals: {problem}, ours" for one in lines)]
    figure = Figure(figsize=(4.5 * len(there), 3.6), layout="constrained")
    for axis, problem in zip(figure.subplots(1, len(there), squeeze=False)[0], there, strict=True):
        for colour, name in enumerate(("ours", *VERSIONS.values())):
            line = next((one for one in lines if one["name"] == f"rivals: {problem}, {name}"), {"curve": []})
            for number, curve in enumerate(line["curve"]):
                axis.loglog(*zip(*curve, strict=True), color=f"C{colour}", label=None if number else name, marker=".")
        axis.set(title=problem, xlabel="seconds of training", ylabel="relative L2 error")
        axis.legend()
    figure.savefig(file, dpi=110)
