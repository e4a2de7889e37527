"""Slabs of time, each with labels of its own, for long runs and for labels that would meet.

At the end of a slab every place becomes a label again: x(X) = X, J = 1. The state it starts from is the state reached,
its derivatives in space included, not a fit of it; so the solution is continuous up to the precision of the inversion,
and what an evaluation costs grows with the number of slabs before it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from headrace.solvers.case import Case

from .moving_frame import MovingFrame
from .places import Points
from .problem import Problem
from .transport_network import TransportNetwork

logger = logging.getLogger(__name__)

_LABELS = {1: 512, 2: 32, 3: 10}
"""Labels per axis at which J is watched."""
_MOMENTS = 40
_SHORTEST = 1e-2


@dataclass(frozen=True, kw_only=True)
class Relabelling:
    """Why a slab ends before its time: J of a label has fallen to `jacobian` at `time`, or is about to."""

    time: float
    label: tuple[float, ...]
    jacobian: float


class TimeSlabs(torch.nn.Module):
    """Networks of consecutive slabs of time, as one solution.

    ends : of each slab. relabellings : those that labels drawing near to each other have made necessary.
    """

    def __init__(self) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList()
        self.ends: list[float] = []
        self.relabellings: list[Relabelling] = []

    def append(self, network: TransportNetwork, ends: float) -> None:
        """Add the network of the next slab."""
        self.networks.append(network)
        self.ends.append(ends)

    def values_at(self, points: Points) -> torch.Tensor:
        """Return u at the places points.labels, (fields, points), at any times up to the last end."""
        parts = points.labels.new_empty(len(self.networks[0].problem.fields), points.labels.shape[1])
        inner = points.times.new_tensor(self.ends[:-1])
        number = torch.bucketize(points.times.contiguous(), inner)
        for slab, network in enumerate(self.networks):
            here = (number == slab).nonzero()[:, 0]
            if len(here):
                parts = parts.index_copy(1, here, network.values_at(points.part(here)))
        return parts


def march(  # noqa: PLR0913
    case: Case, rows: torch.Tensor, train: Callable[[TransportNetwork], object], *, frame: str = "auto",
    longest: float | None = None, relabel_below: float = 0.2, floor: float = 0.1, open_walls: bool = False,
    widths: Sequence[int] = (20, 20, 20), paths: Sequence[int] | None = None, harmonics: int = 1, seed: int = 0,
) -> TimeSlabs:  # fmt: skip
    """Solve a case slab by slab and return the solution.

    rows : (rows, parameters); networks see the parameters where there are several.
    train : trains the network of one slab; `Sampler(network, ...)` draws points in it.
    longest : length of a slab at most; None is the whole duration.
    relabel_below : in the lagrangian frame a slab ends where J of some label falls so low; the other frames keep J up.

    Raises
    ------
    ArithmeticError : labels meet however short the slab is, as where a solution without viscosity breaks.
    """
    problem = Problem.of(case)
    if len(rows) == 1:
        problem = replace(problem, parameters={})
    slabs, begins, start, watched = TimeSlabs(), 0.0, None, None
    while begins < case.duration * (1 - 1e-12):
        network = TransportNetwork(
            problem, widths=widths, paths=paths, harmonics=harmonics, lagrangian=frame == "lagrangian",
            seed=seed + len(slabs.ends),
        ).to(rows)  # fmt: skip
        moving = MovingFrame(
            case, frame=frame, floor=floor, open_walls=open_walls, begins=begins, start=start,
            length=_share(case.duration - begins, longest),
        )  # fmt: skip
        watched = _watched(moving, rows, watched)
        if frame == "lagrangian":  # no longer than labels keep apart as they set out
            meeting, label = moving.meeting(watched)
            if meeting * (1 - relabel_below) < _SHORTEST * case.duration:
                raise _breaking(begins + meeting, label)
            moving.length = min(moving.length, meeting * (1 - relabel_below))
        network.use(moving)
        train(network)
        met, ends = _watch(network, watched, relabel_below)
        if met is None and moving.length < _share(case.duration - begins, longest):
            met = Relabelling(time=ends, label=label, jacobian=relabel_below)
        if met is not None:
            logger.info("Labels %s draw near to each other at t = %.4g (J = %.2g); new labels from t = %.4g.",
                        met.label, met.time, met.jacobian, ends)  # fmt: skip
            slabs.relabellings.append(met)
            if ends - begins < _SHORTEST * case.duration:
                raise _breaking(met.time, met.label)
        slabs.append(network, ends)
        start, begins, watched = _reached(network, ends), ends, _carried(network, watched, ends)
    return slabs


def _share(remaining: float, longest: float | None) -> float:
    """Return the length of the next slab where none is longer than `longest` and the last is not tiny."""
    return remaining if longest is None else remaining / math.ceil(remaining / longest * (1 - 1e-9))


def _breaking(time: float, label: tuple[float, ...]) -> ArithmeticError:
    return ArithmeticError(
        f"Labels {label} meet at t = {time:.4g} however often they are renewed: the solution breaks there. Give it "
        "viscosity, take frame='limited', or a duration that ends before."
    )


def _reached(network: TransportNetwork, time: float) -> Callable[[Points], object]:
    return lambda points: network.state_at(
        replace(points, labels=points.labels.detach(), times=torch.full_like(points.times, time))
    )


def _watched(moving: MovingFrame, rows: torch.Tensor, before: Points | None) -> Points:
    """Return the labels to watch: evenly spread ones, and those where the evenly spread ones of the slab before are."""
    grid, count = moving.case.grid, _LABELS[moving.ndim]
    axes = [grid.origin[i] + (torch.arange(count).to(rows) + 0.5) * (grid.extent[i] / count) for i in range(grid.ndim)]
    even = moving.for_each(rows, torch.stack([axis.reshape(-1) for axis in torch.meshgrid(*axes, indexing="ij")]))
    if before is None:
        return even
    gathered = before.labels[:, : even.labels.shape[1]]
    return replace(
        even, labels=torch.cat((even.labels, gathered), 1), times=even.times.repeat(2), row_of=even.row_of.repeat(2)
    )


@torch.no_grad()
def _carried(network: TransportNetwork, watched: Points, time: float) -> Points:
    """Return the places of labels at a time as the labels of the next slab, within the box."""
    place = network.place(replace(watched, times=torch.full_like(watched.times, time)))
    grid, axes = network.moving.case.grid, []
    for axis, part in enumerate(place.x):
        inner = part.value - grid.origin[axis]
        extent = grid.extent[axis]
        inner = inner % extent if network.moving.case.periodic[axis] else inner.clamp(0, extent)
        axes.append(grid.origin[axis] + inner)
    return watched.at(torch.stack(axes))


def _watch(network: TransportNetwork, watched: Points, below: float) -> tuple[Relabelling | None, float]:
    """Return where J first falls below a bound, and the last time watched before."""
    moving = network.moving
    if moving.frame != "lagrangian":
        return None, moving.begins + moving.length
    good = moving.begins
    for moment in range(1, _MOMENTS + 1):
        time = moving.begins + moving.length * moment / _MOMENTS
        J, _, label = network.min_jacobian(replace(watched, times=torch.full_like(watched.times, time)))
        if not J >= below * (1 - 1e-6):
            return Relabelling(time=time, label=tuple(label), jacobian=J), good
        good = time
    return None, good
