"""Reduced models: with everything kept they are the full model; with little kept they are close, on any partition."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.cases.rom_cube import rom_cube, times
from headrace.rom.communicator import run_threads
from headrace.rom.law import ConvergenceError
from headrace.rom.loads import Amplitude, Support
from headrace.rom.offline import Snapshots, Tolerances, compress
from headrace.rom.online import Query, ReducedSolver
from headrace.rom.solver import NewtonSettings, Solver
from tests.mpi_run import run_mpi
from tests.rom.reduced_cube import reduced_cube, worst
from tests.rom.test_solver import cyclic_problem

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = Tolerances(displacement=1e-14, dual=1e-13, mode="all")


@pytest.fixture(scope="module")
def serial():
    return reduced_cube()


def test_all_modes_and_all_points_are_the_full_model():
    answer = reduced_cube(tolerances=EVERYTHING)
    assert len(answer["points"]) == 1728
    assert worst(answer, "u") <= 1e-8 and worst(answer, "p") <= 1e-8


def test_the_cube_keeps_its_digits_with_a_twentieth_of_the_points(serial):
    assert abs(serial["gamma"].shape[1] - 10) <= 2
    assert len(serial["points"]) <= 100
    assert serial["error"] <= 1e-5 and serial["weights"].sum() == pytest.approx(1000.0, rel=1e-12)
    assert worst(serial, "u") <= 1e-5 and worst(serial, "p") <= 1e-5


@pytest.mark.parametrize("size", [2, 4, 8])
def test_subdomains_do_not_multiply_the_points(size, serial):
    answer = run_threads(size, reduced_cube)[0]
    assert (answer["weights"] > 0).sum() <= 1.1 * (serial["weights"] > 0).sum()
    assert answer["error"] <= 1e-5
    assert worst(answer, "u") <= 1e-5 and worst(answer, "p") <= 3e-5


def test_the_exact_mode_gives_the_serial_model_on_subdomains():
    exact = Tolerances(mode="exact")
    one, four = reduced_cube(tolerances=exact), run_threads(4, lambda comm: reduced_cube(comm, exact))[0]
    np.testing.assert_array_equal(four["points"], one["points"])
    assert np.abs(np.abs(four["gamma"]) - np.abs(one["gamma"])).max() <= 1e-8 * np.abs(one["gamma"]).max()


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_cube_over_mpi(ranks, serial, tmp_path):
    out = tmp_path / "cube.npz"
    done = run_mpi(ranks, ["-m", "tests.rom.reduced_cube", str(out)], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = np.load(out)
    assert worst(answer, "u") <= 1e-5 and answer["error"] <= 1e-5
    assert (answer["weights"] > 0).sum() <= 1.1 * (serial["weights"] > 0).sum()


def trained(problem, steps, tolerances=None):
    solver = Solver(problem, settings=NewtonSettings(tolerance=1e-10))
    increments = [solver.initial(steps[0]), *solver.run(steps)]
    return solver, increments, compress(solver.local, Snapshots.collect(solver.local, increments[1:]), tolerances)


def test_moved_supports_enter_by_lifting_fields():
    """Two laws, a support that moves: all modes and all points still give the full model."""
    base = cyclic_problem("hex8")
    side = next(iter(s.nodes for s in base.supports))
    other = {"x0": "x1", "z0": "z1", "y0": "y1"}[side]
    move = Amplitude((0.0, 1.0, 2.0), (0.0, 1.0, -0.5))
    problem = replace(base, supports=[*base.supports, Support(nodes=other, direction="x", value=1e-3, amplitude=move)])
    _, increments, reduction = trained(problem, np.linspace(0, 2, 7), EVERYTHING)
    answer = ReducedSolver(reduction.model, settings=NewtonSettings(tolerance=1e-10)).run(
        [Query.of(problem)], [i.time for i in increments]
    )
    u = reduction.displacement_field(answer.coefficients[0], answer.lifting[0])
    full = np.stack([i.displacement for i in increments])
    assert np.abs(full[:, problem.mesh.nodes(other), 0]).max() == pytest.approx(1e-3)
    assert np.abs(u - full).max() <= 1e-7 * np.abs(full).max()


def test_a_batch_answers_as_its_queries_do_alone(serial):
    problem = rom_cube()
    _, _, reduction = trained(problem, times())
    queries = [Query.of(rom_cube(peak=peak)) for peak in (100.0, 200.0, 240.0)]
    solver = ReducedSolver(reduction.model, settings=NewtonSettings(tolerance=1e-11))
    together = solver.run(queries, times())
    for k, query in enumerate(queries):
        alone = solver.run([query], times())
        scale = np.abs(alone.coefficients).max()
        assert np.abs(together.coefficients[k] - alone.coefficients[0]).max() <= 1e-8 * scale


class Shy:
    """A law that refuses strain increments beyond a limit, as one that does not converge would."""

    def __init__(self, law, limit):
        self.law, self.limit = law, limit
        self.state_names, self.refusals = law.state_names, 0

    def initial_state(self, num):
        return self.law.initial_state(num)

    def column(self, name):
        return self.law.column(name)

    def update(self, T0, T1, strain, change, state, dt):
        far = np.flatnonzero(np.abs(change).max(axis=1) > self.limit)
        if far.size:
            self.refusals += 1
            raise ConvergenceError("the increment is too large.", far)
        return self.law.update(T0, T1, strain, change, state, dt)


def test_steps_are_cut_for_the_query_that_needs_it_and_its_failure_is_named():
    problem = rom_cube()
    _, _, reduction = trained(problem, times())
    query = Query.of(problem)
    small = replace(query, loads=tuple((lambda t, f=f: 0.01 * f(t)) for f in query.loads), temperature=20.0)
    plain = ReducedSolver(reduction.model).run([small, query], times(), keep=True)
    jump = max(np.abs(b.strain - a.strain).max() for a, b in zip(plain.steps, plain.steps[1:], strict=False))
    shy = Shy(reduction.model.laws[0], 0.7 * jump)
    cut = ReducedSolver(replace(reduction.model, laws=(shy,))).run([small, query], times())
    scale = np.abs(plain.coefficients[1]).max()
    assert shy.refusals and np.abs(cut.coefficients[0] - plain.coefficients[0]).max() <= 1e-9 * scale
    assert 0 < np.abs(cut.coefficients[1] - plain.coefficients[1]).max() < 0.2 * scale
    never = ReducedSolver(replace(reduction.model, laws=(Shy(shy.law, 1e-9),)), settings=NewtonSettings(max_cuts=2))
    with pytest.raises(ConvergenceError, match=r"Query 1 found no reduced equilibrium at time .* the increment is too"):
        never.run([replace(small, loads=tuple(lambda t: 0.0 for _ in query.loads)), query], times())
    with pytest.raises(ValueError, match=r"loads and supports, the model"):
        never.run([replace(query, loads=())], times())


def test_snapshots_that_are_not_numbers_are_refused():
    problem = rom_cube()
    solver = Solver(problem)
    increments = list(solver.run(times()[:3]))
    snapshots = Snapshots.collect(solver.local, increments)
    snapshots.displacement[7, 1] = np.nan
    with pytest.raises(ValueError, match="Snapshot 1 is not finite in local row 7"):
        compress(solver.local, snapshots)
    still = Snapshots.collect(solver.local, [solver.initial(0.0)])
    with pytest.raises(ValueError, match="nothing to reduce"):
        compress(solver.local, still)


def test_other_load_vectors_are_projected_and_stresses_recovered():
    """A pressure of half the value is the trained one at half its amplitude; stresses come back by gappy POD."""
    problem = rom_cube()
    _, increments, reduction = trained(problem, times())
    spin, press = problem.loads
    other = replace(problem, loads=[spin, replace(press, value=lambda x: 150.0 * x[:, 0] / 10.0)])
    vectors = reduction.project(Solver(other).local)
    np.testing.assert_allclose(vectors[1], 0.5 * reduction.model.load_vectors[1], rtol=1e-12)
    query = Query.of(problem)
    half = replace(query, loads=(query.loads[0], lambda t: 0.5 * query.loads[1](t)))
    expected = ReducedSolver(reduction.model).run([half], times())
    answer = ReducedSolver(replace(reduction.model, load_vectors=vectors)).run([query], times())
    scale = np.abs(expected.coefficients).max()
    assert np.abs(answer.coefficients - expected.coefficients).max() <= 1e-9 * scale
    trained_answer = ReducedSolver(reduction.model).run([query], times())
    for column, name in enumerate(("stress_xx", "stress_yy", "stress_zz", "stress_xy")):
        full = np.stack([i.stress[:, column] for i in increments])
        got = reduction.dual_field(name, trained_answer.duals[name][0])
        assert np.linalg.norm(got - full) <= 1e-4 * np.linalg.norm(full), name
