"""`headrace plan`: measures or takes costs, and starts nothing."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cases.command_line import build_app
from headrace.cases.plan_command import told_bytes, told_seconds


def plan(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["plan", *arguments])
    return result.exit_code, result.output


def test_costs_are_measured_in_a_short_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = plan("heat2d", "--shape", "16x16", "--model", "mlp", "--simulations", "50")
    assert code == 0, said
    assert "one simulation" in said and "(measured on" in said and "limited by the" in said
    for part in ("reservoir", "solvers", "held-out simulations", "ledger", "network"):
        assert part in said
    assert not list(tmp_path.iterdir())


def test_given_costs_decide_what_limits_the_study() -> None:
    costs = ("--simulation-seconds", "100", "--batch-seconds", "1e-3")
    apart = ("--scheduler", "slurm", "--interface", "auto")  # else all of it would share the cores of this node
    code, said = plan("heat2d", "--shape", "16x16", "--simulations", "90", "--jobs", "10", *costs, *apart)
    assert code == 0, said
    assert "time 16.7 min" in said and "limited by the solvers" in said and "given" in said
    assert "instead of 10" in said  # more jobs would help


def test_what_train_would_refuse_is_refused() -> None:
    code, said = plan("heat2d", "--shape", "16x16", "--buffer", "2KB", "--batch-seconds", "1")
    assert code == 2 and "32 too few" in said


def test_a_cost_that_is_none_is_refused_before_another_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.cases.plan_command.time_batch", None)
    code, said = plan("heat2d", "--simulation-seconds", "-1")
    assert code == 2 and "must be a positive number; got -1.0" in said


def test_sizes_and_times_are_told_as_people_read_them() -> None:
    assert [told_bytes(8e12), told_bytes(999), told_bytes(4.5e6)] == ["8 TB", "999 B", "4.5 MB"]
    assert [told_seconds(5), told_seconds(600), told_seconds(7200)] == ["5 s", "10 min", "2 h"]
