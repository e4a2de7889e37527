"""Training steps and their times: on a CPU the best of alternating runs, on a GPU the median of device events.

A module, not a benchmark: fno.py and networks.py use it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch


def best_times(functions: dict[str, Callable[[], Any]], device: torch.device, seconds: float) -> dict[str, float]:
    """Run functions alternately for some seconds, at least three times each; return the best time of each in ms."""
    best = dict.fromkeys(functions, math.inf)
    for function in functions.values():
        function()
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        for name, function in functions.items():
            synchronise(device)
            before = time.perf_counter()
            function()
            synchronise(device)
            best[name] = min(best[name], 1e3 * (time.perf_counter() - before))
        rounds += 1
    return best


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_time(run: Callable[[], None], seconds: float) -> float:
    """Median time of one call in ms, between events on the device, over at least ten calls and some seconds."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 10 or (time.perf_counter() - began < seconds and len(times) < 200):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def has_complex(network: torch.nn.Module) -> bool:
    """Whether Adam's fused form, which knows real weights only, is out of reach."""
    return any(parameter.is_complex() for parameter in network.parameters())


def allow(precision: str, half: torch.dtype) -> torch.autocast:
    """Set the precision of matrix products; 16 bits are autocast, which the caller enters."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    return torch.autocast("cuda", half, enabled=precision == "bf16")


def training_step(
    network: torch.nn.Module, loss_of: Callable[[], torch.Tensor], precision: str, half: torch.dtype = torch.bfloat16
) -> Callable[[], None]:
    """Return a whole step, forward, backward and Adam, that a CUDA graph can record; half is what autocast takes."""
    fused, on_gpu = not has_complex(network), next(network.parameters()).is_cuda
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=fused, foreach=not fused, capturable=on_gpu)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with allow(precision, half):
            loss = loss_of()
        loss.backward()
        optimizer.step()

    return run
