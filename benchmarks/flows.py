"""Flow solvers against published figures, and two ranks against two independent processes.

    python benchmarks/flows.py [--quick] [--only cavity|street|ranks|rival] [--resume]

Parts: `cavity`, extremes on the centre lines of the lid-driven cavity (Ghia, Ghia and Shin 1982); `street`, the
Strouhal number of the vortex street at Re = 100 (0.165 without side walls, Williamson 1989); `ranks`, a step on two MPI
ranks against what two independent processes reach in the same call; `rival`, a step of the spectral solver against
exponax, the same method in JAX, both in float64 on one core, taking turns. Its environment is made by

    python -m venv .rivals/exponax && .rivals/exponax/bin/pip install exponax==0.2.0

and where it is absent the line says so. One JSON line per figure, also in
benchmarks/results/flows-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headrace.cases.cavity import case as cavity
from headrace.cases.karman import case as karman
from headrace.cases.navier_stokes2d import case as navier_stokes
from headrace.cases.taylor_green3d import case as taylor_green
from headrace.solvers import Case, Grid, MemorySink, Snapshot
from headrace.solvers.simulate import simulate

RESULTS = Path(__file__).parent / "results"
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

GHIA = {100: (-0.21090, 0.17527, -0.24533), 400: (-0.32726, 0.30203, -0.44993), 1000: (-0.38289, 0.37095, -0.51550)}
"""Smallest u on x = 1/2, largest and smallest v on y = 1/2."""

Figure = tuple[str, float, str, float | None, Any, str]
"""Name, value, unit, goal (upper bound; lower bound where the unit is x), baseline, setup."""


def trajectory(case: Case, values: dict[str, float]) -> np.ndarray:
    """Return all snapshots of one simulation."""
    sink = MemorySink()
    simulate(case, case.accept(values), sink)
    return sink.values


def measure_cavity(quick: bool) -> Iterator[Figure]:
    """Yield how far the extremes are from Ghia's, relative."""
    runs = [(100, 32, 12.0)] if quick else [(100, 64, 20.0), (400, 128, 40.0), (1000, 128, 60.0)]
    for reynolds, points, duration in runs:
        case = replace(cavity.resized((points, points)), duration=duration, num_snapshots=4)
        last = trajectory(case, {"reynolds": reynolds})[-1]
        u, v = last[0, points // 2 - 1], last[1, :, points // 2 - 1]
        found = (u.min(), v.max(), v.min())
        for name, value, published in zip(("u_min", "v_max", "v_min"), found, GHIA[reynolds], strict=True):
            yield (
                f"cavity Re {reynolds}: {name} from Ghia", abs(value / published - 1), "1", 0.03, published,
                f"{points} x {points} points, t = {duration:g}, found {value:.5f}",
            )  # fmt: skip


def measure_street(quick: bool) -> Iterator[Figure]:
    """Yield the distance of the Strouhal number from Williamson's, relative."""
    shape, extent, duration = ((96, 48), (16.0, 8.0), 50.0) if quick else ((384, 256), (24.0, 16.0), 100.0)
    h = extent[0] / shape[0]
    # The cylinder stays at (4, 4): the box grows around it.
    grid = Grid(shape=shape, extent=extent, origin=(0.0, 4.0 - extent[1] / 2))
    case = replace(karman, grid=grid, duration=duration, num_snapshots=int(5 * duration))
    states = trajectory(case, {"reynolds": 100.0})
    signal = states[len(states) // 2 :, 1, int(6.5 / h), shape[1] // 2 - 1]
    rises = np.flatnonzero((signal[:-1] <= 0) & (signal[1:] > 0))
    crossings = rises - signal[rises] / (signal[rises + 1] - signal[rises])
    strouhal = (len(crossings) - 1) / (crossings[-1] - crossings[0]) * 5
    yield (
        "street Re 100: Strouhal number from Williamson", abs(strouhal / 0.165 - 1), "1",
        0.12 if quick else 0.05, 0.165,
        f"{shape[0]} x {shape[1]} points, {extent[1]:g} diameters wide, found {strouhal:.4f}",
    )  # fmt: skip


class Clock(MemorySink):
    """Keeps the time of every snapshot instead of its values.

    now : the clock.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        self._now = now
        self.marks: list[float] = []

    def write(self, snapshot: Snapshot) -> bool:
        """Note the time."""
        self.marks.append(self._now())
        return True


def seconds_per_step(problem: str, size: int, steps: int, comm: Any) -> float:
    """Return the time of one step, the start not counted; of the processor where it runs alone. Collective."""
    case = taylor_green if problem == "staggered" else navier_stokes
    case = case.resized((size,) * case.grid.ndim)
    case = replace(case, duration=2e-3 * steps, num_snapshots=2, steps_per_snapshot=steps)
    clock = Clock(time.process_time) if problem == "alone" else Clock()
    simulate(case, case.accept({}), clock, comm=comm)
    return (clock.marks[2] - clock.marks[1]) / steps


def run_worker(problem: str, size: int, steps: int, together: bool) -> None:
    """Entry of the processes that the parts start: prints the slowest rank's time of a step."""
    if problem == "alone":
        print(seconds_per_step(problem, size, steps, None))
        return
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    world.Barrier()
    slowest = max(world.allgather(seconds_per_step(problem, size, steps, world if together else None)))
    if world.rank == 0:
        print(slowest)


def measure_ranks(quick: bool) -> Iterator[Figure]:
    """Yield the throughput of two ranks over that of two independent processes."""
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise SystemExit("No mpirun: pip install mpich, or load the site's MPI module.")
    runs = [("spectral", 256, 20), ("staggered", 32, 10)] if quick else [("spectral", 512, 40), ("staggered", 96, 8)]
    for problem, size, steps in runs:
        best = {}
        for _ in range(2 if quick else 3):
            for how in ("apart", "together"):
                command = [mpirun, "-n", "2", sys.executable, __file__, "--worker", problem, str(size), str(steps), how]
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=ONE_THREAD)
                best[how] = min(best.get(how, np.inf), float(done.stdout))
        yield (
            f"ranks: {problem} {size}, 2 ranks over 2 processes", best["apart"] / 2 / best["together"], "x", 0.85,
            1.0, f"step on one process of two {1e3 * best['apart']:.1f} ms, on 2 ranks {1e3 * best['together']:.1f} ms",
        )  # fmt: skip


RIVAL = Path(__file__).parent.parent / ".rivals" / "exponax" / "bin" / "python"

EXPONAX = """
import os, sys, time
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
import exponax
points, steps = int(sys.argv[1]), int(sys.argv[2])
step = exponax.stepper.NavierStokesVorticity(2, 1.0, points, 2e-3, diffusivity=1e-4, order=4)
run = jax.jit(exponax.repeat(step, steps))
state = np.random.default_rng(0).normal(size=(1, points, points))
run(state).block_until_ready()
start = time.process_time()
run(state).block_until_ready()
print((time.process_time() - start) / steps)
"""


def measure_rival(quick: bool) -> Iterator[Figure]:
    """Yield the speed of an ETDRK4 step over that of exponax, in processor time of one core."""
    for points, steps in [(64, 100), (128, 50)] if quick else [(64, 400), (128, 200), (256, 100), (512, 40)]:
        name, setup = f"rival: spectral {points} over exponax", "ETDRK4, float64, one core"
        best = {"ours": np.inf, "exponax": np.inf}
        for _ in range(2 if quick else 3):
            for who, command in (
                ("ours", [sys.executable, __file__, "--worker", "alone", str(points), str(steps), "apart"]),
                ("exponax", [str(RIVAL), "-c", EXPONAX, str(points), str(steps)]),
            ):
                if who == "ours" or RIVAL.exists():
                    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ONE_THREAD)
                    best[who] = min(best[who], float(done.stdout))
        setup += f", ours {1e3 * best['ours']:.2f} ms"
        if not RIVAL.exists():
            yield name, np.nan, "x", None, "not run", setup
        else:
            setup += f", exponax {1e3 * best['exponax']:.2f} ms"
            yield name, best["exponax"] / best["ours"], "x", 1.0, 1.0, setup


PARTS = {"cavity": measure_cavity, "street": measure_street, "ranks": measure_ranks, "rival": measure_rival}


def record(figure: Figure) -> dict[str, Any]:
    """Return the line of one figure."""
    name, value, unit, goal, baseline, setup = figure
    met = None if goal is None else bool(value >= goal if unit == "x" else value <= goal)
    return {
        "name": name, "value": None if np.isnan(value) else float(value), "unit": unit, "goal": goal, "met": met,
        "baseline": baseline, "seeds": [0],
        "cores": len(os.sched_getaffinity(0)), "device": platform.processor() or platform.machine(),
        "precision": "fp64", "setup": setup,
    }  # fmt: skip


def main() -> None:
    """Measure what is asked for and print one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small grids, under 55 s on 2 cores")
    parser.add_argument("--only", choices=sorted(PARTS))
    parser.add_argument("--device", choices=("cpu",), default="cpu")
    parser.add_argument("--resume", action="store_true", help="keep the parts of an earlier, unfinished call")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        problem, size, steps, how = options.worker
        run_worker(problem, int(size), int(steps), how == "together")
        return
    path = RESULTS / "flows-cpu.json"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if options.resume and path.exists() else []
    done = {line["name"].split()[0].rstrip(":") for line in lines}
    for part, measure in PARTS.items():
        if options.only not in (None, part) or part in done:
            continue
        for figure in measure(options.quick):
            lines.append(record(figure))
            print(json.dumps(lines[-1]), flush=True)
        RESULTS.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
