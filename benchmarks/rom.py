"""Reduced-order models against the full model: one JSON line per figure.

    python benchmarks/rom.py cube           # modes, points, errors
    python benchmarks/rom.py plate          # two cycles of training, up to 20 run; a line per cycle of the full model
    python benchmarks/rom.py queries        # 1,000 one-cycle queries on the plate, 20 checked against the full model
    python benchmarks/rom.py temperature    # new hot spots: indicator against error, enrichment
    python benchmarks/rom.py tsqr ecm       # kernels; tsqr also times pyMOR where it is installed
    python benchmarks/rom.py traffic        # bytes of the collectives, and their formula
    python benchmarks/rom.py --quick        # everything, small

Pieces are independent, so that each may be run by itself and again; --seconds N ends the long ones in time with what
they have. Times are of one process; set OMP_NUM_THREADS=1 to compare with other codes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace

import numpy as np

from headrace.cases import rom_cube, rom_plate
from headrace.rom.communicator import Communicator, Counting, run_threads
from headrace.rom.cubature import compressed, cubature
from headrace.rom.indicator import corrected
from headrace.rom.offline import Reduction, Snapshots, Tolerances, compress
from headrace.rom.online import Query, ReducedSolver, Trajectory
from headrace.rom.pod import PointProduct, pod
from headrace.rom.solver import Increment, NewtonSettings, Solver

SMALL_PLATE = (6, 8, 1)
FOR_A_PERCENT = Tolerances(displacement=1e-5, dual=1e-5, cubature=5e-5)
"""What the plate needs for p to 1 % and u to 0.1 % with a margin; the defaults are forty times as accurate."""


def line(piece: str, **figures: object) -> None:
    """Print one figure as JSON."""
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in figures.items()}
    print(json.dumps({"piece": piece, **rounded, "threads": os.environ.get("OMP_NUM_THREADS", "default")}), flush=True)


def errors(solver: Solver, reduction: Reduction, answer: Trajectory, query: int, increments: list[Increment]) -> dict:
    """Return l2 errors of u and p, the largest over increments, relative to the largest norms."""
    places = [int(np.argmin(np.abs(answer.times - i.time))) for i in increments]
    u = reduction.displacement_field(answer.coefficients[query, places], answer.lifting[query, places])
    p = reduction.dual_field("p", answer.duals["p"][query, places])
    full_p = [solver.local.material.field("p", i.state) for i in increments]
    w = np.sqrt(solver.local.kinematics.weights)
    worst = {}
    for name, got, full, by in (("u", u, [i.displacement for i in increments], 1.0), ("p", p, full_p, w)):
        size = max(np.linalg.norm(f * by) for f in full)
        worst[name] = float(max(np.linalg.norm((g - f) * by) for g, f in zip(got, full, strict=True)) / size)
    return worst


def cube(quick: bool, seconds: float) -> None:
    """The academic cube with each mode of cubature."""
    problem = rom_cube.rom_cube()
    solver = Solver(problem)
    start = time.perf_counter()
    increments = list(solver.run(rom_cube.times()))
    full = time.perf_counter() - start
    for mode in ("exact", "two-level"):
        start = time.perf_counter()
        reduction = compress(solver.local, Snapshots.collect(solver.local, increments), Tolerances(mode=mode))
        offline = time.perf_counter() - start
        start = time.perf_counter()
        answer = ReducedSolver(reduction.model).run([Query.of(problem)], rom_cube.times())
        online = time.perf_counter() - start
        line("cube", mode=mode, modes=reduction.model.num_modes, points=len(reduction.model.points), of=1728,
             **{f"error_{k}": v for k, v in errors(solver, reduction, answer, 0, increments).items()},
             cubature_error=reduction.error, full_s=full, offline_s=offline, online_s=online)  # fmt: skip


def trained_plate(quick: bool, cycles: int, training: int, tolerances: Tolerances | None = None) -> tuple:
    """Return solver, the rest of its increments, those of training, their seconds, the model and its seconds."""
    problem = rom_plate.rom_plate(counts=SMALL_PLATE if quick else None, cycles=cycles)
    solver = Solver(problem)
    run = solver.run(rom_plate.times(cycles))
    start = time.perf_counter()
    increments = []
    for increment in run:
        increments.append(increment)
        if increment.time >= training - 1e-9:
            break
    full = time.perf_counter() - start
    start = time.perf_counter()
    reduction = compress(solver.local, Snapshots.collect(solver.local, increments), tolerances)
    return solver, run, increments, full, reduction, time.perf_counter() - start


def plate(quick: bool, seconds: float) -> None:
    """Two cycles for training, 20 run, each cycle compared as the full model gets there."""
    began, cycles = time.perf_counter(), 4 if quick else 20
    solver, run, increments, full, reduction, offline = trained_plate(quick, cycles, 2, FOR_A_PERCENT)
    start = time.perf_counter()
    query = Query.of(solver.local.problem)
    answer = ReducedSolver(reduction.model, settings=NewtonSettings(tolerance=1e-6)).run(
        [query], rom_plate.times(cycles)
    )
    online = time.perf_counter() - start
    line("plate", dofs=3 * solver.subdomain.num_nodes, modes=reduction.model.num_modes,
         points=len(reduction.model.points), of=solver.subdomain.num_points, cubature_error=reduction.error,
         training_s=full, offline_s=offline, online_s=online, online_cycles=cycles)  # fmt: skip
    past, cycle = increments, []
    line("plate", cycle="training", **{f"error_{k}": v for k, v in errors(solver, reduction, answer, 0, past).items()})
    start = time.perf_counter()
    for increment in run:
        cycle.append(increment)
        if abs(increment.time - round(increment.time)) < 1e-9:
            full += time.perf_counter() - start
            done = round(increment.time)
            found = errors(solver, reduction, answer, 0, cycle)
            each, quick_cycle = full / done, online / cycles
            line("plate", cycle=done, error_u=found["u"], error_p=found["p"], full_s_so_far=full,
                 speedup=each / quick_cycle,
                 break_even_20_cycle_runs=(2 * each + offline) / (20 * (each - quick_cycle)))  # fmt: skip
            cycle, start = [], time.perf_counter()
            if time.perf_counter() - began + 1.5 * full / done > seconds:
                break


def queries(quick: bool, seconds: float) -> None:
    """Draws of two load amplitudes of one cycle: rate, statistics of p at the critical point, errors on checks."""
    began = time.perf_counter()
    count, checks = (60, 2) if quick else (1000, 20)
    solver, _, increments, full, reduction, offline = trained_plate(quick, 1, 1)
    rng = np.random.default_rng(1)
    draws = 1 - 0.15 * rng.random((count, 2))
    base = solver.local.problem

    def pull(draw: np.ndarray) -> object:
        return lambda t: float(np.interp(t, np.arange(5) / 4, [0, draw[0], 0, -draw[1], 0]))

    # The corners of the parameters' box train the model; the draws lie inside.
    snapshots = Snapshots.collect(solver.local, increments)
    for corner in ((0.85, 0.85), (1.0, 0.85), (0.85, 1.0)):
        other = Solver(replace(base, loads=[replace(base.loads[0], amplitude=pull(corner))]))
        start = time.perf_counter()
        snapshots = snapshots.joined(Snapshots.collect(other.local, other.run(rom_plate.times(1))))
        full += time.perf_counter() - start
    start = time.perf_counter()
    reduction = compress(solver.local, snapshots)
    offline = time.perf_counter() - start
    asked = [replace(Query.of(base), loads=(pull(draw),)) for draw in draws]
    online, critical, parts = ReducedSolver(reduction.model), [], []
    place = int(np.argmax(solver.local.material.field("p", increments[-1].state)))
    start = time.perf_counter()
    for first in range(0, count, 50):
        parts.append(online.run(asked[first : first + 50], rom_plate.times(1)))
        critical.append(parts[-1].duals["p"][:, -1] @ reduction.duals["p"].modes[place])
    took = time.perf_counter() - start
    p = np.concatenate(critical)
    line("queries", count=count, per_second=count / took, training_runs=4, training_s=full, offline_s=offline,
         modes=reduction.model.num_modes, points=len(reduction.model.points), p_mean=float(p.mean()),
         p_std=float(p.std()), p_quantiles=[float(f"{q:.4e}") for q in np.quantile(p, [0.05, 0.5, 0.95])])  # fmt: skip
    worst = {"u": 0.0, "p": 0.0}
    for done, k in enumerate(rng.choice(count, checks, replace=False)):
        if time.perf_counter() - began + full / 3 > seconds:
            checks = done
            break
        other = Solver(replace(base, loads=[replace(base.loads[0], amplitude=pull(draws[k]))]))
        found = errors(other, reduction, parts[k // 50], k % 50, list(other.run(rom_plate.times(1))))
        worst = {name: max(worst[name], found[name]) for name in worst}
    line("queries", checks=checks, error_u=worst["u"], error_p=worst["p"])


def temperature(quick: bool, seconds: float) -> None:
    """Indicators and errors over new hot spots of the cube, for a model trained with one."""
    base = rom_cube.rom_cube()
    solver = Solver(base)
    reduction = compress(solver.local, Snapshots.collect(solver.local, solver.run(rom_cube.times())))
    rng = np.random.default_rng(3)
    seen = []
    for _ in range(4 if quick else 16):
        spot, peak = tuple(10.0 - 10.0 * rng.random() * rng.random(3)), float(rng.uniform(150, 250))
        problem = rom_cube.rom_cube(hot_spot=spot, peak=peak)
        answer = ReducedSolver(reduction.model).run([Query.of(problem)], rom_cube.times())
        full = Solver(problem)
        found = errors(full, reduction, answer, 0, list(full.run(rom_cube.times())))
        seen.append((float(answer.misfits["p"].max()), found["p"]))
        after: dict[str, object] = {}
        if found["p"] > 0.1:
            mended = corrected(reduction, Solver(problem), rom_cube.times(), limit=2e-3, max_steps=3)
            again = Solver(problem)
            increments = list(again.run(rom_cube.times()))
            after = {"full_steps": len(mended.full_steps),
                     "error_p_after": errors(again, mended.reduction, mended.answer, 0, increments)["p"]}  # fmt: skip
        line("temperature", spot=[round(x, 2) for x in spot], peak=peak, indicator=seen[-1][0], error_p=found["p"],
             **after)  # fmt: skip
    order = [np.argsort(np.argsort(column)) for column in np.array(seen).T]
    line("temperature", rank_correlation=float(np.corrcoef(order[0], order[1])[0, 1]), spots=len(seen))


def tsqr(quick: bool, seconds: float) -> None:
    """POD of 50 columns of a million rows; pyMOR's on the same matrix where it is installed."""
    rows = 100_000 if quick else 1_000_000
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 50)) @ (rng.standard_normal((50, 50)) * 10.0 ** -np.linspace(0, 8, 50)[:, None])
    for method in ("tsqr", "gram"):
        start = time.perf_counter()
        basis = pod(X, PointProduct(np.ones(rows)), tolerance=1e-6, method=method)
        took = time.perf_counter() - start
        slip = float(np.abs(basis.modes.T @ basis.modes - np.eye(basis.modes.shape[1])).max())
        line("tsqr", method=method, rows=rows, columns=50, seconds=took, modes=basis.modes.shape[1], orthogonality=slip)
    try:
        from pymor.algorithms.pod import pod as rival
        from pymor.vectorarrays.numpy import NumpyVectorSpace
    except ImportError:
        line("tsqr", rival="pymor is not installed")
        return
    for method in ("method_of_snapshots", "qr_svd"):
        try:
            array = NumpyVectorSpace.from_numpy(X)
        except ValueError:
            array = NumpyVectorSpace.from_numpy(X.T)
        if len(array) != 50:
            array = NumpyVectorSpace.from_numpy(np.ascontiguousarray(X.T))
        start = time.perf_counter()
        modes = rival(array, rtol=1e-6, method=method)[0]
        line("tsqr", rival=f"pymor {method}", seconds=time.perf_counter() - start, modes=len(modes))


def ecm(quick: bool, seconds: float) -> None:
    """Two-level cubature of 400 integrands at 200,000 points; smooth functions, so that they have about 300 ranks."""
    points, functions, rank = (20_000, 100, 60) if quick else (200_000, 400, 300)
    rng = np.random.default_rng(0)
    x = rng.random((points, 3))
    waves = rng.normal(size=(3, rank)) * 6
    basis = np.cos(x @ waves + rng.uniform(0, 6, rank)) * 10.0 ** -np.linspace(0, 4, rank)
    G = basis @ rng.standard_normal((rank, functions)) + 0.1
    w, numbers = np.full(points, 1.0 / points), np.arange(points)
    start = time.perf_counter()
    few = compressed(G, w, tolerance=1e-6)
    packed = time.perf_counter() - start
    rule = cubature(few, w, numbers, tolerance=1e-5, mode="two-level")
    miss = np.linalg.norm(rule.weights @ G[rule.points] - w @ G) / np.linalg.norm(w @ G)
    line("ecm", points=points, functions=functions, compressed=few.shape[1], compress_s=packed,
         seconds=time.perf_counter() - start, chosen=len(rule.points), error=float(miss))  # fmt: skip


def traffic(quick: bool, seconds: float) -> None:
    """Bytes that one rank hands over in POD and cubature, beside what docs/rom_scaling.md says."""
    rng = np.random.default_rng(0)
    X, G = rng.standard_normal((4000, 20)), rng.standard_normal((2000, 30)) + 1
    w, every = np.full(2000, 1 / 2000), np.arange(2000)

    def work(comm: Communicator) -> tuple:
        mine, counted = every[comm.rank :: comm.size], Counting(comm)
        modes = pod(X[comm.rank :: comm.size], PointProduct(np.ones(4000 // comm.size)), tolerance=1e-6, comm=counted)
        chosen = Counting(comm)
        rule = cubature(G[mine], w[mine], mine, tolerance=1e-6, comm=chosen, mode="two-level")
        own = int(np.isin(mine, rule.points).sum())
        return counted, modes.modes.shape[1], chosen, own

    for size in (2, 4, 8):
        counted, n, chosen, _ = run_threads(size, work)[0]
        line("traffic", ranks=size, pod_exchange=counted.bytes["exchange"],
             formula=int(np.log2(size)) * 8 * (20**2 + n**2), two_level_gather=chosen.bytes["gather"],
             candidates=chosen.bytes["gather"] / (8 * (30 + 1)))  # fmt: skip


PIECES = {f.__name__: f for f in (cube, plate, queries, temperature, tsqr, ecm, traffic)}


def main() -> None:
    """Run the pieces that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", help=f"any of {', '.join(PIECES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--seconds", type=float, default=1e9, help="time for each of the long pieces")
    wish = parser.parse_args()
    for name in wish.pieces or PIECES:
        PIECES[name](wish.quick, wish.seconds)


if __name__ == "__main__":
    main()
