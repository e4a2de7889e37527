"""Steps of a quick solver that travel in one message: they arrive as if each had come alone, and in good time."""

import json
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from headrace.online_training.client import MOST_GATHERED, STOP, Connection, Header, Kind, Transport
from headrace.online_training.intake import Intake
from headrace.online_training.ledger import RecordWriter, read_records
from headrace.online_training.simulation_run import Assignment, SimulationRun
from tests.online_training.intake_setup import (
    audit_of,
    field_of,
    make_layout,
    plan,
    running_intake,
    train_all,
    use_environment,
    wait_until,
)
from tests.online_training.raw_link import block, next_of, request, solver_link

SHAPE = (7, 5)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every solver counts as quick, however busy the machine is."""
    monkeypatch.setattr("headrace.online_training.client._QUICK_STEP", math.inf)
    monkeypatch.setattr("headrace.online_training.step_credits._QUICK_SECONDS", 1e6)
    monkeypatch.setattr("headrace.online_training.step_credits._AHEAD_SECONDS", 1e6)


@pytest.fixture
def intake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Intake]:
    with running_intake(tmp_path, make_layout(num_steps=8), slots=1024) as running:
        use_environment(running, monkeypatch)
        yield running


def solve(fields: tuple[str, ...], rank: int, ranks: int, steps: int, words: list[list[int]]) -> None:
    """Be one rank that owns some rows; every other rank gives its fields one by one."""
    rows = slice(rank * SHAPE[0] // ranks, (rank + 1) * SHAPE[0] // ranks)
    with Connection(dict.fromkeys(fields, SHAPE), SimpleNamespace(rank=rank, size=ranks)) as connection:
        for stream in connection.simulations():
            said = []
            with stream:
                for step in range(steps):
                    values = np.stack([field_of(stream.simulation, step, SHAPE, i)[rows] for i in range(len(fields))])
                    given = dict(zip(fields, values, strict=True)) if rank % 2 else values
                    said.append(int(stream.send(step=step, time=0.5 * step, values=given, where=(rows, slice(0, 5)))))
                    values[...] = -1.0  # it is free to change
                    if said[-1] == STOP:
                        break
            words.append(said)


def start(fields: tuple[str, ...], ranks: int, steps: int) -> tuple[list[threading.Thread], list[list[list[int]]]]:
    words: list[list[list[int]]] = [[] for _ in range(ranks)]
    threads = [threading.Thread(target=solve, args=(fields, rank, ranks, steps, words[rank])) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    return threads, words


def blocks_of(ledger: Path, pattern: str) -> list[dict]:
    return [r for path in ledger.glob(pattern) for r in read_records(path) if r["e"] == "block"]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(("ranks", "fields", "changes"), [(1, ("u",), {}), (2, ("u", "v"), {"strict": True})])
def test_they_arrive_as_they_were_sent_and_the_audit_is_clean(
    quick, tmp_path: Path, monkeypatch, transport: str, ranks: int, fields: tuple[str, ...], changes: dict
) -> None:
    layout = make_layout(num_steps=100, fields=fields)
    with running_intake(tmp_path, layout, slots=1024, transport=transport, **changes) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 2)
        threads, words = start(fields, ranks, layout.num_steps)
        for thread in threads:
            thread.join()
        status, slots = intake.status(), intake.settings.buffer.slots
        assert status["done"] == 2 and status["steps_accepted"] == 200
        assert status["rejected"] == {} and status["duplicates"] == 0 and status["error"] is None
        assert status["bytes_received"] == 200 * layout.step_bytes
        assert all(said == [[0] * 100] * 2 for said in words)
        for simulation in range(2):
            for step in range(100):
                slot = slots[simulation, step]
                for field, stored in enumerate(intake.settings.memory.array[slot]):
                    assert np.array_equal(stored, field_of(simulation, step, SHAPE, field).astype(np.float32))
                assert intake._table.slot_times[slot] == 0.5 * step
        if fields == ("u",):
            with RecordWriter(tmp_path / "ledger" / "trainer-1-0-0.log") as log:
                assert len(train_all(intake, log)) == 2 * 99
    sent, received = (blocks_of(tmp_path / "ledger", name) for name in ("solver-*", "intake-*"))
    assert {json.dumps(r) for r in sent} == {json.dumps(r) for r in received}
    assert sum(record.get("m", 1) for record in sent) == 200 * ranks
    assert max(record.get("m", 1) for record in sent) > 1, "some left together"
    report = audit_of(tmp_path, monkeypatch, layout, simulations=2)
    assert report.ok, report.problems
    assert report.counts["blocks sent"] == report.counts["blocks received"] == 200 * ranks


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("most", [MOST_GATHERED, 256 * 1024 + 512])
def test_as_many_travel_together_as_the_intake_takes(quick, tmp_path: Path, monkeypatch, transport: str, most: int):
    """Steps of 64 KiB: up to sixteen in a message, and four where an intake takes no more than it always did."""
    monkeypatch.setattr("headrace.online_training.intake.MOST_GATHERED", most)
    layout = make_layout(shape=(128, 128), num_steps=64, window=1)
    with running_intake(tmp_path, layout, slots=512, transport=transport) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        values = np.empty((1, 128, 128), np.float32)
        with Connection({"u": (128, 128)}) as connection, connection.next() as stream:
            for step in range(64):
                values[...] = step
                stream.send(step=step, time=0.5 * step, values=values)
        status, slots = intake.status(), intake.settings.buffer.slots
        assert status["steps_accepted"] == 64 and status["rejected"] == {} and status["error"] is None
        for step in range(64):
            assert np.all(intake.settings.memory.array[slots[0, step]] == step)
    together = [record.get("m", 1) for record in blocks_of(tmp_path / "ledger", "intake-*")]
    assert sum(together) == 64
    assert 4 < max(together) <= 16 if most == MOST_GATHERED else 1 < max(together) <= 4


def test_memory_of_a_message_is_used_again_once_zeromq_has_read_it() -> None:
    transport, read, unread = Transport(), SimpleNamespace(done=False), SimpleNamespace(done=False)
    first = transport.room(2**17)
    assert transport.place_filled(first).borrowed
    transport.lend(read)
    second = transport.room(2**17)
    transport.place_filled(second)
    transport.lend(unread)
    third = transport.room(1000)
    assert not any(np.may_share_memory(one, other) for one, other in ((first, second), (first, third), (second, third)))
    assert not transport.place_filled(third).borrowed, "ZeroMQ copies it, and it is free at once"
    assert np.may_share_memory(transport.room(1000), third)
    transport.place_filled(third)
    transport.lend(unread)
    read.done = True
    assert np.may_share_memory(transport.room(2**17), first)


def test_nothing_is_held_back_where_a_rank_waits(quick, tmp_path: Path, monkeypatch) -> None:
    """Nobody draws: the solver waits for room, and every step that had some is in the reservoir."""
    with running_intake(tmp_path, make_layout(num_steps=400, window=1), slots=300) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        threads, words = start(("u",), 2, 400)
        wait_until(lambda: intake.status()["steps_accepted"] == 300)
        intake.request_stop()
        for thread in threads:
            thread.join()
        assert words[0] == words[1] and words[0][0][-1] == STOP, "the same words on all ranks"
        assert intake.status()["steps_accepted"] == 300


def test_no_step_is_kept_after_the_end(quick, intake: Intake) -> None:
    plan(intake, 1)
    with Connection({"u": SHAPE}) as connection:
        stream = connection.next()
        for step in range(4):
            stream.send(step=step, time=0.0, values=np.ones((1, *SHAPE)))
        stream.end()
        with pytest.raises(RuntimeError, match="has ended"):
            stream.send(step=4, time=0.0, values=np.ones((1, *SHAPE)))


def test_a_list_of_slices_may_be_used_again(quick, tmp_path: Path, monkeypatch) -> None:
    """Two ranks that change halves at every step, and say so in the same list, are not taken to send like before."""
    shape = (6, 5)

    def half(rank: int) -> None:
        place = [slice(0, 3), slice(0, 5)]
        with Connection({"u": shape}, SimpleNamespace(rank=rank, size=2)) as connection:
            for stream in connection.simulations():
                with stream:
                    for step in range(8):
                        first = 3 * ((step + rank) % 2)
                        place[0] = slice(first, first + 3)
                        values = field_of(stream.simulation, step, shape)[None, place[0]]
                        stream.send(step=step, time=0.5 * step, values=values, where=place)

    with running_intake(tmp_path, make_layout(shape=shape, num_steps=8), slots=1024) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 2)
        threads = [threading.Thread(target=half, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        slots, memory = intake.settings.buffer.slots, intake.settings.memory.array
        assert len(slots) == 2 * 8
        for (simulation, step), slot in slots.items():
            np.testing.assert_array_equal(memory[slot, 0], field_of(simulation, step, shape))


def test_steps_of_slow_solvers_leave_one_by_one(tmp_path: Path, monkeypatch) -> None:
    """The intake says words ahead, but the rank takes longer for each step than it may hold one back."""
    monkeypatch.setattr("headrace.online_training.client._QUICK_STEP", 0.0)
    monkeypatch.setattr("headrace.online_training.step_credits._QUICK_SECONDS", 1e6)
    monkeypatch.setattr("headrace.online_training.step_credits._AHEAD_SECONDS", 1e6)
    with running_intake(tmp_path, make_layout(num_steps=40), slots=1024) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        solve(("u",), 0, 1, 40, [])
    sent = blocks_of(tmp_path / "ledger", "solver-*")
    assert [(record["t"], record.get("m")) for record in sent] == [(step, None) for step in range(40)]


def steps(values: np.ndarray, times: list[float], number: int | None = None, **fields) -> tuple[Header, bytes]:
    """Header and payload of one STEPS, values (steps, *block)."""
    header, payload = block(values[0], **fields)
    payload = np.ascontiguousarray(values, np.float32).tobytes() + struct.pack(f"<{len(times)}d", *times)
    number = len(times) if number is None else number
    return header._replace(
        kind=Kind.STEPS, payload_length=len(payload), checksum=zlib.crc32(payload), flags=header.flags | number << 16
    ), payload  # fmt: skip


def granted(intake: Intake) -> Header:
    """Return a link whose simulation has begun and holds credit for four steps."""
    plan(intake, 1)
    link = solver_link(intake, "1-0001")
    request(link)
    wait_until(lambda: intake._table.runs[0].granted >= 4)
    return link


def test_a_step_that_came_before_is_stored_once(intake: Intake) -> None:
    link = granted(intake)
    link.send_block(*block(np.full(SHAPE, 1.0), step=1))
    values = np.stack([np.full(SHAPE, 10.0 + step) for step in range(3)])
    for _ in range(2):
        link.send_block(*steps(values, [0.0, 0.5, 1.0]))
    status = wait_until(lambda: (s := intake.status())["duplicates"] == 4 and s)
    assert status["steps_accepted"] == 3 and status["rejected"] == {}
    array, slots = intake.settings.memory.array, intake.settings.buffer.slots
    assert [array[slots[0, step], 0, 0, 0] for step in range(3)] == [10.0, 1.0, 12.0]
    link.close()


def test_nan_in_one_of_them_keeps_those_before_it(intake: Intake) -> None:
    link = granted(intake)
    values = np.ones((3, *SHAPE))
    values[1, 2, 2] = np.nan
    link.send_block(*steps(values, [0.0, 0.5, 1.0]))
    assert next_of(link, Kind.ACK) is not None
    (entry,) = wait_until(lambda: intake.status()["quarantined"])
    assert entry["reason"] == "NaN or infinity in field u, block at [0, 0], step 1, time 0.5"
    assert set(intake.settings.buffer.slots) <= {(0, 0)} and intake.status()["steps_accepted"] == 1
    link.close()


@pytest.mark.parametrize(
    ("values", "times", "changes", "reason"),
    [
        (np.ones((2, *SHAPE)), [0.0, math.nan], {}, "time"),
        (np.ones((5, *SHAPE)), [0.0] * 5, {}, "credit"),
        (np.ones((2, *SHAPE)), [0.0, 1.0], {"number": 65}, "steps"),
        (np.ones((1, *SHAPE)), [0.0], {}, "steps"),
        (np.ones((2, *SHAPE)), [0.0, 1.0], {"number": 3}, "length"),
        (np.ones((2, *SHAPE)), [0.0], {"number": 2}, "length"),
        (np.ones((2, *SHAPE)), [0.0, 1.0], {"offset": (1, 0)}, "block"),
        (np.ones((2, *SHAPE)), [0.0, 1.0], {"flags": 8}, "steps"),
        (np.ones((2, MOST_GATHERED // 32, 5)), [0.0, 1.0], {}, "steps"),
    ],
    ids=["time", "credit", "many", "one", "number", "times", "block", "cells", "bytes"],
)
def test_what_does_not_belong_is_refused_by_name(
    intake: Intake, values: np.ndarray, times: list[float], changes: dict, reason: str
) -> None:
    link = granted(intake)
    link.send_block(*steps(values, times, **changes))
    with pytest.raises(RuntimeError, match=f"is wrong: {reason}"):
        next_of(link, Kind.ACK)
    status = intake.status()
    assert status["rejected"] == {reason: 1} and status["error"] is None and status["steps_accepted"] == 0
    link.close()


def test_damage_costs_the_attempt(intake: Intake) -> None:
    link = granted(intake)
    header, payload = steps(np.zeros((2, *SHAPE)), [0.0, 1.0])
    link.send_block(header, b"\1" + payload[1:])
    next_of(link, Kind.ACK)
    assert "was damaged on its way" in link.lost
    status = intake.status()
    assert status["rejected"] == {"checksum": 1} and status["lost"] == 1 and status["steps_accepted"] == 0
    link.close()


def test_one_pause_is_no_slow_solver_and_what_lasts_is_believed() -> None:
    run = SimulationRun(Assignment(simulation=0, parameters={"nu": 0.5}), make_layout())
    run.begin("1-0001", 1e-4)
    run.keep_pace(1, now := 100.0)
    assert run.pace == 1e-4, "the first step tells nothing"
    run.keep_pace(1, now := now + 1.0)
    assert run.pace == pytest.approx(1.75e-4), "a fourth of at most four times as much"
    for _ in range(20):
        run.keep_pace(2, now := now + 20e-3)
    assert run.pace == pytest.approx(10e-3, rel=0.05)


def test_the_next_simulation_of_a_job_begins_with_what_is_known_of_the_one_before(intake: Intake) -> None:
    """It computed for half a second and waited for three, in two steps."""
    plan(intake, 2)
    link = solver_link(intake, "1-0001")
    request(link)
    for step in range(2):
        link.send_block(*block(np.ones(SHAPE), step=step))
    link.send(Kind.END, {"blocked": 3.0, "elapsed": 3.5}, simulation=0, attempt=1, value=0)
    assert next_of(link, Kind.ENDED) is not None
    link.send(Kind.REQUEST, value=2)
    assert next_of(link, Kind.ASSIGN).simulation == 1
    first, second = (intake._table.runs[number] for number in range(2))
    assert second.own_pace == 0.25 and second.pace == first.pace
    link.close()
