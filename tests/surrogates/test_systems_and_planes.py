"""Several fields at once, with one velocity or two, and diffusion in a plane whose labels are strained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.solvers import Case, Dirichlet, Grid, Uniform
from headrace.surrogates import Problem
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.least_squares import levenberg_marquardt
from headrace.surrogates.moving_frame import MovingFrame
from headrace.surrogates.places import Points
from headrace.surrogates.transport_network import TransportNetwork

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("double")


def exchanging(u, d, p, t):
    """∂a/∂t + c ∂a/∂x = -k b,  ∂b/∂t + c ∂b/∂x = k a."""
    a, b = u
    along, across = d.advect((p.c,), a), d.advect((p.c,), b)
    return -p.k * b - along, p.k * a - across


def passing(u, d, p, t):
    """∂a/∂t + c ∂a/∂x = 0,  ∂b/∂t + k ∂b/∂x = 0."""
    return -d.advect((p.c,), u[0]), -d.advect((p.k,), u[1])


def strained(u, d, p, t):
    """∂u/∂t + λ (x ∂u/∂x - y ∂u/∂y) = ν ∇²u."""
    return p.nu * d.laplacian(u) - d.advect((p.rate * d.x[0], -p.rate * d.x[1]), u)


PAIR = Case(
    name="pair", fields=("a", "b"), grid=Grid(shape=(32,), extent=(2 * np.pi,)), rhs=exchanging,
    initial=lambda x, p, rng: (np.sin(x[0]), np.cos(2 * x[0])), duration=0.5, num_snapshots=5,
    parameters={"c": Uniform(1.0, 50.0), "k": Uniform(1.0, 5.0)},
)  # fmt: skip
PLANE = Case(
    name="strain", fields=("u",), grid=Grid(shape=(32, 32), extent=(5.0, 5.0), origin=(-2.5, -2.5)), rhs=strained,
    initial=lambda x, p, rng: np.exp(-2 * x[0] ** 2 - 2 * x[1] ** 2), boundary=Dirichlet(0.0), duration=0.5,
    num_snapshots=5, parameters={"nu": Uniform(0.01, 0.1), "rate": Uniform(0.1, 1.0)},
)  # fmt: skip


def solved(case, row, frame, exact, *, steps=25, count=300):
    """Train and return the relative error of every field."""
    network = TransportNetwork(replace(Problem.of(case), parameters={}), widths=(12, 12),
                               lagrangian=frame == "lagrangian")  # fmt: skip
    network.use(MovingFrame(case, frame=frame, open_walls=not any(case.periodic)))
    rows = torch.tensor([row])
    levenberg_marquardt(network, Sampler(network, rows, count), steps=steps)
    ndim, rng = case.grid.ndim, np.random.default_rng(3)
    x = np.array(case.grid.origin)[:, None] + np.array(case.grid.extent)[:, None] * rng.uniform(0.1, 0.9, (ndim, 300))
    t = rng.uniform(0, case.duration, 300)
    points = Points(labels=torch.tensor(x), times=torch.tensor(t), rows=rows, row_of=torch.zeros(300, dtype=torch.long))
    with torch.no_grad():
        found = network.values_at(points).numpy()
    truth = exact(x, t)
    return np.linalg.norm(found - truth, axis=1) / np.linalg.norm(truth, axis=1)


def test_two_fields_that_feed_each_other_while_they_are_carried():
    c, k = 30.0, 3.0

    def exact(x, t):
        a, b = np.sin(x[0] - c * t), np.cos(2 * (x[0] - c * t))
        return np.stack((a * np.cos(k * t) - b * np.sin(k * t), a * np.sin(k * t) + b * np.cos(k * t)))

    assert MovingFrame(PAIR).frame == "limited"  # the velocity was found
    assert (solved(PAIR, [c, k], "galilean", exact) < 5e-3).all()


def test_two_fields_with_velocities_of_their_own_need_a_declared_frame():
    c, k = 2.0, 1.0
    case = replace(PAIR, rhs=passing, parameters={"c": Uniform(1.0, 3.0), "k": Uniform(1.0, 3.0)})
    with pytest.raises(ValueError, match="declare frame_velocity"):
        MovingFrame(case, frame="galilean")
    declared = replace(case, frame_velocity=lambda u, d, p, t: (p.c,))

    def exact(x, t):
        return np.stack((np.sin(x[0] - c * t), np.cos(2 * (x[0] - k * t))))

    errors = solved(declared, [c, k], "galilean", exact)
    assert (errors < 1e-2).all(), errors


def test_diffusion_in_a_strained_plane():
    """J is 1 everywhere, F is not: second derivatives in the labels would be 3 % off."""
    nu, rate = 0.08, 1.0

    def line(x, t, rate):
        variance = 0.25 + nu * (1 - np.exp(-2 * rate * t)) / rate
        return np.sqrt(0.25 / variance) * np.exp(-((x * np.exp(-rate * t)) ** 2) / (2 * variance))

    def exact(x, t):
        return (line(x[0], t, rate) * line(x[1], t, -rate))[None]

    (error,) = solved(PLANE, [nu, rate], "lagrangian", exact, steps=35, count=600)
    assert error < 1e-2, error
