"""Insight: ranks of snapshots, directions of largest curvature, and the time at which labels cross."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.cases import transport
from headrace.surrogates import Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.first_order import Loss
from headrace.surrogates.insight import crossing, landscape, modes_needed, snapshots, top_directions
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.places import Points
from headrace.surrogates.transport_network import TransportNetwork

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("double")


def network(case, frame, zero=False):
    net = TransportNetwork(replace(Problem.of(case), parameters={}), widths=(6, 6), lagrangian=frame == "lagrangian")
    net.use(MovingFrame(case, frame=frame))
    if zero:
        with torch.no_grad():
            for weight in net.parameters():
                weight.zero_()
    return net


def test_a_travelling_bell_needs_many_modes_at_rest_and_one_where_it_moves():
    case = replace(transport.reaction, initial=lambda x, p, rng: np.exp(12 * (np.cos(x[0] - np.pi) - 1)))
    row = torch.tensor([[5.0, 1.0]])
    _, moving, resting = snapshots(network(case, "galilean", zero=True), row)
    assert modes_needed(moving, 1e-4) == 1
    assert modes_needed(resting, 1e-4) > 10


def test_top_directions_are_those_of_the_hessian():
    net = network(transport.convection_diffusion, "galilean")
    points = Sampler(net, torch.tensor([[3.0, 0.1]]), 40, adaptive=0.0)(0)
    loss = Loss(net)
    weights = list(net.parameters())
    before = [w.detach().clone() for w in weights]
    first, second = top_directions(loss, points, steps=60)
    assert all(torch.equal(w, old) for w, old in zip(weights, before, strict=True))
    base = torch.cat([w.detach().reshape(-1) for w in weights])

    def value(flat):
        with torch.no_grad():
            for w, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
                w.copy_(part.reshape(w.shape))
            return float(loss(points))

    def curvature(v):
        h = 1e-3
        return (value(base + h * v) - 2 * value(base) + value(base - h * v)) / h**2

    sharp, next_ = curvature(first), curvature(second)
    random = torch.randn(20, len(base))
    assert sharp > next_ > max(curvature(v / v.norm()) for v in random) and abs(float(first @ second)) < 1e-10
    value(base)
    surface = landscape(loss, points, size=5, reach=0.1, directions=[first, second])
    assert surface[2, 2] == pytest.approx(float(loss(points).detach()))


def test_labels_cross_when_the_wave_breaks():
    net = network(transport.breaking, "lagrangian", zero=True)
    labels = torch.linspace(0, 2 * np.pi, 401)[None]
    rows = torch.tensor([[1.0]])
    points = Points(labels=labels, times=torch.zeros(401), rows=rows, row_of=torch.zeros(401, dtype=torch.long))
    t, J = crossing(net, points, until=1.5)
    assert abs(t - 1) < 1e-2 and J <= 0
    assert crossing(net, points, until=0.9) is None
