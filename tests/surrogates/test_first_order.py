"""Optimisers without second derivatives: the updates' defining equations, and networks that they train."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headrace.cases import transport
from headrace.surrogates import Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.first_order import Loss, adam, broyden_step, lbfgs, self_scaled_broyden, to_double
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.transport_network import TransportNetwork

torch.set_num_threads(1)
ROW = [5.0, 0.1]


def network(dtype=torch.float64, frame="galilean"):
    case = transport.convection_diffusion
    net = TransportNetwork(replace(Problem.of(case), parameters={}), widths=(12, 12), seed=0).to(dtype)
    net.use(MovingFrame(case, frame=frame))
    return net, Sampler(net, torch.tensor([ROW], dtype=dtype), 200, adaptive=0.0)


def residual(net, points):
    with torch.no_grad():
        return float(net.residual(points).square().mean().sqrt())


def test_broyden_keeps_the_secant_equation_and_definiteness():
    generator = np.random.default_rng(0)
    A = generator.normal(size=(8, 8))
    A = A @ A.T + np.eye(8)
    H = np.eye(8) * 0.1
    x = generator.normal(size=8)
    for _ in range(5):
        g = A @ x
        s = -0.3 * H @ g
        H = broyden_step(H, s, A @ s, g, 0.3)
        x = x + s
        assert np.abs(H @ (A @ s) - s).max() < 1e-12 and np.linalg.eigvalsh(H).min() > 0


@pytest.mark.parametrize(
    "optimise,bound",
    [
        (lambda loss, sample: adam(loss, sample, steps=200, learning_rate=1e-2), 1 / 10),
        (lambda loss, sample: lbfgs(loss, sample, steps=120), 1 / 100),
        (lambda loss, sample: self_scaled_broyden(loss, sample, steps=120), 1 / 100),
        (lambda loss, sample: lbfgs(loss, sample, steps=120, resample_every=60), 1 / 50),
    ],
    ids=["adam", "lbfgs", "broyden", "lbfgs, new points"],
)
def test_the_residual_falls(optimise, bound):
    net, sample = network()
    points = sample(0)
    before = residual(net, points)
    fit = optimise(Loss(net), sample)
    assert residual(net, points) < bound * before, fit
    assert fit.reason and fit.steps > 0


def test_float32_then_float64():
    net, sample = network(torch.float32)
    lbfgs(Loss(net), sample, steps=40)
    net = to_double(net)
    again = Sampler(net, torch.tensor([ROW], dtype=torch.float64), 200, adaptive=0.0)
    points = again(0)
    before = residual(net, points)
    lbfgs(Loss(net), again, steps=80)
    assert residual(net, points) < before / 2


def test_tolerances_below_precision_are_refused_and_steps_to_nan_taken_back():
    net, sample = network(torch.float32)
    with pytest.raises(ValueError, match="precision"):
        lbfgs(Loss(net), sample, steps=20, tolerance=1e-9)

    class Broken(Loss):
        calls = 0

        def __call__(self, points):
            self.calls += 1
            return super().__call__(points) * (math.nan if self.calls > 60 else 1.0)

    fit = lbfgs(Broken(net), sample, steps=200)
    assert "not finite" in fit.reason
    assert all(torch.isfinite(w).all() for w in net.parameters())


def test_an_end_of_time_within_a_line_search_leaves_the_best_weights(monkeypatch):
    net, sample = network()
    points, losses = sample(0), []

    class Counted(Loss):
        def __call__(self, points):
            value = super().__call__(points)
            losses.append(float(value.detach()))
            return value

    clock = SimpleNamespace(monotonic=lambda: float(len(losses)))  # a second passes with every loss
    monkeypatch.setattr("headrace.surrogates.first_order.time", clock)
    fit = lbfgs(Counted(net), lambda step: points, steps=200, seconds=14.5)
    assert fit.reason == "time is up" and len(losses) == 15
    assert residual(net, points) == pytest.approx(fit.residual, rel=1e-12) and fit.residual == min(losses) ** 0.5
    assert min(losses) < losses[0]


def test_causal_weights_let_early_times_go_first():
    net, sample = network(frame="eulerian")
    points = sample(0)
    late = points.times > 0.5
    gradients = []
    for causal in (0.0, 1e3):
        squares = net.residual(points).square().mean(0)
        weight = torch.autograd.grad(Loss(net, causal=causal)(points), net.state.weights[0])[0]
        assert torch.isfinite(weight).all() and bool(late.any())
        gradients.append(weight.norm().item())
        assert squares.mean() > 0
    early = replace(points, times=points.times * 0.05)  # all in the first slice, whose weight is 1
    plain, causal = Loss(net)(early), Loss(net, causal=1e3)(early)
    assert torch.allclose(causal * 16, plain)
    assert gradients[1] < gradients[0]


def test_the_penalty_is_the_gradient_of_the_residual():
    net, sample = network(frame="eulerian")
    with torch.no_grad():
        for weight in net.parameters():
            weight.zero_()
    points, (c, nu) = sample(0), ROW
    x = points.labels[0]  # u = sin x, so R = c cos x + ν sin x and ∂R/∂x = ν cos x - c sin x; nothing changes in time
    expected = (c * torch.cos(x) + nu * torch.sin(x)).square() + 0.35 * (nu * torch.cos(x) - c * torch.sin(x)).square()
    assert torch.allclose(Loss(net, penalty=0.7)(points), expected.mean(), rtol=1e-8)
    with pytest.raises(ValueError, match="negative"):
        Loss(net, penalty=-1.0)


def test_balanced_equations_have_gradients_of_one_size():
    case = transport.breaking  # two equations, of the state and of the labels' paths
    net = TransportNetwork(replace(Problem.of(case), parameters={}), widths=(8, 8), lagrangian=True, seed=0).double()
    net.use(MovingFrame(case, frame="lagrangian"))
    with torch.no_grad():
        net.displacement.weights[-1] += 0.3  # which holds already where the labels start on their paths
    sample = Sampler(net, torch.tensor([[1.0]], dtype=torch.float64), 200, adaptive=0.0)
    points, loss = sample(0), Loss(net, balance=True)
    loss.rebalance(points)
    weights = list(net.parameters())
    norms = []
    for square, factor in zip(net.residual(points).square().mean(1), loss.weights, strict=True):
        parts = torch.autograd.grad(square * factor, weights, retain_graph=True, allow_unused=True)
        norms.append(torch.cat([part.reshape(-1) for part in parts if part is not None]).norm())
    assert len(norms) == 2 and torch.allclose(norms[0], norms[1], rtol=1e-10)
    before = residual(net, points)
    lbfgs(loss, sample, steps=40)
    assert residual(net, points) < before / 3
