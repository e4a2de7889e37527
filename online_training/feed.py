"""A trainer worker's side of the stream: draws batches ahead of need, several together, and gathers them."""

from __future__ import annotations

import functools
import json
import logging
import math
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from .client import Header, Kind, Link, WireError, Word, checksum_of
from .draws import batch_dtype
from .layout import StreamLayout
from .remote_slots import RemoteSlots
from .slot_memory import SlotMemory

if TYPE_CHECKING:
    from .device_blocks import OnDevice

logger = logging.getLogger(__name__)

_LEAST_AHEAD, _MOST_AHEAD = 2, 48
_AHEAD_BYTES = 16 * 2**20
_AHEAD_SECONDS = 0.010
_RELEASE_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class Draw:
    """This worker's slice of one batch, in memory that the reservoir does not share, but batches that came with it do.

    states : (batch, window, fields, *grid), float32.
    times : (batch, window), float64.
    parameters : (batch, number of parameters), float64, in the order of the study's names.
    table : (batch,) records with ticket, simulation, attempt, start and first (1: never used before).
    checksums : (batch, window), XXH3 of each step of the windows that were never used before; else 0.
    on_device : states, times and parameters on a GPU, where the feed has sent them there.
    """

    states: np.ndarray
    times: np.ndarray
    parameters: np.ndarray
    table: np.ndarray
    checksums: np.ndarray
    on_device: OnDevice | None = None


class _TrainerLink(Link):
    """Where a solver's process ends with its lease, a trainer must be able to say why it stops."""

    @property
    def has_message(self) -> bool:
        """Whether one is here; a tenth of the price of finding out by `receive`."""
        return bool(self._socket.get(zmq.EVENTS) & zmq.POLLIN)

    def _expire(self) -> None:
        self.lost = f"the intake at {self.address} was silent for {self.lease:g} s"


class Feed:
    """Batches of windows from the intake, in the same order and number for all workers.

    While the trainer works on one batch, the next `prefetch` are asked for and, as soon as the intake has answered,
    gathered by a thread; the trainer itself never waits for a solver unless no batch is there. The worker holds no
    more than prefetch + 1 batches. Where it may hold more than two ahead, it asks for several at a time, which are
    drawn, sent, gathered and copied together, and says of several at a time that they were used, some milliseconds
    late or when the next batch was used: small batches are for quick models. Batches of more than 16 MiB come one by
    one, and are not sent to a GPU ahead.

    On the intake's node the reservoir is mapped; on another one each step of a batch is fetched from the intake, once
    for the batches that come together. Not thread-safe.

    An intake that is gone is not waited for: what it held went with it, and answers may have been lost on the way.
    The trainer starts again, as a new generation, from its checkpoint; its HELLO then waits as long as the lease.

    address : ZeroMQ addresses of the intake separated by commas, best first.
    token : the run's 256 bits.
    study : identity of the study.
    rank, num_ranks : which of the trainer's workers this is.
    generation : grows with each start of the trainer; the intake takes back what older ones left unused.
    batch_size : windows of one batch over all workers.
    prefetch : None: as many as are wanted in 10 ms, so that a new sample waits no longer than that for what was drawn
        before it came; 2 to 48, no more than have 16 MiB here and a quarter of the reservoir in all workers.
    device : where batches are trained on. To a GPU the thread sends them, from pinned memory.

    Raises
    ------
    ConnectionError : no intake answers within the lease.
    RuntimeError : the intake refuses this worker, e.g. because a younger generation works already.
    """

    def __init__(  # noqa: PLR0913
        self, address: str, token: bytes, study: int, *, rank: int = 0, num_ranks: int = 1, generation: int = 0,
        batch_size: int, prefetch: int | None = None, device: str = "cpu",
    ) -> None:  # fmt: skip
        if batch_size < num_ranks:
            raise ValueError(f"A batch of {batch_size} windows cannot be dealt to {num_ranks} workers; enlarge it.")
        if prefetch is not None and prefetch < 0:
            raise ValueError(f"prefetch is a number of batches, 0 or more; got {prefetch}.")
        self._copies = None
        if device.startswith("cuda"):
            from .device_blocks import DeviceBlocks

            self._copies = DeviceBlocks(device)
        self._empty = functools.partial(np.empty, dtype=np.float32) if self._copies is None else self._copies.empty
        self._rank, self._num_ranks, self._batch_size = rank, num_ranks, batch_size
        hello = {"role": "trainer", "job": "trainer", "rank": rank, "ranks": num_ranks, "generation": generation}
        self._link = _TrainerLink(address, token, study, hello=hello)
        try:
            welcome = self._link.join()
            self.layout = _layout_of(welcome)
            self._num_slots = welcome["num_slots"]
            mine = -(-batch_size // num_ranks) * self.layout.window * self.layout.step_bytes
            self._large = mine > _AHEAD_BYTES
            self._most_ahead = self._room_ahead(mine) if prefetch is None else 0  # 0: as many as were wanted, always
            self._prefetch = _LEAST_AHEAD if prefetch is None else prefetch
            self._memory = self._attach(welcome)
        except BaseException:
            self._link.close()
            raise
        self._remote = RemoteSlots(self._link, self.layout) if self._memory is None else None
        self._fetched: dict[int, tuple[np.ndarray, int]] = {}
        self._records = batch_dtype(self.layout.window, len(self.layout.parameters))
        self._gatherer = ThreadPoolExecutor(1, thread_name_prefix="headrace-gather")
        self._gathered: dict[int, Future[list[Draw]]] = {}  # by the first of batches that came together
        self._ready: deque[Draw] = deque()
        self._next = self._asked = 0
        self._pace, self._began = _AHEAD_SECONDS, math.nan  # seconds from batch to batch; when the last was wanted
        self._used: list[np.ndarray] = []  # tickets of used batches that the intake has not been told of
        self._released = time.monotonic()
        self._end: int | None = None
        self._statistics: dict[str, Any] | None = None
        self._closed = False
        self.starved_seconds = 0.0
        """Time that `next` has waited for a batch."""

    def statistics(self) -> dict[str, Any]:
        """Wait until the normaliser is frozen; return {"count", "mean", "std"}, lists in the order of the fields.

        Raises
        ------
        ConnectionError : the intake is gone.
        """
        if self._statistics is None:
            self._link.send(Kind.STATISTICS)
        while self._statistics is None:
            self._receive(1.0)
        return self._statistics

    def begin_at(self, batch: int) -> None:
        """Do nothing: after a restart the intake goes on with what was not used, whatever the batch's number."""

    def next(self) -> Draw | None:
        """Return this worker's slice of the next batch; None where the stream has ended.

        Raises
        ------
        ConnectionError : the intake is gone.
        """
        began = time.monotonic()
        seconds = began - self._began
        self._watch_pace(seconds)
        self._began = began
        self._ask()
        if seconds > _RELEASE_SECONDS:
            self._receive(0.0)  # which finds out, too, whether the intake is still there
        while self._link.has_message:
            self._receive(0.0)
        while not self._ready and self._next not in self._gathered and not self._ended:
            # What is waited for may need the room, or the uses, of what was used.
            self._send_released()
            self._receive(1.0)
        if not self._ready and not self._ended:
            self._ready.extend(self._gathered.pop(self._next).result())
        draw = self._ready.popleft() if self._ready else None
        if draw is None:
            self._send_released()
        self.starved_seconds += time.monotonic() - began
        self._next += draw is not None
        return draw

    def _watch_pace(self, seconds: float) -> None:
        """Hold as many batches ahead as are trained on in _AHEAD_SECONDS, of late, within their bounds.

        seconds : from one batch to the next, waiting for it too: where data is scarce, the newest is drawn.
        """
        if self._most_ahead > _LEAST_AHEAD and seconds >= 0:  # there is none before the first batch
            self._pace += 0.1 * (min(seconds, 10 * _AHEAD_SECONDS) - self._pace)
            wanted = _AHEAD_SECONDS / max(self._pace, 1e-6)
            self._prefetch = max(_LEAST_AHEAD, min(self._most_ahead, int(wanted)))

    def release(self, draw: Draw) -> None:
        """Say that a draw was used, so that its windows may be replaced."""
        self._used.append(draw.table["ticket"])
        late = time.monotonic() - self._released > _RELEASE_SECONDS
        if late or len(self._used) >= self._together:
            self._send_released()

    def _send_released(self) -> None:
        if self._used:
            self._link.send(Kind.RELEASE, np.concatenate(self._used).tobytes())
            self._used.clear()
            self._released = time.monotonic()

    def steer(self, simulation: int, word: Word, reason: str) -> None:
        """Let the intake say a word to a running simulation, with the acknowledgement of its next step."""
        self._link.send(Kind.STEER, {"reason": reason[:2000]}, simulation=simulation, value=int(word))

    def close(self) -> None:
        """Leave the intake and unmap the reservoir; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._gatherer.shutdown(cancel_futures=True)
        self._send_released()
        self._link.close()
        if self._memory is not None:
            self._memory.close()

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _attach(self, welcome: Mapping[str, Any]) -> SlotMemory | None:
        """Map the reservoir; None where it is on another node, or in another container of this one."""
        if not welcome["here"]:
            return None
        try:
            return SlotMemory.attach(welcome["path"], self.layout, welcome["num_slots"])
        except FileNotFoundError as error:
            logger.info("%s. Steps are fetched from the intake instead.", error)
            return None

    @property
    def _ended(self) -> bool:
        return self._end is not None and self._next >= self._end

    def _room_ahead(self, mine: int) -> int:
        """Return how many batches may be held ahead, of so many bytes in this worker; all workers hold their slots."""
        slots = self._batch_size * self.layout.window
        return max(_LEAST_AHEAD, min(_MOST_AHEAD, _AHEAD_BYTES // mine, self._num_slots // (4 * slots)))

    @property
    def _together(self) -> int:
        """Batches that are asked for, and given back, at a time."""
        return max(1, self._prefetch // 3)

    def _ask(self) -> None:
        """See that the batch wanted now and `prefetch` more are on their way, but for less than are asked together."""
        count = self._prefetch + 1 - (self._asked - self._next)
        if self._end is not None or count < self._together:
            return
        at_once = 1 if self._large else count
        for _ in range(count // at_once):
            self._link.send(
                Kind.DRAW, {"batch": self._batch_size, "count": at_once},
                value=self._asked, block=self._rank, num_blocks=self._num_ranks,
            )  # fmt: skip
            self._asked += at_once

    def _receive(self, timeout: float) -> bool:
        """Take one message; say whether one came in time."""
        message = self._link.receive(timeout)
        if message is None:
            if self._link.lost is not None:
                raise ConnectionError(
                    f"The stream broke: {self._link.lost}. The training can go on from its last checkpoint: start it "
                    "again with --resume."
                )
            return False
        header, payload = message
        if header.kind == Kind.STATISTICS_ARE:
            self._statistics = json.loads(payload)
        elif header.kind == Kind.BATCH:
            self._take_batch(header, payload)
        elif header.kind == Kind.CONTENT and self._remote is not None:
            self._take_content(header, payload)
        return True

    def _take_batch(self, header: Header, payload: bytes) -> None:
        if header.num_blocks == 0:
            self._end = header.value if self._end is None else min(self._end, header.value)
            return
        table = np.frombuffer(payload, self._records)
        if len(table) and table["slots"].max() >= self._num_slots:
            raise RuntimeError(f"Batch {header.value} names slot {table['slots'].max()}, which the reservoir has not.")
        count = max(1, header.step)
        if len(table) % count:
            raise RuntimeError(f"Batch {header.value} comes as {count} batches in {len(table)} records.")
        if self._remote is not None:
            self._fetched[header.value] = table, count
            self._remote.fetch(header.value, table["slots"])
            return
        self._gathered[header.value] = self._gatherer.submit(
            self._gather, table, count, self._memory.array, table["slots"]
        )

    def _take_content(self, header: Header, payload: bytes) -> None:
        try:
            complete = self._remote.take(header, payload)
        except WireError as error:
            raise ConnectionError(
                f"Steps from the intake at {self._link.address} came damaged ({error}). The training goes on from its "
                "last checkpoint."
            ) from error
        if complete is not None:
            index, steps, where = complete
            self._gathered[index] = self._gatherer.submit(self._gather, *self._fetched.pop(index), steps, where)

    def _gather(self, table: np.ndarray, count: int, steps: np.ndarray, where: np.ndarray) -> list[Draw]:
        """Gather batches of one length, whose records are in one table.

        steps : (any number, fields, *grid), of which where (records, window) names those of each window.
        """
        states = self._empty((len(table), self.layout.window, *steps.shape[1:]))
        # Checked indices may be clipped, which spares numpy a copy through a buffer; the copy runs without the GIL.
        np.take(steps, where, axis=0, out=states, mode="clip")
        # Here and not in the training loop: this thread has time while the trainer works.
        checksums = np.zeros(states.shape[:2], np.uint32)
        for row in np.flatnonzero(table["first"]):
            checksums[row] = [checksum_of(step, "xxh3") for step in states[row]]
        # Copies: a single record's column counts as contiguous, but its strides are those of the packed record.
        times, parameters = table["times"].copy(), table["parameters"].copy()
        there: list[OnDevice | None] = [None] * count
        if self._copies is not None and not self._large:  # of large ones a GPU may not hold several: they go when used
            there = self._copies.send(states, times, parameters, count)
        size = len(table) // count
        rows = [slice(size * number, size * (number + 1)) for number in range(count)]
        return [
            Draw(
                states=states[one], times=times[one], parameters=parameters[one], table=table[one],
                checksums=checksums[one], on_device=on_device,
            )
            for one, on_device in zip(rows, there, strict=True)
        ]  # fmt: skip


def _layout_of(welcome: dict[str, Any]) -> StreamLayout:
    fields = welcome["fields"]
    return StreamLayout(
        fields=tuple(field["name"] for field in fields), shape=tuple(fields[0]["shape"]), dtype=fields[0]["dtype"],
        num_steps=welcome["num_steps"], window=welcome["window"], parameters=tuple(welcome["parameters"]),
    )  # fmt: skip
