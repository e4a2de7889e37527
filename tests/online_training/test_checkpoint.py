"""Checkpoints: bitwise round trips, detection of any damage, full disks and killed writers."""

import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch

from headrace.online_training.checkpoint import (
    MODEL,
    OPTIMIZER,
    STATE,
    TrainingState,
    checkpoint_folders,
    discard_newer,
    folder_name,
    latest_batch,
    latest_checkpoint,
    optimizer_settings,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
)


def network(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)


def steps(model, optimizer, first, last):
    for n in range(first, last):
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(n))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()


def state(batch, optimizer, windows=0):
    return TrainingState(
        batch=batch, windows=windows, generation=1, learning_rate=0.1 + 0.2, random={"seed": 5, "counter": batch},
        optimizer=optimizer_settings(optimizer),
    )  # fmt: skip


def save(folder, batch, model, optimizer):
    return save_checkpoint(folder, state(batch, optimizer, 8 * batch), model=model, optimizer=optimizer)


@pytest.fixture
def two(tmp_path):
    """A folder with the checkpoints of batches 3 and 6."""
    model, optimizer = network()
    for first in (0, 3):
        steps(model, optimizer, first, first + 3)
        save(tmp_path, first + 3, model, optimizer)
    return tmp_path


def test_a_training_that_goes_on_from_a_checkpoint_has_the_same_bits(tmp_path):
    model, optimizer = network()
    steps(model, optimizer, 0, 4)
    save(tmp_path, 4, model, optimizer)
    steps(model, optimizer, 4, 9)

    other, other_optimizer = network(seed=1)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint.state == state(4, optimizer, 32)
    other.load_state_dict(checkpoint.model)
    restore_optimizer(checkpoint, other, other_optimizer)
    steps(other, other_optimizer, 4, 9)

    for (name, expected), found in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(expected, found), name
    moments = zip(optimizer.state_dict()["state"].values(), other_optimizer.state_dict()["state"].values(), strict=True)
    assert all(torch.equal(a[key], b[key]) for a, b in moments for key in ("step", "exp_avg", "exp_avg_sq"))


def test_the_two_newest_stay(two):
    model, optimizer = network()
    save(two, 10, model, optimizer)
    assert [path.name for path in checkpoint_folders(two)] == [folder_name(10), folder_name(6)]


@pytest.mark.parametrize("name", [STATE, MODEL, OPTIMIZER])
@pytest.mark.parametrize("damage", ["cut", "missing", "empty"])
def test_damage_is_named_and_the_checkpoint_before_is_taken(two, name, damage, caplog):
    file = two / folder_name(6) / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with pytest.raises(ValueError, match=name):
        read_checkpoint(file.parent)
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(two).state.batch == latest_batch(two) == 3
    assert name in caplog.text
    assert folder_name(6) in caplog.text


def test_every_flipped_bit_is_found(two):
    generator = random.Random(0)
    for name in (STATE, MODEL, OPTIMIZER):
        file = two / folder_name(6) / name
        content = file.read_bytes()
        for _ in range(40):
            flipped = bytearray(content)
            flipped[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            file.write_bytes(flipped)
            try:
                found = read_checkpoint(file.parent).state
            except ValueError:
                continue
            # Harmless is only what leaves the meaning as it was: the kind of white space between JSON's tokens.
            file.write_bytes(content)
            assert name == STATE
            assert found == read_checkpoint(file.parent).state
        file.write_bytes(content)
    assert read_checkpoint(two / folder_name(6)).state.batch == 6


def test_where_all_are_damaged_nothing_is_made_up(two):
    for folder in checkpoint_folders(two):
        (folder / MODEL).write_bytes(b"x")
    for look in (latest_checkpoint, latest_batch):
        with pytest.raises(ValueError, match=r"batch-00000006.*batch-00000003.*Restore one from a copy"):
            look(two)


def test_without_checkpoints_there_is_none(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None
    assert latest_batch(tmp_path) == 0


def test_a_newer_format_is_refused_and_not_skipped(two, monkeypatch):
    model, optimizer = network()
    monkeypatch.setattr("headrace.online_training.checkpoint.FORMAT", 2)
    save(two, 9, model, optimizer)
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match=r"format 2.*Update headrace"):
        latest_checkpoint(two)


def test_a_full_disk_leaves_the_earlier_checkpoints_and_nothing_half_written(two):
    model, optimizer = network()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # the kernel refuses to write more into one file
    try:
        with pytest.raises(OSError, match=r"checkpoint of batch 9 .* earlier ones are untouched.*batch-00000009"):
            save(two, 9, model, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in two.iterdir()) == [folder_name(3), folder_name(6)]
    assert latest_checkpoint(two).state.batch == 6


def test_what_a_killed_writer_left_is_ignored_and_cleared(two):
    (two / ".batch-00000008.tmp").mkdir()
    (two / ".batch-00000008.tmp" / MODEL).write_bytes(b"half")
    assert latest_checkpoint(two).state.batch == 6
    model, optimizer = network()
    save(two, 9, model, optimizer)
    assert sorted(path.name for path in two.iterdir()) == [folder_name(6), folder_name(9)]


def test_a_training_that_went_back_overwrites_its_given_up_past(two):
    discard_newer(two, 3)
    assert [path.name for path in checkpoint_folders(two)] == [folder_name(3)]
    model, optimizer = network(seed=4)
    save(two, 3, model, optimizer)
    assert torch.equal(latest_checkpoint(two).model["0.weight"], model[0].weight)


def test_moments_of_another_model_are_refused(two):
    other = torch.nn.Sequential(torch.nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"2\.weight|2\.bias"):
        restore_optimizer(latest_checkpoint(two), other, torch.optim.Adam(other.parameters()))
    model, _ = network()
    with pytest.raises(ValueError, match="optimiser Adam; this training uses SGD"):
        restore_optimizer(latest_checkpoint(two), model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_weights_that_share_memory_are_saved(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    save(tmp_path, 1, model, torch.optim.Adam(model.parameters()))
    assert torch.equal(latest_checkpoint(tmp_path).model["1.weight"], model[0].weight)


_WRITER = """
import sys, torch
from headrace.online_training.checkpoint import TrainingState, save_checkpoint
model = torch.nn.Linear(100, 100)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in range(1, 10**6):
    model.weight.data.fill_(batch)
    state = TrainingState(batch=batch, windows=batch, generation=1, learning_rate=0.1, random={}, optimizer={})
    save_checkpoint(sys.argv[1], state, model=model, optimizer=optimizer)
"""


def test_readers_and_kill_9_never_see_a_torn_checkpoint(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], env=environment)
    try:
        seen, deadline = set(), time.monotonic() + 240
        while len(seen) < 15 and time.monotonic() < deadline:
            checkpoint = latest_checkpoint(tmp_path)
            if checkpoint is None:
                time.sleep(0.05)
            else:
                assert (checkpoint.model["weight"] == checkpoint.state.batch).all()
                seen.add(checkpoint.state.batch)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert len(seen) >= 15
    last = latest_checkpoint(tmp_path)
    assert last.state.batch >= max(seen)
    assert (last.model["weight"] == last.state.batch).all()


def test_state_is_plain_json(two):
    content = json.loads((two / folder_name(6) / STATE).read_text())
    assert content["state"]["optimizer"]["name"] == "Adam"
    assert set(content["checksums"]) == {MODEL, OPTIMIZER}
