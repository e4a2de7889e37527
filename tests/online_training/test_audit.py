"""What the audit says of steps that never came: left out for lack of room, or not sent by a solver that ended early."""

from pathlib import Path

import pytest

from headrace.online_training.client import StudyFinished, checksum_of, connect
from headrace.online_training.fifo import FIFO
from headrace.online_training.ledger import RecordWriter
from tests.online_training.intake_setup import (
    TrainerDouble,
    audit_of,
    make_layout,
    plan,
    run_all,
    running_intake,
    send_step,
    train_all,
    use_environment,
    wait_until,
)  # fmt: skip

LAYOUT = make_layout(num_steps=12)


def test_steps_that_were_left_out_are_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = running_intake(tmp_path, LAYOUT, slots=4, buffer=FIFO(4, LAYOUT.window), when_full="skip", max_running=1)
    with context as intake:
        plan(intake, 1)
        run_all(intake, monkeypatch)
        left_out = intake.status()["steps_skipped"]
        with RecordWriter(tmp_path / "ledger" / "trainer-1-1-0.log") as log:
            train_all(intake, log)
    report = audit_of(tmp_path, monkeypatch, LAYOUT, simulations=1)
    assert report.ok, report.lines
    assert report.counts["steps left out for lack of room"] == left_out > 0
    assert report.counts["steps accepted"] + left_out == report.counts["steps planned"] == 12


def test_a_simulation_that_ended_early_is_accounted_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_intake(tmp_path, LAYOUT) as intake:
        plan(intake, 2)
        use_environment(intake, monkeypatch)
        for count in (12, 7):
            with connect({"u": LAYOUT.shape}) as stream:
                for step in range(count):
                    send_step(stream, step, LAYOUT.shape)
        with pytest.raises(StudyFinished):
            connect({"u": LAYOUT.shape})
        with RecordWriter(tmp_path / "ledger" / "trainer-1-1-0.log") as log:
            train_all(intake, log)
        assert wait_until(lambda: intake.status()["done"] == 2)
    report = audit_of(tmp_path, monkeypatch, LAYOUT, simulations=2)
    assert report.ok, report.lines
    assert report.counts["steps accepted"] == 19 and report.counts["steps that solvers ended without"] == 5
    # A third simulation of which no log knows anything is not explained away.
    report = audit_of(tmp_path, monkeypatch, LAYOUT, simulations=3)
    assert report.problems == ["12 planned steps are unaccounted for, though the study finished."]


def test_windows_that_an_early_end_leaves_unused_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_intake(tmp_path, LAYOUT) as intake:
        plan(intake, 1)
        run_all(intake, monkeypatch)
        trainer = TrainerDouble(intake)
        used = trainer.draw(0, 4)
        with RecordWriter(tmp_path / "ledger" / "trainer-1-1-0.log") as log:
            for record in used:
                start = int(record["start"])
                contents = [checksum_of(intake.settings.memory.array[slot], "xxh3") for slot in record["slots"]]
                log.append({"e": "used", "s": 0, "t": start, "k": 2, "h": contents, "n": 1})
        trainer.close()
    report = audit_of(tmp_path, monkeypatch, LAYOUT, simulations=1, early="patience")
    assert report.ok, report.lines
    assert report.counts["windows not used, or not yet"] == LAYOUT.num_starts - 4 == 7
    (tmp_path / "ledger" / "study-1.log").unlink()  # a study that ran to its end has no such excuse
    report = audit_of(tmp_path, monkeypatch, LAYOUT, simulations=1)
    assert report.problems == ["7 windows of simulation 0 were accepted but never used."]
