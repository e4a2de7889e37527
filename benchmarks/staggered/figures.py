"""What the parts of the benchmark share: times, weights, errors."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.surrogates.recorded import Recorded

ENOUGH = 0.5
"""Seconds of calls that tell how long one takes."""


@dataclass(frozen=True)
class Rival:
    """One classical solver of a problem: its error, NaN where it blows up, and batch -> seconds of each trajectory."""

    name: str
    error: Callable[[], float]
    seconds: Callable[[int], float]

    @property
    def grid(self) -> str:
        """Who solves on which grid, whatever the step."""
        return self.name.split(", dt")[0]


def stored(name: str) -> dict[str, np.ndarray] | None:
    """Return what STAGGERED_REFERENCES/NAME.npz holds, in float64, if it is there."""
    file = Path(os.environ.get("STAGGERED_REFERENCES", ".")) / f"{name}.npz"
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as held:
        return {key: values.astype(np.float64) for key, values in held.items()}


def solved_beside(name: str, solve: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Return what a solver of ours gives: stored, or on its way in another process for minutes."""
    held = stored(name)
    if held is None:
        return ProcessPoolExecutor(1, mp_context=get_context("spawn")).submit(solve, *arguments)
    known: Future[Any] = Future()
    known.set_result(held)
    return known


def timed(run: Callable[[], Any], device: str, repeats: int, *, graph: bool = True) -> float:
    """Return the median seconds of one call, on a GPU replayed as a CUDA graph unless it cannot be one.

    Of long calls there are fewer: ten, of which the second half counts, when they have taken `ENOUGH` seconds.
    """
    graph = graph and device == "cuda"
    call = Recorded(run) if graph else run
    times: list[float] = []
    while len(times) < repeats + (20 if graph else 1) and not (len(times) >= 10 and sum(times) > ENOUGH):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[-min(repeats, max(1, len(times) // 2)) :])


def repeated(
    step: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], state: torch.Tensor, count: int, device: str
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield what a step gives of its own first result, again and again; on a GPU it is recorded as a CUDA graph."""
    call = Recorded(step, state) if device == "cuda" else step
    for _ in range(count):
        results = tuple(result.clone() for result in call(state))
        yield results
        state = results[0]


def weights(network: torch.nn.Module) -> int:
    """Return the number of weights."""
    return sum(p.numel() for p in network.parameters())


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the mean over samples of the relative L2 norm of the difference."""
    difference = (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    return float(difference.mean())
