"""Collocation points: evenly spread, or where the residual is large."""

import pytest
import torch

from headrace.cases import transport
from headrace.surrogates import Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.transport_network import TransportNetwork

torch.set_num_threads(1)
ROWS = torch.tensor([[20.0, 0.05]], dtype=torch.float64)


def untrained():
    case = transport.convection_diffusion
    network = TransportNetwork(Problem.of(case), widths=(6,)).double()
    network.use(MovingFrame(case, frame="eulerian"))
    return network


def size(network, points):
    with torch.no_grad():
        return network.residual(points).abs()[0]


def test_uniform_points_leave_no_gap():
    points = Sampler(untrained(), ROWS, 400, adaptive=0.0)(0)
    cells = (points.labels[0] / transport.TURN * 10).long() * 10 + (points.times * 10).long()
    counts = torch.bincount(cells, minlength=100)
    assert len(points.times) == 400 and counts.min() >= 2 and counts.max() <= 7  # of independent ones 0 and 11


def test_adaptive_points_lie_where_the_residual_is_large():
    network = untrained()
    even = size(network, Sampler(network, ROWS, 4000, adaptive=0.0)(1)).mean()
    adaptive = size(network, Sampler(network, ROWS, 4000, adaptive=0.9)(1)).mean()
    # Kept with probabilities |R| / mean + 1/2, they have the mean ∫ (R + 1/2) R / (3/2) of R in units of its own.
    assert 1.1 * even < adaptive < 1.4 * even


def test_retained_points_are_those_above_the_mean():
    network = untrained()
    sampler = Sampler(network, ROWS, 500, retain=True)
    before = sampler(0)
    residual = size(network, before)
    stay = {(float(x), float(t)) for x, t, r in zip(before.labels[0], before.times, residual, strict=True)
            if r > residual.mean()}  # fmt: skip
    leave = {(float(x), float(t)) for x, t in zip(before.labels[0], before.times, strict=True)} - stay
    after = sampler(1)
    found = {(float(x), float(t)) for x, t in zip(after.labels[0], after.times, strict=True)}
    assert len(after.times) == 500 and 100 < len(stay) < 400
    assert stay <= found and not leave & found
    with pytest.raises(ValueError, match="tensor"):
        Sampler(network, lambda generator: ROWS, 10, retain=True)
