"""The intake and its trainers: equal slices, windows used as often as wanted, statistics, and one end for all."""

import json
import os
import threading
from collections import Counter

import numpy as np
import pytest

from headrace.online_training.buffer_kinds import make_buffer
from headrace.online_training.client import Connection, Kind, connect
from headrace.online_training.reservoir import Reservoir
from headrace.online_training.running_statistics import RunningStatistics
from headrace.online_training.slot_memory import SlotMemory
from tests.online_training.intake_setup import (
    PATIENCE,
    TrainerDouble,
    field_of,
    make_layout,
    plan,
    send_all,
    wait_until,
)


def fill(intake, count: int = 2) -> None:
    """Let `count` simulations of six steps run to their end: five windows each."""
    plan(intake, count)
    with Connection({"u": (7, 5)}) as connection:
        for stream in connection.simulations():
            with stream:
                send_all(stream, (7, 5), range(6))


def test_all_workers_get_equal_slices_and_the_same_end(study) -> None:
    """Ten windows in batches of 4 for 2 workers: the last batch of 2 is one each."""
    intake = study()
    fill(intake)
    workers = [TrainerDouble(intake, rank=rank, ranks=2) for rank in range(2)]
    counts, tickets = [], set()
    for index in range(4):
        for worker in workers:
            worker.ask(index)
        slices = [worker.take() for worker in workers]
        if slices[0] is None:
            assert slices[1] is None
            break
        counts.append([len(s) for s in slices])
        for worker, records in zip(workers, slices, strict=True):
            tickets |= set(records["ticket"].tolist())
            worker.release(records)
    assert counts == [[2, 2], [2, 2], [1, 1]] and len(tickets) == 10
    for worker in workers:
        worker.close()


def test_an_odd_rest_is_padded_so_that_no_worker_is_left_alone(study) -> None:
    intake = study()
    fill(intake, 1)
    workers = [TrainerDouble(intake, rank=rank, ranks=2) for rank in range(2)]
    for index in (0, 1):
        for worker in workers:
            worker.ask(index)
    slices = [worker.take() for _ in range(2) for worker in workers]
    assert [len(s) for s in slices] == [2, 2, 1, 1]
    last = slices[2:]
    assert last[0]["ticket"] == last[1]["ticket"] and [int(s["first"][0]) for s in last] == [1, 0]
    before = intake.status()["messages"]
    workers[0].release(last[0])
    wait_until(lambda: intake.status()["messages"] > before)
    assert intake.status()["unreleased"] == 5, "a window stays in place until both have released it"
    for worker, records in zip([*workers, *workers], slices, strict=True):
        worker.release(records)
    wait_until(lambda: intake.status()["unreleased"] == 0)
    for worker in workers:
        worker.close()


def test_a_younger_generation_gets_what_the_older_one_did_not_use(study) -> None:
    intake = study()
    fill(intake)
    old = TrainerDouble(intake)
    used, taken = old.draw(0), old.draw(1)
    old.release(used)
    wait_until(lambda: intake.status()["unreleased"] == 4)
    new = TrainerDouble(intake, generation=1)
    old.release(taken)
    batches = new.drain(start=1)
    keys = [(int(r["simulation"]), int(r["start"])) for records in batches for r in records]
    assert len(keys) == len(set(keys)) == 6
    assert {(int(r["simulation"]), int(r["start"])) for r in taken} <= set(keys)
    assert intake.status()["starts_used"] == 10
    with pytest.raises(RuntimeError, match="Generation 1 of the trainer works already"):
        TrainerDouble(intake)
    for trainer in (old, new):
        trainer.close()


def test_a_trainer_that_is_too_fast_waits_for_new_windows(study) -> None:
    """views = 1: a second draw of the same windows has to wait until the solver has sent more."""
    layout = make_layout(window=1)
    intake = study(layout)
    plan(intake, 1)
    trainer = TrainerDouble(intake)
    with connect({"u": (7, 5)}) as stream:
        send_all(stream, (7, 5), range(2))
        trainer.ask(0, batch=2)
        trainer.ask(1, batch=2)
        assert len(trainer.take()) == 2
        assert isinstance(trainer.take(0.2), str), "used as often as wanted"
        send_all(stream, (7, 5), range(2, 6))
        assert len(trainer.take()) == 2
    trainer.close()


def test_each_window_is_used_as_often_as_wanted(study) -> None:
    """views = 3 in a reservoir of 6 slots: the solver never runs ahead, and the total comes out right."""
    layout, slots, views, batch = make_layout(num_steps=12), 6, 3.0, 2
    memory = SlotMemory.create(f"test-intake-{os.getpid()}", layout, slots * layout.step_bytes)
    buffer = Reservoir(slots, layout.window, watermark=3, seed=1)
    intake = study(layout, buffer=buffer, memory=memory, views=views, batch_size=batch, max_running=1)
    plan(intake, 4)
    errors: list[BaseException] = []

    def solve() -> None:
        try:
            with Connection({"u": layout.shape}) as connection:
                for stream in connection.simulations():
                    with stream:
                        send_all(stream, layout.shape, range(layout.num_steps))
        except BaseException as error:
            errors.append(error)

    solver = threading.Thread(target=solve)
    solver.start()
    trainer = TrainerDouble(intake)
    uses: Counter[tuple[int, int]] = Counter()
    firsts: Counter[tuple[int, int]] = Counter()
    index = 0
    while (records := trainer.draw(index, batch)) is not None:
        assert not isinstance(records, str), "no batch came in time"
        for record in records:
            simulation, start = int(record["simulation"]), int(record["start"])
            for slot, step in zip(record["slots"], range(start, start + layout.window), strict=True):
                assert np.array_equal(memory.array[slot, 0], field_of(simulation, step, layout.shape).astype("f4"))
            uses[simulation, start] += 1
            firsts[simulation, start] += int(record["first"])
        trainer.release(records)
        index += 1
        status = intake.status()
        gone = status["windows_accepted"] - status["population"]
        # Two steps can be on their way when the limit is reached, and one eviction takes up to a window.
        assert views * (gone - 2 * layout.window) <= status["draws"] + batch
    solver.join()
    trainer.close()
    assert errors == []
    assert set(uses) == {(s, t) for s in range(4) for t in range(layout.num_starts)}
    assert set(firsts.values()) == {1}, "one first use of each window"
    assert abs(sum(uses.values()) - views * len(uses)) <= batch
    assert wait_until(lambda: intake.status()["ended"])
    achieved = sum(uses.values()) / len(uses)
    wait_until(lambda: abs(intake.status()["views_achieved"] - achieved) < 1e-9, what="the uses to be told of")


def test_statistics_are_those_of_all_that_came_before_the_watermark(study) -> None:
    intake = study()
    intake.settings.buffer.ready = False
    trainer = TrainerDouble(intake)
    trainer.link.send(Kind.STATISTICS)
    assert trainer.link.receive(0.2) is None
    fill(intake)
    header, payload = trainer.link.receive(PATIENCE)
    assert header.kind == Kind.STATISTICS_ARE
    cells = np.stack([field_of(s, t, (7, 5)) for s in range(2) for t in range(6)])
    found = json.loads(payload)
    assert found["count"] == cells.size
    assert np.allclose(found["mean"], cells.mean(), rtol=1e-12) and np.allclose(found["std"], cells.std(), rtol=1e-12)
    trainer.close()


def test_running_statistics_merge_like_one_pass_over_everything() -> None:
    rng = np.random.default_rng(0)
    steps = 1e4 + rng.normal(size=(20, 2, 6, 7)) * np.array([1.0, 5.0])[:, None, None]
    running = RunningStatistics(2)
    for step in steps.astype(np.float32):
        running.add(step)
    exact = steps.astype(np.float32).astype(np.float64)
    assert np.allclose(running.mean, exact.mean(axis=(0, 2, 3)), rtol=1e-13)
    assert np.allclose(running.std, exact.std(axis=(0, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("kind", ["fifo", "firo"])
def test_a_buffer_without_reuse_deals_each_window_once_and_ends(study, kind: str) -> None:
    """Also where the solver must wait for the trainer: 4 simulations of 12 steps through 6 slots."""
    layout, slots, batch = make_layout(num_steps=12), 6, 2
    buffer = make_buffer(kind, slots, layout.window, watermark=3, seed=1)
    intake = study(layout, buffer=buffer, slots=slots, views=1.0, batch_size=batch, max_running=1)
    plan(intake, 4)

    def solve() -> None:
        with Connection({"u": layout.shape}) as connection:
            for stream in connection.simulations():
                with stream:
                    send_all(stream, layout.shape, range(layout.num_steps))

    solver = threading.Thread(target=solve)
    solver.start()
    trainer = TrainerDouble(intake)
    dealt = [(int(r["simulation"]), int(r["start"])) for records in trainer.drain(batch=batch) for r in records]
    solver.join(PATIENCE)
    trainer.close()
    assert not solver.is_alive()
    assert sorted(dealt) == [(s, t) for s in range(4) for t in range(layout.num_starts)], "each once"
    assert (dealt == sorted(dealt)) == (kind == "fifo"), "in the order of arrival, or not"
    assert wait_until(lambda: intake.status()["ended"])
