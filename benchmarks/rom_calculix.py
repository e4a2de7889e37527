"""Reduced models of CalculiX: someone else's solver, of which only displacements are used.

    python benchmarks/rom_calculix.py [--quick] [--only PART] [--resume]

Parts: `plate`, one cycle of the holed plate by CalculiX, replayed, reduced and answered again: errors of the replay and
of the reduced model, and wall times; `rounding`, what displacements lose by being printed, whoever prints them;
`unknown`, kinematic hardening at finite strains, which our small-strain model does not have. Needs ccx (apt-get install
calculix-ccx). Times are of one core each: set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from lines import Figure, flags, run_parts

from headrace.cases import rom_plate
from headrace.rom.calculix_deck import counterpart
from headrace.rom.calculix_reader import CalculixReader
from headrace.rom.calculix_solver import CalculixSolver
from headrace.rom.offline import Snapshots, compress
from headrace.rom.online import Query, ReducedSolver
from headrace.rom.reader import TimeSeries
from headrace.rom.replay import Replay
from headrace.rom.solver import NewtonSettings, Solver
from headrace.rom.viscoplastic import KinematicHardening
from rom import COMPILED, FOR_A_PERCENT, LAWS, SMALL_PLATE, THREADS, errors, warm


def plate(quick: bool) -> Iterator[Figure]:
    """One cycle of the plate's counterpart by CalculiX, reduced from its displacements alone, and answered again."""
    problem, times = (
        counterpart(rom_plate.rom_plate(counts=SMALL_PLATE if quick else None, cycles=1, compiled=COMPILED)),
        rom_plate.times(1),
    )
    warm(problem)
    with tempfile.TemporaryDirectory() as folder:
        solver = CalculixSolver(problem, folder)
        increments = list(solver.run(times))
        plain = Replay(CalculixReader(solver.deck), problem, complete=False)
        for _ in plain.run():
            pass
    start = time.perf_counter()
    reduction = compress(solver.local, Snapshots.collect(solver.local, increments), FOR_A_PERCENT)
    offline = time.perf_counter() - start
    start = time.perf_counter()
    answer = ReducedSolver(reduction.model).run([Query.of(problem)], times)
    took = time.perf_counter() - start
    setup = (
        f"{3 * solver.subdomain.num_nodes} dofs, one cycle of {len(times) - 1} increments, {reduction.model.num_modes} "
        f"modes, {len(reduction.model.points)} points; compression {offline:.3g} s; {THREADS}"
    )
    for name, report in (("as printed", plain.report), ("digits completed", solver.report)):
        worst = report.worst()
        for check, goal in (("stress", 1e-5), ("p", 3e-6), ("equilibrium", 1e-6)):
            yield f"plate: replay, {name}, {check}", worst[check], "1", goal, None, setup
    printed = solver.report.worst()["equilibrium of the printed stress"]
    yield "plate: equilibrium of the printed stress", printed, "1", 1e-6, None, setup
    found = errors(solver, reduction, answer, 0, increments)
    for name, goal in (("u", 1e-3), ("p", 1e-2)):
        yield f"plate: error of {name}", found[name], "1", goal, None, setup
    cost = f"{setup}; CalculiX {solver.seconds:.4g} s, reduced {took:.4g} s"
    yield "plate: CalculiX over reduced wall time, one core each", solver.seconds / took, "x", 300, solver.seconds, cost


def rounding(quick: bool) -> Iterator[Figure]:
    """Our own displacements of the plate, rounded to so many digits and replayed as they are, beside the exact ones."""
    problem = rom_plate.rom_plate(counts=SMALL_PLATE if quick else None, cycles=1, compiled=COMPILED)
    warm(problem)
    solver = Solver(problem, settings=NewtonSettings(tolerance=1e-11))
    steps = [solver.initial(0.0), *solver.run(rom_plate.times(1))]
    u, stress = np.stack([i.displacement for i in steps]), np.stack([i.stress for i in steps])
    p = np.stack([solver.local.material.field("p", i.state) for i in steps])
    for digits in (6, 7, 8, 9):
        unit = 10.0 ** (np.floor(np.log10(np.maximum(np.abs(u), 1e-300))) - (digits - 1))
        series = TimeSeries(
            mesh=problem.mesh, times=np.array([i.time for i in steps]), displacements=np.round(u / unit) * unit,
            point_fields={"stress": stress, "p": p},
        )  # fmt: skip
        replay = Replay(series, problem, suspect=None)
        for _ in replay.run():
            pass
        worst, setup = replay.report.worst(), f"{3 * problem.mesh.num_nodes} dofs, one cycle; {LAWS}"
        for check in ("stress", "p", "equilibrium"):
            yield f"rounding: {check} from {digits} digits", worst[check], "1", None, None, setup


def unknown(quick: bool) -> Iterator[Figure]:
    """Errors of the reduced model from CalculiX, those of our full model from it, and of the reduced from our full one.

    Relative L2 norms, the largest over increments; the second is the mismatch of models.
    """
    plate = rom_plate.rom_plate(counts=(4, 6, 1) if quick else (8, 12, 1), cycles=1)
    law = replace(rom_plate.LAW, exponent=5.0, kinematic=(KinematicHardening(modulus=20e3),))
    problem, times = replace(plate, laws={"all": law}), rom_plate.times(1)
    with tempfile.TemporaryDirectory() as folder:
        solver = CalculixSolver(problem, folder, large_strain=True)
        theirs = list(solver.run(times))
        reader, steps = CalculixReader(solver.deck), range(1, len(times))
        printed = [reader.displacement(k) for k in steps], [reader.point_field("p", k) for k in steps]
    ours = list(Solver(problem).run(times))
    reduction = compress(solver.local, Snapshots.collect(solver.local, theirs))
    answer = ReducedSolver(reduction.model).run([Query.of(problem)], times)
    full = [i.displacement for i in ours], [solver.local.material.field("p", i.state) for i in ours]
    reduced = (
        reduction.displacement_field(answer.coefficients[0], answer.lifting[0])[1:],
        reduction.dual_field("p", answer.duals["p"][0])[1:],
    )
    scales = 1.0, np.sqrt(solver.local.kinematics.weights)
    setup = (
        f"{3 * solver.subdomain.num_nodes} dofs, p to {printed[1][-1].max():.3g}, {reduction.model.num_modes} modes; "
        f"equilibrium of the replay {solver.report.worst()['equilibrium']:.2g}"
    )
    for what, (a, b), goals in (
        ("reduced from CalculiX", (reduced, printed), (5e-3, 2e-2)),
        ("mismatch, our full model from CalculiX", (full, printed), (None, None)),
        ("reduction, reduced from our full model", (reduced, full), (None, None)),
    ):
        for name, x, y, scale, goal in zip("up", a, b, scales, goals, strict=True):
            size = max(np.linalg.norm(field * scale) for field in y)
            worst = max(np.linalg.norm((one - other) * scale) for one, other in zip(x, y, strict=True))
            yield f"unknown: {what}, {name}", float(worst / size), "1", goal, None, setup


PARTS = {f.__name__: f for f in (plate, rounding, unknown)}


if __name__ == "__main__":
    wish = flags(__doc__, PARTS).parse_args()
    if shutil.which("ccx") is None:
        raise SystemExit("There is no program 'ccx': apt-get install calculix-ccx.")
    run_parts("rom_calculix", PARTS, wish)
