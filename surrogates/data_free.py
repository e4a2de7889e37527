"""Training without data: a pool of states of the network's own making, graded by the residual of the discrete equation.

The pool follows Wandel, Weinmann and Klein (2021): draw, step, write back, start again now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.checkpoint import checkpoint

from .recorded import Recorded

HUGE = 1e9
"""The most that an error counts as; its square is a number in float32."""


class Correction(Protocol):
    """A discretisation whose defect is known as an error of the new state, e.g. `VorticityResidual`."""

    def correction(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the error of new, as far as the defect of the step tells."""

    def size(self, fields: Any) -> Any:
        """Return the values whose mean square an error is measured by."""


class StatePool:
    """Windows (size, s_t, fields, *grid) that networks are trained from, and that they replace by their own.

    fresh : count -> so many new windows, at a start or from a running solver.
    lifetime : windows a simulation lasts before it starts again; starts are spread, so that all ages occur. It may be
        set to another number while training, for simulations that start after that.
    octaves : simulations that start again last a random time, as likely from 1 to 2 windows as from lifetime / 2 to
        lifetime. Of 200 windows the first then comes five times as often as if all simulations lasted as long, which
        flows need that begin with a jerk.
    largest : a value beyond which, or without being finite, a simulation counts as diverged and starts again.
    """

    def __init__(
        self, fresh: Callable[[int], torch.Tensor], size: int, *, lifetime: int, largest: float, seed: int = 0,
        octaves: bool = False,
    ) -> None:  # fmt: skip
        if size < 1 or lifetime < 1:
            raise ValueError(f"A pool of {size} states with a lifetime of {lifetime} needs at least 1 of each.")
        self._fresh, self.lifetime, self._largest, self._octaves = fresh, lifetime, largest, octaves
        self.states = fresh(size)
        self._generator = torch.Generator().manual_seed(seed)
        self._left = torch.randint(1, lifetime + 1, (size,), generator=self._generator)
        self.diverged = 0
        self.restarted = 0

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places of so many windows, and the windows."""
        places = torch.randperm(len(self.states), generator=self._generator)[:count]
        return places, self.states[places.to(self.states.device)]

    def write_back(self, places: torch.Tensor, windows: torch.Tensor, steps: int = 1) -> None:
        """Put windows where their predecessors came from; those that diverged or are at their end start again."""
        windows = windows.detach()
        bad = ~(windows.flatten(1).abs().amax(1) < self._largest).cpu()  # NaN is bad too
        self._left[places] -= steps
        over = bad | (self._left[places] <= 0)
        self.diverged += int(bad.sum())
        if over.any():
            self.restarted += int(over.sum())
            windows = windows.clone()
            windows[over.to(windows.device)] = self._fresh(int(over.sum())).to(windows)
            self._left[places[over]] = self._lifetimes(int(over.sum()))
        self.states[places.to(self.states.device)] = windows.to(self.states)

    def feed(self, windows: torch.Tensor) -> None:
        """Let windows from outside, e.g. streamed by solvers, take random places."""
        places = torch.randperm(len(self.states), generator=self._generator)[: len(windows)]
        self.states[places.to(self.states.device)] = windows[: len(places)].to(self.states)
        self._left[places] = self._lifetimes(len(places))

    def _lifetimes(self, count: int) -> torch.Tensor:
        if not self._octaves:
            return torch.full((count,), self.lifetime)
        return (self.lifetime ** torch.rand(count, generator=self._generator)).long()


def physics_loss(equation: Correction, last: torch.Tensor, window: torch.Tensor, dt: float) -> torch.Tensor:
    """Return the mean squared error of each sample's frames, as the defect tells it, in units of the state's own.

    Where an error is no number, or beyond HUGE, it counts as HUGE, without a gradient.
    last : the frame before the window, (batch, fields, *grid); window : (batch, frames, fields, *grid).
    """
    old = torch.cat((last[:, None], window[:, :-1]), dim=1)
    error = equation.correction(old, window, 0.0, dt)
    error = torch.where(error.abs() < HUGE, error, HUGE)
    return error.square().flatten(1).mean(1) / equation.size(last.detach()).square().flatten(1).mean(1)


def train_without_data(  # noqa: PLR0913
    network: torch.nn.Module, equation: Correction, pool: StatePool, optimiser: torch.optim.Optimizer, *, dt: float,
    batch: int = 16, unroll: int = 1, save_memory: bool = False, clip: float = 1.0, graph: bool = False,
    lost: float = 1e8, data_term: Callable[[torch.nn.Module], torch.Tensor] | None = None,
) -> Iterator[float]:  # fmt: skip
    """Train without end, one optimiser step per item; yields the loss.

    dt : time between two frames.
    unroll : windows that the gradient goes back through.
    save_memory : compute the windows of the roll-out again on the way back instead of keeping their inner values.
    graph : record the step as a CUDA graph and replay it, for small networks several times as fast; the optimiser must
        be capturable with its learning rate in a tensor, and nothing in the loss may depend on values on the host.
    lost : windows whose loss is beyond this start again, and what is beyond counts by its logarithm only: one such flow
        would move the weights further than thousands of others, to where nothing may be learned any more; and were
        they left out, a network that loses all flows would never come back. As it is, those that blow up.
        Where a network gives no number at all, a loss without a gradient is no help: on the way back 0 times infinity
        is no number either, and would be every weight's. Such a step counts as one without a gradient: an optimiser
        with momentum goes on as before.
    data_term : what is added to the loss, e.g. an error against known states.
    """

    def step(window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        loss, bad = window.new_zeros(()), torch.zeros(len(window), dtype=torch.bool, device=window.device)
        for _ in range(unroll):
            new = checkpoint(network, window, use_reentrant=False) if save_memory else network(window)
            losses = physics_loss(equation, window[:, -1], new, dt)
            bad = bad | ~(losses.detach() < lost)
            beyond = lost * (1 + (losses.clamp(min=lost) / lost).log())
            loss = loss + torch.where(losses < lost, losses, beyond).mean() / unroll
            window = new
        if data_term is not None:
            loss = loss + data_term(network)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
        for weights in network.parameters():
            if weights.grad is not None:  # a norm that is no number has made all of them none
                weights.grad.nan_to_num_(0.0, 0.0, 0.0)
        optimiser.step()
        # What is not finite starts again when it is written back.
        return loss.detach(), torch.where(bad.reshape(-1, *[1] * (window.ndim - 1)), torch.nan, window.detach())

    if graph:
        step = Recorded(step, pool.draw(batch)[1])
    while True:
        places, window = pool.draw(batch)
        loss, new = step(window)
        pool.write_back(places, new, unroll)
        yield float(loss)
