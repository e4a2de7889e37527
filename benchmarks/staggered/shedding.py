"""Control of shedding: the inflow is chosen through a trained network so that vortices come at a wanted frequency.

After Wandel, Weinmann and Klein (2021): a flow of 500 steps without gradient, then 200 with; the flow across behind the
block under a Gaussian window, its power over 15 bins of the Fourier transform, and the mean bin under that power, whose
squared distance from the wanted one is made small by Adam. The inflows found then run in our staggered solver.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from lines import Figure
from torch.utils.checkpoint import checkpoint

from headrace.solvers.simulate import simulate
from headrace.surrogates.recorded import Recorded

from .channel import CHANNELS, NONE, Channel
from .channel_solver import Signals
from .control import gradient_check

WARM, SETTLE, SEEN, BINS, WIDTH = 500, 100, 200, 15, 40.0
"""Steps without gradient at first and after every change of the inflow, steps with, bins, deviation of the window."""
RATE, NEAR, FAR = 0.05, 0.25, 0.5
"""Adam's rate, and the bins that control and replay may be off."""


def mean_bin(signal: torch.Tensor) -> torch.Tensor:
    """Return the mean bin under the power of signals (steps, batch), (batch,)."""
    steps = torch.arange(len(signal), dtype=signal.dtype, device=signal.device) - 0.5 * (len(signal) - 1)
    window = torch.exp(-0.5 * (steps / WIDTH) ** 2)[:, None]
    power = torch.fft.rfft((signal - signal.mean(0)) * window, dim=0).abs().square()[:BINS]
    return (torch.arange(BINS, dtype=signal.dtype, device=signal.device)[:, None] * power).sum(0) / power.sum(0)


class Flow:
    """A channel's flow by a network, from states with inflows (batch,)."""

    def __init__(self, channel: Channel, network: torch.nn.Module, like: torch.Tensor) -> None:
        self.channel, self.network = channel, network
        solid = channel.potential.residual.grid.solid
        self.fluid = torch.tensor(~solid, dtype=like.dtype, device=like.device)

    def with_inflow(self, window: torch.Tensor, inflow: torch.Tensor) -> torch.Tensor:
        """Return windows with another inflow."""
        field = inflow.reshape(-1, *[1] * (window.ndim - 1)) * self.fluid
        return torch.cat((window[:, :, :-1], field), dim=2)

    def across(self, window: torch.Tensor) -> torch.Tensor:
        """Return the flow across behind the block, (batch,), in units of inflow 1."""
        state = self.channel.potential.state(window[:, -1, :-1])
        speed = window[(slice(None), -1, -1, *[0] * self.channel.ndim)]
        return self.channel.signals(state[:-1], state[-1])[2] * speed

    def signal(self, window: torch.Tensor, steps: int) -> torch.Tensor:
        """Return the flow across after each of so many steps, (steps, batch); inner values are computed again."""
        found = []
        for _ in range(steps):
            window = checkpoint(self.network, window, use_reentrant=False)
            found.append(self.across(window))
        return torch.stack(found)


def moved(network: torch.nn.Module, device: str, example: torch.Tensor) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return (window, steps) -> window after them, as a CUDA graph where there is a GPU."""
    step = Recorded(lambda window: (network(window),), example) if device == "cuda" else lambda w: (network(w),)

    def advanced(window: torch.Tensor, steps: int) -> torch.Tensor:
        for _ in range(steps):
            (window,) = step(window)
        return window.clone()

    return advanced


def replayed(name: str, inflow: float, steps: int) -> np.ndarray:
    """Return the flow across behind the block in our solver, at so many last frames."""
    channel = CHANNELS[name]
    window = channel.start_windows("", 1, 1, "cpu", 1_000_001, torch.tensor([inflow]))
    sink = Signals(channel)
    case = channel.case(inflow=inflow, duration=(WARM + steps) * channel.frame * inflow,
                        start=channel.velocity(window.double())[:, 0].numpy())  # fmt: skip
    simulate(case, NONE, sink)
    return inflow * sink.result()["across"][-steps:]


def measure_shedding(
    name: str, network: torch.nn.Module, channel: Channel, device: str, *, until: float = math.inf,
    target: float = 4.0, quick: bool = False,
) -> Iterator[Figure]:  # fmt: skip
    """Yield checks of the gradient, the steps to the wanted bin from five starts, and the bins of the replay.

    until : `time.perf_counter` at which the search ends where it has not come near.
    """
    warm, seen, steps, starts, horizons = (5, 30, 1, 2, (1,)) if quick else (WARM, SEEN, 100, 5, (1, 10, 50))
    network = network.requires_grad_(False)
    low, high = channel.inflows
    inflow = torch.linspace(low + 0.1 * (high - low), high - 0.1 * (high - low), starts, device=device)
    flow = Flow(channel, network, inflow)
    window = channel.start_windows("", 1, starts, device, 1_000_001, inflow)
    with torch.no_grad():
        advanced = moved(network, device, window)
        window = advanced(window, warm)
    yield from _gradients(name, network, channel, window[:1], horizons)
    inflow.requires_grad_(True)
    optimiser, first, bins, taken = torch.optim.Adam([inflow], lr=RATE), None, inflow, steps
    for step in range(steps + 1):
        signal = flow.signal(flow.with_inflow(window, inflow), seen)
        bins = mean_bin(signal)
        first = bins.detach() if first is None else first
        if float((bins - target).abs().max()) <= NEAR or step == steps or time.perf_counter() > until:
            taken = step
            break
        optimiser.zero_grad()
        (bins - target).square().sum().backward()
        optimiser.step()
        with torch.no_grad():
            inflow.clamp_(low, high)
            window = advanced(flow.with_inflow(window, inflow), SETTLE)
    reached = float((bins - target).abs().max()) <= NEAR
    told = ", ".join(f"{v:.3f}" for v in inflow.tolist())
    setup = (f"wanted bin {target:g} of {seen} steps; at first {', '.join(f'{v:.2f}' for v in first.tolist())}; "
             f"{'reached' if reached else 'not reached'} in {taken} steps of Adam; inflows {told}")  # fmt: skip
    yield (f"{name}: largest distance of the bin from the wanted one", float((bins - target).abs().max()), "1", NEAR,
           None, setup)  # fmt: skip
    yield f"{name}: steps of Adam", taken if reached else math.inf, "1", 100.0, None, setup
    if not quick:
        with ProcessPoolExecutor(starts, mp_context=get_context("spawn")) as pool:
            series = pool.map(replayed, [channel.name] * starts, inflow.tolist(), [seen] * starts)
            found = mean_bin(torch.tensor(np.stack(list(series), axis=1)))
        words = ", ".join(f"{v:.2f}" for v in found.tolist())
        yield (f"{name}: largest distance of the replay's bin from the wanted one", float((found - target).abs().max()),
               "1", FAR, None, f"{setup}; replayed {words}")  # fmt: skip


def _gradients(
    name: str, network: torch.nn.Module, channel: Channel, window: torch.Tensor, horizons: tuple[int, ...]
) -> Iterator[Figure]:
    """Yield how far gradients of the mean square of the signal with respect to the inflow are from differences."""
    network, window = copy.deepcopy(network).double(), window.double()
    flow = Flow(channel, network, window)
    for horizon in horizons:
        def objective(inflow: torch.Tensor, horizon: int = horizon) -> torch.Tensor:
            return flow.signal(flow.with_inflow(window, inflow[0]), horizon).square().mean()[None]

        at = window.new_full((1, 1), sum(channel.inflows) / 2)
        distance, cosine = gradient_check(objective, at)
        yield (f"{name}: gradient against differences, {horizon} frames", distance, "1", 1e-3, None,
               f"float64, cosine {cosine:.6f}")  # fmt: skip
