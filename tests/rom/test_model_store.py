"""A reduced model from a file answers as the one that was written, on another number of ranks."""

import numpy as np
import pytest

from headrace.cases.rom_cube import rom_cube, times
from headrace.rom.communicator import run_threads
from headrace.rom.model_store import load_reduction, save_reduction
from headrace.rom.offline import Snapshots, compress
from headrace.rom.online import Query, ReducedSolver
from headrace.rom.solver import Solver
from headrace.rom.store import StoreError, StoreWriter
from headrace.rom.subdomain import distribute
from tests.rom.test_solver import cyclic_problem


def answer(reduction, problem, steps):
    got = ReducedSolver(reduction.model).run([Query.of(problem)], steps)
    gather = reduction.local.subdomain.gather
    u = gather(reduction.displacement_field(got.coefficients[0, -1], got.lifting[0, -1]))
    p = gather(reduction.dual_field("p", got.duals["p"][0, -1]), at="points")
    points = reduction.local.material.points
    state = np.zeros(len(reduction.local.kinematics.weights))
    for where, values in zip(points, reduction.state_field(got.duals["state"][0, -1]), strict=True):
        state[where] = values.sum(axis=1)
    return u, p, gather(state, at="points")


@pytest.mark.parametrize(("problem", "steps"), [(rom_cube(), times()), (cyclic_problem("hex8"), np.linspace(0, 2, 7))])
def test_written_on_two_ranks_and_read_on_one_and_three(problem, steps, tmp_path):
    def write(comm):
        solver = Solver(problem, comm)
        reduction = compress(solver.local, Snapshots.collect(solver.local, solver.run(steps)))
        save_reduction(reduction, tmp_path / "model")
        return answer(reduction, problem, steps)

    expected = run_threads(2, write)[0]
    for size in (1, 3):
        got = run_threads(size, lambda comm: answer(load_reduction(tmp_path / "model", problem, comm), problem, steps))
        for a, b in zip(got[0], expected, strict=True):
            assert np.abs(a - b).max() <= 1e-12 * np.abs(b).max()


def test_files_that_hold_something_else_are_refused(tmp_path):
    problem = rom_cube()
    with StoreWriter(tmp_path / "other", distribute(problem.mesh)) as store:
        store.put("basis/nothing", np.zeros(3))
    with pytest.raises(StoreError, match="holds no reduced model"):
        load_reduction(tmp_path / "other", problem)
