"""One optimiser step on a draw; on a GPU its whole work is recorded once as a CUDA graph and replayed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from headrace.surrogates.recorded import Recorded

if TYPE_CHECKING:
    from .device_blocks import Block
    from .feed import Draw

logger = logging.getLogger(__name__)

_EAGER_FIRST = 3  # steps after which the optimiser's state and the libraries' workspaces are there


class TrainingStep:
    """Loss, gradient and update of one worker. Used as `losses`, then `update`, once for each draw.

    A draw goes to a GPU by a stream of its own, while the step before is computed; one that the feed has sent is there.
    A recorded step is launched as a whole, which small models need: their kernels take the GPU less time than the CPU
    takes to launch them one by one. What is recorded is what eager steps do, on the same tensors.

    loss_of : (states, times, parameters) -> the loss of each window, (batch,).
    record : whether the loss does the same work for every batch of one shape, so that it may be recorded. Only a
        worker on its own records, and only on a GPU; a batch of another shape, as the last one, is computed eagerly.

    On a GPU all of it runs on one stream of its own: gradients remember the stream of their first step, and a recording
    on another one would have to wait for it, which none may. Whoever looks at results on the usual stream waits for it.
    """

    def __init__(
        self, loss_of: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, *, num_ranks: int,
        record: bool,
    ) -> None:  # fmt: skip
        self._loss_of, self._optimizer, self._device, self._num_ranks = loss_of, optimizer, device, num_ranks
        on_gpu = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if on_gpu else None
        self._computing = torch.cuda.Stream(device) if on_gpu else None
        self._record = record and on_gpu and num_ranks == 1
        self._recorded: Recorded | None = None
        self._eager = 0
        self._done = self._on_own = False
        self._block: Block | None = None

    @property
    def recorded(self) -> bool:
        """Whether steps are replayed."""
        return self._recorded is not None

    def losses(self, draw: Draw, rate: float) -> torch.Tensor:
        """Return the loss of each window of a draw, (batch,); rate is what a recorded step updates with."""
        with self.own_stream():
            return self._losses(draw, rate)

    def _losses(self, draw: Draw, rate: float) -> torch.Tensor:
        tensors = self._on_device(draw)
        if self._record and self._recorded is None and self._eager >= _EAGER_FIRST:
            self._capture(tensors)
        self._done = self._recorded is not None and self._recorded.takes(*tensors)
        if not self._done:
            return self._loss_of(*tensors)
        self._set_rate(rate)
        return self._recorded(*tensors).clone()

    def update(self, losses: torch.Tensor, windows: int, rate: float) -> None:
        """Step along the gradient of the mean loss over the windows of the whole batch."""
        if self._done:
            return
        with self.own_stream():
            self._set_rate(rate)
            self._optimizer.zero_grad()
            self._descend(losses, windows)
        self._eager += 1

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """Let what is done meanwhile run on the steps' stream, so that each of them need not wait for the usual one."""
        if self._computing is None or self._on_own:
            yield
            return
        usual = torch.cuda.current_stream(self._device)
        self._computing.wait_stream(usual)
        self._on_own = True
        try:
            with torch.cuda.stream(self._computing):
                yield
        finally:
            self._on_own = False
            usual.wait_stream(self._computing)

    def _descend(self, losses: torch.Tensor, windows: int) -> None:
        # Gradients are averaged over the workers, whose slices may differ in size at the end of a stream.
        (losses.sum() * (self._num_ranks / windows)).backward()
        self._optimizer.step()

    def _set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            if torch.is_tensor(group["lr"]):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _on_device(self, draw: Draw) -> list[torch.Tensor]:
        if draw.on_device is not None:
            if draw.on_device.block is not self._block:
                self._block = draw.on_device.block
                self._block.await_on(self._computing)
            return list(draw.on_device.tensors)
        arrays = (draw.states, draw.times, draw.parameters)
        if self._copies is None:
            return [torch.from_numpy(array).to(self._device, dtype=torch.float32) for array in arrays]
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            copies = [torch.from_numpy(array).to(self._device, non_blocking=True) for array in arrays]
        computing.wait_stream(self._copies)
        for copy in copies:
            copy.record_stream(computing)  # its memory is used by another stream than the one it was taken on
        return [copy.float() for copy in copies]

    def _whole(self, *tensors: torch.Tensor) -> torch.Tensor:
        losses = self._loss_of(*tensors)
        self._descend(losses, len(losses))
        return losses.detach()

    def _capture(self, tensors: list[torch.Tensor]) -> None:
        """Record a step on tensors of these shapes, which computes nothing; where that fails, go on eagerly."""
        rates = [group["lr"] for group in self._optimizer.param_groups]
        for group in self._optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self._device)
        self._optimizer.zero_grad()
        try:
            # The eager steps before were its first calls; more of them would train on this batch.
            self._recorded = Recorded(self._whole, *tensors, calls=0, stream=self._computing)
        except RuntimeError as error:
            logger.info("The training step is not recorded: %s", error)
            self._record = False
            for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
