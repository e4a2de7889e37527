"""Blocks of batches on their way to a GPU: pinned memory, and copies by a stream of their own, for several at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Block:
    """Tensors of several batches on a GPU; they may be read once `copied` has happened."""

    tensors: tuple[torch.Tensor, ...]
    copied: torch.cuda.Event

    def await_on(self, stream: torch.cuda.Stream) -> None:
        """Let a stream read the tensors, and their memory be used again only when it has done so."""
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
    """Sends batches to a GPU; used by one thread, which never waits for the GPU.

    device : as torch names it, "cuda" or "cuda:1".
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._stream = torch.cuda.Stream(self._device)

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return pinned float32 memory, of a pool that takes it back only when no copy from it is under way."""
        return torch.empty(shape, dtype=torch.float32, pin_memory=True).numpy()

    def send(self, states: np.ndarray, times: np.ndarray, parameters: np.ndarray, count: int) -> list[OnDevice]:
        """Start the copies of some batches of one length, whose windows lie one behind the other.

        states : in memory of `empty`. times, parameters : of any kind of float.
        """
        pinned = [states]
        for values in (times, parameters):
            pinned.append(self.empty(values.shape))
            pinned[-1][...] = values
        # This thread's device is the first GPU: leaving the stream alone would open a context there too.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            tensors = tuple(torch.from_numpy(one).to(self._device, non_blocking=True) for one in pinned)
            block = Block(tensors, self._stream.record_event())
        cut = zip(*[tensor.split(len(states) // count) for tensor in tensors], strict=True)
        return [OnDevice(batch, block) for batch in cut]
