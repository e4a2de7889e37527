"""The trainer's side of a feeder process: the same batches as from `Feed`, with next to nothing done for each."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
import time
from collections import deque
from typing import Any

from .client import Word
from .device_blocks import DeviceBlocks, room_for_slots
from .feed import Draw, DrawSource, cut, require_batch
from .feeder import BLOCK, ERRORS, MOST, NEWS
from .layout import StreamLayout
from .shared_blocks import SharedBlocks
from .supply import RELEASE_SECONDS, Pace

_LONG = 60.0
_FEW = 2  # batches left at which those that have come are taken over


class FeederProcess(DrawSource):
    """Batches of windows from the intake by a process of its own, for a trainer on a GPU. Not thread-safe.

    The process (feeder.py) does all that `Feed` does, into memory that the trainer has registered with the GPU; the
    trainer starts one copy to it for the batches that come together, as soon as it finds them. Batches of more than
    16 MiB are copied when they are used. What the process does not outlive is its trainer.

    Where the GPU has room for a copy of the reservoir, a step goes there once, when it is first drawn, and windows are
    put together there; else each window is sent whenever it is drawn.

    The draws are to be released in the order in which they came. Arguments and errors are those of `Feed`.

    device : where batches are trained on, as torch names it.
    room : bytes of it that a copy of the reservoir may take; None: a quarter of what is free on a GPU, else none.
    """

    def __init__(  # noqa: PLR0913
        self, address: str, token: bytes, study: int, *, rank: int = 0, num_ranks: int = 1, generation: int = 0,
        batch_size: int, prefetch: int | None = None, device: str, room: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require_batch(batch_size, num_ranks, prefetch)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "headrace.online_training.feeder", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                start_new_session=True,  # a key pressed in a terminal is the trainer's to answer
            )  # fmt: skip
        self._poll = select.poll()
        self._poll.register(self._control, select.POLLIN)
        self._pace = Pace()
        self._ready: deque[Draw] = deque()
        self._arrived: dict[int, tuple[int, int, int, int]] = {}  # count, rows, steps, offset by the first batch
        # Of each block in use, oldest first: batches that are not released yet, and its copy where there is one.
        self._held: deque[list[Any]] = deque()
        self._spent: deque[Any] = deque()  # copies of blocks of which all batches were released
        self._next = self._coming = 0  # the batch wanted next, and the one that follows those which are ready
        self._used = self._freed = 0
        self._told_next, self._told = -1, 0.0
        self._together = 1
        self._end: int | None = None
        self._statistics: dict[str, Any] | None = None
        self._blocks: SharedBlocks | None = None
        self._copies: DeviceBlocks | None = None
        options = {
            "address": address, "token": token.hex(), "study": study, "rank": rank, "num_ranks": num_ranks,
            "generation": generation, "batch_size": batch_size, "prefetch": prefetch,
            "room": room_for_slots(device) if room is None else room,
        }  # fmt: skip
        try:
            self._send(b"H" + json.dumps(options).encode())
            self._welcome(device)
        except BaseException:
            self.close()
            raise

    def _welcome(self, device: str) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._control, MOST, 1)
        if message[:1] != b"H":
            self._take(message)
        welcome = json.loads(message[1:])
        layout = {name: tuple(value) if isinstance(value, list) else value for name, value in welcome["layout"].items()}
        self.layout = StreamLayout(**layout)
        self._large = welcome["large"]
        slots = welcome["slots"]
        self._blocks = SharedBlocks(descriptors[0], welcome["size"], self.layout, indexed=slots > 0)
        self._copies = DeviceBlocks(device, self._blocks.memory, self.layout, slots=slots)

    def statistics(self) -> dict[str, Any]:
        """Wait for them, and return them."""
        if self._statistics is None:
            self._send(b"S")
        while self._statistics is None:
            self._hear(1.0)
        return self._statistics

    def next(self) -> Draw | None:
        """Return the next batch."""
        began = time.monotonic()
        self._pace.tick(began)
        if self._next - self._told_next >= self._together or began - self._told > RELEASE_SECONDS:
            self._tell(began)
        if len(self._ready) <= _FEW:
            self._hear(0.0)
            self._open_arrived()
            if not self._ready and not self._ended:
                self._wait()
        if not self._ready:
            return None
        self._next += 1
        return self._ready.popleft()

    def _wait(self) -> None:
        began = time.monotonic()
        while not self._ready and not self._ended:
            self._tell(began, waiting=True)
            self._hear(1.0)
        self.starved_seconds += time.monotonic() - began

    def release(self, draw: Draw) -> None:
        """Say that a draw was used."""
        self._used += 1
        oldest = self._held[0]
        oldest[0] -= 1
        if not oldest[0]:
            self._spent.append(self._held.popleft()[1])
        now = time.monotonic()
        if now - self._told > RELEASE_SECONDS:  # else the next batch, which is soon asked for, tells of this one too
            self._tell(now)

    def steer(self, simulation: int, word: Word, reason: str) -> None:
        """Let the intake say a word to a simulation."""
        self._send(b"W" + json.dumps({"simulation": simulation, "word": int(word), "reason": reason[:2000]}).encode())

    def close(self) -> None:
        """Let the process leave the intake and end, and unmap the memory."""
        if self._control.fileno() < 0:
            return
        if self._blocks is None:
            self._process.kill()  # it may be waiting for an intake that does not answer
        with contextlib.suppress(*ERRORS):
            self._tell(time.monotonic())
        with contextlib.suppress(OSError):  # also where a GPU's error kept the last news from being told
            self._control.send(b"C")
        try:
            self._process.wait(_LONG)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._control.close()  # not before: what it has not read of the last messages would be lost
        try:
            if self._copies is not None:
                self._copies.close()
        finally:
            if self._blocks is not None:
                self._blocks.close()

    @property
    def _ended(self) -> bool:
        return self._end is not None and self._next >= self._end

    def _tell(self, now: float, *, waiting: bool = False) -> None:
        """Tell the process where the trainer is, for some batches at a time."""
        while self._spent and (self._spent[0].copied is None or self._spent[0].copied.query()):
            self._spent.popleft()
            self._freed += 1
        self.before_telling()
        self._send(NEWS.pack(b"N", self._next, self._used, self._freed, self._pace.seconds, waiting))
        self._told_next, self._told = self._next, now

    def _send(self, message: bytes) -> None:
        try:
            self._control.send(message)
        except OSError:
            self._hear(_LONG)  # its last words, or none
            raise self._gone() from None

    def _hear(self, timeout: float) -> None:
        """Take the messages that are here; where there are none, those that come in time."""
        if timeout and not self._poll.poll(1000 * timeout):
            return
        with contextlib.suppress(BlockingIOError):
            while True:
                self._take(self._control.recv(MOST, socket.MSG_DONTWAIT))

    def _take(self, message: bytes) -> None:
        kind, content = message[:1], message[1:]
        if kind == b"B":
            _, index, count, rows, steps, offset, self._together = BLOCK.unpack(message)
            self._arrived[index] = count, rows, steps, offset
            self._open_arrived()
        elif kind == b"E":
            self._end = json.loads(content)
        elif kind == b"S":
            self._statistics = json.loads(content)
        elif kind == b"X":
            error = json.loads(content)
            found = next(one for one in ERRORS if one.__name__ == error["kind"])(error["text"])
            if isinstance(found, OSError):
                found.errno = error["errno"]  # by which a full memory is told from what may pass
            raise found
        else:
            raise self._gone()

    def _open_arrived(self) -> None:
        """Make draws of the blocks whose turn it is; a large batch is sent to the GPU only when it is wanted."""
        while self._coming in self._arrived and not (self._large and self._ready):
            count, rows, steps, offset = self._arrived.pop(self._coming)
            block = self._blocks.block(offset, rows, steps)
            there = self._copies.send(block, count)
            self._ready.extend(cut(block.table.copy(), None, block.checksums.copy(), count, there))
            self._held.append([count, there[0].block])
            self._coming += count

    def _gone(self) -> ConnectionError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LONG)
        return ConnectionError(
            f"The process that fetches batches ended, with code {self._process.returncode}; the training can go on "
            "from its last checkpoint: start it again with --resume."
        )
