"""The same draws and the same weights from a live stream of two jobs, on any number of workers, cut or not."""

import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from headrace.online_training.checkpoint import latest_checkpoint
from headrace.online_training.client import STOP, Connection
from headrace.online_training.fixed_order import FixedOrder, spare_slots
from headrace.online_training.layout import StreamLayout
from headrace.online_training.ledger import Ledger, RecordWriter
from headrace.online_training.reservoir import Reservoir
from headrace.online_training.slot_memory import SlotMemory
from headrace.online_training.training_loop import connect, train

from .fake_feed import POINTS, make_run, settings_for, solution
from .intake_setup import STUDY, TrainerDouble, field_of, make_layout, running_intake, use_environment

JOBS, SLOTS, BATCH, SIMULATIONS = 2, 20, 6, 6
LAYOUT = make_layout(num_steps=9)
WAVES = StreamLayout(fields=("u",), shape=(POINTS,), num_steps=21, window=1, parameters=("a", "b"))


@contextmanager
def streaming(tmp_path, monkeypatch, session: int, trained: int = 0, layout: StreamLayout = LAYOUT, batch: int = BATCH):
    """An intake with a fixed order that goes on after some batches, and the jobs that feed it."""
    ledger = Ledger(tmp_path / "ledger")
    if session == 1:
        (tmp_path / "ledger").mkdir(parents=True, exist_ok=True)
        with RecordWriter(tmp_path / "ledger" / "study-1.log") as log:
            for number in range(SIMULATIONS):
                values = {name: 0.5 + number / 10 for name in layout.parameters}
                log.append({"e": "planned", "s": number, "held_out": False, "parameters": values, "seed": 0})
    inner = Reservoir(SLOTS, layout.window, watermark=8, seed=3, shards=2)
    buffer = FixedOrder(
        inner, range(SIMULATIONS), group=JOBS, num_steps=layout.num_steps, window=layout.window, views=3.0
    )  # fmt: skip
    needed = buffer.repeat(trained, batch, *ledger.extents())
    num_bytes = (SLOTS + spare_slots(JOBS, layout.window)) * layout.step_bytes
    memory = SlotMemory.create(f"stream-{session}", layout, num_bytes, folder=tmp_path)
    with running_intake(
        tmp_path, layout, session=session, buffer=buffer, memory=memory, views=3.0, batch_size=batch, max_running=JOBS
    ) as intake:
        again = [replace(one, used=needed[one.simulation]) for one in ledger.whole_plan() if one.simulation in needed]
        intake.plan(again)
        intake.all_planned()
        use_environment(intake, monkeypatch)
        jobs = []
        for job in range(JOBS):
            monkeypatch.setenv("HEADRACE_JOB", f"{session}-{job:04}")
            jobs.append(threading.Thread(target=solve, args=(Connection({"u": layout.shape}), layout)))
            jobs[-1].start()
        try:
            yield intake, memory, again
        finally:
            intake.request_stop()
            for job in jobs:
                job.join(10)


def solve(connection: Connection, layout: StreamLayout) -> None:
    """A persistent job of one process."""
    with connection:
        for stream in connection.simulations():
            with stream:
                for step in range(layout.num_steps):
                    if layout is WAVES:
                        values = solution(stream.parameters.a, stream.parameters.b, step / 20)
                    else:
                        values = field_of(stream.simulation, step, layout.shape)[None]
                    if stream.send(step=step, time=step / 20, values=values) == STOP:
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
    # Everybody needs a window: of a last batch with too few some are dealt twice.
    for workers, stream in zip((2, 4), streams[1:], strict=True):
        assert stream == [[one[n % len(one)] for n in range(max(len(one), workers))] for one in streams[0]]
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


def test_a_training_has_the_same_bits_cut_and_resumed_or_not(tmp_path, monkeypatch) -> None:
    def trained(run, session: int, cut: int | None = None) -> None:
        checkpoint = latest_checkpoint(run / "checkpoints") if session > 1 else None
        done = checkpoint.state.batch if checkpoint else 0
        with streaming(run, monkeypatch, session, done, WAVES, 16) as (intake, _, _):
            settings = settings_for(
                run, SIMULATIONS * WAVES.num_steps * 3 // 16, address=intake.addresses, token_file=str(run / "token"),
                study=STUDY, session=session, generation=session, checkpoint_every=1e-9,
            )  # fmt: skip
            feed = connect(settings)
            plain, left = feed.next, iter(range(cut or 10**6))

            def mortal():
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return plain()

            feed.next = mortal
            train(settings, feed)

    whole, parts = make_run(tmp_path / "whole"), make_run(tmp_path / "parts")
    trained(whole, 1)
    for session, cut in ((1, 9), (2, 8)):
        with pytest.raises(KeyboardInterrupt):
            trained(parts, session, cut)
    assert latest_checkpoint(parts / "checkpoints").state.batch > 0
    trained(parts, 3)
    one, two = (latest_checkpoint(run / "checkpoints") for run in (whole, parts))
    assert (one.state.batch, one.state.windows) == (two.state.batch, two.state.windows)
    assert (whole / "model" / "model.safetensors").read_bytes() == (parts / "model" / "model.safetensors").read_bytes()
