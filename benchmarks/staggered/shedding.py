"""Control of shedding: the inflow is chosen through a trained network so that vortices come at a wanted frequency.

After Wandel, Weinmann and Klein (2021), but with steps twice as long: a flow of 250 steps without gradient, then 200
with; the flow across behind the block under a Gaussian window, its power over 15 bins of the Fourier transform, and the
mean bin under that power, whose squared distance from the wanted one is made small by Adam. Inflows whose bin is near
enough rest for as long as it stays so; the search is over when all rest at once. They then run in our solver.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from lines import Figure

from headrace.solvers.simulate import simulate
from headrace.surrogates.recorded import Recorded

from .channel import CHANNELS, NONE, Channel
from .channel_solver import Signals
from .control import gradient_check

WARM, SETTLE, SEEN, BINS, WIDTH = 250, 50, 200, 15, 40.0
"""Steps without gradient at first and after every change of the inflow, steps with, bins, deviation of the window."""
RATE, NEAR, FAR = 0.05, 0.25, 0.5
"""Adam's rate, and the bins that control and replay may be off."""
STEEP = 20.0
"""Slope of the bin over the inflow at which gradients are cut: it is 8 where the Strouhal number stays. What is far
beyond comes of a flow that has forgotten its inflow, and Adam would take smaller steps for hundreds of steps after it.
"""


def mean_bin(signal: torch.Tensor) -> torch.Tensor:
    """Return the mean bin under the power of signals (steps, batch), (batch,)."""
    steps = torch.arange(len(signal), dtype=signal.dtype, device=signal.device) - 0.5 * (len(signal) - 1)
    window = torch.exp(-0.5 * (steps / WIDTH) ** 2)[:, None]
    power = torch.fft.rfft((signal - signal.mean(0)) * window, dim=0).abs().square()[:BINS]
    return (torch.arange(BINS, dtype=signal.dtype, device=signal.device)[:, None] * power).sum(0) / power.sum(0)


class Flow:
    """A channel's flow by a network, from windows like an example, with inflows (batch,)."""

    def __init__(self, channel: Channel, network: torch.nn.Module, example: torch.Tensor) -> None:
        self.channel, self.network, self.example = channel, network, example
        solid = channel.potential.residual.grid.solid
        self.fluid = torch.tensor(~solid, dtype=example.dtype, device=example.device)

    def with_inflow(self, window: torch.Tensor, inflow: torch.Tensor) -> torch.Tensor:
        """Return windows with another inflow."""
        field = inflow.reshape(-1, *[1] * (window.ndim - 1)) * self.fluid
        return torch.cat((window[:, :, :-1], field), dim=2)

    def across(self, window: torch.Tensor) -> torch.Tensor:
        """Return the flow across behind the block, (batch,), in units of inflow 1."""
        state = self.channel.read(window[:, -1])
        speed = window[(slice(None), -1, -1, *[0] * self.channel.ndim)]
        return self.channel.signals(state[:-1], state[-1])[2] * speed

    def signal(self, window: torch.Tensor, steps: int) -> torch.Tensor:
        """Return the flow across after each of so many steps, (steps, batch); inner values are computed again."""
        return _RollOut.apply(window, self, steps)

    def stepped(self, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next window and the flow across in it."""
        new = self.network(window)
        return new, self.across(new)

    def pulled_back(self, window: torch.Tensor, new: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to a window of gradients with respect to what `stepped` returns."""
        with torch.enable_grad():
            window = window.detach().requires_grad_(True)
            return torch.autograd.grad(self.stepped(window), window, (new, across))[0]

    def advanced(self, window: torch.Tensor, steps: int) -> torch.Tensor:
        """Return windows after so many steps."""
        for _ in range(steps):
            window = self.recorded[0](window)[0]
        return window.clone()

    @cached_property
    def recorded(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The two as CUDA graphs where there is a GPU."""
        if not self.fluid.is_cuda:
            return self.stepped, self.pulled_back
        window = self.example
        new, across = self.stepped(window)
        return Recorded(self.stepped, window), Recorded(self.pulled_back, window, new, across)


class _RollOut(torch.autograd.Function):
    """Steps of a flow -> the flow across in each; states are kept, a step's inner values made again on the way back."""

    @staticmethod
    def forward(ctx: Any, window: torch.Tensor, flow: Flow, steps: int) -> torch.Tensor:
        states, found = [window], []
        for _ in range(steps):
            new, across = (result.clone() for result in flow.recorded[0](states[-1]))
            states.append(new)
            found.append(across)
        ctx.states, ctx.flow = states[:-1], flow
        return torch.stack(found)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        back = torch.zeros_like(ctx.states[0])
        for window, across in zip(reversed(ctx.states), reversed(gradient.unbind(0)), strict=True):
            back = ctx.flow.recorded[1](window, back, across).clone()
        return back, None, None


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
    target: float = 6.0, quick: bool = False,
) -> Iterator[Figure]:  # fmt: skip
    """Yield checks of the gradient, the steps to the wanted bin from five starts, and the bins of the replay.

    until : `time.perf_counter` at which the search ends where it has not come near.
    """
    warm, seen, steps, starts, horizons = (5, 30, 1, 2, (1,)) if quick else (WARM, SEEN, 100, 5, (1, 10, 50))
    network = network.eval().requires_grad_(False)
    low, high = channel.inflows
    inflow = torch.linspace(low + 0.1 * (high - low), high - 0.1 * (high - low), starts, device=device)
    window = channel.start_windows("", 1, starts, device, 1_000_001, inflow)
    flow, start = Flow(channel, network, window), window
    with torch.no_grad():
        window = flow.advanced(window, warm)
    warmed = window[:1].clone()
    inflow.requires_grad_(True)
    optimiser, first, bins, near, taken = torch.optim.Adam([inflow], lr=RATE), None, inflow, inflow > 0, steps
    arrived, begun = [math.inf] * starts, [0] * starts
    for step in range(steps + 1):
        bins = mean_bin(flow.signal(flow.with_inflow(window, inflow), seen))
        off = (bins - target).detach()
        near, first = off.abs() <= NEAR, bins.detach() if first is None else first
        arrived = [min(step, before) if there else math.inf
                   for there, before in zip(near.tolist(), arrived, strict=True)]  # fmt: skip
        print(f"# {name}: {step} steps, inflows {inflow.tolist()}, bins {bins.tolist()}", flush=True)
        if bool(near.all()) or step == steps or time.perf_counter() > until:
            taken = step
            break
        optimiser.zero_grad()
        bins.sum().backward()
        inflow.grad = (2 * off * inflow.grad.clamp(-STEEP, STEEP)).nan_to_num(0.0)
        rests = inflow.detach().clone()
        optimiser.step()
        with torch.no_grad():
            inflow.copy_(torch.where(near, rests, inflow.clamp(low, high)))
            window = flow.advanced(flow.with_inflow(window, inflow), SETTLE)
            lost = ~(bins.isfinite() & window.flatten(1).isfinite().all(1))
            if bool(lost.any()):
                again = flow.advanced(flow.with_inflow(start, inflow), warm)
                window = torch.where(lost.reshape(-1, *[1] * (window.ndim - 1)), again, window)
                begun = [count + there for count, there in zip(begun, lost.tolist(), strict=True)]
    told = ", ".join(f"{v:.3f}" for v in inflow.tolist())
    setup = (f"wanted bin {target:g} of {seen} steps; at first {', '.join(f'{v:.2f}' for v in first.tolist())}, "
             f"after {taken} steps of Adam {', '.join(f'{v:.2f}' for v in bins.tolist())}; near for good since steps "
             f"{', '.join(f'{v:g}' for v in arrived)}; inflows {told}"
             + f"; begun again out of bounds {', '.join(map(str, begun))} times" * any(begun))  # fmt: skip
    yield f"{name}: starts of {starts} that are near the wanted bin", float(near.sum()), "1", None, None, setup
    yield (f"{name}: largest distance of the bin from the wanted one", float((bins - target).detach().abs().max()), "1",
           NEAR, None, setup)  # fmt: skip
    yield f"{name}: steps of Adam", taken if bool(near.all()) else math.inf, "1", 100.0, None, setup
    yield from _gradients(name, network, channel, warmed, horizons)
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
        distance, cosine = gradient_check(objective, at, directions=1)  # a number has no more
        yield (f"{name}: gradient against differences, {horizon} frames", distance, "1", 1e-3, None,
               f"float64, cosine {cosine:.6f}")  # fmt: skip
