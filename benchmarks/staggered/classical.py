"""Classical solvers on the same device: error at t = 10 against time, coarse and part by part, without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from functools import cache

import torch
from lines import Figure

from headrace.surrogates.stagger import Stagger

from .box import Box
from .cavity import Cavity
from .channel import Channel
from .figures import Point, relative, timed
from .planes import END, HELD_OUT, PLANES, TIMES, Plane, Spectral
from .torch_cfd_rival import step_of

MANY = 64
"""Trajectories at a time where many are asked for."""
TIMED = 20
"""Steps that are timed."""
Step = Callable[[torch.Tensor], torch.Tensor]


def cut(w: torch.Tensor, n: int) -> torch.Tensor:
    """Return fields sampled from (batch, m, m) points to n x n by their spectrum, up or down."""
    m, half = w.shape[-1], min(n, w.shape[-1]) // 2
    source, target = torch.fft.rfft2(w), torch.zeros(len(w), n, n // 2 + 1, dtype=torch.complex128, device=w.device)
    target[:, :half, :half] = source[:, :half, :half]
    target[:, -half + 1 :, :half] = source[:, -half + 1 :, :half]
    return torch.fft.irfft2(target * (n / m) ** 2)


def _of_steps(step: Step, spectrum: torch.Tensor, count: int, device: str, graph: bool) -> float:
    """Return the seconds of one of so many steps."""

    def advanced() -> torch.Tensor:
        w = spectrum
        for _ in range(count):
            w = step(w)
        return w

    return timed(advanced, device, 3, graph=graph) / count


@cache
@torch.no_grad()
def curve(plane: Plane, device: str, count: int = HELD_OUT) -> tuple[Point, ...]:
    """Return spectral solvers of rising cost, ours and torch-cfd's, at the longest and the second longest stable step.

    Steps are one CUDA graph on a GPU, but for torch-cfd, which copies from the host in every step. The start is cut
    exactly and its transform is not counted, which favours the solvers.
    """
    start, (*_, truth) = plane.held_out(TIMES, count, device)
    points = []
    for n in (8, 12, 16, 24, 32, 40, 48, 64) if device == "cuda" else (8, 16):
        for who in ("spectral", "torch-cfd") if n in (16, 32, 64) else ("spectral",):
            steps_found = 0
            for dt in (1.0, 0.5, 0.25, 0.2, 0.125, 0.1, 0.05, 0.025):
                step = Spectral(plane.forcing(n, device), plane.viscosity, dt).step
                if who == "torch-cfd":
                    step = step_of(plane, n, dt, device)
                if step is None:
                    break

                def advanced(w: torch.Tensor, step: Step = step, steps: int = round(END / dt)) -> torch.Tensor:
                    spectrum = torch.fft.rfft2(w)
                    for _ in range(steps):
                        spectrum = step(spectrum)
                    return torch.fft.irfft2(spectrum)

                error = relative(cut(advanced(cut(start, n)), plane.points), truth)
                if not math.isfinite(error) or error > 0.5:
                    continue
                # A few steps are timed for all: a graph of hundreds would take longer to record than to replay.
                count_timed = min(round(END / dt), TIMED)
                one, graph = torch.fft.rfft2(cut(start[:1], n)), who == "spectral"
                seconds = each = _of_steps(step, one, count_timed, device, graph) * END / dt
                if device == "cuda":
                    each = _of_steps(step, one.expand(MANY, -1, -1).contiguous(), count_timed, device, graph)
                    each *= END / dt / MANY
                points.append(Point(f"{who} {n} x {n}, dt {dt:g}", error, seconds, each))
                steps_found += 1
                if steps_found == 2:  # shorter ones cost more, and the error is that of the grid
                    break
    return tuple(points)


@torch.no_grad()
def measure_classical(quick: bool, device: str, names: Collection[str] | None = None) -> Iterator[Figure]:
    """Yield the curve of every plane, or of these, and, part by part, the classical line without training."""
    for plane in (PLANES[name] for name in (("P1",) if quick else ("P1", "P2", "P3")) if not names or name in names):
        count = 1 if quick else HELD_OUT
        for point in curve(plane, device, count):
            yield (f"{plane.name}: {point.name}: error to truth at t = 10", point.error, "1", None, None, "float64")
            yield (f"{plane.name}: {point.name}: time to t = 10, batch 1", point.seconds, "s", None, None,
                   "float64, a CUDA graph but for torch-cfd" if device == "cuda" else "float64")  # fmt: skip
            if device == "cuda":
                yield (f"{plane.name}: {point.name}: time to t = 10 in a batch of {MANY}", point.each, "s", None, None,
                       "float64")  # fmt: skip
        start, (*_, truth) = plane.held_out(TIMES, count, device)
        for factor in (1, 2, 4):
            n, stagger = plane.points // factor, Stagger((factor, factor))
            dt = 0.1 if n <= 16 else plane.step
            source = stagger.split(plane.forcing(plane.points, device)[None, None, None])[:, :, 0]
            solver, steps = Spectral(source, plane.viscosity, dt), round(END / dt)
            parts = stagger.split(start[:, None, None])[:, :, 0]
            joined = stagger.join(solver.advanced(parts, steps)[:, :, None])[:, 0, 0]
            yield (f"{plane.name}: spectral on each part of {n} x {n}: error to truth at t = 10",
                   relative(joined, truth), "1", None, None, f"float64, dt {dt:g}, no training")  # fmt: skip


def rivals(problem: Plane | Cavity | Box | Channel, device: str, count: int = HELD_OUT) -> list[Point]:
    """Return the classical solvers that a network of a problem is compared with."""
    if isinstance(problem, Plane):
        return list(curve(problem, device, count))
    return list(problem.rivals(device, count) if isinstance(problem, Box) else problem.rivals(device))
