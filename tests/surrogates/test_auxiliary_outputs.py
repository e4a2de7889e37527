"""Inverse Laplacians as further outputs: a vorticity equation solved from its rhs alone, and what cannot be served."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.solvers import Case, Dirichlet, Grid, MemorySink, Uniform
from headrace.solvers.simulate import simulate
from headrace.surrogates import LPINN, Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.least_squares import levenberg_marquardt, residuals_and_rows
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.places import Points
from headrace.surrogates.transport_network import TransportNetwork

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("double")


def vorticity(u, d, p, t):
    """∂ω/∂t + (v + (c, 0))·∇ω = ν ∇²ω,  v = (∂ψ/∂y, -∂ψ/∂x),  ∇²ψ = -ω."""
    v, w = d.curl(d.inverse_laplacian(-u[0]))
    return p.nu * d.laplacian(u[0]) - d.advect((v + p.c, w), u[0])


VORTICES = Case(
    name="vortices", fields=("vorticity",), grid=Grid(shape=(16, 16), extent=(2 * np.pi, 2 * np.pi)), rhs=vorticity,
    initial=lambda x, p, rng: 2 * np.sin(x[0]) * np.sin(x[1]), duration=0.5, num_snapshots=5,
    parameters={"nu": Uniform(0.05, 0.2), "c": Uniform(0.0, 2.0)},
)  # fmt: skip
ROW = [0.1, 1.0]


def solution(x, t):
    """Vortices that decay while they are carried along."""
    nu, c = ROW
    return 2 * np.exp(-2 * nu * t) * np.sin(x[0] - c * t) * np.sin(x[1])


def network_for(case, frame, auxiliary=1):
    network = TransportNetwork(replace(Problem.of(case), parameters={}), widths=(10, 10), auxiliary=auxiliary,
                               lagrangian=frame == "lagrangian")  # fmt: skip
    network.use(MovingFrame(case, frame=frame))
    return network


@pytest.mark.parametrize("frame", ["eulerian", "lagrangian"])
def test_vortices_are_found_from_their_equation(frame):
    network = network_for(VORTICES, frame)
    levenberg_marquardt(network, Sampler(network, torch.tensor([ROW]), 400), steps=30)
    x = np.random.default_rng(3).uniform(0, 2 * np.pi, (2, 300))
    t = np.random.default_rng(4).uniform(0, 0.5, 300)
    points = Points(labels=torch.tensor(x), times=torch.tensor(t), rows=torch.tensor([ROW]),
                    row_of=torch.zeros(300, dtype=torch.long))  # fmt: skip
    truth = solution(x, t)
    with torch.no_grad():
        found = network.values_at(points)[0].numpy()
    assert np.linalg.norm(found - truth) < 2e-2 * np.linalg.norm(truth)


def test_the_solver_of_the_same_file_agrees():
    sink = MemorySink()
    simulate(VORTICES, VORTICES.accept({"nu": ROW[0], "c": ROW[1]}), sink)
    x = np.meshgrid(*[VORTICES.grid.points(i, periodic=True) for i in range(2)], indexing="ij")
    truth = solution(x, 0.5)
    assert np.abs(sink.values[-1, 0] - truth).max() < 0.05 * np.abs(truth).max()


def test_rows_hold_the_derivatives_of_the_further_equation():
    network = network_for(VORTICES, "lagrangian")
    points = Sampler(network, torch.tensor([ROW]), 3)(0)
    value, rows = residuals_and_rows(network, points)
    assert len(value) == 4 * 3  # vorticity, two places, stream function
    weights = [w for net in (network.state, network.displacement)
               for pair in zip(net.weights, net.biases, strict=True) for w in pair]  # fmt: skip
    last = network.residual(points)[-1, 0]
    whole = torch.cat([torch.zeros(w.numel()) if g is None else g.reshape(-1) for w, g in
                       zip(weights, torch.autograd.grad(last, weights, allow_unused=True), strict=True)])  # fmt: skip
    assert (whole - rows[9]).abs().max() < 1e-12 * (1 + whole.abs().max())


def test_the_surrogate_counts_them_in_its_loss_and_says_how_many_it_needs():
    torch.set_default_dtype(torch.float32)
    with pytest.raises(ValueError, match="auxiliary=1"):
        model = LPINN(hidden=(8,))
        model.setup(Problem.of(VORTICES))
        model.use_case(VORTICES)
    model = LPINN(hidden=(8,), auxiliary=1, points=16)
    model.setup(Problem.of(VORTICES))
    model.use_case(VORTICES)
    assert LPINN(**model.architecture()).architecture() == model.architecture()
    assert model.network.residual(model.collocation_points(torch.tensor([ROW]), 4)).shape == (2, 4)


def test_what_cannot_be_served_is_named():
    with pytest.raises(ValueError, match="at the start, which here comes from"):
        MovingFrame(VORTICES, frame="limited")
    with pytest.raises(ValueError, match="Only its derivatives"):
        MovingFrame(replace(VORTICES, rhs=lambda u, d, p, t: d.inverse_laplacian(u[0])), frame="eulerian")
    with pytest.raises(ValueError, match="Leave the boundary out"):
        MovingFrame(replace(VORTICES, rhs=lambda u, d, p, t: d.inverse_laplacian(u[0], Dirichlet(0.0))))
    with pytest.raises(AttributeError, match=r"d\.mean does not exist"):
        MovingFrame(replace(VORTICES, rhs=lambda u, d, p, t: -d.mean(u[0]) * u[0]))
    walled = replace(VORTICES, boundary=Dirichlet(0.0))
    assert MovingFrame(walled).frame == "eulerian"
    with pytest.raises(ValueError, match="open_walls=False"):
        MovingFrame(walled, open_walls=True)
