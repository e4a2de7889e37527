"""The process between a reservoir and a trainer on a GPU: its memory, its imports, and how it ends."""

import json
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from headrace.online_training.feeder_process import FeederProcess
from headrace.online_training.shared_blocks import SharedBlocks
from tests.online_training.intake_setup import (
    STUDY,
    TOKEN,
    make_layout,
    real_intake,
    wait_until,
)


def open_feeder(intake) -> FeederProcess:
    return FeederProcess(intake.addresses, TOKEN, STUDY, batch_size=4, device="cpu")


def test_a_feeder_that_is_killed_is_an_error_that_says_what_to_do(tmp_path) -> None:
    with real_intake(tmp_path, make_layout()) as intake, open_feeder(intake) as feed:
        threading.Timer(0.2, feed._process.kill).start()
        with pytest.raises(ConnectionError, match="ended, with code -9; the training can go on"):
            feed.next()


def test_a_feeder_ends_with_its_trainer(tmp_path) -> None:
    program = (
        "import os, sys; from headrace.online_training.feeder_process import FeederProcess;"
        f"feed = FeederProcess(sys.argv[1], {TOKEN!r}, {STUDY}, batch_size=4, device='cpu');"
        "print(feed._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    with real_intake(tmp_path, make_layout()) as intake:
        with (tmp_path / "said").open("w") as said:  # a pipe would be read to the end of the feeder, too
            ended = subprocess.run([sys.executable, "-c", program, intake.addresses], stdout=said, check=False)
        assert ended.returncode == -9
        number = int((tmp_path / "said").read_text())

        def gone() -> bool:
            with suppress(psutil.NoSuchProcess):
                return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
            return True

        wait_until(gone, what="the feeder's end")


def test_a_feeder_ends_in_order_after_an_error_of_the_gpu(tmp_path) -> None:
    def broken() -> bool:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with real_intake(tmp_path, make_layout()) as intake:
        feed = open_feeder(intake)
        feed._spent.append(SimpleNamespace(copied=SimpleNamespace(query=broken)))
        feed.close()
        assert feed._process.returncode == 0, "it was told, and not killed after a minute"


def test_no_more_is_in_the_memory_of_a_feeder_than_has_room() -> None:
    layout = make_layout()
    size = 4 * SharedBlocks.size_of(3, layout)
    blocks, taken, written = SharedBlocks(SharedBlocks.create(size), size, layout, indexed=True), deque(), 0
    rng = np.random.default_rng(0)
    for number in range(400):
        rows = int(rng.integers(1, 4))
        steps = int(rng.integers(0, rows * layout.window + 1))
        while (offset := blocks.take(rows, steps)) is None:
            old, value = taken.popleft()
            assert all((part == value).all() for part in old), "a block was written to that was not given back"
            blocks.give_back()
        block = blocks.block(offset, rows, steps)
        parts = (
            block.slots, block.where, block.times, block.parameters, block.content, block.checksums,
            block.table["ticket"],
        )  # fmt: skip
        for part in parts:
            part[...] = number
        taken.append((parts, number))
        written += rows
    assert written > 10 * 4 * 3 and len(taken) >= 2
    with pytest.raises(ValueError, match="14 windows need"):
        blocks.take(14, 28)


def test_it_loads_neither_torch_nor_ray() -> None:
    program = "import sys, json, headrace.online_training.feeder; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    loaded = {name.split(".")[0] for name in json.loads(output)}
    assert "zmq" in loaded and not loaded & {"torch", "ray", "h5py", "scipy", "pandas", "mpi4py"}
