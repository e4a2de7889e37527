"""The process that draws and gathers batches for a trainer on a GPU: `python -m headrace.online_training.feeder FD`.

What a batch costs in Python would otherwise be taken from the trainer, whose interpreter has one lock for all threads,
and a small network's step is launched in a fraction of a millisecond. The process imports neither torch nor Ray.

FD is one end of a pair of sockets that keep messages apart. A message's first byte says what it is:

to the feeder     H  {address, token, room, ...}          what a `Supply` needs, and how many bytes of a GPU a copy of
                                                          the reservoir may take; the first message
                  N  number, used, blocks, pace, waiting  the batch wanted now, of how many batches and whole blocks the
                                                          trainer has no more need, seconds a batch, whether it waits
                  S                                       asks for the statistics
                  W  {simulation, word, reason}           a word for a running simulation
                  C                                       the end; what was used is told the intake first
to the trainer    H  {layout, size, ...} and a descriptor of the shared memory
                  B  index, count, rows, steps,           some batches lie in the memory, with so many steps; of how
                     offset, together                     many batches the feeder wants to hear at a time
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
from dataclasses import asdict
from typing import Any

import numpy as np

from .client import Word
from .layout import StreamLayout
from .resident_slots import ResidentSlots
from .shared_blocks import SharedBlocks
from .supply import Supply, gather, is_large, take_steps

NEWS = struct.Struct("<cqqqd?")
BLOCK = struct.Struct("<cqqqqqq")
MOST = 2**16
"""Bytes of a message."""

_TICK_SECONDS = 1.0
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
        room = options.pop("room")
        token = bytes.fromhex(options.pop("token"))
        self._supply = Supply(self._arrive, token=token, **options)
        layout, large = self._supply.layout, self._supply.large
        size = memory_bytes(layout, options["batch_size"], options["num_ranks"], self._supply.most_ahead)
        descriptor = SharedBlocks.create(size)
        reservoir = self._supply.num_slots * layout.step_bytes
        self._resident = ResidentSlots(self._supply.num_slots) if reservoir <= room else None
        self._missing: dict[int, np.ndarray] = {}  # slots whose steps go to the GPU with the batches that begin so
        if self._resident is not None:
            self._supply.choose = self._choose
        slots = 0 if self._resident is None else self._supply.num_slots
        welcome = {"layout": asdict(layout), "size": size, "large": large, "slots": slots}
        socket.send_fds(control, [b"H" + json.dumps(welcome).encode()], [descriptor])
        self._blocks = SharedBlocks(descriptor, size, layout, indexed=self._resident is not None)
        # What waits to be gathered, by the first of its batches, and which is next.
        self._arrived: dict[int, tuple[np.ndarray, int, np.ndarray, np.ndarray]] = {}
        self._following = 0
        self._tickets: dict[int, np.ndarray] = {}  # of each batch that was gathered and is not used yet
        self._wanted, self._pace = -1, 0.0
        self._used = self._freed = 0
        self._asked_statistics = self._told_end = self._closing = False

    def run(self) -> None:
        """Feed until the trainer has enough."""
        supply = self._supply
        try:
            while True:
                supply.link.wait_beside(self._control.fileno(), _TICK_SECONDS)
                waiting = self._take_news()
                if self._closing:
                    break
                if self._wanted >= 0:
                    supply.want(self._wanted, self._pace)
                if waiting:
                    supply.send_released()
                supply.take_all()
                self._gather()
                self._tell()
        finally:
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
        for _ in range(self._freed, blocks):
            self._blocks.give_back()
        self._freed = blocks

    def _tell(self) -> None:
        """Tell the trainer what it waits for besides batches."""
        supply = self._supply
        if supply.end is not None and not self._told_end:
            self._told_end = True
            self._control.send(b"E" + json.dumps(supply.end).encode())
        if self._asked_statistics and supply.statistics is not None:
            self._asked_statistics = False
            self._control.send(b"S" + json.dumps(supply.statistics).encode())

    def _choose(self, index: int, table: np.ndarray) -> np.ndarray:
        self._missing[index] = self._resident.missing(table)
        return self._missing[index]

    def _arrive(self, index: int, *batches: Any) -> None:
        self._arrived[index] = batches

    def _gather(self) -> None:
        """Gather the batches whose turn it is, as far as there is room, into blocks, and tell the trainer of each."""
        while (batches := self._arrived.get(self._following)) is not None:
            table, count, steps, where = batches
            offset = self._blocks.take(len(table), where.size)
            if offset is None:
                return
            index = self._following
            del self._arrived[index]
            self._following += count
            block = self._blocks.block(offset, len(table), where.size)
            if self._resident is None:
                block.checksums[...] = 0
                gather(table, steps, where, block.states, block.checksums)
            else:
                block.slots[...], block.where[...] = self._missing.pop(index), table["slots"]
                content = block.content
                take_steps(steps, where, content)
                self._resident.note(block.slots, content)
                block.checksums[...] = self._resident.checksums(table["slots"])
            block.times[...], block.parameters[...], block.table[...] = table["times"], table["parameters"], table
            self._tickets.update(enumerate(table["ticket"].reshape(count, -1), index))
            self._control.send(
                BLOCK.pack(b"B", index, count, len(table), where.size, offset, self._supply.together)
            )  # fmt: skip


def memory_bytes(layout: StreamLayout, batch_size: int, num_ranks: int, ahead: int) -> int:
    """Return the size of the memory that a feeder shares with its trainer, for so many batches ahead."""
    # What is ahead, as much again that is in use or on its way to the GPU, and what the end of the ring wastes; large
    # batches come one by one and are given back one by one.
    blocks = ahead + 3 if is_large(layout, batch_size, num_ranks) else 2 * ahead + 4
    return blocks * SharedBlocks.size_of(-(-batch_size // num_ranks), layout)


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
