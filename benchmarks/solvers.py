"""Speed of the solvers: ranks, other codes at equal error, weak scaling, memory bandwidth.

    python benchmarks/solvers.py [--quick] [--only ranks|rivals|weak|bandwidth] [--resume]

Parts: `ranks`, a step on two MPI ranks against what two independent processes reach in the same call, each on the
whole grid, and what two processes take that have half the grid each and nothing to exchange; `rivals`,
processor time of one core that exponax, torch-cfd and py-pde take for a two-dimensional flow at equal error (float64,
the best of several numbers of points and steps each; see benchmarks/rivals); `weak`, constant work per rank on 1, 2
and 4 ranks, and the bytes sent per step against the halo that the stencil needs; `bandwidth`, the traffic that a
right-hand side cannot do without, each unknown read and written once, against a plain copy, and its time against the
best numpy form written by hand. The environments of rivals are made by

    for name in exponax torch_cfd py_pde; do python -m venv .rivals/$name; done
    .rivals/exponax/bin/pip install exponax==0.2.0
    .rivals/torch_cfd/bin/pip install torch-cfd==0.2.6
    .rivals/py_pde/bin/pip install py-pde==0.59.0

and where one is absent the line says so. One JSON line per figure, also in benchmarks/results/solvers-cpu.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lines import Figure, flags, run_parts

from headrace.cases.gray_scott import case as gray_scott
from headrace.cases.heat3d import case as heat3d
from headrace.cases.navier_stokes2d import case as navier_stokes
from headrace.cases.taylor_green3d import case as taylor_green
from headrace.solvers import Case, Grid, MemorySink, Periodic, Snapshot, Uniform
from headrace.solvers.blocks import Blocks
from headrace.solvers.ghosts import GhostLayers
from headrace.solvers.right_hand_side import right_hand_side
from headrace.solvers.scheme import SSPRK3
from headrace.solvers.simulate import keep_heap, simulate

HERE = Path(__file__).parent
RIVALS = ("exponax", "torch_cfd", "py_pde")
MEASURED = "measured"
"""Stands before the figures that a worker prints."""
NUMBA = importlib.util.find_spec("numba") is not None
ONE_THREAD = {
    **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1",
}  # fmt: skip


def warm(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t = ν ∇²u."""
    return p.nu * d.laplacian(u)


heat = Case(
    name="heat", fields=("u",), grid=Grid(shape=(1024, 1024), extent=(1.0, 1.0)), boundary=Periodic(),
    parameters={"nu": Uniform(0.5, 1.5)}, initial=lambda x, p, rng: np.sin(2 * np.pi * x[0]) * np.cos(2 * np.pi * x[1]),
    rhs=warm, scheme=SSPRK3, duration=1.0, num_snapshots=1,
)  # fmt: skip
PROBLEMS = {
    "heat": heat, "heat-compiled": replace(heat, compiled=True), "spectral": navier_stokes, "staggered": taylor_green,
}  # fmt: skip


KINDS = {
    "apart": "two processes with a grid each", "together": "two ranks", "halves": "two processes with half a grid each",
    "waiting": "two ranks that wait for halos",
}  # fmt: skip


class Clock(MemorySink):
    """Keeps the time of every snapshot instead of its values."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[float] = []

    def write(self, snapshot: Snapshot) -> bool:
        """Note the time."""
        self.marks.append(time.perf_counter())
        return True


def prepared(problem: str, shape: tuple[int, ...], steps: int) -> Case:
    """Return a case that takes `steps` small steps between its snapshots."""
    case = PROBLEMS[problem].resized(shape)
    step = 0.1 * min(case.grid.spacing) ** 2 if problem.startswith("heat") else 2e-3
    return replace(case, duration=2 * step * steps, num_snapshots=2, steps_per_snapshot=steps)


def seconds_per_step(case: Case, comm: Any) -> float:
    """Return the time of one step, the start not counted. Collective."""
    clock = Clock()
    simulate(case, case.accept({}), clock, comm=comm)
    return (clock.marks[2] - clock.marks[1]) / case.steps_per_snapshot


def run_worker(problem: str, shape: tuple[int, ...], steps: int, how: str) -> None:
    """Entry of the processes that the parts start: prints the slowest rank's time of a step, and the bytes it sends."""
    from mpi4py import MPI

    world, case, together = MPI.COMM_WORLD, prepared(problem, shape, steps), how != "apart"
    if how == "waiting":
        GhostLayers.exchanges = lambda self, axis: False  # type: ignore[method-assign]  # nothing is done meanwhile
    comm = counting(world) if together else None
    world.Barrier()
    seconds = max(world.allgather(seconds_per_step(case, world if together else None)))
    sent = 0.0
    if together and world.size > 1:
        simulate(case, case.accept({}), MemorySink(), comm=comm)
        sent = max(world.allgather(comm.count[0])) / (2 * steps)
    if world.rank == 0:
        print(MEASURED, seconds, sent)


def counting(world: Any) -> Any:
    """Return a communicator that counts the bytes this rank sends to others through halos and transposes."""
    from mpi4py import MPI

    count = [0]

    class Request(MPI.Prequest):
        """A persistent request that knows its size."""

        size = 0

        @classmethod
        def Startall(cls, requests: list[Any]) -> None:
            """Start all, and count them."""
            count[0] += sum(request.size for request in requests)
            MPI.Prequest.Startall(requests)

    class Comm(MPI.Intracomm):
        """The world, counted."""

        def Send_init(self, buf: Any, dest: int, tag: int = 0) -> Any:
            """Make a request that counts."""
            request = Request(super().Send_init(buf, dest, tag))
            request.size = buf.nbytes
            return request

        def Recv_init(self, buf: Any, source: int, tag: int = 0) -> Any:
            """Make a request of the same kind."""
            return Request(super().Recv_init(buf, source, tag))

        def Isend(self, buf: Any, dest: int, tag: int = 0) -> Any:
            """Count what leaves this rank."""
            count[0] += buf.nbytes
            return super().Isend(buf, dest, tag)

        def Alltoallv(self, sendbuf: Any, recvbuf: Any) -> None:
            """Count what leaves this rank."""
            array, counts = sendbuf[:2]
            count[0] += array.itemsize * (sum(counts) - counts[self.rank])
            super().Alltoallv(sendbuf, recvbuf)

    comm = Comm(world)
    comm.__class__.count = count
    return comm


def mpirun(ranks: int, problem: str, shape: tuple[int, ...], steps: int, how: str) -> tuple[float, float]:
    """Return seconds per step and bytes per step of the slowest rank."""
    beside = Path(sys.executable).with_name("mpirun")
    program = str(beside) if beside.exists() else shutil.which("mpirun")
    if program is None:
        raise SystemExit("No mpirun: pip install mpich, or load the site's MPI module.")
    command = [program, "-n", str(ranks), sys.executable, __file__, "--worker", problem, "x".join(map(str, shape))]
    done = subprocess.run([*command, str(steps), how], capture_output=True, text=True, env=ONE_THREAD)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    # Open MPI may colour what follows.
    seconds, sent = done.stdout.split(MEASURED)[1].split()[:2]
    return float(seconds), float(sent)


def measure_ranks(quick: bool) -> Iterator[Figure]:
    """Yield the throughput of two ranks over that of two independent processes."""
    runs = [("heat", (1024, 1024), 60), ("spectral", (512, 512), 40), ("staggered", (96, 96, 96), 8)]
    if quick:
        runs = [("heat", (512, 512), 40), ("spectral", (256, 256), 20), ("staggered", (32, 32, 32), 6)]
    if NUMBA:
        runs.insert(1, ("heat-compiled", *runs[0][1:]))
    for problem, shape, steps in runs:
        kinds = ["apart", "together", "halves", *["waiting"] * (problem == "heat-compiled")]
        best = dict.fromkeys(kinds[:2] if quick else kinds, np.inf)
        for _ in range(1 if quick else 3):
            for how in best:
                here, kind = ((shape[0] // 2, *shape[1:]), "apart") if how == "halves" else (shape, how)
                best[how] = min(best[how], mpirun(2, problem, here, steps, kind)[0])
        size = " x ".join(map(str, shape))
        setup = f"a step of {described(best)}"
        value = best["apart"] / 2 / best["together"]
        yield f"ranks: {problem} {size}, 2 ranks over 2 processes", value, "x", 0.85, 1.0, setup
        if "halves" in best:
            value = best["halves"] / best["together"]
            yield f"ranks: {problem} {size}, 2 processes with half the grid over 2 ranks", value, "x", None, 1.0, setup
        if "waiting" in best:
            value = best["waiting"] / best["together"]
            yield f"ranks: {problem} {size}, waiting for halos over overlapping", value, "x", None, 1.0, setup


def described(times: dict[str, float]) -> str:
    """Return the times of a step in words."""
    return ", ".join(f"{KINDS[how]} {1e3 * seconds:.2f} ms" for how, seconds in times.items())


def needed_bytes(problem: str, shape: tuple[int, ...], ranks: int) -> float | None:
    """Return the bytes that the largest block must send in a step of the explicit heat equation, three stages."""
    if not problem.startswith("heat") or ranks == 1:
        return None
    dims = {2: (2, 1), 4: (2, 2)}[ranks]
    layer = [np.prod([n // d for a, (n, d) in enumerate(zip(shape, dims, strict=True)) if a != axis])
             for axis in range(len(shape))]  # fmt: skip
    return float(3 * 8 * sum(2 * points for points, d in zip(layer, dims, strict=True) if d > 1))


def measure_weak(quick: bool) -> Iterator[Figure]:
    """Yield the efficiency of 2 and 4 ranks with constant work per rank."""
    cores = len(os.sched_getaffinity(0))
    counts = [n for n in (1, 2, 4) if n <= cores]
    runs = [("heat", (512, 512), 60), ("spectral", (256, 256), 60), ("staggered", (48, 48, 48), 12)]
    for problem, shape, steps in runs[: 1 if quick else 3]:
        first = None
        for ranks in counts:
            grown = tuple(n * f for n, f in zip(shape, {1: (1, 1, 1), 2: (2, 1, 1), 4: (2, 2, 1)}[ranks], strict=False))
            measured = [mpirun(ranks, problem, grown, steps, "together") for _ in range(1 if quick else 3)]
            seconds, sent = min(measured)
            first = first or seconds
            needed = needed_bytes(problem, grown, ranks)
            setup = f"{1e3 * seconds:.2f} ms a step, {sent / 1e3:.1f} kB sent per rank and step"
            setup += "" if needed is None else f"; the halo needs {needed / 1e3:.1f} kB"
            size = " x ".join(map(str, grown))
            yield f"weak: {problem} {size} on {ranks} ranks", first / seconds, "x", None, 1.0, setup
            if needed:
                yield f"weak: {problem} bytes over the halo, {ranks} ranks", sent / needed, "1", 1.1, needed, setup


def low_modes(w: np.ndarray) -> np.ndarray:
    """Return the Fourier coefficients with |k| < 16."""
    spectrum = np.fft.rfft2(w) / w.size
    return np.concatenate([spectrum[:16, :16], spectrum[-15:, :16]])


def rival_python(name: str) -> Path:
    """Return the interpreter of a rival's environment."""
    return HERE.parent / ".rivals" / name / "bin" / "python"


def measure_rivals(quick: bool) -> Iterator[Figure]:
    """Yield the time of the best of the others over ours, at several errors."""
    programs = {"headrace": (Path(sys.executable), "ours.py")}
    for name in RIVALS:
        if rival_python(name).exists():
            programs[name] = (rival_python(name), f"{name}_flow.py")
    ladder = [(48, 14), (54, 14), (54, 20), (64, 20), (64, 30), (64, 40), (72, 40), (80, 40), (96, 40), (96, 80)]
    steeper = [(64, 60), (128, 120)]  # second-order differences need more points, and steps for stability
    if quick:
        ladder, steeper = [(64, 40)], [(96, 90)]
    found: dict[str, list[tuple[float, float, str]]] = {name: [] for name in programs}

    def run(name: str, points: int, steps: int, folder: str) -> tuple[float, np.ndarray]:
        python, script = programs[name]
        file = f"{folder}/{name}.npy"
        command = [str(python), str(HERE / "rivals" / script), str(points), str(steps), file]
        done = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD)
        if "diverged" in done.stderr:
            return np.inf, np.full((31, 16), np.nan)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
        return float(done.stdout.split()[-1]), low_modes(np.load(file))

    with tempfile.TemporaryDirectory() as folder:
        reference = run("headrace", *((128, 80) if quick else (256, 640)), folder)[1]
        for points, steps in [*ladder, *steeper]:
            for name in programs:
                if ((points, steps) in steeper) != (name == "py_pde"):
                    continue
                seconds, modes = run(name, points, steps, folder)
                error = float(np.linalg.norm(modes - reference) / np.linalg.norm(reference))
                found[name].append((error, seconds, f"{points}^2, {steps} steps, error {error:.1e}"))
    for target in (3e-2,) if quick else (3e-2, 1e-3, 1e-5):
        reached = {name: min((one for one in runs if one[0] <= target), key=lambda one: one[1], default=None)
                   for name, runs in found.items()}  # fmt: skip
        told = "; ".join(
            f"{name} {'does not reach it' if one is None else f'{1e3 * one[1]:.1f} ms ({one[2]})'}"
            for name, one in reached.items()
        )
        absent = [name for name in RIVALS if name not in programs]
        told += f"; not run: {', '.join(absent)}" if absent else ""
        others = [one[1] for name, one in reached.items() if one is not None and name != "headrace"]
        ours = reached["headrace"]
        value = np.nan if ours is None or not others else min(others) / ours[1]
        yield f"rivals: flow to {target:g}, best other over ours", value, "x", 1.0, 1.0 if others else "not run", told


def fastest(action: Any, seconds: float) -> float:
    """Return the shortest time of a call, tried for so many seconds."""
    action()
    best, end = np.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - start)
    return best


def by_hand(u: np.ndarray, nu: float, spacing: float) -> Any:
    """Return the heat equation's right-hand side in numpy as fast as we can: in strips, without temporaries."""
    n, m = u.shape
    padded, out, rows = np.empty((n + 2, m + 2)), np.empty_like(u), 32
    scratch = np.empty((rows, m))

    def rhs() -> np.ndarray:
        padded[1:-1, 1:-1] = u
        padded[0, 1:-1], padded[-1, 1:-1] = u[-1], u[0]
        padded[1:-1, 0], padded[1:-1, -1] = u[:, -1], u[:, 0]
        for start in range(0, n, rows):
            block = padded[start : start + rows + 2]
            target, work = out[start : start + rows], scratch[: len(block) - 2]
            np.add(block[2:, 1:-1], block[:-2, 1:-1], out=target)
            target += block[1:-1, 2:]
            target += block[1:-1, :-2]
            np.multiply(block[1:-1, 1:-1], 4.0, out=work)
            target -= work
            target *= nu / spacing**2
        return out

    return rhs


def measure_bandwidth(quick: bool) -> Iterator[Figure]:
    """Yield the compulsory traffic of right-hand sides over that of a plain copy."""
    keep_heap()
    seconds = 0.1 if quick else 3.0
    source = np.random.default_rng(0).normal(size=1 << 24)
    target = np.empty_like(source)
    copied = 16 * len(source) / fastest(lambda: np.copyto(target, source), seconds)
    problems = [("heat 2-D", heat, (2048, 2048)), ("Gray-Scott", gray_scott, (1024, 1024)),
                ("heat 3-D", heat3d, (160, 160, 160))]  # fmt: skip
    paths = (False, True) if NUMBA else (False,)
    for (name, case, shape), wanted in itertools.product(problems, paths):
        if quick:
            shape = tuple(n // 2 for n in shape)
        case = replace(case.resized(shape), compiled=wanted)
        p = case.accept({})
        blocks = Blocks(shape, case.periodic)
        u = np.random.default_rng(0).uniform(size=(len(case.fields), *shape))
        f = right_hand_side(case, p, blocks, u)
        time_of_rhs = fastest(lambda f=f, u=u: f(u, 0.0), seconds)
        path = "compiled" if f.compiled else "numpy"
        rate = 16 * u.size / time_of_rhs
        setup = f"{path}, {1e3 * time_of_rhs:.2f} ms, {rate / 1e9:.2f} GB/s of {copied / 1e9:.2f} GB/s, halo included"
        size = " x ".join(map(str, shape))
        yield f"bandwidth: {name} {size} {path}, fraction of a copy", rate / copied, "fraction", None, copied, setup
        if name == "heat 2-D":
            manual = by_hand(u[0], p.nu, case.grid.spacing[0])
            if not np.allclose(manual(), f(u, 0.0)[0], rtol=1e-8, atol=1e-6):
                raise SystemExit("The form written by hand computes something else.")
            best = fastest(manual, seconds)
            setup = f"{path} {1e3 * time_of_rhs:.2f} ms, by hand {1e3 * best:.2f} ms"
            yield f"bandwidth: {name} {size} {path}, best numpy over ours", best / time_of_rhs, "x", None, 1.0, setup


PARTS = {"ranks": measure_ranks, "rivals": measure_rivals, "weak": measure_weak, "bandwidth": measure_bandwidth}


def main() -> None:
    """Measure what is asked for and print one JSON line per figure."""
    parser = flags(__doc__, PARTS)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        problem, shape, steps, how = options.worker
        run_worker(problem, tuple(map(int, shape.split("x"))), int(steps), how)
        return
    run_parts("solvers", PARTS, options)


if __name__ == "__main__":
    main()
