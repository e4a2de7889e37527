"""Many small networks trained at once: one recorded CUDA graph holds a step of each, on streams of their own.

One such network leaves most of a GPU idle; the results are those of training them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from headrace.surrogates.recorded import Recorded

Loss = Callable[[torch.Tensor], torch.Tensor]
"""Indices of windows (batch,) -> a number."""


class SideBySide:
    """Networks with Adam, each with its own draws, its own rate and no word to the others.

    trainings : (network, loss, seed of its draws, largest rate).
    schedule : step -> fraction of the largest rate.
    """

    def __init__(
        self, trainings: Sequence[tuple[torch.nn.Module, Loss, int, float]], *, windows: int, batch: int,
        schedule: Callable[[int], float],
    ) -> None:  # fmt: skip
        self._trainings, self._windows, self._schedule = trainings, windows, schedule
        device = next(trainings[0][0].parameters()).device
        on_gpu = device.type == "cuda"
        self._draws = [torch.Generator().manual_seed(seed) for _, _, seed, _ in trainings]
        self._orders = [torch.empty(0, dtype=torch.int64) for _ in trainings]
        self._index = torch.arange(batch, device=device).repeat(len(trainings), 1)
        self._largest = torch.tensor([rate for *_, rate in trainings])
        # Tensors on the device: a recorded step reads them at every replay.
        self._rates = torch.zeros(len(trainings), device=device)
        self._optimizers = [
            torch.optim.Adam(network.parameters(), lr=self._rates[number], fused=on_gpu or None, capturable=on_gpu)
            for number, (network, *_) in enumerate(trainings)
        ]
        self._streams = [torch.cuda.Stream() for _ in trainings] if on_gpu else []
        # With rates of zero the steps before the recording change no weight.
        self._run = Recorded(self._all) if on_gpu else self._all
        self.step = 0

    def _all(self) -> None:
        if not self._streams:
            for number in range(len(self._trainings)):
                self._one(number)
            return
        current = torch.cuda.current_stream()
        for number, stream in enumerate(self._streams):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self._one(number)
        for stream in self._streams:
            current.wait_stream(stream)

    def _one(self, number: int) -> None:
        _, loss, _, _ = self._trainings[number]
        self._optimizers[number].zero_grad(set_to_none=True)
        loss(self._index[number]).backward()
        self._optimizers[number].step()

    def train(self, steps: int) -> None:
        """Make steps; each network sees every window once before any comes again."""
        batch = self._index.shape[1]
        for _ in range(steps):
            for number, draw in enumerate(self._draws):
                if len(self._orders[number]) < batch:
                    self._orders[number] = torch.randperm(self._windows, generator=draw)
            self._index.copy_(torch.stack([order[:batch] for order in self._orders]))
            self._orders = [order[batch:] for order in self._orders]
            self._rates.copy_(self._largest * self._schedule(self.step))
            self._run()
            self.step += 1
