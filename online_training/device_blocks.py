"""Blocks of batches on their way to a GPU: one copy for several, and a copy of the reservoir that they draw from."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from .layout import StreamLayout
from .shared_blocks import SharedBlock

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Several batches on a device; its tensors may be read once `copied` has happened; None: it has."""

    tensors: tuple[torch.Tensor, ...]
    copied: torch.cuda.Event | None

    def await_on(self, stream: torch.cuda.Stream) -> None:
        """Let a stream read the tensors, and their memory be used again only when it has done so."""
        if self.copied is not None:
            stream.wait_event(self.copied)
            for tensor in self.tensors:
                tensor.record_stream(stream)


@dataclass(frozen=True)
class OnDevice:
    """One batch of a block.

    tensors : states (batch, window, fields, *grid), times (batch, window) and parameters (batch, number), float32.
    """

    tensors: tuple[torch.Tensor, ...]
    block: Block


class DeviceBlocks:
    """Sends batches to a device, on a GPU by a stream of its own, and never waits for it.

    With slots the device keeps a copy of the reservoir: a step is sent when it is first drawn, and windows are put
    together there. A slot is overwritten only after the windows drawn before were, since one stream does both.

    device : as torch names it, "cuda", "cuda:1" or "cpu".
    memory : bytes, from where they are sent; registered with a GPU, which copies from there by itself.
    slots : of the reservoir; 0: the windows' states come with the blocks.
    """

    def __init__(self, device: str, memory: np.ndarray, layout: StreamLayout, *, slots: int = 0) -> None:
        self._layout, self._step = layout, math.prod(layout.step_shape)
        self._device, self._address = torch.device(device), memory.ctypes.data
        self._registered, self._stream = False, None
        if self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)
            self._register(memory.nbytes)
        with self._here():
            self._copy = torch.empty((slots, self._step), device=self._device) if slots else None

    def _register(self, size: int) -> None:
        with torch.cuda.device(self._device):
            error = int(torch.cuda.cudart().cudaHostRegister(self._address, size, 0))
        self._registered = not error
        if error:  # then CUDA copies by way of memory of its own, which takes the trainer's time
            logger.warning("The memory of batches could not be registered with %s: CUDA error %d.", self._device, error)
            with contextlib.suppress(RuntimeError):  # the next call, whichever it is, reports the error once more
                torch.zeros(1, device=self._device)

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        # The device too: leaving the stream alone would open a context on the first GPU.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            yield

    def send(self, block: SharedBlock, count: int) -> list[OnDevice]:
        """Start the copy of some batches of one length, whose windows lie one behind the other."""
        layout, rows, steps, indices = self._layout, block.rows, block.steps, block.index_bytes
        windows, numbers = rows * layout.window, rows * len(layout.parameters)
        with self._here():
            there = torch.from_numpy(block.moved).to(self._device, non_blocking=True, copy=True)
            floats = there[indices:].view(torch.float32)
            times, parameters, states = floats.split([windows, numbers, steps * self._step])
            if self._copy is not None:
                slots, where = there[:indices].view(torch.int64).split([steps, windows])
                if steps:
                    self._copy.index_copy_(0, slots, states.view(steps, -1))
                states = self._copy.index_select(0, where)
            copied = None if self._stream is None else self._stream.record_event()
        whole = Block((there, states) if self._copy is not None else (there,), copied)
        size = rows // count
        batches = zip(
            states.view(rows, layout.window, *layout.step_shape).split(size),
            times.view(rows, layout.window).split(size),
            parameters.view(rows, len(layout.parameters)).split(size),
            strict=True,
        )
        return [OnDevice(batch, whole) for batch in batches]

    def close(self) -> None:
        """Wait for the copies and let the memory go."""
        if self._registered:
            self._stream.synchronize()
            with torch.cuda.device(self._device):
                torch.cuda.cudart().cudaHostUnregister(self._address)
            self._registered = False


def room_for_slots(device: str) -> int:
    """Return how many bytes of a device a copy of the reservoir may take: a quarter of what is free on a GPU."""
    if not device.startswith("cuda"):
        return 0
    return torch.cuda.mem_get_info(torch.device(device))[0] // 4
