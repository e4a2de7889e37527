"""The process that draws and gathers batches for a trainer on a GPU: `python -m headrace.online_training.feeder FD`.

What a batch costs in Python would otherwise be taken from the trainer, whose interpreter has one lock for all threads,
and a small network's step is launched in a fraction of a millisecond. The process imports neither torch nor Ray.

FD is one end of a pair of sockets that keep messages apart. A message's first byte says what it is:

to the feeder     H  {address, token, study, ...}         what a `Supply` needs; the first message
                  N  number, used, blocks, pace, waiting  the batch wanted now, of how many batches and whole blocks the
                                                          trainer has no more need, seconds a batch, whether it waits
                  S                                       asks for the statistics
                  W  {simulation, word, reason}           a word for a running simulation
                  C                                       the end; what was used is told the intake first
to the trainer    H  {layout, size, ...} and a descriptor of the shared memory
                  B  index, count, rows, offset, together some batches lie in the memory; of how many the feeder wants
                                                          to hear at a time
                  E  index                                the first batch that will not come
                  S  {count, mean, std}
                  X  {kind, text}                         an error, after which the process ends
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from .client import Word
from .shared_blocks import SharedBlocks
from .supply import Supply, gather

NEWS = struct.Struct("<cqqqd?")
BLOCK = struct.Struct("<cqqqqq")
MOST = 2**16
"""Bytes of a message."""

_TICK_SECONDS = 1.0
_ROOM_SECONDS = 0.0005
ERRORS = (ConnectionError, RuntimeError, ValueError, OSError)
"""What the trainer raises as what it was here."""


class _TrainerGone(Exception):
    """There is nobody left to feed."""


class _Feeder:
    """One feeder's state.

    control : its end of the pair.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        options = json.loads(self._message()[1:])
        token = bytes.fromhex(options.pop("token"))
        self._supply: Supply[None] = Supply(self._gather, token=token, **options)
        layout, ahead = self._supply.layout, self._supply.most_ahead
        rows = -(-options["batch_size"] // options["num_ranks"])
        # What is ahead, as much again that is in use or on its way to the GPU, and what the end of the ring wastes.
        size = (2 * ahead + 4) * SharedBlocks.size_of(rows, layout)
        descriptor = SharedBlocks.create(size)
        welcome = {"layout": asdict(layout), "size": size, "large": self._supply.large}
        socket.send_fds(control, [b"H" + json.dumps(welcome).encode()], [descriptor])
        self._blocks, self._lock = SharedBlocks(descriptor, size, layout), threading.Lock()
        self._tickets: dict[int, np.ndarray] = {}  # of each batch that was gathered and is not used yet
        self._wanted, self._pace = -1, 0.0
        self._used = self._freed = 0
        self._asked_statistics = self._told_end = self._closing = False

    def run(self) -> None:
        """Feed until the trainer has enough."""
        supply = self._supply
        supply.link.wake_by(self._control.fileno())
        try:
            while True:
                supply.link.watch(_TICK_SECONDS)
                waiting = self._take_news()
                if self._closing:
                    break
                if self._wanted >= 0:
                    supply.want(self._wanted, self._pace)
                if waiting:
                    supply.send_released()
                supply.receive(0.0)
                supply.take_all()
                self._tell()
        finally:
            self._closing = True  # ends a wait for room in the gathering thread
            supply.close()

    def _message(self) -> bytes:
        message = self._control.recv(MOST)
        if not message:
            raise _TrainerGone
        return message

    def _take_news(self) -> bool:
        """Take the trainer's messages that are here; say whether it waits."""
        waiting = False
        while True:
            try:
                message = self._control.recv(MOST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return waiting
            kind, content = message[:1], message[1:]
            if kind == b"N":
                _, self._wanted, used, blocks, self._pace, waiting = NEWS.unpack(message)
                self._release(used, blocks)
            elif kind == b"S":
                self._supply.ask_statistics()
                self._asked_statistics = True
            elif kind == b"W":
                word = json.loads(content)
                self._supply.steer(word["simulation"], Word(word["word"]), word["reason"])
            elif kind == b"C":
                self._closing = True
                return waiting
            else:
                raise _TrainerGone

    def _release(self, used: int, blocks: int) -> None:
        for batch in range(self._used, used):
            self._supply.release(self._tickets.pop(batch))
        self._used = used
        with self._lock:
            for _ in range(self._freed, blocks):
                self._blocks.give_back()
        self._freed = blocks

    def _tell(self) -> None:
        """Tell the trainer what it waits for besides batches, and raise what gathering raised."""
        supply = self._supply
        for index in [index for index, gathered in supply.gathered.items() if gathered.done()]:
            supply.gathered.pop(index).result()
        if supply.end is not None and not self._told_end:
            self._told_end = True
            self._control.send(b"E" + json.dumps(supply.end).encode())
        if self._asked_statistics and supply.statistics is not None:
            self._asked_statistics = False
            self._control.send(b"S" + json.dumps(supply.statistics).encode())

    def _gather(self, index: int, table: np.ndarray, count: int, steps: np.ndarray, where: np.ndarray) -> None:
        """Gather batches into a block and tell the trainer; by the supply's thread."""
        while (offset := self._take(len(table))) is None:
            if self._closing:
                return
            time.sleep(_ROOM_SECONDS)
        block = self._blocks.block(offset, len(table))
        block.checksums[...] = 0
        gather(table, steps, where, block.states, block.checksums)
        block.times[...], block.parameters[...], block.table[...] = table["times"], table["parameters"], table
        self._tickets.update(enumerate(np.split(table["ticket"].copy(), count), index))
        self._control.send(BLOCK.pack(b"B", index, count, len(table), offset, self._supply.together))

    def _take(self, rows: int) -> int | None:
        with self._lock:
            return self._blocks.take(rows)


def feed(control: socket.socket) -> None:
    """Be the feeder at one end of a pair of sockets, until the other end has had enough or is gone."""
    try:
        _Feeder(control).run()
    except (_TrainerGone, BrokenPipeError, ConnectionResetError):
        return
    except ERRORS as error:
        kind: Any = next(kind for kind in ERRORS if isinstance(error, kind))
        with contextlib.suppress(OSError):
            said = {"kind": kind.__name__, "text": str(error)[: MOST // 8], "errno": getattr(error, "errno", None)}
            control.send(b"X" + json.dumps(said).encode())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as end:
        feed(end)
