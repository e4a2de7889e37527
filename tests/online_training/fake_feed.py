"""A feed without an intake: the same global batches for any number of workers, from u(x, t) = a sin(2πx) exp(-bt)."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

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
    """Batches start, start + 1, ... num_batches - 1 of `batch_size` windows, cut into equal slices (np.array_split)."""

    def __init__(self, num_batches, *, batch_size=16, start=0, rank=0, num_ranks=1, poison=None, first=True):
        self.num_batches, self.batch_size, self.n = num_batches, batch_size, start
        self.rank, self.num_ranks, self.poison, self.first = rank, num_ranks, poison, first
        self.starved_seconds = 0.0
        self.released, self.closed = [], False

    def statistics(self):
        return {"count": 1000, "mean": [0.0], "std": [0.5]}

    def next(self):
        if self.n == self.num_batches:
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
        table["attempt"], table["start"], table["first"] = 1, starts, self.first
        self.n += 1
        return SimpleNamespace(
            states=states[mine].astype(np.float32), times=times[mine].astype(np.float32),
            parameters=parameters[mine].astype(np.float32), table=table[mine],
        )  # fmt: skip

    def release(self, draw):
        self.released += draw.table["ticket"].tolist()

    def close(self):
        self.closed = True


def make_run(folder: Path, *, hidden=(32, 32)) -> Path:
    """A run directory with an initial model."""
    (folder / "ledger").mkdir(parents=True)
    model = MLP(hidden=hidden)
    model.setup(PROBLEM, seed=3)
    save_surrogate(model, folder / "model-initial")
    return folder
