"""The lid-driven cavity from rest, for networks that give its potential: equation, transient and centre lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from ghia import from_ghia

from headrace.cases.cavity import case as cavity
from headrace.solvers import MemorySink, Parameters
from headrace.solvers.mac_circulation import CirculationResidual
from headrace.solvers.simulate import simulate

from .figures import Point
from .planes import Measured


def own_solver(reynolds: int, points: int, end: float) -> np.ndarray:
    """Return u and v of our MAC solver at every whole time, (times, 2, points, points)."""
    sink = MemorySink()
    case = replace(cavity.resized((points, points)), duration=end, num_snapshots=round(end))
    simulate(case, case.accept({"reynolds": reynolds}), sink)
    return np.asarray(sink.values)[:, :2]


@cache
def reference(reynolds: int, points: int, end: float) -> Future[np.ndarray]:
    """Return `own_solver` on its way in another process, which takes minutes."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn")).submit(own_solver, reynolds, points, end)


def restricted(velocity: np.ndarray, factor: int) -> np.ndarray:
    """Return velocities (..., 2, n, n) at the faces of a grid that is coarser by a factor: means over its faces."""
    *lead, _, n, _ = velocity.shape
    rest = n // factor
    u = velocity[..., 0, factor - 1 :: factor, :].reshape(*lead, rest, rest, factor).mean(-1)
    v = velocity[..., 1, :, factor - 1 :: factor].reshape(*lead, rest, factor, rest).mean(-2)
    return np.stack([u, v], axis=-3)


@dataclass(frozen=True, eq=False)
class Cavity:
    """Reynolds number, time to the steady state, and the goal for the extremes of the centre lines.

    The lid starts with a jerk, at which the midpoint rule rings for some 20 ν dt / h² frames: they are short therefore.
    """

    reynolds: int
    end: float
    goal: float | None
    frame: float
    points: int = 128
    batch: int = 8
    pool: int = 32
    ndim: int = 2
    fields: int = 1
    in_time: bool = True
    reading: str = "offset"
    judged: str = "largest error to our solver at whole times"
    width: int = 24
    modes: int = 16
    padding: float = 0.25

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return (self.points,) * self.ndim

    @property
    def name(self) -> str:
        """What figures are called by."""
        return f"P4 Re {self.reynolds}" + (f", {self.points} x {self.points}" if self.points != 128 else "")

    def network_options(self) -> dict[str, Any]:
        """Return how networks see the box."""
        return {"position": (False, False), "scale": 0.1}

    def equation(self, loss: str, device: str) -> CirculationResidual:
        """Return the circulation of the midpoint rule."""
        p = Parameters({"reynolds": float(self.reynolds)})
        case = cavity.resized((self.points, self.points))
        return CirculationResidual(case, viscosity=1 / self.reynolds, p=p, speed=0.2)

    def start_windows(self, loss: str, frames: int, count: int, device: str, seed: int) -> torch.Tensor:
        """Return states of rest."""
        reference(self.reynolds, self.points, self.end)
        return torch.zeros(count, frames, 1, self.points, self.points, device=device)

    @torch.no_grad()
    def errors(self, network: torch.nn.Module, loss: str, frames: int, count: int, device: str) -> Iterator[Measured]:
        """Yield the largest error of the transient at whole times, and distances of the extremes from Ghia's."""
        window = self.start_windows(loss, frames, 1, device, 0)
        fields, number = [window[:, -1]], round(self.end / self.frame)
        while len(fields) <= number:
            window = network(window)
            fields += window.unbind(1)
        every = round(1 / self.frame)
        found = self.equation(loss, device).velocity(torch.cat(fields[: number + 1 : every]).double())
        found = found.movedim(0, 1).cpu().numpy()
        yield from self._extremes("", found[-1], self.goal)
        truth = reference(self.reynolds, self.points, self.end).result()
        yield from self._extremes("our solver's ", truth[-1], None)
        errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found[1:], truth[1:], strict=True)]
        words = "errors at whole times: " + ", ".join(f"{e:.3g}" for e in errors)
        yield self.judged, max(errors), 0.03 if self.goal else None, None, words
        yield "error to our solver at the end", errors[-1], None, None, words

    def rivals(self) -> Iterator[Point]:
        """Yield our solver on coarser grids, on one core of a CPU, by the same error."""
        truth = reference(self.reynolds, self.points, self.end).result()
        for factor in (8, 4, 2):
            n, start = self.points // factor, time.perf_counter()
            found = own_solver(self.reynolds, n, self.end)
            seconds, wanted = time.perf_counter() - start, restricted(truth, factor)
            error = max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found[1:], wanted[1:], strict=True))
            yield Point(f"our solver on {n} x {n}, one core of a CPU", float(error), seconds, seconds)

    def _extremes(self, who: str, velocity: np.ndarray, goal: float | None) -> Iterator[Measured]:
        for name, distance, found, published in from_ghia(velocity, self.reynolds):
            yield f"{who}{name} from Ghia", distance, goal, published, f"found {found:.5f}"


CAVITIES = {
    one.name: one
    for one in (
        Cavity(100, 15.0, 0.02, 0.025), Cavity(400, 30.0, 0.03, 0.05), Cavity(1000, 40.0, 0.05, 0.05),
        # For CPUs. There is no goal on so few points, on which our solver is 4 % from Ghia too.
        Cavity(100, 8.0, None, 0.1, points=24, modes=8, width=16, batch=32),
    )
}  # fmt: skip
