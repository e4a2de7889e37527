"""One training run of a published table: batches by index from data on the device, recorded as a CUDA graph."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from headrace.surrogates.recorded import Recorded

Loss = Callable[[torch.Tensor], torch.Tensor]
"""Indices of windows (batch,) -> the loss of each or of all."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a network is trained: Adam, and a rate that falls as half a cosine over the steps.

    warm : fraction of the steps over which the rate rises from zero at first.
    decay : weights by which Adam's gradient grows, as the published programs have it.
    """

    batch: int
    steps: int
    rate: float = 1e-3
    decay: float = 0.0
    warm: float = 0.0
    clip: float = math.inf

    def rate_at(self, step: int) -> float:
        """Return the rate of a step."""
        rising = self.warm * self.steps
        if step < rising:
            return self.rate * (step + 1) / rising
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, self.steps - rising)))


class Run:
    """A network in training; each call of `until` goes on.

    losses : alternatives, one of which is drawn for every step, such as with and without a free step before.
    windows : how many indices there are.
    """

    def __init__(
        self, network: torch.nn.Module, losses: Sequence[Loss], windows: int, plan: Plan, *, seed: int
    ) -> None:
        self.plan, self.windows, self.step, self.seconds = plan, windows, 0, 0.0
        device = next(network.parameters()).device
        self._draw = torch.Generator().manual_seed(seed)
        self._index = torch.randint(windows, (plan.batch,), generator=self._draw).to(device)
        self._order = torch.empty(0, dtype=torch.int64)
        on_gpu = device.type == "cuda"
        # A tensor on the device: a recorded step reads it at every replay.
        self._rate = torch.zeros((), device=device)
        self._optimizer = torch.optim.Adam(
            network.parameters(), lr=self._rate, weight_decay=plan.decay, fused=on_gpu or None, capturable=on_gpu
        )
        self._steps = [self._whole(network, loss) for loss in losses]
        if on_gpu:
            # With a rate of zero the steps before the recording change no weight.
            self._steps = [Recorded(step) for step in self._steps]

    def _whole(self, network: torch.nn.Module, loss: Loss) -> Callable[[], None]:
        def run() -> None:
            self._optimizer.zero_grad(set_to_none=True)
            loss(self._index).mean().backward()
            if self.plan.clip < math.inf:
                torch.nn.utils.clip_grad_norm_(network.parameters(), self.plan.clip, foreach=True)
            self._optimizer.step()

        return run

    def until(self, step: int) -> None:
        """Train up to a step; every window once before any comes again."""
        began = time.perf_counter()
        for number in range(self.step, min(step, self.plan.steps)):
            if len(self._order) < self.plan.batch:
                self._order = torch.randperm(self.windows, generator=self._draw)
            self._index.copy_(self._order[: self.plan.batch])
            self._order = self._order[self.plan.batch :]
            self._rate.fill_(self.plan.rate_at(number))
            chosen = int(torch.randint(len(self._steps), (), generator=self._draw)) if len(self._steps) > 1 else 0
            self._steps[chosen]()
            self.step = number + 1
        if self._index.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - began
