"""Asks the intake for a worker's batches ahead of need, several together, and says where their steps lie."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import zmq

from .client import Header, Kind, Link, WireError, Word, checksum_of
from .draws import batch_dtype
from .layout import StreamLayout
from .remote_slots import RemoteSlots
from .slot_memory import SlotMemory

logger = logging.getLogger(__name__)

AHEAD_SECONDS = 0.010
RELEASE_SECONDS = 0.005
_LEAST_AHEAD, _MOST_AHEAD = 2, 48
_AHEAD_BYTES = 16 * 2**20
_PARTS = 3
"""Of what is ahead: one is drawn, one on its way, one trained on; of more the requests alone would take the time."""


Take = Callable[[int, np.ndarray, int, np.ndarray, np.ndarray], None]
"""What is to be done with some batches that came: see `Supply`."""


class _TrainerLink(Link):
    """Where a solver's process ends with its lease, a trainer must be able to say why it stops."""

    _both: zmq.Poller | None = None

    @property
    def has_message(self) -> bool:
        """Whether one is here; a tenth of the price of finding out by `receive`."""
        return bool(self._socket.get(zmq.EVENTS) & zmq.POLLIN)

    def wait_beside(self, descriptor: int, timeout: float) -> None:
        """Wait until a message is there, or something can be read from a file, or the time in seconds is over."""
        if self._both is None:
            # Another poller than that of `send`, which waits for room only, whatever else is to be read.
            self._both = zmq.Poller()
            for one in (self._socket, self._monitor, descriptor):
                self._both.register(one, zmq.POLLIN)
        if any(one is self._monitor for one, _ in self._both.poll(int(1000 * timeout))):
            self.watch()

    def _expire(self) -> None:
        self.lost = f"the intake at {self.address} was silent for {self.lease:g} s"


class Supply:
    """A worker's batches from the intake, in the same order and number for all workers. Not thread-safe.

    Where it may hold more than two batches ahead, it asks for several at a time, which are drawn, sent and gathered
    together, and says of several at a time that they were used, some milliseconds late or when somebody waits for a
    batch: small batches are for quick models. Batches of more than 16 MiB come one by one.

    On the intake's node the reservoir is mapped; on another one each step of a batch is fetched from the intake, once
    for the batches that come together.

    An intake that is gone is not waited for: what it held went with it, and answers may have been lost on the way.

    take : (index, table, count, steps, where) takes over `count` batches of one length whose records are in one table
        and of which `index` is the first. steps (any number, fields, *grid), of which where (records, window) names
        those of each window; they stay as they are until the draws are released. Called by `receive`, and not always
        in the order of the batches.
    prefetch : None: as many as are wanted in 10 ms, so that a new sample waits no longer than that for what was drawn
        before it came; 2 to 48, no more than have 16 MiB here and a quarter of the reservoir in all workers.

    The other parameters and what is raised are those of `Feed`.
    """

    def __init__(  # noqa: PLR0913
        self, take: Take, address: str, token: bytes, study: int, *, rank: int,
        num_ranks: int, generation: int, batch_size: int, prefetch: int | None,
    ) -> None:  # fmt: skip
        self._take, self._rank, self._num_ranks, self._batch_size = take, rank, num_ranks, batch_size
        hello = {"role": "trainer", "job": "trainer", "rank": rank, "ranks": num_ranks, "generation": generation}
        self.link = _TrainerLink(address, token, study, hello=hello)
        try:
            welcome = self.link.join()
            self.layout = _layout_of(welcome)
            self.num_slots = welcome["num_slots"]
            self.large = is_large(self.layout, batch_size, num_ranks)
            most = most_ahead(self.layout, batch_size, num_ranks, self.num_slots)
            self.most_ahead = most if prefetch is None else prefetch
            self._adapts = prefetch is None and self.most_ahead > _LEAST_AHEAD
            self.prefetch = _LEAST_AHEAD if prefetch is None else prefetch
            self._memory = self._attach(welcome)
        except BaseException:
            self.link.close()
            raise
        self._remote = RemoteSlots(self.link, self.layout) if self._memory is None else None
        self._fetched: dict[int, tuple[np.ndarray, int]] = {}
        self.records = batch_dtype(self.layout.window, len(self.layout.parameters))
        self._next = self._asked = 0
        self.choose: Callable[[int, np.ndarray], np.ndarray] = lambda index, table: table["slots"]
        """(index, table) -> the slots whose steps `take` is to be given, in `where`; called in the batches' order."""
        self.before_telling: Callable[[], None] = lambda: None
        """Called before the intake is told what was used."""
        self._used: list[np.ndarray] = []  # tickets of used batches that the intake has not been told of
        self._released = time.monotonic()
        self.end: int | None = None
        """Number of the first batch that will not come; None where that is not known."""
        self.statistics: dict[str, Any] | None = None
        """The normaliser's, some time after they were asked for."""
        self._closed = False

    @property
    def together(self) -> int:
        """Batches that are asked for, and given back, at a time."""
        return max(1, self.prefetch // _PARTS)

    def ask_statistics(self) -> None:
        """Let the intake send the statistics as soon as they are frozen."""
        self.link.send(Kind.STATISTICS)

    def want(self, batch: int, pace: float) -> None:
        """See that a batch and `prefetch` more are on their way, but for less than are asked together.

        pace : seconds from one batch to the next of late, waiting for it too: where data is scarce, the newest is
            drawn. As many batches are held ahead as are trained on in AHEAD_SECONDS, within their bounds.
        """
        self._next = batch
        if self._adapts:
            self.prefetch = max(_LEAST_AHEAD, min(self.most_ahead, int(AHEAD_SECONDS / max(pace, 1e-6))))
        count = self.prefetch + 1 - (self._asked - batch)
        # After a pause more at a time, which costs less, but not all: what is first of many would wait for the last.
        while self.end is None and count >= self.together:
            at_once = 1 if self.large else min(count, 2 * self.together)
            self.link.send(
                Kind.DRAW, {"batch": self._batch_size, "count": at_once},
                value=self._asked, block=self._rank, num_blocks=self._num_ranks,
            )  # fmt: skip
            self._asked += at_once
            count -= at_once

    def release(self, tickets: np.ndarray) -> None:
        """Say of a batch that it was used, so that its windows may be replaced."""
        self._used.append(tickets)
        late = time.monotonic() - self._released > RELEASE_SECONDS
        if late or len(self._used) >= self.together:
            self.send_released()

    def send_released(self) -> None:
        """Tell the intake now what was used."""
        if self._used:
            self.before_telling()
            self.link.send(Kind.RELEASE, np.concatenate(self._used).tobytes())
            self._used.clear()
            self._released = time.monotonic()

    def steer(self, simulation: int, word: Word, reason: str) -> None:
        """Let the intake say a word to a running simulation, with the acknowledgement of its next step."""
        self.link.send(Kind.STEER, {"reason": reason[:2000]}, simulation=simulation, value=int(word))

    def take_all(self) -> None:
        """Take the messages that are here.

        Raises
        ------
        ConnectionError : the intake is gone.
        """
        while self.link.has_message or self.link.lost is not None:
            self.receive(0.0)

    def receive(self, timeout: float) -> bool:
        """Take one message; say whether one came in time.

        Raises
        ------
        ConnectionError : the intake is gone.
        """
        message = self.link.receive(timeout)
        if message is None:
            if self.link.lost is not None:
                raise ConnectionError(
                    f"The stream broke: {self.link.lost}. The training can go on from its last checkpoint: start it "
                    "again with --resume."
                )
            return False
        header, payload = message
        if header.kind == Kind.STATISTICS_ARE:
            self.statistics = json.loads(payload)
        elif header.kind == Kind.BATCH:
            self._take_batch(header, payload)
        elif header.kind == Kind.CONTENT and self._remote is not None:
            self._take_content(header, payload)
        return True

    def close(self) -> None:
        """Leave the intake and unmap the reservoir; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.send_released()
        self.link.close()
        if self._memory is not None:
            self._memory.close()

    def _attach(self, welcome: Mapping[str, Any]) -> SlotMemory | None:
        """Map the reservoir; None where it is on another node, or in another container of this one."""
        if not welcome["here"]:
            return None
        try:
            return SlotMemory.attach(welcome["path"], self.layout, welcome["num_slots"])
        except FileNotFoundError as error:
            logger.info("%s. Steps are fetched from the intake instead.", error)
            return None

    def _take_batch(self, header: Header, payload: bytes) -> None:
        if header.num_blocks == 0:
            self.end = header.value if self.end is None else min(self.end, header.value)
            return
        table = np.frombuffer(payload, self.records)
        if len(table) and table["slots"].max() >= self.num_slots:
            raise RuntimeError(f"Batch {header.value} names slot {table['slots'].max()}, which the reservoir has not.")
        count = max(1, header.step)
        if len(table) % count:
            raise RuntimeError(f"Batch {header.value} comes as {count} batches in {len(table)} records.")
        slots = self.choose(header.value, table)
        if self._remote is None:
            self._take(header.value, table, count, self._memory.array, slots)
        elif not slots.size:
            self._take(header.value, table, count, np.empty((0, *self.layout.step_shape), np.float32), slots)
        else:
            self._fetched[header.value] = table, count
            self._remote.fetch(header.value, slots)

    def _take_content(self, header: Header, payload: bytes) -> None:
        try:
            complete = self._remote.take(header, payload)
        except WireError as error:
            raise ConnectionError(
                f"Steps from the intake at {self.link.address} came damaged ({error}). The training goes on from its "
                "last checkpoint."
            ) from error
        if complete is not None:
            index, steps, where = complete
            self._take(index, *self._fetched.pop(index), steps, where)


def is_large(layout: StreamLayout, batch_size: int, num_ranks: int) -> bool:
    """Whether a worker's slices of batches come one by one."""
    return _slice_bytes(layout, batch_size, num_ranks) > _AHEAD_BYTES


def most_ahead(layout: StreamLayout, batch_size: int, num_ranks: int, num_slots: int) -> int:
    """Return how many batches a worker may hold ahead; all workers hold their slots."""
    in_memory = _AHEAD_BYTES // _slice_bytes(layout, batch_size, num_ranks)
    return max(_LEAST_AHEAD, min(_MOST_AHEAD, in_memory, num_slots // (4 * batch_size * layout.window)))


def _slice_bytes(layout: StreamLayout, batch_size: int, num_ranks: int) -> int:
    return -(-batch_size // num_ranks) * layout.window * layout.step_bytes


class Pace:
    """Seconds from one batch to the next of late, as a worker wants them; one pause counts as two of these at most."""

    def __init__(self) -> None:
        self.seconds = AHEAD_SECONDS
        self._began: float | None = None

    def tick(self, now: float) -> float:
        """Note that a batch is wanted now; return the seconds since the one before, 0 before the first."""
        if self._began is None:
            self._began = now
            return 0.0
        passed, self._began = now - self._began, now
        self.seconds += 0.1 * (min(passed, 2 * self.seconds) - self.seconds)
        return passed


def take_steps(steps: np.ndarray, where: np.ndarray, out: np.ndarray) -> None:
    """Copy the steps that `where` names, of any shape, to `out`, (*where, fields, *grid)."""
    # Checked indices may be clipped, which spares numpy a copy through a buffer; the copy runs without the GIL.
    np.take(steps, where, axis=0, out=out, mode="clip")


def gather(table: np.ndarray, steps: np.ndarray, where: np.ndarray, states: np.ndarray, checksums: np.ndarray) -> None:
    """Gather the windows of records, and the checksum of each step of those that were never used before.

    table : (records,). steps : (any number, fields, *grid). where : (records, window), indices of steps.
    states : (records, window, fields, *grid), is filled. checksums : (records, window), zero; filled where first.
    """
    take_steps(steps, where, states)
    # Here and not in the training loop: there is time while the trainer works.
    for row in np.flatnonzero(table["first"]):
        checksums[row] = [checksum_of(step, "xxh3") for step in states[row]]


def _layout_of(welcome: dict[str, Any]) -> StreamLayout:
    fields = welcome["fields"]
    return StreamLayout(
        fields=tuple(field["name"] for field in fields), shape=tuple(fields[0]["shape"]), dtype=fields[0]["dtype"],
        num_steps=welcome["num_steps"], window=welcome["window"], parameters=tuple(welcome["parameters"]),
    )  # fmt: skip
