"""A program that is not ours solves a case: the same numbers, while it runs, on any number of ranks."""

from pathlib import Path

import numpy as np
import psutil
import pytest

from headrace.solvers import Grid, MemorySink
from headrace.solvers.external import ExternalProgram, ProgramError
from headrace.solvers.scheme import RungeKutta
from headrace.solvers.simulate import simulate
from tests.mpi_run import run_mpi

from .problems import make_case, run

PROGRAM = str(Path(__file__).with_name("foreign_heat.py"))
EULER = RungeKutta(name="Euler", order=1, nodes=(0.0,), matrix=((),), weights=(1.0,), stable_radius=1.0)


def foreign_case(*behaviour, **changes):
    solver = ExternalProgram(equation="∂u/∂t = ν ∂²u/∂x².", command=("{python}", PROGRAM, "{nu}", "{nx}", *behaviour),
                             **changes)  # fmt: skip
    return make_case(grid=Grid(shape=(32,), extent=(1.0,)), rhs=None, solver=solver, num_snapshots=5)


def test_it_gives_what_our_solver_gives():
    case = foreign_case()
    ours = make_case(grid=case.grid, rhs=lambda u, d, p, t: p.nu * d.laplacian(u), scheme=EULER, num_snapshots=5,
                     steps_per_snapshot=20)  # fmt: skip
    found = run(case, {"nu": 0.02})
    np.testing.assert_allclose(found.values, run(ours, {"nu": 0.02}).values, rtol=1e-12)
    np.testing.assert_array_equal(found.times, case.times)
    case.verify()
    assert case.solver.__doc__ == "∂u/∂t = ν ∂²u/∂x²."


def test_snapshots_arrive_while_the_program_runs(tmp_path):
    """It waits after snapshot 2 for a file that the sink writes on receiving snapshot 1."""

    class Answering(MemorySink):
        def write(self, snapshot):
            if snapshot.step == 1:
                (tmp_path / "go").touch()
            return super().write(snapshot)

    case, sink = foreign_case("wait-for", str(tmp_path / "go"), timeout=120), Answering()
    simulate(case, case.accept({}), sink)
    assert len(sink.times) == 6


def test_a_simulation_that_is_stopped_ends_the_program(tmp_path):
    class Stopping(MemorySink):
        def write(self, snapshot):
            super().write(snapshot)
            return snapshot.step < 1

    # It would wait for ever: that `simulate` returns, and that no child is left, is the statement.
    case, sink = foreign_case("wait-for", str(tmp_path / "never")), Stopping()
    simulate(case, case.accept({}), sink)
    assert len(sink.times) == 2
    assert not any(PROGRAM in child.cmdline() for child in psutil.Process().children())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: foreign_case("fail-at", "3"), "ended with code 1. It said: the mesh is tangled"),
        (lambda: foreign_case("skip", "5"), "ended without snapshot-000005.npy"),
        (lambda: foreign_case("wrong"), r"Snapshot 0 of .* has shape \(1, 31\); the case needs \(1, 32\)"),
        (lambda: foreign_case("wait-for", "never", timeout=1.0), r"did not write snapshot-00000\d.npy in time"),
        (lambda: foreign_case("{mu}"), r"has \{mu\}; known are .*nu"),
        (lambda: foreign_case("{print $1}"), r"has \{print \$1\}; known are"),
        *((lambda word=word: foreign_case(word), "braces do not stand for a name") for word in ("{", "{}", "{nu[0]}")),
    ],
)
def test_failures_are_named(case, message):
    with pytest.raises(ProgramError, match=message):
        run(case())


def test_a_program_sees_no_launcher_but_what_the_user_permits_one(monkeypatch):
    monkeypatch.delenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", raising=False)
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_PORT", "OMPI_ALLOW_RUN_AS_ROOT"):
        monkeypatch.setenv(name, "1")
    code = "import os, sys; sys.exit(' '.join(name for name in os.environ if name.startswith(('OMPI_', 'PMI_'))))"
    solver = ExternalProgram(equation="?", command=("{python}", "-c", code))
    with pytest.raises(ProgramError, match=r"It said: OMPI_ALLOW_RUN_AS_ROOT$"):
        run(make_case(rhs=None, solver=solver))


def test_a_program_that_is_not_there_is_named():
    solver = ExternalProgram(equation="?", command=("./no-such-program",))
    with pytest.raises(ProgramError, match="no-such-program cannot be started: No such file"):
        run(make_case(rhs=None, solver=solver))
    with pytest.raises(ValueError, match="must be a tuple of words"):
        ExternalProgram(equation="?", command="solver --nu 1")


@pytest.mark.mpi
def test_every_rank_has_its_block_and_the_same_error(tmp_path):
    done = run_mpi(2, ["-m", "tests.solvers.mpi_external", str(tmp_path / "found.npz")])
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_array_equal(found["values"], run(foreign_case(), {"nu": 0.02}).values)
    first, second = found["messages"]
    assert first == second and "the mesh is tangled" in first
