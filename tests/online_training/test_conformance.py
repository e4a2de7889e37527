"""The conformance test passes a good solver, and names what is wrong with each bad one."""

import sys
from pathlib import Path

import pytest

from headrace.online_training import conformance
from headrace.online_training.conformance import Conformance, Finding
from headrace.online_training.conformance_probe import probe_fields
from headrace.online_training.conformance_trial import Subject, TrialEnded
from headrace.online_training.layout import StreamLayout
from tests.mpi_run import mpirun, open_mpi_flags

SOLVER = str(Path(__file__).parent / "foreign" / "bad_solver.py")
N, STEPS = 12, 6

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(600)]


def subject(mistake: str) -> Subject:
    layout = StreamLayout(fields=("u",), shape=(N, N), num_steps=STEPS, window=1, parameters=("nu",))
    return Subject(
        command=lambda ranks: [mpirun(), *open_mpi_flags(), "-n", str(ranks), *program(mistake)], own_mpirun=True,
        any_ranks=True, layout=layout, times=[0.1 * step for step in range(STEPS)],
    )  # fmt: skip


def program(mistake: str) -> list[str]:
    return [sys.executable, SOLVER, mistake, str(N), str(STEPS)]


def certified(mistake: str, ranks: tuple[int, ...] = (2,)) -> dict[str, Finding]:
    found = Conformance(subject(mistake), {"nu": 0.1}, {"nu": 0.9}, ranks=ranks).run()
    return {finding.check: finding for finding in found}


def test_a_good_solver_that_takes_one_simulation_at_a_time_conforms() -> None:
    found = certified("once", ranks=(2, 3))
    assert [finding.verdict for finding in found.values() if finding.verdict in ("wrong", "not run")] == [], found
    assert found["ranks"].verdict == "ok" and "2, 3 ranks" in found["ranks"].said
    assert "a job for each simulation" in found["stream"].said


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("shape", "12, 13"),
        ("dtype", "float64"),
        ("gap", "12 of 144 cells of step 0 uncovered. Some cells are never sent"),
        ("overlap", "overlap. Each cell is sent by exactly one rank"),
        ("nan", "NaN or infinity in field u"),
        ("short", "ended after 5 of 6 snapshots"),
        ("dies", "ended with code 7"),
    ],
)
def test_a_stream_that_does_not_work_is_named_and_nothing_else_is_run(mistake: str, said: str) -> None:
    found = certified(mistake)
    assert found["stream"].verdict == "wrong" and said in found["stream"].said, found["stream"]
    assert {finding.verdict for finding in list(found.values())[1:]} == {"not run"}


def test_a_solver_that_never_speaks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "ENOUGH_SECONDS", 1.0)
    found = certified("silent")
    assert "never spoke to the study" in found["stream"].said


@pytest.mark.parametrize(
    ("mistake", "check", "said"),
    [
        ("times", "times", "Snapshot 0 has time 0.05; the case says 0"),
        ("deaf", "parameters", "does not use what the stream says"),
        ("unrepeatable", "repeatable", "Take random numbers from the stream's seed only"),
        ("halo", "ranks", "look at the halos"),
    ],
)
def test_wrong_samples_are_named_and_the_rest_is_run(
    mistake: str, check: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The disturbances have their own tests, and take long.
    for name in ("_back_pressure_and_kill", "_stop", "_restart"):
        monkeypatch.setattr(Conformance, name, lambda self: "left out")
    found = certified(mistake, ranks=(2, 1))
    assert found["stream"].verdict == "ok", found["stream"]
    assert found[check].verdict == "wrong" and said in found[check].said, found[check]


def test_a_solver_that_ignores_stop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conformance, "STOP_SECONDS", 1.0)
    for name in ("_back_pressure_and_kill", "_restart", "_compare_ranks"):
        monkeypatch.setattr(Conformance, name, lambda self: "left out")
    found = certified("stubborn")
    assert found["stop"].verdict == "wrong" and "leave the time loop at STOP" in found["stop"].said


def test_the_fields_of_a_command_are_asked_for() -> None:
    command = [mpirun(), *open_mpi_flags(), "-n", "2"]
    assert probe_fields([*command, *program("none")]) == {"u": (N, N)}
    with pytest.raises(TrialEnded, match="values of type float64; a study takes float32"):
        probe_fields([*command, *program("dtype")])
    with pytest.raises(TrialEnded, match=r"declared no fields within 0\.5 s"):
        probe_fields([*command, *program("silent")], seconds=0.5)
