"""Reduced-order models against the full model, and their kernels.

    python benchmarks/rom.py [--quick] [--only PART] [--resume] [--seconds N]

Parts: `cube`, modes, points and errors; `subdomains`, the same on 1 to 8 of them; `plate`, two cycles of training and
twenty run, errors at every cycle; `queries`, 1,000 one-cycle queries on the plate, 20 checked; `temperature`, new hot
spots: indicator against error, enrichment; `newton`, an iteration of the embedded solver beside one of CalculiX; `tsqr`
and `ecm`, kernels, the first beside pyMOR where it is installed; `share`, kernels at the size that a rank of 48 has at
five million dofs; `traffic`, bytes of the collectives beside their formula. One JSON line per figure, also in
benchmarks/results/rom-cpu.json. --seconds ends the long parts in time with what they have. Times are of one process on
one core: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import rom_kernels
from lines import Figure, flags, run_parts

from headrace.cases import rom_cube, rom_plate
from headrace.rom.calculix_deck import counterpart, write_deck
from headrace.rom.campaign import run_calculix
from headrace.rom.communicator import Communicator, run_threads
from headrace.rom.indicator import corrected
from headrace.rom.offline import Reduction, Snapshots, Tolerances, compress
from headrace.rom.online import Query, ReducedSolver, Trajectory
from headrace.rom.problem import LocalProblem, Problem
from headrace.rom.solver import Increment, NewtonSettings, Solver
from headrace.rom.subdomain import distribute

SMALL_PLATE = (6, 8, 1)
COMPILED = importlib.util.find_spec("numba") is not None
"""Whether laws run as machine code, in both models: with the extra `fast`."""
LAWS = "laws as machine code" if COMPILED else "laws by numpy"
THREADS = f"{LAWS}, {rom_kernels.THREADS}"
FOR_A_PERCENT = Tolerances(displacement=1e-5, dual=1e-5, cubature=5e-5)
"""What the plate needs for p to 1 % and u to 0.1 % with a margin; the defaults are forty times as accurate."""


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


def cube(quick: bool) -> Iterator[Figure]:
    """The academic cube with two modes of cubature."""
    problem = rom_cube.rom_cube(compiled=COMPILED)
    warm(problem)
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
        setup = (
            f"full {full:.3g} s, compression {offline:.3g} s, online {online:.3g} s, cubature error "
            f"{reduction.error:.2e}, {THREADS}"
        )
        yield f"cube: modes, {mode}", reduction.model.num_modes, "modes", 12, None, setup
        yield f"cube: points of 1,728, {mode}", len(reduction.model.points), "points", 100, None, setup
        for name, error in errors(solver, reduction, answer, 0, increments).items():
            yield f"cube: error of {name}, {mode}", error, "1", 1e-5, None, setup


def warm(problem: Problem) -> None:
    """Have machine code made, or read from the cache, before anything is timed."""
    law, still = problem.laws["all"], np.zeros((1, 6))
    law.update(np.full(1, 20.0), np.full(1, 20.0), still, still, law.initial_state(1), 1.0)


def trained_plate(quick: bool, cycles: int, training: int, tolerances: Tolerances | None = None) -> tuple:
    """Return solver, the rest of its increments, those of training, their seconds, the model and its seconds."""
    problem = rom_plate.rom_plate(counts=SMALL_PLATE if quick else None, cycles=cycles, compiled=COMPILED)
    warm(problem)
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


def plate(quick: bool, seconds: float = np.inf) -> Iterator[Figure]:
    """Two cycles for training, 20 run, each cycle compared as the full model gets there."""
    began, cycles = time.perf_counter(), 4 if quick else 20
    solver, run, increments, full, reduction, offline = trained_plate(quick, cycles, 2, FOR_A_PERCENT)
    query = Query.of(solver.local.problem)
    by_numpy = replace(reduction.model, laws=tuple(replace(law, compiled=False) for law in reduction.model.laws))
    ways = {
        "": (reduction.model, 1e-8),  # that of the full model
        ", reduced to 1e-5": (reduction.model, 1e-5),
        ", reduced to 1e-5 with its law by numpy": (by_numpy, 1e-5),
    }
    answers, spent = {}, {}
    for way, (model, tolerance) in ways.items():
        start = time.perf_counter()
        answers[way] = ReducedSolver(model, settings=NewtonSettings(tolerance=tolerance)).run(
            [query], rom_plate.times(cycles)
        )
        spent[way] = time.perf_counter() - start
    answer = answers[", reduced to 1e-5"]  # errors are those of the less accurate one
    setup = (
        f"{3 * solver.subdomain.num_nodes} dofs, {reduction.model.num_modes} modes, {len(reduction.model.points)} of "
        f"{solver.subdomain.num_points} points; training {full:.4g} s, compression {offline:.3g} s; {THREADS}"
    )
    worst = errors(solver, reduction, answer, 0, increments)
    for name, error in worst.items():
        yield f"plate: error of {name}, training", error, "1", None, None, setup
    cycle, done, trained = [], 2, full
    start = time.perf_counter()
    for increment in run:
        cycle.append(increment)
        if abs(increment.time - round(increment.time)) < 1e-9:
            full += time.perf_counter() - start
            done = round(increment.time)
            found = errors(solver, reduction, answer, 0, cycle)
            for name, goal in (("u", 1e-3), ("p", 1e-2)):
                yield f"plate: error of {name}, cycle {done:02d}", found[name], "1", goal, None, setup
                worst[name] = max(worst[name], found[name])
            cycle, start = [], time.perf_counter()
            if time.perf_counter() - began + 1.5 * full / done > seconds:
                break
    each, reduced = full / done, spent[""] / cycles
    cost = f"{setup}; {done} cycles of the full model {full:.4g} s, both to 1e-8"
    for name, goal in (("u", 1e-3), ("p", 1e-2)):
        yield f"plate: largest error of {name} over {done} cycles", worst[name], "1", goal, None, cost
    for way, took in spent.items():
        ratio, told = each / (took / cycles), f"{cost}; {cycles} cycles of the reduced one {took:.4g} s"
        yield f"plate: full over reduced wall time, one core each{way}", ratio, "x", 100, each, told
    paid = (trained + offline) / (20 * (each - reduced))
    yield "plate: runs of 20 cycles that pay for training", paid, "runs", None, None, cost


def queries(quick: bool, seconds: float = np.inf) -> Iterator[Figure]:
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
    low, middle, high = np.quantile(p, [0.05, 0.5, 0.95])
    setup = (
        f"{count} queries; 4 training runs {full:.4g} s, compression {offline:.3g} s, {reduction.model.num_modes} "
        f"modes, {len(reduction.model.points)} points; p at the critical point {p.mean():.4e} +- {p.std():.2e}, at "
        f"5, 50, 95 % {low:.4e}, {middle:.4e}, {high:.4e}; {THREADS}"
    )
    yield "queries: time of each", took / count, "s", 0.1, None, setup
    worst = {"u": 0.0, "p": 0.0}
    for done, k in enumerate(rng.choice(count, checks, replace=False)):
        if time.perf_counter() - began + full / 3 > seconds:
            checks = done
            break
        other = Solver(replace(base, loads=[replace(base.loads[0], amplitude=pull(draws[k]))]))
        found = errors(other, reduction, parts[k // 50], k % 50, list(other.run(rom_plate.times(1))))
        worst = {name: max(worst[name], found[name]) for name in worst}
    for name in worst:
        yield f"queries: largest error of {name} in {checks} checks", worst[name], "1", 0.02, None, setup


def temperature(quick: bool) -> Iterator[Figure]:
    """Indicators and errors over new hot spots of the cube, for a model trained with one."""
    base = rom_cube.rom_cube(compiled=COMPILED)
    solver = Solver(base)
    reduction = compress(solver.local, Snapshots.collect(solver.local, solver.run(rom_cube.times())))
    rng = np.random.default_rng(3)
    seen, after = [], []
    for _ in range(3 if quick else 16):
        spot, peak = tuple(10.0 - 10.0 * rng.random() * rng.random(3)), float(rng.uniform(150, 250))
        problem = rom_cube.rom_cube(hot_spot=spot, peak=peak, compiled=COMPILED)
        answer = ReducedSolver(reduction.model).run([Query.of(problem)], rom_cube.times())
        full = Solver(problem)
        increments = list(full.run(rom_cube.times()))
        found = errors(full, reduction, answer, 0, increments)
        seen.append((float(answer.misfits["p"].max()), found["p"]))
        setup = f"spot {', '.join(f'{x:.2f}' for x in spot)}, peak {peak:.1f}, indicator {seen[-1][0]:.4g}"
        yield f"temperature: error of p, spot {len(seen):02d}", found["p"], "1", None, None, setup
        if found["p"] > 0.1:
            mended = corrected(reduction, full, rom_cube.times(), limit=2e-3, max_steps=3, tolerances=FOR_A_PERCENT)
            after.append(errors(full, mended.reduction, mended.answer, 0, increments)["p"])
            model, whole = mended.reduction.model, sum(i.iterations for i in increments)
            setup += (
                f"; {len(mended.full_steps)} full steps, {mended.iterations} iterations with them, a full run "
                f"{whole}; {model.num_modes} modes, {len(model.points)} points, indicator "
                f"{mended.answer.misfits['p'].max():.2g}"
            )
            yield f"temperature: error of p after enrichment, spot {len(seen):02d}", after[-1], "1", 0.02, None, setup
    order = [np.argsort(np.argsort(column)) for column in np.array(seen).T]
    correlation = float(np.corrcoef(order[0], order[1])[0, 1])
    setup = f"{len(seen)} spots"
    yield "temperature: rank correlation of indicator and error", correlation, "fraction", 0.9, None, setup
    if after:
        share = float(np.mean(np.array(after) <= 0.02))
        name = "temperature: mended to 2 % by at most three full steps"
        yield name, share, "fraction", 1.0, None, f"{len(after)} spots"


def newton(quick: bool) -> Iterator[Figure]:
    """Half a pull of the plate's counterpart by the embedded solver and by CalculiX, each on one core.

    Ours goes to 1e-8 of the forces, CalculiX to 1e-9 of its mean force; both make the same number of iterations.
    """
    problem = counterpart(
        rom_plate.rom_plate(counts=SMALL_PLATE if quick else (14, 30, 2), cycles=1, compiled=COMPILED)
    )
    warm(problem)
    times = rom_plate.times(1)[:6]
    start = time.perf_counter()
    solver = Solver(problem)
    steps = [increment.iterations for increment in solver.run(times)]
    ours = (time.perf_counter() - start) / sum(steps)
    if shutil.which("ccx") is None:
        missing = "not run: apt-get install calculix-ccx"
        yield "newton: CalculiX's iteration over ours, with its output", np.nan, "x", 1.0, None, missing
        return
    with tempfile.TemporaryDirectory() as folder:
        deck = write_deck(Path(folder) / "with.inp", problem, times)
        silent = Path(folder) / "without.inp"
        silent.write_text(re.sub(r"\*(NODE|EL) PRINT,.*\n.*\n", "", deck.read_text()))
        for path, output in ((deck, "with its output"), (silent, "without any output")):
            took = run_calculix(path)
            rows = [line.split() for line in path.with_suffix(".sta").read_text().splitlines()]
            made = sum(int(row[3]) for row in rows if len(row) >= 7 and row[0].isdigit())
            setup = (
                f"{3 * problem.mesh.num_nodes} dofs, {len(steps)} increments, ours {sum(steps)} iterations, CalculiX "
                f"{made} in {took:.4g} s with its start; {THREADS}"
            )
            name = f"newton: CalculiX's iteration over ours, {output}"
            yield name, took / made / ours, "x", 1.0, took / made, setup
    yield "newton: an iteration of ours", ours, "s", None, None, setup


def subdomains(quick: bool) -> Iterator[Figure]:
    """The cube's model made on 1, 2, 4 and 8 subdomains from the same snapshots, by each mode of cubature."""
    problem, times = rom_cube.rom_cube(), rom_cube.times()
    solver = Solver(problem)
    whole = Snapshots.collect(solver.local, solver.run(times))
    answers: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def work(comm: Communicator, mode: str) -> Reduction:
        local = LocalProblem(problem, distribute(problem.mesh, comm))
        nodes, points = local.subdomain.nodes, local.subdomain.points
        columns = whole.displacement.shape[1]
        mine = Snapshots(
            displacement=whole.displacement.reshape(-1, 3, columns)[nodes].reshape(-1, columns),
            stress=whole.stress[points], state=(whole.state[0][points],),
        )  # fmt: skip
        return compress(local, mine, Tolerances(mode=mode))

    for mode in ("exact", "two-level", "local"):
        for size in (1, 2, 4, 8):
            reduction = run_threads(size, partial(work, mode=mode))[0]
            model = reduction.model
            chosen = int(np.sum(model.weights > 0))
            answer = ReducedSolver(model).run([Query.of(problem)], times).coefficients[0]
            answer = np.abs(answer) / np.abs(answer).max()  # the sign of a mode is free
            first = counts.setdefault(mode, chosen)
            apart = float(np.abs(answer - answers.setdefault("exact", answer)).max())
            setup = f"{chosen} points with weights, {len(model.points)} in all, {model.num_modes} modes"
            if mode == "two-level":
                yield f"subdomains: points over those of one, {mode}, {size}", chosen / first, "1", 1.1, first, setup
            else:
                yield f"subdomains: points, {mode}, {size}", chosen, "points", None, first, setup
            goal = None if mode == "local" else Tolerances().cubature
            yield f"subdomains: error of all integrals, {mode}, {size}", reduction.error, "1", goal, None, setup
            goal = {"exact": 1e-8, "two-level": 1e-4}.get(mode)
            yield f"subdomains: coefficients from the exact ones, {mode}, {size}", apart, "1", goal, None, setup


OURS = (cube, subdomains, plate, queries, temperature, newton)
PARTS = {f.__name__: f for f in (*OURS, *rom_kernels.KERNELS)}


if __name__ == "__main__":
    parser = flags(__doc__, PARTS)
    parser.add_argument("--seconds", type=float, default=np.inf, help="time for each of plate and queries")
    wish = parser.parse_args()
    limited = {name: partial(PARTS[name], seconds=wish.seconds) for name in ("plate", "queries")}
    run_parts("rom", {**PARTS, **limited}, wish)
