"""Physics-informed networks at rest, trained as is usual, all of them tuned by one small grid.

The problem is convection-diffusion with c = 30, ν = 0.01, on which such networks are known to fail (Krishnapriyan et
al., NeurIPS 2021). All have our exact initial and periodic conditions and our derivatives; 2,000 steps of Adam, then
L-BFGS with new points every 1,000 steps. `curriculum` raises c in six steps, `sequence-to-sequence` solves ten slabs of
time one after the other (both ibid.), `causal` lets later times count as earlier ones are solved (Wang, Sankaran,
Perdikaris, CMAME 421, 2024): its ε grows tenfold whenever all times count by more than 0.99. The first ε is such that
the residual of the initial state, (c cos x)²/2 in each of 16 slices, leaves the last slice a thousandth.

The grid is learning rate x widths, each for a third of the time with a seed of its own; the best by the error itself,
which favours the baselines, is trained with every seed.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from headrace.cases import transport
from headrace.solvers import Parameters
from headrace.surrogates import Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.first_order import Loss, adam, lbfgs
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.places import Points
from headrace.surrogates.time_slabs import march
from headrace.surrogates.transport_network import TransportNetwork

CASE, ROW = transport.convection_diffusion, (30.0, 0.01)
RATES, WIDTHS = (1e-3, 5e-3), ((50,) * 4, (100,) * 3)
METHODS = {
    "plain float32": torch.float32, "plain float64": torch.float64, "curriculum float64": torch.float64,
    "sequence-to-sequence float64": torch.float64, "causal float64": torch.float64,
}  # fmt: skip
SLABS, CAUSAL, SOLVED = 10, 1e-3, 0.99


def by_gradients(
    network: TransportNetwork, rows: torch.Tensor, *, seconds: float, rate: float, causal: float = 0.0, seed: int = 0
) -> None:
    """Train by Adam, a third of the time at most, and by L-BFGS."""
    with torch.no_grad():  # a last layer that starts at its usual size, not ours
        network.state.weights[-1] *= 10
    loss, sampler = Loss(network, causal=causal), Sampler(network, rows, 1000, seed=seed)
    began = time.monotonic()
    adam(loss, sampler, steps=2_000, learning_rate=rate, seconds=seconds / 3)
    while (left := seconds - (time.monotonic() - began)) > 0:
        lbfgs(loss, lambda step: sampler(step + 1), steps=1_000, seconds=left)
        if float(loss.least_weight) > SOLVED:
            loss.causal *= 10


def solve(
    method: str, *, rate: float, widths: tuple[int, ...], seconds: float, seed: int, device: str
) -> Callable[[Points], torch.Tensor]:
    """Return the solution of a method, a function of points."""
    rows = torch.tensor([ROW], dtype=METHODS[method], device=device)
    usual: dict[str, Any] = dict(seconds=seconds, rate=rate, seed=seed)
    if method.startswith("sequence"):
        share = usual | {"seconds": seconds / SLABS}
        return march(CASE, rows, lambda network: by_gradients(network, rows, **share), frame="eulerian",
                     longest=CASE.duration / SLABS, widths=widths, seed=seed).values_at  # fmt: skip
    network = TransportNetwork(replace(Problem.of(CASE), parameters={}), widths=widths, seed=seed).to(rows)
    network.use(MovingFrame(CASE, frame="eulerian"))
    if method.startswith("curriculum"):
        loss = Loss(network)
        for share in (1 / 6, 1 / 3, 1 / 2, 2 / 3, 5 / 6):
            slow = rows * rows.new_tensor([[share, 1.0]])
            if share == 1 / 6:
                by_gradients(network, slow, **usual | {"seconds": seconds / 8})
            else:
                lbfgs(loss, Sampler(network, slow, 1000, seed=seed), steps=100_000, seconds=seconds / 8)
        lbfgs(loss, Sampler(network, rows, 1000, seed=seed), steps=100_000, resample_every=1_000,
              seconds=seconds * 3 / 8)  # fmt: skip
    else:
        by_gradients(network, rows, **usual, causal=CAUSAL if method.startswith("causal") else 0.0)
    return network.values_at


def error(solution: Callable[[Points], torch.Tensor], dtype: torch.dtype, device: str) -> float:
    """Return the relative L2 error in space and time on a grid that no training sees, infinite if it is no number."""
    x, times = (np.arange(211) + 0.37) * transport.TURN / 211, np.arange(21) / 20
    p = Parameters(dict(zip(CASE.parameters, ROW, strict=True)))
    truth = np.stack([transport.exact(CASE.name, (x,), t, p) for t in times])
    labels, when, rows = (torch.tensor(a, dtype=dtype, device=device)
                          for a in (np.tile(x, 21)[None], np.repeat(times, 211), [ROW]))  # fmt: skip
    with torch.no_grad():
        row_of = torch.zeros(len(when), dtype=torch.long, device=device)
        found = solution(Points(labels=labels, times=when, rows=rows, row_of=row_of))[0].double().cpu().numpy()
    value = float(np.linalg.norm(found.reshape(truth.shape) - truth) / np.linalg.norm(truth))
    return value if math.isfinite(value) else math.inf


def measure_baselines(
    *, seconds: float, seeds: int, device: str, methods: tuple[str, ...] = tuple(METHODS)
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Yield name, median error and further entries of the line of each method."""
    for method in methods:
        dtype, tried = METHODS[method], {}
        for rate, widths in itertools.product(RATES, WIDTHS):
            solution = solve(method, rate=rate, widths=widths, seconds=seconds / 3, seed=100, device=device)
            tried[rate, widths] = error(solution, dtype, device)
        rate, widths = min(tried, key=tried.get)
        best = dict(rate=rate, widths=widths, seconds=seconds, device=device)
        errors, busy = [], []
        for seed in range(seeds):
            began = time.process_time()
            errors.append(error(solve(method, seed=seed, **best), dtype, device))
            busy.append(round(time.process_time() - began, 1))
        yield f"baseline PINN c=30 nu=0.01 {method}", statistics.median(errors), {
            "worst": max(errors), "seeds": seeds, "precision": str(dtype).removeprefix("torch."),
            "seconds": [seconds] * seeds, "processor_seconds": busy,
            "setup": f"{'x'.join(map(str, widths))} tanh, 1000 points, Adam {rate:g} and L-BFGS, best of a grid of "
                     f"{len(tried)}: " + ", ".join(f"{e:.2g}" for e in tried.values()),
        }  # fmt: skip
