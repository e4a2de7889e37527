"""Slabs of time: continuous to round-off, right on long runs and where labels would meet, an error where they must."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.cases import transport
from headrace.solvers import Grid, Uniform
from headrace.surrogates import Problem
from headrace.surrogates.box_series import BoxSeries
from headrace.surrogates.collocation import Sampler
from headrace.surrogates.least_squares import levenberg_marquardt
from headrace.surrogates.places import Points
from headrace.surrogates.time_slabs import march

torch.set_num_threads(1)

pytestmark = pytest.mark.usefixtures("double")


def solve(case, row, steps, count, **settings):
    rows = torch.tensor([row])

    def train(network):
        levenberg_marquardt(network, Sampler(network, rows, count, adaptive=0.3), steps=steps, tolerance=1e-13)

    return march(case, rows, train, **settings)


def at(slabs, case, row, t, count=300):
    """Return values and places at one time."""
    grid, rows = case.grid, torch.tensor([row])
    unit = torch.rand(grid.ndim, count, generator=torch.Generator().manual_seed(5))
    places = torch.tensor(grid.origin)[:, None] + unit * torch.tensor(grid.extent)[:, None]
    zero = torch.zeros(count, dtype=torch.long)
    points = Points(labels=places, times=torch.full((count,), t), rows=rows, row_of=zero)
    with torch.no_grad():
        return slabs.values_at(points)[0].numpy(), points


def error(slabs, case, row, times):
    found, truth = [], []
    p = case.accept(dict(zip(case.parameters, row, strict=True)))
    for t in times:
        values, points = at(slabs, case, row, t)
        found.append(values)
        truth.append(transport.exact(case.name, tuple(points.labels.numpy()), t, p))
    return np.linalg.norm(np.array(found) - truth) / np.linalg.norm(truth)


def assert_continuous(slabs, case, row):
    """The state and its slope in space at the end of a slab are those at the beginning of the next."""
    for end, before, after in zip(slabs.ends, slabs.networks, slabs.networks[1:], strict=False):
        _, points = at(slabs, case, row, end)
        a, b = before.state_at(points), after.state_at(points)
        assert (a.value - b.value).abs().max() < 1e-12 * (1 + a.value.abs().max())
        assert (a.gradient[0] - b.gradient[0]).abs().max() < 1e-9 * (1 + a.gradient[0].abs().max())


def test_a_series_keeps_smooth_functions_with_their_derivatives():
    series = BoxSeries(Grid(shape=(8, 8), extent=(2.0, 3.0), origin=(-1.0, 0.5)), (True, False))
    nodes = series.nodes(torch.zeros(()))

    def function(x):
        return torch.sin(math.pi * x[0]) * (x[1] ** 2 - x[1])

    coefficients = series.fit(torch.stack((function(nodes), 2 * function(nodes))))
    x = torch.rand(2, 50) * torch.tensor([[2.0], [3.0]]) + torch.tensor([[-1.0], [0.5]])
    jet = series.jet(coefficients, x, torch.arange(50) % 2)
    size = 1.0 + torch.arange(50) % 2
    assert (jet.value / size - function(x)).abs().max() < 1e-4  # damped a little
    slope = torch.sin(math.pi * x[0]) * (2 * x[1] - 1)
    assert (jet.gradient[1] / size - slope).abs().max() < 1e-3
    bend = -(math.pi**2) * function(x)
    assert (jet.hessian[0, 0] / size - bend).abs().max() < 1e-3
    mixed = math.pi * torch.cos(math.pi * x[0]) * (2 * x[1] - 1)
    assert (jet.hessian[0, 1] / size - mixed).abs().max() < 1e-3


def test_burgers_goes_past_its_shock_in_the_lagrangian_frame():
    """Labels of sin x + 1 with ν = 0.1 meet soon after t = 1; new ones carry the frame on."""
    case, row = replace(transport.burgers, duration=1.2), [0.1, 1.0]
    slabs = solve(case, row, 18, 200, frame="lagrangian", widths=(10, 10), relabel_below=0.1)
    first = slabs.relabellings[0]
    assert first.time == pytest.approx(0.9, abs=1e-3) and abs(first.label[0] - math.pi) < 0.02
    assert slabs.ends[-1] == pytest.approx(1.2)
    assert_continuous(slabs, case, row)
    assert error(slabs, case, row, (0.4, 0.85, 1.15)) < 5e-3


def test_a_long_run_with_a_speed_that_varies():
    """Half way round a circle with ∂u/∂t + (1 + sin x / 2) ∂u/∂x = 0; u is constant along dx/dt = 1 + sin x / 2."""

    def carried(u, d, p, t):
        return -d.advect((1 + p.wave * np.sin(d.x[0]),), u)

    parameters = {"wave": Uniform(0.0, 0.6)}
    case = replace(transport.convection, name="uneven", rhs=carried, parameters=parameters, duration=3.0)
    slabs = solve(case, [0.5], 20, 300, frame="lagrangian", widths=(10, 10), longest=1.0)
    assert len(slabs.ends) >= 3
    assert_continuous(slabs, case, [0.5])
    for t in (0.9, 1.7, 2.9):
        found, points = at(slabs, case, [0.5], t)
        x, h = points.labels[0].numpy(), t / 200
        for _ in range(200):  # back to where they come from
            a = 1 + 0.5 * np.sin(x)
            b = 1 + 0.5 * np.sin(x - h / 2 * a)
            c = 1 + 0.5 * np.sin(x - h / 2 * b)
            x = x - h / 6 * (a + 2 * b + 2 * c + 1 + 0.5 * np.sin(x - h * c))
        assert np.linalg.norm(found - np.sin(x)) < 5e-3 * np.linalg.norm(np.sin(x))


def test_a_wave_without_viscosity_is_followed_until_it_breaks():
    """To J = 0.01 in one slab, whose frame holds the solution; it breaks at t = 1, at π."""
    case, row = replace(transport.breaking, duration=1.5), [0.0]
    with pytest.raises(ArithmeticError, match=r"Labels \(3\.1\d+,\) meet at t = 1 .*frame='limited'"):
        solve(case, row, 20, 200, frame="lagrangian", widths=(8,), relabel_below=0.01)


def test_a_solid_turns_in_slabs():
    case, row = replace(transport.rotation, duration=0.2), [2 * math.pi, 0.0]
    slabs = solve(case, row, 15, 200, frame="lagrangian", widths=(10, 10), open_walls=True, longest=0.1)
    assert len(slabs.ends) == 2
    assert_continuous(slabs, case, row)
    assert error(slabs, case, row, (0.08, 0.2)) < 1e-2
    _, points = at(slabs, case, row, 0.15)
    along_x, along_y = slabs.networks[1].moving.initial_velocity(points)  # no state decides it: not a series of it
    assert torch.equal(along_x.value, -2 * math.pi * points.labels[1])
    assert torch.equal(along_y.value, 2 * math.pi * points.labels[0])


def test_one_row_needs_no_parameters_in_the_network():
    seen = []
    case = transport.convection_diffusion
    march(case, torch.tensor([[1.0, 0.05]]), seen.append, longest=0.5)
    march(case, torch.tensor([[1.0, 0.05], [2.0, 0.05]]), seen.append)
    assert [len(network.problem.parameters) for network in seen] == [0, 0, 2]
    assert seen[1].moving.begins == 0.5 and Problem.of(case).parameters.keys() == {"c", "nu"}
