"""The intake and one rank's messages: sent twice, late, damaged, or out of place, each has its answer."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training.client import CONTINUE, STOP, Header, Kind, connect
from headrace.online_training.intake import Assignment
from tests.online_training.intake_setup import (
    PATIENCE,
    STUDY,
    TOKEN,
    TrainerDouble,
    field_of,
    make_layout,
    plan,
    records_of,
    send_all,
    wait_until,
)
from tests.online_training.raw_link import block, declare, next_of, request, solver_link


@pytest.fixture
def asked(study):
    """Makes an intake with planned simulations, and a rank that has been given the first of them."""
    links = []

    def make(*layout, simulations=1, **changes):
        intake = study(*layout, **changes)
        plan(intake, simulations)
        links.append(solver_link(intake, "1-0001"))
        request(links[-1])
        return intake, links[-1]

    yield make
    for link in links:
        link.close()


def test_a_sub_block_that_comes_twice_is_stored_once(asked) -> None:
    intake, link = asked()
    upper, lower = block(np.ones((3, 5))), block(np.full((4, 5), 2.0), (3, 0))
    link.send_block(*upper)
    link.send_block(*upper)
    assert next_of(link, Kind.ACK, 0.2) is None, "half a step is no step"
    link.send_block(*lower)
    assert next_of(link, Kind.ACK).step == 0
    link.send_block(*lower)
    status = wait_until(lambda: (s := intake.status())["duplicates"] == 2 and s)
    assert status["steps_accepted"] == 1
    slot = intake.settings.memory.array[intake.settings.buffer.slots[0, 0], 0]
    assert np.all(slot[:3] == 1) and np.all(slot[3:] == 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [(2, CONTINUE), (3, STOP)]),
        ({"durability": "node"}, [(0, CONTINUE), (1, STOP), (2, STOP), (3, STOP)]),
        ({"when_full": "skip"}, [(0, CONTINUE), (1, STOP), (2, STOP), (3, STOP)]),
    ],
    ids=["plain", "promised", "skip"],
)
def test_words_to_a_quick_solver_are_said_ahead_and_a_stop_begins_behind_them(asked, monkeypatch, changes, expected):
    monkeypatch.setattr("headrace.online_training.step_credits._QUICK_SECONDS", 2.0)
    (intake, link), said = asked(make_layout(num_steps=12), **changes), []
    for step in range(4):
        values = np.full((7, 5), np.nan) if step == 1 else field_of(0, step, (7, 5))
        link.send_block(*block(values, step=step))
        wait_until(lambda: intake._table.runs[0].received > step)  # noqa: B023
        declare(link, intake.settings.layout)  # whatever was said before comes before the answer
        while (message := link.receive(PATIENCE))[0].kind != Kind.DECLARED:
            if message[0].kind == Kind.ACK:
                said.append((message[0].step, message[0].value & 0xFF))
        if step == 0:
            assert said == expected[:1], "what was said to a step stands for those before it"
    assert said == expected


def test_messages_of_an_old_attempt_are_fenced(asked) -> None:
    intake, old = asked()
    assert intake.job_ended("1-0001", 1) == [0]
    new = solver_link(intake, "1-0002")
    assert request(new).attempt == 2
    old.send_block(*block(np.full((7, 5), 9.0)))
    new.send_block(*block(np.full((7, 5), 9.0), attempt=1))
    rejected = wait_until(lambda: {"attempt", "session"} <= set(r := intake.status()["rejected"]) and r)
    assert rejected == {"session": 1, "attempt": 1}
    assert intake.status()["steps_accepted"] == 0
    assert next_of(old, Kind.ACK) is None and "unknown session" in old.lost
    new.close()


def test_a_second_attempt_stores_only_what_is_missing(asked, tmp_path: Path) -> None:
    intake, link = asked()
    for step in range(3):
        link.send_block(*block(field_of(0, step, (7, 5)), step=step))
        assert next_of(link, Kind.ACK).step == step
    link.send_block(*block(field_of(0, 3, (7, 5))[:3], step=3))
    intake.job_ended("1-0001", -9)
    os.environ["HEADRACE_JOB"] = "1-0002"
    with connect({"u": (7, 5)}) as stream:
        send_all(stream, (7, 5), range(6))
    status = intake.status()
    assert status["steps_accepted"] == 6 and status["steps_dropped"] == 3 and status["done"] == 1
    buffer, array = intake.settings.buffer, intake.settings.memory.array
    for step in range(6):
        assert np.array_equal(array[buffer.slots[0, step], 0], field_of(0, step, (7, 5)).astype(np.float32))
    trainer = TrainerDouble(intake)
    starts = [int(s) for records in trainer.drain() for s in records["start"]]
    trainer.close()
    assert starts == [0, 1, 2, 3, 4], "windows across the two attempts, each once"


def test_a_resumed_simulation_offers_only_unused_windows(study, tmp_path: Path) -> None:
    """Starts 0, 1 and 4 of 0..4 were used: steps 2 to 4 are stored again, the others are not."""
    intake = study()
    used = frozenset({0, 1, 4})
    intake.plan([Assignment(simulation=0, parameters={"nu": 0.5}, attempt=3, used=used)])
    intake.all_planned()
    with connect({"u": (7, 5)}) as stream:
        assert stream.attempt == 3
        send_all(stream, (7, 5), range(6))
    assert intake.status()["steps_accepted"] == 3 and intake.status()["windows_accepted"] == 2
    trainer = TrainerDouble(intake)
    starts = [int(s) for records in trainer.drain() for s in records["start"]]
    trainer.close()
    assert starts == [2, 3]
    intake.close()
    assert [r["t"] for r in records_of(tmp_path, "step")] == [2, 3, 4]


def test_a_simulation_that_keeps_failing_goes_into_quarantine(study) -> None:
    intake = study(max_failures=2)
    plan(intake, 1)
    for number, expected in ((1, [0]), (2, [])):
        link = solver_link(intake, f"1-000{number}")
        request(link)
        assert intake.job_ended(f"1-000{number}", 139) == expected
        link.close()
    (entry,) = intake.status()["quarantined"]
    assert entry["reason"] == "2 attempts failed; the last one: job 1-0002 ended with code 139"
    assert intake.settings.buffer.reserve(0) is not None, "its slots are free again"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"offset": (1, 0)}, "block"),
        ({"shape": (7, 6)}, "shape"),
        ({"field": 1}, "shape"),
        ({"step": 5}, "credit"),
        ({"time": math.nan}, "time"),
    ],
)
def test_a_block_that_does_not_belong_is_refused_by_name(asked, changes: dict, reason: str) -> None:
    intake, link = asked()
    link.send_block(*block(np.zeros((7, 5)), **changes))
    with pytest.raises(RuntimeError, match=f"is wrong: {reason}"):
        next_of(link, Kind.ACK)
    assert intake.status()["rejected"] == {reason: 1} and intake.status()["error"] is None


def test_a_damaged_block_costs_the_attempt(asked) -> None:
    intake, link = asked()
    header, payload = block(np.zeros((7, 5)))
    link.send_block(header, payload[:-1] + b"\1")
    next_of(link, Kind.ACK)
    assert "was damaged on its way" in link.lost
    status = intake.status()
    assert status["rejected"] == {"checksum": 1}
    assert status["lost"] == 1 and status["queued"] == 1


def test_a_sign_of_life_that_comes_after_the_farewell_is_no_stranger_s(study) -> None:
    """It has a connection of its own, and is counted as wrong only where it names a session that never was."""
    intake = study()
    link = solver_link(intake, "1-0001")
    session = link.session
    link.close()
    wait_until(lambda: intake.status()["peers"] == 0)
    late = solver_link(intake, "1-0002")
    for number in (session, 12345):
        late._socket.send(Header(Kind.LEASE).stamped(STUDY, number, 1).sign(TOKEN))
    assert wait_until(lambda: intake.status()["rejected"]) == {"session": 1}
    late.close()


def test_strict_mode_takes_signed_payloads_only(asked) -> None:
    intake, link = asked(strict=True)
    link.send_block(*block(np.zeros((7, 5))))
    wait_until(lambda: intake.status()["rejected"] == {"strict": 1})
    intake.job_ended("1-0001", 1)
    os.environ["HEADRACE_JOB"] = "1-0002"
    with connect({"u": (7, 5)}) as stream:
        send_all(stream, (7, 5), range(6))
    assert intake.status()["done"] == 1


def test_blocks_that_leave_a_gap_or_overlap_are_named(asked) -> None:
    intake, link = asked(simulations=2)
    link.send_block(*block(np.zeros((6, 5)), value=1))
    assert next_of(link, Kind.ACK).value & 0xFF == STOP
    link.send(Kind.END, {"reason": ""}, simulation=0, attempt=1, value=2)
    assert next_of(link, Kind.ENDED) is not None
    link.send(Kind.REQUEST, value=2)
    assert next_of(link, Kind.ASSIGN).simulation == 1
    link.send_block(*block(np.zeros((4, 5)), simulation=1))
    link.send_block(*block(np.zeros((4, 5)), (3, 0), simulation=1))
    assert next_of(link, Kind.ACK).value & 0xFF == STOP
    reasons = [entry["reason"] for entry in intake.status()["quarantined"]]
    assert reasons == [
        "the blocks of all ranks leave 5 of 35 cells of step 0 uncovered",
        "the blocks of step 0 overlap",
    ]
