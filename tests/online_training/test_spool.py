"""The spool: where the reservoir is full solvers go on, and every step reaches the trainer once, in order, later."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training.client import checksum_of, connect
from headrace.online_training.fifo import FIFO
from headrace.online_training.ledger import RecordWriter, intake_records, read_records
from headrace.online_training.simulation_run import Assignment
from headrace.online_training.spool import Spool, Spooled, unreplayed
from tests.online_training.intake_setup import (
    TrainerDouble,
    audit_of,
    field_of,
    make_layout,
    plan,
    run_all,
    running_intake,
    send_step,
    train_all,
    use_environment,
    wait_until,
)  # fmt: skip

LAYOUT = make_layout()  # six steps of (7, 5), windows of two


def entry_of(number: int, step: int, place: int, values: np.ndarray) -> Spooled:
    return Spooled(simulation=number, attempt=1, step=step, time=0.5 * step, place=place,
                   checksum=checksum_of(values, "xxh3"))  # fmt: skip


def state_of(number: int, step: int) -> np.ndarray:
    return field_of(number, step, LAYOUT.shape).astype(np.float32)[None]


def test_steps_leave_in_the_order_of_arrival_and_places_are_used_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "a" / "s", LAYOUT, 3 * LAYOUT.step_bytes + 1)
    assert spool.capacity == 3 and (tmp_path / "a" / "s").stat().st_size == 3 * LAYOUT.step_bytes
    target, out = np.empty(LAYOUT.step_shape, np.float32), []
    for step in range(9):
        place = spool.reserve()
        spool.write(entry_of(0, step, place, state_of(0, step)), state_of(0, step))
        if spool.waiting == 3:
            assert spool.reserve() is None
            for _ in range(1 + step % 3):
                out.append(spool.first().step)
                assert spool.take(target) and np.array_equal(target, state_of(0, out[-1]))
    assert out == list(range(len(out))) and len(out) > 5
    spool.drop(0)
    assert not spool.waiting and not spool.holds(0)
    assert [spool.reserve() is None for _ in range(4)] == [False] * 3 + [True]
    spool.close()
    assert not (tmp_path / "a" / "s").exists()


def test_bytes_that_changed_on_disk_are_found(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", LAYOUT, 2 * LAYOUT.step_bytes)
    for step in range(2):
        spool.write(entry_of(0, step, spool.reserve(), state_of(0, step)), state_of(0, step))
    with open(tmp_path / "s", "r+b") as file:
        file.seek(40)
        file.write(b"\xff")
    target = np.empty(LAYOUT.step_shape, np.float32)
    assert [spool.take(target) for _ in range(2)] == [False, True]
    spool.close()


def test_a_spool_without_room_says_so_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no step of 140 bytes"):
        Spool(tmp_path / "s", LAYOUT, 139)
    with pytest.raises(OSError, match=r"needs .* MB but .* has no room\. Make it smaller"):
        Spool(tmp_path / "s", LAYOUT, 2**62)


def spooling(tmp_path: Path, *, session: int = 1, places: int = 100, slots: int = 4):
    path = tmp_path / "spool" / "s"
    left = unreplayed(tmp_path / "ledger", path, LAYOUT)
    spool = Spool(path, LAYOUT, places * LAYOUT.step_bytes)
    context = running_intake(tmp_path, LAYOUT, session=session, slots=slots, buffer=FIFO(slots, LAYOUT.window),
                             when_full="spool", spool=spool, max_running=1)  # fmt: skip
    return context, left


def accepted(ledger: Path) -> Counter:
    return Counter((r["s"], r["t"], r["h"]) for r in intake_records(ledger) if r["e"] == "step")


def test_solvers_end_while_nobody_trains_and_the_trainer_gets_everything_later(tmp_path: Path, monkeypatch) -> None:
    context, _ = spooling(tmp_path)
    with context as intake:
        plan(intake, 5)
        assert run_all(intake, monkeypatch) == 5
        status = intake.status()
        assert status["waiting_in_spool"] == status["steps_spooled"] == 5 * 6 - 4 and status["spooled"] == 5
        assert status["blocked_seconds"] < 60 and not status["ended"]
        windows = [(number, start) for number in range(5) for start in range(5)]
        assert train_all(intake) == windows
        status = wait_until(lambda: (s := intake.status())["done"] == 5 and s)
        assert status["windows_accepted"] == 25 and status["steps_accepted"] == 30 and status["waiting_in_spool"] == 0
    assert accepted(tmp_path / "ledger") == Counter(
        (number, step, checksum_of(state_of(number, step), "xxh3")) for number in range(5) for step in range(6)
    )
    assert not (tmp_path / "spool" / "s").exists()


def test_a_full_spool_makes_the_solver_wait_and_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    context, _ = spooling(tmp_path, places=3)
    with context as intake:
        plan(intake, 3)
        use_environment(intake, monkeypatch)
        with connect({"u": LAYOUT.shape}) as stream:
            for step in range(6):
                send_step(stream, step, LAYOUT.shape)
        wait_until(lambda: intake.status()["waiting_in_spool"] == 2)
        # The next simulation finds one place left, not the two of its first window.
        trainer = TrainerDouble(intake)
        trainer.release(trainer.draw(0, 2))
        wait_until(lambda: intake.status()["waiting_in_spool"] < 2)
        trainer.close()
        assert intake.status()["quarantined"] == []


def test_the_spool_survives_its_intake_and_the_audit_is_clean(tmp_path: Path, monkeypatch) -> None:
    """What lay in the reservoir is run again; what lay on disk is not, and comes to the trainer all the same."""
    context, _ = spooling(tmp_path)
    with context as intake:
        plan(intake, 3)
        assert run_all(intake, monkeypatch) == 3
    context, left = spooling(tmp_path, session=2)
    assert [(one.simulation, one.step) for one in left] == [(0, 4), (0, 5)] + [(n, t) for n in (1, 2) for t in range(6)]
    with context as intake:
        intake.plan([Assignment(simulation=n, parameters={"nu": n + 0.5}, attempt=2) for n in range(3)])
        intake.recover_spool(left)
        intake.all_planned()
        assert intake.status()["spooled"] == 2, "two simulations need no solver"
        assert run_all(intake, monkeypatch) == 1
        windows = {(number, start) for number in range(3) for start in range(5)}
        with RecordWriter(tmp_path / "ledger" / "trainer-2-1-0.log") as log:
            found = train_all(intake, log)
        assert set(found) == windows and len(found) == 15
        status = wait_until(lambda: (s := intake.status())["done"] == 3 and s)
        assert status["windows_accepted"] == 15 and status["error"] is None
    second = Counter(r["t"] for r in read_records(tmp_path / "ledger" / "intake-2.log") if r["e"] == "step")
    assert sum(second.values()) == 18 and set(second.values()) == {3}
    assert unreplayed(tmp_path / "ledger", tmp_path / "spool" / "s", LAYOUT) == []
    report = audit_of(tmp_path, monkeypatch, LAYOUT, simulations=3)
    assert report.ok, report.lines
    assert report.counts["steps accepted"] == 18 and report.counts["steps lost before use and run again"] == 4


def test_a_stop_leaves_the_spool_for_a_resume(tmp_path: Path, monkeypatch) -> None:
    context, _ = spooling(tmp_path)
    with context as intake:
        plan(intake, 2)
        use_environment(intake, monkeypatch)
        with connect({"u": LAYOUT.shape}) as stream:
            for step in range(5):
                send_step(stream, step, LAYOUT.shape)
            wait_until(lambda: intake.status()["steps_spooled"] == 1)
            trainer = TrainerDouble(intake)
            records = trainer.draw(0, 2)
            intake.request_stop()
            trainer.release(records)  # now there would be room
            wait_until(lambda: intake.status()["unreleased"] == 0)
            trainer.close()
            send_step(stream, 5, LAYOUT.shape)
        status = wait_until(lambda: (s := intake.status())["stopped"] == 1 and s)
        assert status["error"] is None and status["waiting_in_spool"] == 1
    _, left = spooling(tmp_path, session=2)
    assert [(one.simulation, one.step) for one in left] == [(0, 4)]


def test_what_lies_in_the_spool_is_read_from_the_ledger(tmp_path: Path) -> None:
    """A place that was used again belongs to its last step; what was replayed or put into quarantine is gone."""
    (tmp_path / "s").write_bytes(bytes(4 * LAYOUT.step_bytes))
    with RecordWriter(tmp_path / "intake-1.log") as log:
        for number, step, place in ((0, 0, 0), (0, 1, 1), (1, 0, 2), (2, 0, 3), (3, 0, 9)):
            log.append({"e": "spooled", "s": number, "a": 1, "t": step, "h": 7, "x": 0.0, "p": place})
        log.append({"e": "step", "s": 0, "a": 1, "t": 0, "h": 7})
        log.append({"e": "spooled", "s": 0, "a": 1, "t": 2, "h": 8, "x": 0.0, "p": 0})
    with RecordWriter(tmp_path / "intake-10.log") as log:
        log.append({"e": "spooled", "s": 4, "a": 1, "t": 0, "h": 9, "x": 0.0, "p": 2})
        log.append({"e": "quarantined", "s": 2, "a": 1, "t": 0, "reason": "x"})
    found = unreplayed(tmp_path, tmp_path / "s", LAYOUT)
    assert [(one.simulation, one.step, one.place) for one in found] == [(0, 1, 1), (0, 2, 0), (4, 0, 2)]
    assert unreplayed(tmp_path, tmp_path / "none", LAYOUT) == []
