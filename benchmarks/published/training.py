"""Training runs on windows of data that lie on the device, one alone or many at once, recorded as CUDA graphs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headrace.surrogates.recorded import Recorded

Loss = Callable[[torch.Tensor], torch.Tensor]
"""Indices of windows (batch,) -> the loss of each or of all."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a network is trained: Adam, and a rate that falls as half a cosine over the training.

    warm : fraction of the training over which the rate rises from zero at first.
    decay : weights by which Adam's gradient grows, as the published programs have it.
    """

    batch: int
    rate: float = 1e-3
    decay: float = 0.0
    warm: float = 0.0
    clip: float = math.inf

    def rate_at(self, done: float) -> float:
        """Return the rate when that fraction of the training is done."""
        if done < self.warm:
            return self.rate * done / self.warm
        return self.rate * 0.5 * (1 + math.cos(math.pi * (done - self.warm) / (1 - self.warm)))


TOGETHER = 10
"""Steps between two looks at the clock, for which a GPU must have finished them."""


class Run:
    """A network in training, for a number of steps or of seconds; each call goes on.

    losses : alternatives, one of which is drawn for every step, such as with and without a free step before.
    windows : how many indices there are.
    recorded : whether each alternative becomes a CUDA graph; `SideBySide` records many runs at once instead.
    """

    def __init__(
        self, network: torch.nn.Module, losses: Sequence[Loss], windows: int, plan: Plan, *, seed: int,
        recorded: bool = True,
    ) -> None:  # fmt: skip
        self.plan, self.windows, self.step, self.seconds = plan, windows, 0, 0.0
        self.device = next(network.parameters()).device
        self._draw = torch.Generator().manual_seed(seed)
        self._index = torch.randint(windows, (plan.batch,), generator=self._draw).to(self.device)
        self._order = self._index[:0]
        on_gpu = self.device.type == "cuda"
        # A tensor on the device: a recorded step reads it at every replay.
        self._rate = torch.zeros((), device=self.device)
        self._optimizer = torch.optim.Adam(
            network.parameters(), lr=self._rate, weight_decay=plan.decay, fused=on_gpu or None, capturable=on_gpu
        )
        self.steps = [self._whole(network, loss) for loss in losses]
        if on_gpu and recorded:
            # With a rate of zero the steps before the recording change no weight.
            self.steps = [Recorded(step) for step in self.steps]

    def _whole(self, network: torch.nn.Module, loss: Loss) -> Callable[[], None]:
        def run() -> None:
            self._optimizer.zero_grad(set_to_none=True)
            loss(self._index).mean().backward()
            if self.plan.clip < math.inf:
                torch.nn.utils.clip_grad_norm_(network.parameters(), self.plan.clip, foreach=True)
            self._optimizer.step()

        return run

    def draw(self, done: float) -> int:
        """Set rate and windows of the next step, every window once before any comes again; return its alternative.

        done : fraction of the training.
        """
        if len(self._order) < self.plan.batch:
            self._order = torch.randperm(self.windows, generator=self._draw).to(self.device)
        self._index.copy_(self._order[: self.plan.batch])
        self._order = self._order[self.plan.batch :]
        self._rate.fill_(self.plan.rate_at(done))
        self.step += 1
        return int(torch.randint(len(self.steps), (), generator=self._draw)) if len(self.steps) > 1 else 0

    def state(self) -> dict[str, Any]:
        """Return what `go_on` needs, on the host."""
        tensors = [tensor.detach().cpu() for tensor in self._tensors()]
        order = self._order.cpu()
        return {"tensors": tensors, "draw": self._draw.get_state(), "order": order, "step": self.step,
                "seconds": self.seconds}  # fmt: skip

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Go on where another run of the same network was when it gave its state."""
        if self.device.type == "cpu":
            self.steps[0]()  # with a rate of zero: it makes the moments
        for mine, tensor in zip(self._tensors(), state["tensors"], strict=True):
            mine.copy_(tensor)  # in place: recorded steps know where it lies
        self._draw.set_state(state["draw"])
        self._order = state["order"].to(self.device)
        self.step, self.seconds = state["step"], state["seconds"]

    def _tensors(self) -> list[torch.Tensor]:
        """Return the weights, and of each the number of steps and the moments."""
        weights = [weight.detach() for group in self._optimizer.param_groups for weight in group["params"]]
        return weights + [moment for made in self._optimizer.state.values() for moment in made.values()]

    def train(self, steps: int) -> None:
        """Make all steps of a training of so many."""
        for step in range(steps):
            self.steps[self.draw(step / steps)]()

    def train_until(self, seconds: float, whole: float) -> None:
        """Train until so many seconds have been spent of a training of `whole` seconds."""
        while self.seconds < seconds:
            began = time.perf_counter()
            for _ in range(TOGETHER):
                self.steps[self.draw(min(1.0, (self.seconds + time.perf_counter() - began) / whole))]()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - began


class SideBySide:
    """Small networks trained at once: one recorded CUDA graph holds a step of each, on streams of their own.

    One such network leaves most of a GPU idle; the results are those of training them one after the other.

    runs : not recorded, of one loss each.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        on_gpu = runs[0].device.type == "cuda"
        self._streams = [torch.cuda.Stream() for _ in runs] if on_gpu else []
        self._step = Recorded(self._all) if on_gpu else self._all

    def _all(self) -> None:
        if not self._streams:
            for run in self._runs:
                run.steps[0]()
            return
        current = torch.cuda.current_stream()
        for run, stream in zip(self._runs, self._streams, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                run.steps[0]()
        for stream in self._streams:
            current.wait_stream(stream)

    def train(self, steps: int) -> None:
        """Make all steps of trainings of so many."""
        for step in range(steps):
            for run in self._runs:
                run.draw(step / steps)
            self._step()
