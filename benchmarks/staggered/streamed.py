"""Two studies of `navier_stokes2d` that differ in one thing: whether training starts from the states of the stream."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from lines import Figure

from headrace.cases import navier_stokes2d
from headrace.online_training import Study
from headrace.solvers import Case, MemorySink
from headrace.solvers.case_file import CaseReference
from headrace.solvers.simulate import simulate
from headrace.surrogates import NeuralStagger, load_surrogate

from .figures import relative

AT = (1, 5, 10, 20)
"""Snapshots, which are one time unit apart, whose errors are figures of their own."""


@dataclass(frozen=True)
class Size:
    """Of a study: points a side, width of the network, simulations, uses of each state, and states of a batch."""

    points: int
    width: int
    simulations: int
    views: float
    batch: int


SIZES = {"cpu": Size(32, 12, 16, 45.0, 16), "cuda": Size(64, 24, 120, 45.0, 32)}


def held_out(case: Case, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return trajectories (count, time, 1, nx, ny) at viscosities between 1e-5 and 1e-3, and those."""
    states, rows = [], []
    for number in range(count):
        p, sink = case.draw([(number + 0.5) / count]), MemorySink()
        simulate(case, p, sink, simulation=2_000_000 + number)
        states.append(np.asarray(sink.values))
        rows.append([p.nu])
    return torch.tensor(np.stack(states), dtype=torch.float32), torch.tensor(rows)


def learned(device: str, streamed: bool, size: Size) -> tuple[list[float], str]:
    """Return the errors at t = 1, 2, ... after a study, and what it was."""
    points, cuda = size.points, device == "cuda"
    reference = CaseReference.of(Path(navier_stokes2d.__file__), shape=(points, points))
    truth, rows = held_out(reference.load(), 8)
    times = torch.arange(1, truth.shape[1], dtype=torch.float32)
    with tempfile.TemporaryDirectory(prefix="headrace-streamed-") as folder:
        run = Path(folder) / "run"
        Study(
            reference, NeuralStagger(space=2, width=size.width, streamed=streamed), run_dir=run,
            simulations=size.simulations, held_out=2, ranks=1, jobs=3 if cuda else 1, views=size.views,
            batch_size=size.batch, learning_rate=2e-3, device=device, buffer="200MB", record_steps=cuda,
        ).run()  # fmt: skip
        surrogate = load_surrogate(run / "model")
    found = surrogate.predict(truth[:, :1], rows, times)
    weights = sum(p.numel() for p in surrogate.parameters())
    setup = (f"(2,2,1) on {points} x {points}, FNO width {size.width}, {weights:,} weights, {size.simulations} "
             f"simulations of 21 states, {size.views:g} uses of each in batches of {size.batch}, 8 held out, "
             "viscosity 1e-5 to 1e-3, truth: our spectral solver on these points")  # fmt: skip
    return [relative(found[:, k], truth[:, k + 1]) for k in range(found.shape[1])], setup


def measure_streamed(device: str, size: Size | None = None) -> Iterator[Figure]:
    """Yield errors against time of both, trained with the same number of windows; on CPUs on fewer points.

    On a GPU both studies run at the same time, on a CPU one after the other. size : of both, else that of the device.
    """
    named = ((True, "states of the stream"), (False, "states of its own making"))
    with ExitStack() as stack:
        # Ray does not start twice in one process.
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"))) for _ in named]

        def start(number: int) -> Future[tuple[list[float], str]]:
            return pools[number].submit(learned, device, named[number][0], size or SIZES[device])

        beside = [start(number) for number in range(len(named))] if device == "cuda" else []
        for number, (_, words) in enumerate(named):
            errors, setup = (beside[number] if beside else start(number)).result()
            curve = "errors at t = 1, 2, ...: " + ", ".join(f"{e:.3g}" for e in errors)
            for t in AT:
                yield (f"navier_stokes2d, {words}: error at t = {t}", errors[t - 1], "1", None, None,
                       f"{setup}; {curve}")  # fmt: skip
