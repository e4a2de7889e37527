"""The same sampler stream for any number of trainer workers, from a live stream of two jobs, cut and resumed or not."""

import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from headrace.online_training.client import STOP, Connection
from headrace.online_training.fixed_order import FixedOrder, spare_slots
from headrace.online_training.ledger import Ledger, RecordWriter
from headrace.online_training.reservoir import Reservoir

from .intake_setup import PlainMemory, TrainerDouble, field_of, make_layout, running_intake

JOBS, SLOTS, BATCH, SIMULATIONS = 2, 20, 6, 6
LAYOUT = make_layout(num_steps=9)


def fixed_order() -> FixedOrder:
    inner = Reservoir(SLOTS, LAYOUT.window, watermark=8, seed=3, shards=2)
    return FixedOrder(
        inner, range(SIMULATIONS), group=JOBS, num_steps=LAYOUT.num_steps, window=LAYOUT.window, views=3.0
    )  # fmt: skip


@contextmanager
def streaming(tmp_path, monkeypatch, session: int, trained: int = 0):
    """An intake with a fixed order that goes on after some batches, and the jobs that feed it."""
    ledger = Ledger(tmp_path / "ledger")
    if session == 1:
        (tmp_path / "ledger").mkdir(parents=True)
        with RecordWriter(tmp_path / "ledger" / "study-1.log") as log:
            for number in range(SIMULATIONS):
                log.append({"e": "planned", "s": number, "held_out": False, "parameters": {"nu": 1.0}, "seed": 0})
    buffer = fixed_order()
    needed = buffer.repeat(trained, BATCH, *ledger.extents())
    memory = PlainMemory(LAYOUT, SLOTS + spare_slots(JOBS, LAYOUT.window))
    with running_intake(
        tmp_path, LAYOUT, session=session, buffer=buffer, memory=memory, views=3.0, batch_size=BATCH, max_running=JOBS
    ) as intake:
        again = [replace(one, used=needed[one.simulation]) for one in ledger.whole_plan() if one.simulation in needed]
        intake.plan(again)
        intake.all_planned()
        for name, value in intake.environment.items():
            monkeypatch.setenv(name, value)
        jobs = []
        for job in range(JOBS):
            monkeypatch.setenv("HEADRACE_JOB", f"{session}-{job:04}")
            jobs.append(threading.Thread(target=solve, args=(Connection({"u": LAYOUT.shape}),)))
            jobs[-1].start()
        yield intake, memory, again
        intake.request_stop()
        for job in jobs:
            job.join(10)


def solve(connection: Connection) -> None:
    """A persistent job of one process."""
    with connection:
        for stream in connection.simulations():
            with stream:
                for step in range(LAYOUT.num_steps):
                    values = {"u": field_of(stream.simulation, step, LAYOUT.shape)}
                    if stream.send(step=step, time=float(step), values=values) == STOP:
                        break


def draws_of(intake, memory, workers: int, count: int | None = None) -> list[list[tuple[int, int]]]:
    """The windows of the global batches, as they are dealt to a number of workers."""
    doubles = [TrainerDouble(intake, rank=rank, ranks=workers, generation=1) for rank in range(workers)]
    batches: list[list[tuple[int, int]]] = []
    while count is None or len(batches) < count:
        parts = [double.draw(len(batches), BATCH) for double in doubles]
        assert not any(isinstance(part, str) for part in parts), "no batch came in time"
        if parts[0] is None:
            break
        assert max(map(len, parts)) - min(map(len, parts)) <= 1, "nobody works much longer than the others"
        for record in np.concatenate(parts):
            for k, slot in enumerate(record["slots"]):
                expected = field_of(int(record["simulation"]), int(record["start"]) + k, LAYOUT.shape)
                assert np.array_equal(memory.array[slot, 0], expected.astype("f4"))
        batches.append([(int(r["simulation"]), int(r["start"])) for part in parts for r in part])
        for double, part in zip(doubles, parts, strict=True):
            double.release(part)
    for double in doubles:
        double.close()
    return batches


def test_the_windows_of_a_batch_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch) -> None:
    streams = []
    for workers in (1, 2, 4):
        with streaming(tmp_path / str(workers), monkeypatch, 1) as (intake, memory, _):
            streams.append(draws_of(intake, memory, workers))
    assert streams[0] == streams[1] == streams[2]
    assert len({window for batch in streams[0] for window in batch}) == SIMULATIONS * LAYOUT.num_starts

    # Cut after eight batches on one worker, of which the checkpoint has five; resumed on four, and again on two.
    folder = tmp_path / "cut"
    with streaming(folder, monkeypatch, 1) as (intake, memory, _):
        assert draws_of(intake, memory, 1, 8) == streams[0][:8]
    with streaming(folder, monkeypatch, 2, trained=5) as (intake, memory, _):
        assert draws_of(intake, memory, 4, len(streams[0]) - 7) == streams[0][5:-2]
    with streaming(folder, monkeypatch, 3, trained=len(streams[0]) - 2) as (intake, memory, again):
        assert len(again) < SIMULATIONS, "what no window needs any more is not run again"
        assert draws_of(intake, memory, 2) == streams[0][-2:]
