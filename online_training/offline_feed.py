"""The feed of a training from disk: shuffled epochs of a data set, gathered ahead by processes or a thread."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from .client import Word
from .feed import Draw
from .offline_data import OfflineData

_TABLE = [("ticket", "u8"), ("simulation", "u8"), ("attempt", "u4"), ("start", "u4"), ("first", "u1")]


def batches_of(num_windows: int, views: float, batch_size: int, seed: int, *, first: int = 0) -> Iterator[np.ndarray]:
    """Yield batches of window rows: every window once per epoch, each epoch a permutation keyed by (seed, epoch).

    Batches run across the ends of epochs, so that all but the very last one are full; num_windows·views in all.

    first : number of the batch to begin with, for a training that goes on.
    """
    total = round(num_windows * views)
    orders: dict[int, np.ndarray] = {}
    for begin in range(first * batch_size, total, batch_size):
        uses = np.arange(begin, min(begin + batch_size, total))
        epochs, places = np.divmod(uses, num_windows)
        for epoch in np.unique(epochs):
            if epoch not in orders:
                orders = {e: order for e, order in orders.items() if e >= epoch - 1}
                orders[epoch] = np.random.default_rng([seed, int(epoch)]).permutation(num_windows)
        yield np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])


class OfflineFeed:
    """What `Feed` is to a stream: batches of windows for one worker of the training loop, from a data set.

    Parameters
    ----------
    views : epochs; 2.5 uses half of the windows a third time.
    processes : that gather ahead of need, each with files and mappings of its own; 0: one thread.
    seconds : after so long the stream ends, whatever is left; None: never.
    """

    def __init__(
        self, data: OfflineData, *, batch_size: int, views: float, seed: int = 0, rank: int = 0, num_ranks: int = 1,
        processes: int = 0, seconds: float | None = None,
    ) -> None:  # fmt: skip
        self._data, self._batch_size, self._views, self._seed = data, batch_size, views, seed
        self._rank, self._num_ranks = rank, num_ranks
        self._pool: ProcessPoolExecutor | ThreadPoolExecutor
        if processes:
            # Fresh processes: a fork of one with MPI, threads or CUDA is not safe.
            self._pool = ProcessPoolExecutor(
                processes, mp_context=get_context("spawn"), initializer=_open, initargs=(data,)
            )
        else:
            self._pool = ThreadPoolExecutor(
                1, thread_name_prefix="headrace-gather", initializer=_open, initargs=(data,)
            )
        self._prefetch = max(2, 2 * processes)
        self._stop = threading.Event()
        self._deadline = math.inf if seconds is None else time.monotonic() + seconds
        self.starved_seconds = 0.0
        self.begin_at(0)

    def statistics(self) -> dict[str, Any]:
        """Return {"count", "mean", "std"} of the whole data set."""
        return self._data.statistics()

    def begin_at(self, batch: int) -> None:
        """Go on with a batch number, as after a restart from a checkpoint."""
        self._batch = batch
        self._rows = batches_of(len(self._data), self._views, self._batch_size, self._seed, first=batch)
        self._ahead: list[tuple[int, Future[dict[str, np.ndarray]]]] = []
        self._exhausted = False

    def stop(self) -> None:
        """End the stream after the current batch; from any thread."""
        self._stop.set()

    def next(self) -> Draw | None:
        """Return this worker's slice of the next batch; None at the end."""
        began = time.monotonic()
        self._fill()
        if self._stop.is_set() or began > self._deadline or not self._ahead:
            return None
        batch, future = self._ahead.pop(0)
        content = future.result()
        self._fill()
        self.starved_seconds += time.monotonic() - began
        table = np.zeros(len(content["start"]), _TABLE)
        table["simulation"], table["start"], table["attempt"] = content["simulation"], content["start"], 1
        self._batch = batch + 1
        return Draw(
            states=content["states"], times=content["times"], parameters=content["parameters"], table=table,
            checksums=np.zeros(content["states"].shape[:2], np.uint32),
        )  # fmt: skip

    def release(self, draw: Draw) -> None:
        """Do nothing: nobody waits for room."""

    def steer(self, simulation: int, word: Word, reason: str) -> None:
        """Do nothing: the simulations of a data set have ended."""

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self) -> None:
        while not self._exhausted and len(self._ahead) <= self._prefetch:
            rows = next(self._rows, None)
            if rows is None:
                self._exhausted = True
                return
            # Slices of equal length, as those of a stream: the last batch may repeat a few windows.
            share = -(-len(rows) // self._num_ranks)
            mine = np.resize(rows, share * self._num_ranks).reshape(self._num_ranks, share)[self._rank]
            self._ahead.append((self._batch + len(self._ahead), self._pool.submit(_gather, mine)))


_opened = threading.local()
"""The data set of this gathering thread or process."""


def _open(data: OfflineData) -> None:
    _opened.data = data


def _gather(rows: np.ndarray) -> dict[str, np.ndarray]:
    return _opened.data.gather(rows)
