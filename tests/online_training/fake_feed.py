"""A feed without an intake: the same global batches for any number of workers, from u(x, t) = a sin(2πx) exp(-bt)."""

import gc
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from headrace.online_training.checkpoint import latest_checkpoint
from headrace.online_training.client import checksum_of
from headrace.online_training.training_loop import TrainerSettings, train
from headrace.surrogates import MLP, Problem
from headrace.surrogates.files import save_surrogate

POINTS = 16
PROBLEM = Problem(
    case="wave", fields=("u",), shape=(POINTS,), extent=(1.0,), periodic=(True,),
    parameters={"a": (0.5, 1.5), "b": (0.0, 1.0)}, duration=1.0, num_snapshots=20,
)  # fmt: skip


def solution(a, b, t):
    """u on the grid, (..., 1, points), for arrays of parameters and times."""
    a, b, t = (np.asarray(values, dtype=float)[..., None, None] for values in (a, b, t))
    return a * np.sin(2 * np.pi * np.arange(POINTS) / POINTS) * np.exp(-b * t)


class FakeFeed:
    """Batches start, start + 1, ... stop - 1 of a stream of num_batches, cut into slices for the workers.

    poison : the batch whose last window is infinite.
    """

    def __init__(self, num_batches, *, batch_size=16, start=0, stop=None, rank=0, num_ranks=1, poison=None):
        self.num_batches, self.batch_size, self.n = num_batches, batch_size, start
        self.stop = num_batches if stop is None else stop
        self.rank, self.num_ranks, self.poison = rank, num_ranks, poison
        self.starved_seconds = 0.0
        self.released, self.closed, self.steered = [], False, []

    def statistics(self):
        return {"count": 1000, "mean": [0.0], "std": [0.5]}

    def begin_at(self, batch):
        pass

    def next(self):
        if self.n == self.stop:
            return None
        rng = np.random.default_rng([7, self.n])
        # The last batch is smaller and, on two workers, of unequal slices.
        count = self.batch_size if self.n < self.num_batches - 1 else self.batch_size // 2 + 1
        mine = np.array_split(np.arange(count), self.num_ranks)[self.rank]
        simulations, starts = rng.integers(0, 50, count), rng.integers(0, 21, count)
        parameters = np.stack([0.5 + simulations / 50, simulations % 7 / 7], axis=1)
        times = starts[:, None] / 20
        states = solution(parameters[:, :1], parameters[:, 1:], times)
        if self.poison == self.n:
            states[count - 1] = np.inf
        table = np.zeros(count, dtype=[("ticket", "u8"), ("simulation", "u8"), ("attempt", "u4"), ("start", "u4"),
                                       ("first", "u1")])  # fmt: skip
        table["ticket"], table["simulation"] = self.n * 1000 + np.arange(count), simulations
        table["attempt"], table["start"], table["first"] = 1, starts, self.n % 2 == 0
        self.n += 1
        return SimpleNamespace(
            states=states[mine].astype(np.float32), times=times[mine].astype(np.float32),
            parameters=parameters[mine].astype(np.float32), table=table[mine],
            checksums=np.array([[checksum_of(states[row].astype(np.float32), "xxh3")] for row in mine], np.uint32),
            on_device=None,
        )  # fmt: skip

    def before_telling(self):
        pass

    def release(self, draw):
        self.before_telling()
        self.released += draw.table["ticket"].tolist()

    def steer(self, simulation, word, reason):
        self.steered.append((simulation, word, reason))

    def close(self):
        self.closed = True


def settings_for(run, num_batches, **changes):
    """Settings of a training on the fake feed's batches of 16."""
    defaults = {
        "run_dir": str(run), "address": "", "token_file": "", "study": 1, "session": 1, "batch_size": 16,
        "total_windows": 16 * num_batches, "learning_rate": 3e-3, "checkpoint_every": 1e9,
    }  # fmt: skip
    return TrainerSettings(**{**defaults, **changes})


def train_as_worker(rank, meeting, runs):
    """Be one of two workers that train in one (folder, num_batches, start, poison, settings) after the other.

    meeting : a file by which they find each other.
    """
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for folder, num_batches, start, poison, changes in runs:
        settings = settings_for(folder, num_batches, rank=rank, num_ranks=2, generation=2, **changes)
        try:
            train(settings, FakeFeed(num_batches, start=start, rank=rank, num_ranks=2, poison=poison))
        except FloatingPointError as error:
            (Path(folder) / f"error-{rank}").write_text(str(error))
    (Path(meeting).parent / f"modules-{rank}").write_text("\n".join(sys.modules))
    torch.distributed.destroy_process_group()
    # The threads of the group end with its last reference, which cycles in DDP keep: where that is left to the end of
    # the interpreter, a thread that then asks for its lock aborts the process.
    gc.collect()


def connect_mortal(settings):
    """A feed of 30 batches; in generation 1 it kills worker 1 of two, without a word, before batch 15."""
    checkpoint = latest_checkpoint(Path(settings.run_dir) / "checkpoints")
    feed = FakeFeed(
        30, start=checkpoint.state.batch if checkpoint else 0, rank=settings.rank, num_ranks=settings.num_ranks
    )  # fmt: skip
    plain = feed.next

    def mortal_next():
        if settings.generation == 1 and settings.rank == 1 and feed.n == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain()

    feed.next = mortal_next
    return feed


def connect_poisoned(settings):
    """A feed whose batch 4 is infinite."""
    return FakeFeed(10, poison=4)


def make_run(folder: Path, *, hidden=(32, 32)) -> Path:
    """A run directory with an initial model."""
    (folder / "ledger").mkdir(parents=True)
    model = MLP(hidden=hidden)
    model.setup(PROBLEM, seed=3)
    save_surrogate(model, folder / "model-initial")
    return folder
