"""The training loop on a feed without an intake; with two workers; and under Ray Train with a real stream."""

import json
import math
import threading

import numpy as np
import pytest
import torch

from headrace.online_training.checkpoint import checkpoint_folders, latest_checkpoint
from headrace.online_training.client import STOP, Connection, checksum_of
from headrace.online_training.intake import Assignment
from headrace.online_training.layout import StreamLayout
from headrace.online_training.ledger import read_records
from headrace.online_training.metrics_log import last_record, read_metrics
from headrace.online_training.reservoir import Reservoir
from headrace.online_training.slot_memory import SlotMemory
from headrace.online_training.trainer import TrainerDied, _newest_outcome, claim_generation, run_trainer
from headrace.online_training.training_loop import TrainerSettings, train
from headrace.surrogates import MLP, load_surrogate

from .fake_feed import (
    POINTS,
    FakeFeed,
    connect_mortal,
    connect_poisoned,
    make_run,
    settings_for,
    solution,
    train_as_worker,
)
from .intake_setup import PATIENCE, STUDY, running_intake


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="A batch of 16 windows cannot be dealt to 17 workers; enlarge it"):
        settings_for("x", 1, num_ranks=17)
    with pytest.raises(ValueError, match="total_windows 0"):
        settings_for("x", 0)


def test_it_learns_and_keeps_the_records(tmp_path):
    run = make_run(tmp_path)
    feed = FakeFeed(400)
    summary = train(settings_for(run, 400, learning_rate=1e-2), feed)

    windows = 399 * 16 + 9
    assert (summary["batch"], summary["windows"], summary["generation"]) == (400, windows, 1)
    assert feed.closed
    assert len(feed.released) == len(set(feed.released)) == windows

    a, b, times = np.array([[0.7], [1.3]]), np.array([[0.2], [0.9]]), np.linspace(0, 1, 5)
    truth = solution(a, b, times[None])
    found = load_surrogate(run).predict(None, torch.tensor(np.hstack([a, b])), torch.tensor(times)).numpy()
    assert np.linalg.norm(found - truth) < 0.05 * np.linalg.norm(truth)

    record = last_record(run / "metrics.jsonl")
    assert record["batch"] == 400
    assert record["windows"] == windows
    assert record["loss"] == pytest.approx(summary["loss"])
    assert record["samples_per_second"] > 0
    assert 0 <= record["starved"] <= 1
    assert list((run / "tensorboard" / "metrics").iterdir())


class WatchedFeed(FakeFeed):
    """Looks into the ledger file, as a killed process would leave it, whenever windows are released."""

    def __init__(self, path, *args):
        super().__init__(*args)
        self.path, self.expected = path, []

    def release(self, draw):
        table = draw.table
        for row in np.flatnonzero(table["first"]):
            steps = [checksum_of(step, "xxh3") for step in draw.states[row]]
            key = int(table["simulation"][row]), int(table["start"][row]), steps, self.n
            self.expected.append(key)
        self.before_telling()
        found = [(r["s"], r["t"], r["h"], r["n"]) for r in read_records(self.path) if r["e"] == "used" and r["k"] == 1]
        assert found == self.expected
        super().release(draw)


def test_first_uses_are_in_the_ledger_before_the_intake_may_forget_them(tmp_path):
    run = make_run(tmp_path)
    feed = WatchedFeed(run / "ledger" / "trainer-3-7-0.log", 10)
    train(settings_for(run, 10, session=3, generation=7), feed)
    assert len(feed.expected) == 5 * 16  # every other batch is new


def noisy_loss(monkeypatch):
    """Let the loss draw random numbers, as dropout or noise would."""
    plain = MLP.training_loss

    def noisy(self, batch):
        return plain(self, batch) * (1 + torch.rand(len(batch.times)))

    monkeypatch.setattr(MLP, "training_loss", noisy)


def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch):
    noisy_loss(monkeypatch)
    whole, parts = make_run(tmp_path / "whole"), make_run(tmp_path / "parts")
    train(settings_for(whole, 40), FakeFeed(40))
    train(settings_for(parts, 40), FakeFeed(40, stop=25))
    torch.manual_seed(99)  # a new process starts with other random numbers
    summary = train(settings_for(parts, 40, generation=2), FakeFeed(40, start=25))

    assert summary["batch"] == 40
    expected, found = load_surrogate(whole).state_dict(), load_surrogate(parts).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    first, second = latest_checkpoint(whole / "checkpoints"), latest_checkpoint(parts / "checkpoints")
    assert all(torch.equal(first.optimizer[name], second.optimizer[name]) for name in first.optimizer)
    assert second.state.generation == 2
    assert second.state.windows == first.state.windows


def test_it_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path):
    run = make_run(tmp_path)
    for generation, stop in ((1, 10), (2, 20)):
        train(settings_for(run, 40, generation=generation), FakeFeed(40, start=stop - 10, stop=stop))
    newest = checkpoint_folders(run / "checkpoints")[0]
    (newest / "model.safetensors").write_bytes(b"damaged")
    summary = train(settings_for(run, 40, generation=3), FakeFeed(40, start=10, stop=15))
    assert summary["batch"] == 15
    # The damaged one is gone: else it would count as the newer of the two that are kept.
    assert [path.name for path in checkpoint_folders(run / "checkpoints")] == ["batch-00000015", "batch-00000010"]


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_simulation(tmp_path):
    run = make_run(tmp_path)
    train(settings_for(run, 40), FakeFeed(40, stop=10))
    poisoned = FakeFeed(40, start=12, stop=13, poison=12).next().table["simulation"][-1]
    message = rf"batch 13 .*simulations {poisoned};.*Batch 10 is the last checkpoint"
    with pytest.raises(FloatingPointError, match=message):
        train(settings_for(run, 40, generation=2), FakeFeed(40, start=10, poison=12))
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint.state.batch == 10
    assert all(torch.isfinite(values).all() for values in checkpoint.model.values())


def test_checkpoints_come_by_the_clock(tmp_path):
    run = make_run(tmp_path)
    train(settings_for(run, 30, checkpoint_every=1e-9), FakeFeed(30))
    assert [path.name for path in checkpoint_folders(run / "checkpoints")] == ["batch-00000030", "batch-00000029"]
    batches = [record["batch"] for record in read_metrics(run / "metrics.jsonl")]
    assert batches == list(range(1, 31))  # a checkpoint is never written before its losses were looked at


def test_a_stream_that_ends_at_once_leaves_what_is_there(tmp_path):
    run = make_run(tmp_path)
    summary = train(settings_for(run, 10), FakeFeed(10, stop=0))
    assert summary["batch"] == 0
    assert not (run / "model").exists()
    train(settings_for(run, 10, generation=2), FakeFeed(10))
    before = (run / "model" / "model.safetensors").read_bytes()
    summary = train(settings_for(run, 10, generation=3), FakeFeed(10, start=10))
    assert summary["batch"] == 10
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_two_workers_do_what_one_does_on_the_same_global_batches(tmp_path):
    """Also from a checkpoint that one worker left, and with a last batch that cannot be halved."""
    alone, together, bad = (make_run(tmp_path / name) for name in ("alone", "together", "bad"))
    always = {"checkpoint_every": 1e-9}  # and so a record of every batch
    for run in (alone, together):
        train(settings_for(run, 30), FakeFeed(30, stop=10))
    train(settings_for(alone, 30, generation=2, **always), FakeFeed(30, start=10))
    runs = [(str(together), 30, 10, None, always), (str(bad), 10, 0, 4, {})]
    # Both are forked from a process that has imported torch and done nothing with it.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([train_as_worker.__module__])
    torch.multiprocessing.start_processes(
        train_as_worker, args=(str(tmp_path / "meeting"), runs), nprocs=2, start_method="forkserver"
    )

    one, two = (
        {record["batch"]: record["loss"] for record in read_metrics(run / "metrics.jsonl")} for run in (alone, together)
    )
    assert two == pytest.approx(one, rel=1e-5)
    assert set(range(11, 31)) <= set(two)
    assert last_record(together / "metrics.jsonl")["windows"] == 29 * 16 + 9
    expected, found = load_surrogate(alone).state_dict(), load_surrogate(together).state_dict()
    assert all(torch.allclose(expected[name], found[name], rtol=1e-5, atol=1e-5) for name in expected)
    # The worker that saw no bad window stops with the same words as the one that did.
    errors = {(bad / f"error-{rank}").read_text() for rank in (0, 1)}
    assert len(errors) == 1
    assert "batch 5 is not finite" in errors.pop()
    assert len(list((together / "ledger").glob("trainer-1-2-[01].log"))) == 2
    loaded = [(tmp_path / f"modules-{rank}").read_text().split() for rank in (0, 1)]
    assert not any("torch._dynamo" in modules for modules in loaded), "torch's compiler stays out"


def test_several_workers_need_torch_distributed(tmp_path):
    with pytest.raises(RuntimeError, match=r"2 workers needs torch\.distributed set up for as many; it connects 0"):
        train(settings_for(make_run(tmp_path), 10, num_ranks=2), FakeFeed(10))


def test_generations_are_claimed_once(tmp_path):
    assert [claim_generation(tmp_path) for _ in range(3)] == [1, 2, 3]
    (tmp_path / "generations" / "3.json").write_text("{}")
    assert claim_generation(tmp_path) == 4


def test_the_outcome_is_that_of_the_sessions_own_trainer(tmp_path):
    for session in (1, 2, 1):  # a worker of session 1 started once more before it found its intake gone
        generation = claim_generation(tmp_path, session)
        (tmp_path / "generations" / f"{generation}.json").write_text(json.dumps({"batch": generation}))
    assert _newest_outcome(settings_for(tmp_path, 1, session=2)) == {"batch": 2}
    claim_generation(tmp_path, 2)
    with pytest.raises(TrainerDied, match="generation 4 was cut short"):
        _newest_outcome(settings_for(tmp_path, 1, session=2))


def test_settings_travel_as_plain_data():
    settings = settings_for("x", 10)
    assert TrainerSettings(**json.loads(json.dumps(vars(settings)))) == settings
    assert math.isfinite(settings.learning_rate)


def solve_all(num_steps):
    """A persistent job of one process: u(x, t) of the fake feed, for every simulation that the intake gives out."""
    with Connection({"u": (POINTS,)}) as connection:
        for stream in connection.simulations():
            with stream:
                for step in range(num_steps):
                    t = step / 20
                    word = stream.send(step=step, time=t, values=solution(stream.parameters.a, stream.parameters.b, t))
                    if word == STOP:
                        break


@pytest.fixture
def live(tmp_path, monkeypatch):
    """A run with an intake whose reservoir holds half of what its 12 simulations of 21 steps will send."""
    run = make_run(tmp_path / "run")
    layout = StreamLayout(fields=("u",), shape=(POINTS,), num_steps=21, window=1, parameters=("a", "b"))
    memory = SlotMemory.create("trainer-test", layout, 128 * layout.step_bytes, folder=tmp_path)
    buffer = Reservoir(128, 1, watermark=32, seed=1)
    with running_intake(run, layout, buffer=buffer, memory=memory, views=5.0, batch_size=16) as intake:
        for name, value in intake.environment.items():
            monkeypatch.setenv(name, value)
        yield run, intake


def live_settings(run, intake, **changes):
    changes = {"learning_rate": 1e-2, "study": STUDY, "token_file": str(run / "token"), **changes}
    return settings_for(run, 12 * 21 * 5 // 16, address=intake.addresses, **changes)


def test_it_trains_from_a_live_stream_and_the_ledgers_agree(live):
    run, intake = live
    rng = np.random.default_rng(0)
    intake.plan(
        Assignment(simulation=n, parameters={"a": rng.uniform(0.5, 1.5), "b": rng.uniform(0, 1)}) for n in range(12)
    )
    intake.all_planned()
    solver = threading.Thread(target=solve_all, args=(21,))
    solver.start()
    summary = train(live_settings(run, intake))
    solver.join(PATIENCE)
    assert summary["windows"] >= 12 * 21 * 5 * 0.9
    intake.close()

    accepted = {(r["s"], r["t"]): r["h"] for r in read_records(run / "ledger" / "intake-1.log") if r["e"] == "step"}
    used = [((r["s"], r["t"]), *r["h"]) for r in read_records(run / "ledger" / "trainer-1-1-0.log")]
    assert len(accepted) == len(used) == 12 * 21
    assert dict(used) == accepted  # every step once, with the bytes that the intake received
    assert read_metrics(run / "metrics.jsonl")[-1]["loss"] < 0.5


def test_a_stop_before_the_first_batch_ends_in_order(live):
    run, intake = live
    threading.Timer(0.3, intake.request_stop).start()
    assert train(live_settings(run, intake))["batch"] == 0
    assert not (run / "checkpoints").exists()


@pytest.mark.ray
def test_what_would_fail_again_is_not_repeated(tmp_path, ray_here):
    run = make_run(tmp_path)
    with pytest.raises(RuntimeError, match=r"batch 5 is not finite, on windows of the simulations \d+;"):
        run_trainer(settings_for(run, 10), 1, 3, connect=connect_poisoned)
    assert not (run / "generations" / "2").exists()


@pytest.mark.ray
def test_ray_train_restarts_killed_workers_from_their_checkpoint(tmp_path, ray_here):
    """As many workers as there is room for: half a CPU each, and Ray was told of one."""
    run, alone = make_run(tmp_path / "mortal"), make_run(tmp_path / "alone")
    summary = run_trainer(settings_for(run, 30, checkpoint_every=1e-9), (1, 8), 1, connect=connect_mortal)
    assert (summary["batch"], summary["windows"], summary["generation"]) == (30, 29 * 16 + 9, 2)
    for generation in (1, 2):
        assert len(list((run / "ledger").glob(f"trainer-1-{generation}-*.log"))) == 2
    train(settings_for(alone, 30), FakeFeed(30))
    expected, found = load_surrogate(alone).state_dict(), load_surrogate(run).state_dict()
    assert all(torch.allclose(expected[name], found[name], rtol=1e-5, atol=1e-5) for name in expected)
