"""Flow on staggered grids: exact solutions, orders, conservation, symmetry, published cavity and vortex street."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.cases.cavity import case as cavity
from headrace.cases.karman import case as karman
from headrace.cases.taylor_green3d import case as taylor_green
from headrace.solvers import Dirichlet, Neumann, Parameters
from headrace.solvers.case_file import CaseReference
from headrace.solvers.mac import MAC_MIDPOINT, SlabFlow
from headrace.solvers.newton import DivergenceError
from headrace.solvers.scheme import BDF2, HEUN, RK4, SSPRK3
from headrace.solvers.transforms import slabs

from .mac_cases import box_boundary, driven_box, duct, make_case, max_divergence, pipe, run, street


def vortices(x, p, rng):
    """Taylor's decaying vortices, an exact solution in two dimensions."""
    x, y = 2 * np.pi * x[0], 2 * np.pi * x[1]
    return np.sin(x) * np.cos(y), -np.cos(x) * np.sin(y), (np.cos(2 * x) + np.cos(2 * y)) / 4


def several(x, p, rng):
    """Vortices of different sizes that interact."""
    x, y = 2 * np.pi * x[0], 2 * np.pi * x[1]
    return np.sin(x) * np.cos(y) + np.cos(2 * y), -np.cos(x) * np.sin(y) + np.sin(2 * x), 0 * x


def test_taylors_vortices_decay_with_second_order():
    errors = []
    for n in (16, 32, 64):
        found = run(make_case((n, n), (1.0, 1.0), initial=vortices, viscosity=0.02))[1]
        centre = np.arange(n) / n
        decay = np.exp(-0.02 * 8 * np.pi**2 * 0.2)
        u = vortices((centre[:, None] + 0.5 / n, centre[None, :]), None, None)[0] * decay
        pressure = vortices((centre[:, None], centre[None, :]), None, None)[2] * decay**2
        errors.append([np.abs(found[0] - u).max(), np.abs(found[2] - found[2].mean() - pressure).max()])
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all(np.abs(ratios - 4) < 0.3), (errors, ratios)


@pytest.mark.parametrize(("scheme", "order"), [(HEUN, 2), (SSPRK3, 3), (RK4, 4), (MAC_MIDPOINT, 2)])
def test_order_in_time(scheme, order):
    """Pressure and projection do not lower the order of a scheme."""
    def solution(steps, scheme):
        return run(make_case((16, 16), (1.0, 1.0), initial=several, scheme=scheme, steps_per_snapshot=steps))[1, :2]

    reference = solution(256, RK4)
    errors = [np.abs(solution(n, scheme) - reference).max() for n in (16, 32, 64)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(np.abs(orders - order) < 0.3), (errors, orders)


@pytest.mark.parametrize("as_cells", [False, True])
def test_channel_flow_is_parabolic_with_second_order(as_cells):
    """Driven by a uniform force, between walls or between layers of solid cells."""
    errors = []
    for n in (4, 8, 16):
        solid, width = None, n
        if as_cells:
            width, solid = 2 * n, lambda x: abs(x[1] - 1.0) > 0.5
        boundary = box_boundary(2, {1: {}})
        case = make_case(
            (4, width), (1.0, width / n), boundary=boundary, viscosity=0.5, force=lambda x, t: (4.0, 0.0), solid=solid,
            duration=3.0,
        )  # fmt: skip
        y = (np.arange(n) + 0.5) / n
        found = run(case)[1, 0, 0, n // 2 : n // 2 + n] if as_cells else run(case)[1, 0, 0]
        errors.append(np.abs(found - 4 * y * (1 - y)).max())
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all(np.abs(ratios - 4) < 0.1), (errors, ratios)


def test_a_wall_of_solid_cells_is_a_wall():
    """A box inside a larger one, walled in by cells, has the flow of the box to rounding."""
    def force(x, t):
        return np.sin(5 * x[1]) * x[0] ** 2, np.cos(4 * x[0]) * x[1]

    inner = make_case((10, 8), (1.0, 0.8), boundary=box_boundary(2, {0: {}, 1: {}}), force=force, steps_per_snapshot=20)
    outer = make_case(
        (14, 12), (1.4, 1.2), boundary=box_boundary(2, {0: {}, 1: {}}), steps_per_snapshot=20,
        force=lambda x, t: force((x[0] - 0.2, x[1] - 0.2), t),
        solid=lambda x: (abs(x[0] - 0.7) > 0.5) | (abs(x[1] - 0.6) > 0.4),
    )  # fmt: skip
    expected, found = run(inner)[1], run(outer)[1][:, 2:12, 2:10]
    np.testing.assert_allclose(found[:2], expected[:2], atol=1e-13)
    differences = found[2] - expected[2]
    np.testing.assert_allclose(differences, differences.mean(), atol=1e-12)


def flow_of(case, viscosity=0.0):
    blocks = slabs(case.grid.shape, case.periodic)
    return SlabFlow(case, Parameters({}), blocks, viscosity=viscosity, force=None, solid=None)


@pytest.mark.parametrize("walls", [{}, {0: {}}, {0: {}, 1: {}}])
@pytest.mark.parametrize("shape", [(10, 12), (8, 6, 7)])
def test_convection_conserves_energy_and_momentum(shape, walls):
    case = make_case(shape, [0.1 * n for n in shape], boundary=box_boundary(len(shape), walls) if walls else None)
    flow = flow_of(case)
    u, _ = flow.projected(np.random.default_rng(1).normal(size=(len(shape), *shape)), 0.0)
    tendency = flow.tendency(u, 0.0)
    assert abs((u * tendency).sum()) < 1e-12 * np.abs(u * tendency).sum()
    for axis in set(range(len(shape))) - set(walls):
        if not walls:
            assert abs(tendency[axis].sum()) < 1e-12 * np.abs(tendency[axis]).sum()


def test_viscosity_takes_energy_away():
    flow, still = (flow_of(driven_box(), viscosity) for viscosity in (0.1, 0.0))
    u, _ = flow.projected(np.random.default_rng(1).normal(size=(2, 12, 10)), 0.0)
    assert (u * (flow.tendency(u, 0.0) - still.tendency(u, 0.0))).sum() < -1


@pytest.mark.parametrize(
    ("case", "lower"),
    [(driven_box(), (0, 0)), (street(), (1, 0)), (duct(), (None, 0, None)),
     (make_case((9, 8), (1.0, 1.0), initial=several), (None, None))],
    ids=("lid", "cylinder", "duct", "torus"),
)  # fmt: skip
def test_the_discrete_divergence_vanishes(case, lower):
    states = run(case)
    assert np.abs(states[-1] - states[0]).max() > 1e-3
    assert max_divergence(states, case, lower).max() <= 1e-12


def test_what_enters_a_pipe_leaves_it():
    """The flux through every cross-section, given at the lower side only."""
    states = run(pipe())
    x, z = (np.arange(9) + 0.5) / 9, (np.arange(8) + 0.5) / 10
    inflow = x[:, None] * (1 - x[:, None]) * (1 + z[None, :])
    np.testing.assert_allclose(states[1, 1].sum(axis=(0, 2)), inflow.sum(), rtol=1e-12)


def test_obstacles_are_at_rest():
    states = run(street())
    centre = states.shape[2] // 4, states.shape[3] // 2
    for component in (0, 1):
        assert not states[:, component, centre[0] - 1 : centre[0] + 1, centre[1] - 1 : centre[1] + 1].any()
    assert np.abs(states[-1, 1, centre[0] + 2]).max() > 0.05


def test_a_turned_box_has_the_turned_flow():
    """The lid at the upper x side, moving along y: the transposed flow."""
    upright = make_case((12, 10), (1.0, 0.8), boundary=box_boundary(2, {0: {}, 1: {(0, 1): 1.0}}))
    turned = make_case((10, 12), (0.8, 1.0), boundary=box_boundary(2, {0: {(1, 1): 1.0}, 1: {}}))
    u, v, pressure = run(upright)[1]
    np.testing.assert_allclose(run(turned)[1], np.stack([v.T, u.T, pressure.T]), atol=1e-13)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_flow_uniform_in_the_third_direction_is_the_plane_one(axes):
    """The lid-driven box, extruded along each axis in turn."""
    plane = make_case((8, 6), (1.0, 0.8), boundary=box_boundary(2, {0: {}, 1: {(0, 1): 1.0}}), steps_per_snapshot=8)
    a, b, uniform = axes
    shape, extent = [4, 4, 4], [0.5, 0.5, 0.5]
    shape[a], shape[b], extent[a], extent[b] = 8, 6, 1.0, 0.8
    walls = {a: {}, b: {(a, 1): 1.0}}
    found = run(make_case(tuple(shape), tuple(extent), boundary=box_boundary(3, walls), steps_per_snapshot=8))[1]
    found = np.moveaxis(found, [1 + a, 1 + b, 1 + uniform], [1, 2, 3])
    expected = run(plane)[1]
    for field, target in ((a, 0), (b, 1), (3, 2)):
        np.testing.assert_allclose(found[field], np.repeat(expected[target][..., None], 4, -1), atol=1e-13)
    assert not found[uniform].any()


def test_cavity_agrees_with_ghia_at_reynolds_100():
    """Extremes on the centre lines (Ghia, Ghia and Shin 1982, tables 1 and 2, 129 x 129 points)."""
    found = run(replace(cavity.resized((32, 32)), duration=12.0, num_snapshots=2), {"reynolds": 100})
    u, v = found[-1, 0, 15], found[-1, 1, :, 15]  # the faces at x = 1/2, at y = 1/2
    assert u.min() == pytest.approx(-0.21090, rel=0.015)
    assert v.max() == pytest.approx(0.17527, rel=0.01)
    assert v.min() == pytest.approx(-0.24533, rel=0.03)
    assert np.argmin(u) == pytest.approx(0.4531 * 32 - 0.5, abs=1)


def test_a_cylinder_sheds_vortices_at_its_frequency():
    """Strouhal number 0.164 in an unbounded stream (Williamson 1989), some per cent more between near sides."""
    case = replace(karman.resized((96, 48)), duration=50.0, num_snapshots=250)
    signal = run(case, {"reynolds": 100})[120:, 1, 40, 23]
    rises = np.flatnonzero((signal[:-1] <= 0) & (signal[1:] > 0))
    crossings = rises - signal[rises] / (signal[rises + 1] - signal[rises])
    periods = np.diff(crossings) * 0.2
    assert len(periods) >= 3 and np.ptp(periods) < 0.05 * periods.mean(), periods
    assert 0.16 < 1 / periods.mean() < 0.19, periods
    assert np.abs(signal).max() > 0.2


def test_three_dimensional_vortices_lose_energy_as_they_must():
    """dE/dt = -ν <|∇u|²> = -3/4 ν at first."""
    case = replace(taylor_green.resized((24, 24, 24)), duration=0.02)
    states = run(replace(case, num_snapshots=1), {"reynolds": 50})
    energy = 0.5 * (states[:, :3] ** 2).sum(axis=1).mean(axis=(1, 2, 3))
    assert energy[0] == pytest.approx(0.125, rel=1e-12)
    assert (energy[1] - energy[0]) / 0.02 == pytest.approx(-0.75 / 50, rel=0.01)


def test_a_strong_force_on_a_fluid_at_rest_takes_short_steps():
    def push(x, t):
        return 200 * np.sin(2 * np.pi * x[1]) * np.cos(2 * np.pi * x[0]), 100.0

    case = make_case((16, 16), (1.0, 1.0), viscosity=1e-3, force=push, duration=0.1)
    free, fine = run(case)[1], run(replace(case, steps_per_snapshot=400))[1]
    assert np.abs(free - fine)[:2].max() < 0.02 * np.abs(fine[:2]).max()


def test_a_velocity_that_is_not_finite_is_reported():
    blast = make_case((8, 8), (1.0, 1.0), force=lambda x, t: (np.nan if t > 0.1 else 1.0, 0.0))
    with pytest.raises(DivergenceError, match=r"case flow diverged: .*not finite at t = 0\.[12]"):
        run(blast)


def test_random_velocities_are_one_function_at_all_faces():
    def noise(x, p, rng):
        a, b = rng.normal(size=2)
        phase = 2 * np.pi * (x[0] + x[1]) + a
        return b * np.cos(phase), -b * np.cos(phase), 0 * phase

    states = run(make_case((16, 16), (1.0, 1.0), initial=noise, viscosity=0.0))
    assert max_divergence(states, make_case((16, 16), (1.0, 1.0)), (None, None))[0] < 1e-13
    # One wave along the diagonal, both components at half a cell along it: nothing was projected away.
    np.testing.assert_allclose(states[0, 0], -states[0, 1], atol=1e-13)
    assert np.abs(states[0, 0]).max() > 0.05


@pytest.mark.parametrize("case", [cavity, karman, taylor_green], ids=lambda case: case.name)
def test_cases_are_valid(case):
    case.resized(tuple(max(4, n // 8) for n in case.grid.shape)).verify()


def test_what_does_not_fit_is_named():
    walls = box_boundary(2, {0: {}, 1: {}})
    with pytest.raises(ValueError, match=r"lower x side.*Allowed are"):
        run(make_case((8, 8), (1.0, 1.0), boundary={**walls, "u": {"x": Neumann(0.0), "y": Dirichlet(0.0)}}))
    with pytest.raises(ValueError, match=r"do not balance.*outflow"):
        run(make_case((8, 8), (1.0, 1.0), boundary=box_boundary(2, {0: {(0, 0): 1.0}, 1: {}})))
    with pytest.raises(ValueError, match="no scheme of the staggered solver"):
        run(driven_box(scheme=BDF2))
    with pytest.raises(ValueError, match=r"fields velocity\.\.\., pressure"):
        run(replace(driven_box(), fields=("u", "v"), boundary={k: walls[k] for k in "uv"}, initial=lambda x, p, r: x))
    with pytest.raises(ValueError, match="initial returned 2 fields"):
        run(driven_box(initial=lambda x, p, rng: (0 * x[0], 0 * x[0])))
    with pytest.raises(DivergenceError, match=r"did not converge.*steps_per_snapshot"):
        run(driven_box(scheme=MAC_MIDPOINT, steps_per_snapshot=1, duration=50.0))


def test_the_documented_case_runs(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "flows.md").read_text(encoding="utf-8")
    file = tmp_path / "step.py"
    file.write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    case = CaseReference.of(file).load()
    case.verify()
    states = run(replace(case, duration=0.4, num_snapshots=2))
    inflow = 0.4 * 6 * np.mean((np.arange(32) + 0.5) / 32 * (1 - (np.arange(32) + 0.5) / 32))
    assert states[-1, 0].mean(axis=1) == pytest.approx(np.full(96, inflow), rel=1e-12), "what flows in flows out"
