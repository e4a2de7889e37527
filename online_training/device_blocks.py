"""Blocks of batches on their way to a GPU: registered memory, and one copy for several by a stream of their own."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Block:
    """Several batches on a GPU, in one tensor; it may be read once `copied` has happened."""

    tensor: torch.Tensor
    copied: torch.cuda.Event

    def await_on(self, stream: torch.cuda.Stream) -> None:
        """Let a stream read the tensor, and its memory be used again only when it has done so."""
        stream.wait_event(self.copied)
        self.tensor.record_stream(stream)


@dataclass(frozen=True)
class OnDevice:
    """One batch of a block.

    tensors : states (batch, window, fields, *grid), times (batch, window) and parameters (batch, number), float32.
    """

    tensors: tuple[torch.Tensor, ...]
    block: Block


class DeviceBlocks:
    """Sends batches to a GPU and never waits for it.

    device : as torch names it, "cuda" or "cuda:1".
    memory : bytes, from where they are sent; registered with the GPU, which copies from there by itself.
    """

    def __init__(self, device: str, memory: np.ndarray) -> None:
        self._device, self._address = torch.device(device), memory.ctypes.data
        self._stream = torch.cuda.Stream(self._device)
        with torch.cuda.device(self._device):
            error = int(torch.cuda.cudart().cudaHostRegister(self._address, memory.nbytes, 0))
        self._registered = not error
        if error:  # then CUDA copies by way of memory of its own, which takes the trainer's time
            logger.warning("The memory of batches could not be registered with %s: CUDA error %d.", device, error)
            with contextlib.suppress(RuntimeError):  # the next call, whichever it is, reports the error once more
                torch.zeros(1, device=self._device)

    def send(self, floats: np.ndarray, shapes: Sequence[tuple[int, ...]], count: int) -> list[OnDevice]:
        """Start the copy of some batches of one length, whose windows lie one behind the other.

        floats : float32, the parts one after the other: of these shapes, whose first axis is that of the windows.
        """
        # The device too: leaving the stream alone would open a context on the first GPU.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            there = torch.from_numpy(floats).to(self._device, non_blocking=True)
            block = Block(there, self._stream.record_event())
        parts = there.split([math.prod(shape) for shape in shapes])
        cut = [part.view(shape).split(shape[0] // count) for part, shape in zip(parts, shapes, strict=True)]
        return [OnDevice(batch, block) for batch in zip(*cut, strict=True)]

    def close(self) -> None:
        """Wait for the copies and let the memory go."""
        if self._registered:
            self._stream.synchronize()
            with torch.cuda.device(self._device):
                torch.cuda.cudart().cudaHostUnregister(self._address)
            self._registered = False
