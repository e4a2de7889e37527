"""Classical solvers on the same device: their errors and times, and the planes' part by part, without training."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from lines import Figure

from headrace.surrogates.stagger import Stagger

from .box import Box, BoxSolver, resampled
from .cavity import Cavity
from .channel import Channel
from .channel_solver import distances, frequency, means_over
from .figures import Rival, relative, timed
from .planes import END, HELD_OUT, TIMES, Plane, Spectral
from .torch_cfd_rival import step_of
from .training import PROBLEMS, Problem

MANY = 64
"""Trajectories at a time where many are asked for."""
TIMED = 20
"""Steps that are timed."""
LADDER = (2.0, 1.0, 0.5, 1 / 3, 0.25, 0.2, 1 / 6, 1 / 7, 0.125, 1 / 9, 0.1, 0.05, 0.025)
"""Steps that are tried on planes, of which a whole number go to the end."""
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


def of_plane(plane: Plane, device: str, count: int) -> Iterator[Rival]:
    """Yield spectral solvers on finer and finer grids, ours and torch-cfd's, in shorter and shorter steps.

    Steps are one CUDA graph on a GPU, but for torch-cfd, which copies from the host in every step. The start is cut
    exactly and its transform is not counted, which favours the solvers.
    """
    for n in (8, 12, 16, 24, 32, 40, 48, 56, 64) if device == "cuda" else (8, 16):
        for who in ("spectral", "torch-cfd") if n in (16, 32, 64) and find_spec("torch_cfd") else ("spectral",):
            for dt in LADDER:

                def step(n: int = n, dt: float = dt, who: str = who) -> Step:
                    own = who == "spectral"
                    return (Spectral(plane.forcing(n, device), plane.viscosity, dt).step if own
                            else step_of(plane, n, dt, device))  # fmt: skip

                def error(step: Callable[[], Step] = step, steps: int = round(END / dt), n: int = n) -> float:
                    start, (*_, truth) = plane.held_out(TIMES, count, device)
                    spectrum, forward = torch.fft.rfft2(cut(start, n)), step()
                    for _ in range(steps):
                        spectrum = forward(spectrum)
                    return relative(cut(torch.fft.irfft2(spectrum), plane.points), truth)

                def seconds(
                    batch: int, step: Callable[[], Step] = step, dt: float = dt, n: int = n, who: str = who
                ) -> float:
                    w = torch.fft.rfft2(plane.starts(1, n, 1_000_000, device)).repeat(batch, 1, 1)
                    # A few steps are timed for all: a graph of hundreds would take longer to record than to replay.
                    some = _of_steps(step(), w, min(round(END / dt), TIMED), device, who == "spectral")
                    return some * END / dt / batch

                yield Rival(f"{who} {n} x {n}, dt {dt:g}", error, seconds)


def rivals(problem: Problem, device: str, count: int = HELD_OUT) -> Iterator[Rival]:
    """Yield the classical solvers that a network of a problem is compared with."""
    if isinstance(problem, Plane):
        yield from of_plane(problem, device, count)
    else:
        yield from problem.rivals(device, count) if isinstance(problem, Box) else problem.rivals(device)


def told(problem: Problem, rival: Rival) -> str:
    """Return what the line of a solver's error is called."""
    return f"{problem.name}: {rival.name}: {problem.judged}"


@torch.no_grad()
def usable(
    problem: Problem, device: str, count: int = HELD_OUT, known: Mapping[str, dict[str, Any]] | None = None, *,
    more: bool = True,
) -> Iterator[tuple[Rival, float]]:  # fmt: skip
    """Yield the solvers that come within one half, and their errors: on every grid the cheapest, which comes first, and
    dearer ones as long as these take a tenth of the error away.

    known : lines by name; errors that they tell are not computed again. more : whether others are, where they tell some
    of this problem.
    """
    known, best, done = known or {}, dict[str, float](), set[str]()
    every = list(rivals(problem, device, count))
    more = more or not any(told(problem, rival) in known for rival in every)
    for rival in every:
        line = known.get(told(problem, rival))
        if rival.grid in done or (line is None and not more):
            continue
        error = rival.error() if line is None else line["value"]
        if error is None or not error < 0.5:  # steps that are too long, or a grid that is too coarse
            continue
        if error > 0.9 * best.get(rival.grid, math.inf):
            done.add(rival.grid)
            continue
        best[rival.grid] = error
        yield rival, error


@torch.no_grad()
def measure_classical(quick: bool, device: str, names: Collection[str] | None = None) -> Iterator[Figure]:
    """Yield the errors of the classical solvers of every plane, or of these problems; on planes also part by part,
    the classical line without training, in the cavity how far finer and finer grids are from what Ghia prints, in the
    box how far its own grid is from a finer one, and where vortices are shed how far runs from other starts are from
    the judged one.
    """
    count = 1 if quick else HELD_OUT
    for problem in (PROBLEMS[name] for name in names or (("P1",) if quick else ("P1", "P2", "P3"))):
        kind = "float64" if isinstance(problem, Plane | Box) else "float32"
        for rival, error in usable(problem, device, count):
            yield told(problem, rival), error, "1", None, None, kind
        if isinstance(problem, Plane):
            yield from _part_by_part(problem, device, count)
        if isinstance(problem, Box):
            yield from finer(problem, device, count)
        if isinstance(problem, Channel) and "shedding" in problem.goals:
            yield from apart(problem, device, 2 if quick else 15)
        if isinstance(problem, Cavity):
            yield from refined(problem, device, (16, 32) if quick else (64, 128, 256))


def apart(channel: Channel, device: str, others: int) -> Iterator[Figure]:
    """Yield how far runs of our solver's explicit steps from other starts are from the one that networks are judged by,
    over the same frames: what a distance of means over so long a time is worth.
    """
    starts = [channel.start_windows("", 1, count, device, seed, torch.ones(count))
              for count, seed in ((1, 1_000_000), (others, 2_000_000))]  # fmt: skip
    runs, last = channel.runs_on(device, channel.rolled, torch.cat(starts)), slice(channel.rolled // 2, channel.rolled)
    judged, *rest = (means_over(run, last) for run in runs)
    shed, *sheds = (frequency(run["across"][last], channel.frame) for run in runs)
    off = [[*distances(one, judged), abs(other / shed - 1)] for one, other in zip(rest, sheds, strict=True)]
    words = f"float32, mean over {others} starts, all over steps {last.start} to {last.stop}"
    for what, goal, found in zip(
        ("energy", "drag", "mean profile", "shedding"), [channel.goals["flow"]] * 3 + [channel.goals["shedding"]],
        zip(*off, strict=True), strict=True,
    ):  # fmt: skip
        told = f"{words}; {sum(one <= goal for one in found)} within {goal:g}, largest {max(found):.3g}"
        yield (f"{channel.name}: explicit steps from other starts: {what}, distance from the judged run",
               sum(found) / others, "1", None, None, told)  # fmt: skip


def finer(box: Box, device: str, count: int) -> Iterator[Figure]:
    """Yield how far the solver on the box's own points, by which networks are judged, is from half as many again."""
    start, n = box.starts(count, 1_000_000, device).double(), 3 * box.points // 2
    own, steps = box.solver(box.points, box.end, device, torch.float64)
    fine = BoxSolver(n, box.viscosity, box.end / (2 * steps), torch.float64, device)
    pairs = [(own.advanced(one, steps), resampled(fine.advanced(resampled(one, n), 2 * steps), box.points))
             for one in start[:, None]]  # fmt: skip
    error = relative(*(torch.cat(each) for each in zip(*pairs, strict=True)))
    yield (f"{box.name}: spectral on {box.points} x {box.points} x {box.points}: error to one on {n} x {n} x {n}, in "
           "steps half as long", error, "1", None, None, f"float64, t = {box.end:g}")  # fmt: skip


def refined(cavity: Cavity, device: str, grids: Sequence[int]) -> Iterator[Figure]:
    """Yield the extremes of our solver's explicit steps at the end on these grids, beside those of Ghia."""
    for points in grids:
        one = replace(cavity, points=points)
        flow = one.solved_on(device, *one.steppings([1.0])[0])[-1]
        for what, distance, _, published, words in one.extremes("", flow, None):
            name = f"{cavity.name}: explicit steps on {points} x {points}: {what}"
            yield name, distance, "1", None, published, f"float32, t = {one.end:g}, {words}"


def _part_by_part(plane: Plane, device: str, count: int) -> Iterator[Figure]:
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
