"""The feed: a trainer's batches hold what the solver sent, in the same order for all workers, to the end."""

import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training import remote_slots
from headrace.online_training.client import Connection, WireError, checksum_of
from headrace.online_training.feed import Draw, Feed
from headrace.online_training.feeder_process import FeederProcess
from headrace.online_training.shared_blocks import SharedBlocks
from headrace.online_training.supply import Pace
from tests.online_training.intake_setup import (
    PATIENCE,
    STUDY,
    TOKEN,
    field_of,
    make_layout,
    plan,
    real_intake,
    wait_until,
)

ROOM = 2**20


@contextmanager
def solver(monkeypatch: pytest.MonkeyPatch, intake, *, pause: float = 0.0):
    """A solver in a thread of this process that runs simulations until none is left, with a pause before each step."""
    for name, value in intake.environment.items():
        monkeypatch.setenv(name, value)
    layout = intake.settings.layout
    errors = []

    def work() -> None:
        try:
            with Connection({name: layout.shape for name in layout.fields}) as connection:
                for stream in connection.simulations():
                    with stream:
                        for step in range(layout.num_steps):
                            fields = range(len(layout.fields))
                            values = [field_of(stream.simulation, step, layout.shape, f) for f in fields]
                            time.sleep(pause)
                            stream.send(step=step, time=0.1 * step, values=np.stack(values))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive() and not errors, errors


def open_feed(intake, *, process: bool = False, **changes) -> Feed | FeederProcess:
    kind = partial(FeederProcess, device="cpu", room=ROOM) if process else Feed
    return kind(intake.addresses, TOKEN, STUDY, **{"batch_size": 4, **changes})


def states_of(draw: Draw) -> np.ndarray:
    """What is trained on."""
    return draw.states if draw.on_device is None else draw.on_device.tensors[0].numpy()


def expected_states(table: np.ndarray, layout) -> np.ndarray:
    """What the states of these draws must be, (batch, window, fields, *grid)."""
    states = np.empty((len(table), layout.window, *layout.step_shape), np.float32)
    for i, row in enumerate(table):
        for k, f in np.ndindex(layout.window, len(layout.fields)):
            states[i, k, f] = field_of(int(row["simulation"]), int(row["start"]) + k, layout.shape, f)
    return states


@pytest.mark.parametrize(
    ("prefetch", "block", "strict", "room"),
    [
        (0, 0, False, None), (2, 0, False, None), (2, 4 * 2**20, True, None), (2, 600, False, None),
        (0, 100, False, None), (12, 0, False, None), (12, 600, False, None),
        (0, 0, False, 0), (12, 0, False, ROOM), (None, 4 * 2**20, True, 0), (12, 4 * 2**20, True, ROOM),
    ],
)  # fmt: skip
def test_batches_hold_what_the_solver_sent_and_use_every_window(
    tmp_path, monkeypatch, prefetch: int | None, block: int, strict: bool, room: int | None
) -> None:
    """block: bytes of a message that brings steps of 280 bytes to another node; 0: the worker is on the intake's.

    room: of the device for a copy of the reservoir, where a process feeds it; None: none does.
    """
    process = {} if room is None else {"process": True, "room": room}
    layout = make_layout(fields=("u", "v"), num_steps=9, window=3)
    changes = {"slots": 16, "watermark": 4, "views": 3.0, "strict": strict}
    with real_intake(tmp_path, layout, **changes) as intake, solver(monkeypatch, intake):
        if block:
            monkeypatch.setattr(remote_slots, "MAX_BLOCK", block)
            Path(intake.settings.memory.path).unlink()
        plan(intake, 6)
        first_uses, uses = [], 0
        with open_feed(intake, prefetch=prefetch, **process) as feed:
            statistics = feed.statistics()
            assert statistics["count"] > 0 and len(statistics["mean"]) == len(statistics["std"]) == 2
            kept = []
            while (draw := feed.next()) is not None:
                table = draw.table
                states = states_of(draw)
                assert states.shape == (len(table), 3, 2, 7, 5) and states.dtype == np.float32
                assert states.flags.c_contiguous and draw.times.shape == (len(table), 3)
                np.testing.assert_array_equal(states, expected_states(table, layout))
                np.testing.assert_allclose(draw.times, 0.1 * (table["start"][:, None] + np.arange(3)))
                np.testing.assert_array_equal(draw.parameters, table["simulation"][:, None] + 0.5)
                first_uses += [(int(r["simulation"]), int(r["start"])) for r in table if r["first"]]
                uses += len(table)
                kept.append((states, states.copy()))
                for row in np.flatnonzero(table["first"]):
                    assert draw.checksums[row].tolist() == [checksum_of(step, "xxh3") for step in states[row]]
                feed.release(draw)
            assert feed.next() is None  # and stays so
            assert feed.starved_seconds >= 0
        assert sorted(first_uses) == [(s, k) for s in range(6) for k in range(7)]
        assert uses >= 3 * 6 * 7 - 4
        # The reservoir went on under released draws; their memory is their own.
        assert all(np.array_equal(states, copy) for states, copy in kept)
        wait_until(lambda: intake.status()["unreleased"] == 0)
        status = intake.status()
        assert status["starts_used"] == 42 and status["ended"] and status["error"] is None


def test_a_batch_of_one_window_has_ordinary_strides(tmp_path, monkeypatch) -> None:
    """torch.from_numpy refuses the strides of a packed record's column, which numpy calls contiguous."""
    layout = make_layout(num_steps=4, window=2)
    with real_intake(tmp_path, layout) as intake, solver(monkeypatch, intake):
        plan(intake, 1)
        with open_feed(intake, batch_size=1) as feed:
            draw = feed.next()
            feed.release(draw)
            assert draw.times.shape == (1, 2) and draw.parameters.shape == (1, 1)
            for column in (draw.times, draw.parameters):
                assert all(stride % column.itemsize == 0 for stride in column.strides)
            while (draw := feed.next()) is not None:
                feed.release(draw)


@pytest.mark.parametrize("room", [0, ROOM])
def test_batches_that_the_feed_has_sent_to_a_gpu_are_what_the_solver_sent(tmp_path, monkeypatch, room: int) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    layout = make_layout(num_steps=9, window=3)
    # A dozen slots: they are used again while what was drawn from them is on its way.
    with real_intake(tmp_path, layout, slots=12, views=3.0) as intake, solver(monkeypatch, intake):
        plan(intake, 12)
        options = {"batch_size": 4, "prefetch": 12, "device": "cuda", "room": room}
        with FeederProcess(intake.addresses, TOKEN, STUDY, **options) as feed:
            while (draw := feed.next()) is not None:
                draw.on_device.block.await_on(torch.cuda.current_stream())
                parts = expected_states(draw.table, layout), draw.times, draw.parameters
                for mine, there in zip(parts, draw.on_device.tensors, strict=True):
                    np.testing.assert_array_equal(there.cpu().numpy(), mine.astype(np.float32))
                feed.release(draw)


def test_memory_that_cannot_be_registered_with_a_gpu_is_sent_all_the_same() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    from headrace.online_training.device_blocks import DeviceBlocks

    layout = make_layout()
    size = SharedBlocks.size_of(4, layout)
    blocks = SharedBlocks(SharedBlocks.create(size), size, layout)
    block = blocks.block(blocks.take(4, 8), 4, 8)
    block.states[...] = np.arange(block.states.size).reshape(block.states.shape)
    block.times[...] = 7.0
    first, second = (DeviceBlocks("cuda", blocks.memory, layout) for _ in range(2))  # it can be registered but once
    for device_blocks in (first, second):
        states, times, _ = device_blocks.send(block, 2)[1].tensors
        torch.cuda.synchronize()
        assert np.array_equal(states.cpu().numpy(), block.states[2:]) and (times == 7).all()
        device_blocks.close()


def test_what_feeds_the_second_gpu_opens_no_context_on_the_first(tmp_path, monkeypatch) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    program = (
        "import sys, torch; from headrace.online_training.feeder_process import FeederProcess\n"
        f"with FeederProcess(sys.argv[1], {TOKEN!r}, {STUDY}, batch_size=4, device='cuda:1') as feed:\n"
        "    draw = feed.next(); draw.on_device.block.copied.synchronize()\n"
        "    print(draw.on_device.tensors[0].device, *map(torch._C._cuda_hasPrimaryContext, (0, 1)))"
    )
    with real_intake(tmp_path, make_layout(), views=2.0) as intake, solver(monkeypatch, intake):
        plan(intake, 3)
        output = subprocess.run([sys.executable, "-c", program, intake.addresses], capture_output=True, text=True)
        assert output.stdout.split() == ["cuda:1", "False", "True"], output.stderr
        intake.request_stop()


def test_two_workers_get_slices_of_the_same_batches(tmp_path, monkeypatch) -> None:
    """One of them by a feeder, in whose memory the slices of later batches come to lie."""
    layout = make_layout()
    with real_intake(tmp_path, layout, views=2.0) as intake, solver(monkeypatch, intake):
        plan(intake, 5)
        seen: list[list[np.ndarray]] = [[], []]

        def work(rank: int) -> None:
            with open_feed(intake, rank=rank, num_ranks=2, batch_size=6, process=rank == 1) as feed:
                while (draw := feed.next()) is not None:
                    np.testing.assert_array_equal(states_of(draw), expected_states(draw.table, layout))
                    seen[rank].append(draw.table)
                    feed.release(draw)

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)
    assert len(seen[0]) == len(seen[1]) >= 5 * 5 * 2 // 6
    assert [len(table) for table in seen[0]] == [len(table) for table in seen[1]]
    rows = [row for tables in seen for table in tables for row in table]
    first = [(int(row["simulation"]), int(row["start"])) for row in rows if row["first"]]
    assert sorted(first) == [(s, k) for s in range(5) for k in range(5)]


def test_runs_that_are_compared_achieve_the_same_reuse_whoever_is_slow(tmp_path, monkeypatch) -> None:
    layout, views, batch, uses = make_layout(num_steps=9, window=3), 3.5, 4, []
    windows, slots = 6 * layout.num_starts, 12
    for number, (solver_waits, trainer_waits, workers) in enumerate([(0.0, 2e-3, 1), (2e-3, 0.0, 1), (0.0, 0.0, 2)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        limits = {"slots": slots, "watermark": 3, "views": views, "batch_size": batch}
        with real_intake(folder, layout, **limits) as intake, solver(monkeypatch, intake, pause=solver_waits):
            plan(intake, 6)

            def work(rank: int, num_ranks: int = workers, waits: float = trainer_waits, intake=intake) -> None:
                with open_feed(intake, batch_size=batch, rank=rank, num_ranks=num_ranks) as feed:
                    while (draw := feed.next()) is not None:
                        time.sleep(waits)
                        feed.release(draw)

            threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            wait_until(lambda intake=intake: intake.status()["unreleased"] == 0)
            status = intake.status()
        assert status["windows_accepted"] == status["starts_used"] == windows
        uses.append(round(status["views_achieved"] * windows))
    # Never less than wanted; what is in the reservoir at the end is used once more, of which draws foresee but a part.
    assert all(0 <= used - views * windows <= batch + slots / views for used in uses), uses


@pytest.mark.parametrize("process", [False, True])
def test_it_holds_no_more_batches_than_it_says_and_says_so_before_it_gives_one_back(
    tmp_path, monkeypatch, process: bool
) -> None:
    with real_intake(tmp_path, make_layout(), views=50.0) as intake, solver(monkeypatch, intake):
        plan(intake, 2)
        with open_feed(intake, prefetch=2, process=process) as feed:
            draws, held = [feed.next()], []
            wait_until(lambda: intake.status()["unreleased"] == 3 * 4)
            time.sleep(0.1)
            assert intake.status()["unreleased"] == 3 * 4
            feed.before_telling = lambda: held.append(intake.status()["unreleased"])
            feed.release(draws[0])
            # A feeder is told with it that the next batch may be drawn.
            wait_until(lambda: intake.status()["draws"] - intake.status()["unreleased"] == 4)
            wait_until(lambda: intake.status()["unreleased"] == (3 if process else 2) * 4)
            assert held[0] == 3 * 4


def test_a_quick_trainer_holds_more_ahead_than_a_slow_one_and_never_more_than_it_works_on_in_10_ms(tmp_path) -> None:
    with real_intake(tmp_path, make_layout(), slots=4096) as intake, open_feed(intake) as feed:
        supply, now = feed._supply, 0.0
        most = supply.most_ahead
        assert supply.prefetch == 2 and most == 48, "nothing is known of the trainer yet"
        for seconds, ahead in ((1e-5, most), (0.5e-3, 20), (1.0, 2)):
            pace = Pace()
            for _ in range(200):
                pace.tick(now)
                now += seconds
            supply.want(0, pace.seconds)
            assert supply.prefetch in (ahead, ahead - 1)
            pace.tick(now + 100 * seconds)  # a single pause says little
            supply.want(0, pace.seconds)
            assert supply.prefetch > 0.85 * ahead - 1


def test_large_batches_come_one_by_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("headrace.online_training.supply._AHEAD_BYTES", 1)
    layout, uses = make_layout(), 0
    with real_intake(tmp_path, layout, views=2.0) as intake, solver(monkeypatch, intake):
        plan(intake, 3)
        with open_feed(intake) as feed:
            while (draw := feed.next()) is not None:
                assert not feed._ready and all(len(one.result()) == 1 for one in feed._gathered.values())
                np.testing.assert_array_equal(draw.states, expected_states(draw.table, layout))
                uses += len(draw.table)
                feed.release(draw)
    assert uses >= 3 * layout.num_starts


def test_all_workers_together_hold_a_quarter_of_the_reservoir_ahead(tmp_path) -> None:
    with real_intake(tmp_path, make_layout(), slots=4096) as intake:
        window = intake.settings.layout.window
        with open_feed(intake, batch_size=64, num_ranks=4) as feed:
            assert feed._supply.most_ahead == 4096 // (4 * 64 * window) < 48


@pytest.mark.parametrize(("prefetch", "process"), [(2, False), (12, False), (12, True)])
def test_a_restarted_trainer_gets_what_the_last_one_did_not_use(
    tmp_path, monkeypatch, prefetch: int, process: bool
) -> None:
    layout = make_layout()
    with real_intake(tmp_path, layout, views=1.0) as intake, solver(monkeypatch, intake):
        plan(intake, 4)
        used = []
        with open_feed(intake, generation=0, prefetch=prefetch, process=process) as feed:
            draw = feed.next()
            used += [(int(r["simulation"]), int(r["start"])) for r in draw.table if r["first"]]
            feed.release(draw)
            assert feed.next() is not None  # never released, like the batches fetched ahead
            wait_until(lambda: intake.status()["unreleased"] == 3 * 4 or intake.status()["draws"] >= 16)
        with open_feed(intake, generation=1, process=process) as feed:
            while (draw := feed.next()) is not None:
                used += [(int(r["simulation"]), int(r["start"])) for r in draw.table if r["first"]]
                feed.release(draw)
        assert sorted(used) == [(s, k) for s in range(4) for k in range(5)]


def test_an_older_generation_is_refused(tmp_path) -> None:
    with real_intake(tmp_path, make_layout()) as intake:
        with open_feed(intake, generation=3):
            for process in (False, True):
                with pytest.raises(RuntimeError, match="Generation 3 of the trainer works already"):
                    open_feed(intake, generation=2, process=process)


def test_a_stream_that_is_stopped_ends_for_the_trainer(tmp_path, monkeypatch) -> None:
    with real_intake(tmp_path, make_layout(), views=1e6) as intake, solver(monkeypatch, intake):
        plan(intake, 3)
        with open_feed(intake) as feed:
            feed.release(feed.next())
            intake.request_stop()
            for _ in range(10):
                draw = feed.next()
                if draw is None:
                    break
                feed.release(draw)
            assert draw is None


@pytest.mark.parametrize("process", [False, True])
def test_an_intake_that_goes_away_is_an_error_that_says_what_to_do(tmp_path, process: bool) -> None:
    with real_intake(tmp_path, make_layout()) as intake:
        feed = open_feed(intake, process=process)
        closing = threading.Timer(0.2, intake.close)
        closing.start()
        with pytest.raises(ConnectionError, match="from its last checkpoint"):
            feed.next()
        closing.join()
        feed.close()


def test_a_silent_intake_is_an_error_in_the_trainer_and_not_the_end_of_its_process(tmp_path) -> None:
    with real_intake(tmp_path, make_layout(), lease=0.5) as intake:
        feed = open_feed(intake)
        with intake._lock:  # as if the intake's process were suspended: it is connected but says nothing
            with pytest.raises(ConnectionError, match=r"was silent for 0.5 s"):
                feed.next()
        feed.close()


@pytest.mark.parametrize(
    "table",
    [
        b"", b"x" * 17, [(3, 40, 0)], [(2**32 - 1, 40, 0)], [(0, 2**22, 1)], [(0, 40, 2**64 - 20)], [(0, 0, 0)],
        [(0, 2**22, 0), (1, 1, 0)], [(0, 40, 0)] * 4097,
    ],
)  # fmt: skip
def test_only_bytes_of_slots_can_be_fetched_and_no_more_than_a_message_holds(table: bytes | list) -> None:
    memory = np.zeros((3, 1, 1024, 1024), np.float32)  # three slots of 4 MiB
    payload = table if isinstance(table, bytes) else np.array(table, remote_slots.PIECES).tobytes()
    with pytest.raises(WireError):
        remote_slots.read_pieces(payload, memory)


def test_steps_that_were_damaged_on_their_way_are_no_batch(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("headrace.online_training.intake_socket.checksum_of", lambda data, name: 1)
    with real_intake(tmp_path, make_layout()) as intake:
        Path(intake.settings.memory.path).unlink()
        with solver(monkeypatch, intake):
            plan(intake, 2)
            with open_feed(intake) as feed, pytest.raises(ConnectionError, match=r"came damaged \(checksum\)"):
                feed.next()


def test_a_batch_smaller_than_the_workers_is_refused_and_a_prefetch_beyond_what_is_drawn_ahead() -> None:
    with pytest.raises(ValueError, match="cannot be dealt to 4 workers"):
        Feed("tcp://127.0.0.1:1", TOKEN, STUDY, num_ranks=4, batch_size=3)
    with pytest.raises(ValueError, match="prefetch 64 is more than an intake draws ahead, 63 batches"):
        Feed("tcp://127.0.0.1:1", TOKEN, STUDY, batch_size=3, prefetch=64)
