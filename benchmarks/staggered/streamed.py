"""Two studies of `navier_stokes2d` that differ in one thing: whether training starts from the states of the stream."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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
"""Snapshots, which are one time unit apart, whose errors are told."""


def held_out(case: Case, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return trajectories (count, time, 1, nx, ny) at viscosities between 1e-5 and 1e-3, and those."""
    states, rows = [], []
    for number in range(count):
        p, sink = case.draw([(number + 0.5) / count]), MemorySink()
        simulate(case, p, sink, simulation=2_000_000 + number)
        states.append(np.asarray(sink.values))
        rows.append([p.nu])
    return torch.tensor(np.stack(states), dtype=torch.float32), torch.tensor(rows)


def learned(device: str, streamed: bool) -> tuple[list[float], str]:
    """Return errors at `AT` after a study, and what it was."""
    cuda = device == "cuda"
    points, width, simulations, views, batch = (64, 24, 120, 60.0, 32) if cuda else (32, 12, 16, 20.0, 16)
    reference = CaseReference.of(Path(navier_stokes2d.__file__), shape=(points, points))
    truth, rows = held_out(reference.load(), 8)
    times = torch.arange(1, truth.shape[1], dtype=torch.float32)
    with tempfile.TemporaryDirectory(prefix="headrace-streamed-") as folder:
        run = Path(folder) / "run"
        Study(
            reference, NeuralStagger(space=2, width=width, streamed=streamed), run_dir=run, simulations=simulations,
            held_out=2, ranks=1, jobs=3 if cuda else 1, views=views, batch_size=batch, learning_rate=2e-3,
            device=device, buffer="200MB",
        ).run()  # fmt: skip
        surrogate = load_surrogate(run / "model")
    found = surrogate.predict(truth[:, :1], rows, times)
    weights = sum(p.numel() for p in surrogate.parameters())
    setup = (f"(2,2,1) on {points} x {points}, FNO width {width}, {weights:,} weights, {simulations} simulations "
             f"of 21 states, {views:g} uses of each in batches of {batch}, 8 held out, viscosity 1e-5 to 1e-3, "
             "truth: our spectral solver on these points")  # fmt: skip
    return [relative(found[:, k - 1], truth[:, k]) for k in AT], setup


def measure_streamed(device: str) -> Iterator[Figure]:
    """Yield errors against time of both, trained with the same number of windows; on CPUs on fewer points."""
    for streamed, words in ((True, "states of the stream"), (False, "states of its own making")):
        # Ray does not start twice in one process.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            errors, setup = pool.submit(learned, device, streamed).result()
        for k, error in zip(AT, errors, strict=True):
            yield (f"navier_stokes2d, {words}: error at t = {k}", error, "1", None, None, setup)
