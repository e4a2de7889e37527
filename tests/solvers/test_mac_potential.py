"""Potentials on staggered grids: no divergence whatever they are, and no defect on the solver's trajectories."""

from dataclasses import replace

import numpy as np
import pytest

from headrace.solvers import Parameters
from headrace.solvers.mac import MAC_MIDPOINT, solve_mac
from headrace.solvers.mac_operators import divergence
from headrace.solvers.mac_potential import PotentialResidual, flow_around

from .mac_cases import box_boundary, cylinder, driven_box, eddies, make_case, max_divergence, pipe, run, street

NONE = Parameters({})
STEPS = dict(scheme=MAC_MIDPOINT, num_snapshots=3, steps_per_snapshot=1, duration=0.06)


def vortices(x, p, rng):
    """A periodic flow without divergence on the faces of the 12 x 10 grid, and pressure 0."""
    a = rng.normal(size=x[0].shape)
    u = (a - np.roll(a, 1, 1)) * 10
    v = -(a - np.roll(a, 1, 0)) * 12
    return 0.01 * u, 0.01 * v, 0 * u


def in_the_box(x):
    return (abs(x[0] - 0.5) < 0.2) & (x[1] < 0.3) & (abs(x[2] - 0.5) < 0.2)


PROBLEMS = {
    "lid": (driven_box(**STEPS), (0.0, 0.0)),
    "periodic": (make_case((12, 10), (1.0, 1.0), initial=vortices, **STEPS), (None, None)),
    "channel": (make_case((8, 6), (1.0, 1.0), boundary=box_boundary(2, {1: {(0, 1): 1.0}}), **STEPS), (None, 0.0)),
    "torus": (make_case((8, 6, 4), (1.0, 2.0, 1.0), **STEPS), (None, None, None)),
    "box": (make_case((5, 4, 6), (1.0, 0.8, 1.0), boundary=box_boundary(3, {0: {}, 1: {(0, 1): 1.0}, 2: {}}),
                      solid=in_the_box, **STEPS), (0.0, 0.0, 0.0)),
    "layer": (make_case((4, 5, 6), (1.0, 1.0, 1.0), boundary=box_boundary(3, {1: {(2, 1): 1.0}}), **STEPS),
              (None, 0.0, None)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_any_potential_gives_a_flow_without_divergence_through_no_wall(name):
    case, lower = PROBLEMS[name]
    equation = PotentialResidual(case, viscosity=0.01, p=NONE)
    rng = np.random.default_rng(0)
    potential = rng.normal(size=(1 if case.grid.ndim == 2 else 3, 2, *case.grid.shape))
    velocity = equation.velocity(potential)
    assert velocity.shape == (case.grid.ndim, 2, *case.grid.shape)
    states = np.moveaxis(velocity, 1, 0)
    assert (np.abs(velocity).max(axis=(1, *range(2, velocity.ndim))) > 1).all()
    assert max_divergence(states, case, lower).max() <= 1e-12 * np.abs(velocity).max() / min(case.grid.spacing)
    for axis, low in enumerate(lower):
        if low is not None:
            assert not np.take(velocity[axis], -1, axis=axis + 1).any()


@pytest.mark.parametrize("name", ["lid", "periodic", "channel"])
def test_the_trajectory_as_potentials_makes_the_defect_vanish(name):
    case, _ = PROBLEMS[name]
    states, equation = run(case), PotentialResidual(case, viscosity=0.01, p=NONE)
    if name == "channel":
        # The moving wall drives a net flow, which a potential that is 0 on both walls cannot hold: take it off.
        states[:, 0] -= states[:, 0].mean(axis=(1, 2), keepdims=True)
    elif name == "periodic":
        assert np.abs(states[:, :2].mean(axis=(2, 3))).max() < 1e-12
    potential = _potential(states, case, closed=name != "periodic")
    fields = np.stack([potential, states[:, 2]], axis=1)
    np.testing.assert_allclose(equation.state(fields)[:2], np.moveaxis(states[:, :2], 1, 0), atol=1e-12)
    if name == "channel":
        return
    for n in range(3):
        assert np.abs(equation.correction(fields[n], fields[n + 1], n * 0.02, 0.02)).max() < 0.02 * 1e-8
        wrong = fields[n + 1].copy()
        wrong[0, 2, 2] += 1e-3
        assert np.abs(equation.correction(fields[n], wrong, n * 0.02, 0.02)).max() > 1e-4


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_correction_is_the_error_of_the_velocity_for_short_steps(name):
    case, _ = PROBLEMS[name]
    solid = in_the_box if name == "box" else None
    equation, dt = PotentialResidual(case, viscosity=0.01, p=NONE, solid=solid), 1e-4
    still, error = np.zeros((2, 2 if case.grid.ndim == 2 else 4, *case.grid.shape))
    error[:-1] = 1e-3 * np.random.default_rng(0).normal(size=error[:-1].shape)
    found = equation.correction(still, error, 0.0, dt) - equation.correction(still, still, 0.0, dt)
    wanted = equation.velocity(error[:-1])
    assert np.linalg.norm(found - wanted) < 1e-2 * np.linalg.norm(wanted)
    other = PotentialResidual(case, viscosity=10.0, p=NONE, solid=solid).correction(still, error, 0.0, dt)
    np.testing.assert_array_equal(equation.correction(still, error, 0.0, dt, viscosity=10.0), other)
    assert np.linalg.norm(other - found) > 1e-2 * np.linalg.norm(wanted)


def _potential(states, case, *, closed):
    """Return the potential of the velocities (time, components, nx, ny)."""
    hx, hy = case.grid.spacing
    a = np.cumsum(states[:, 0], axis=2) * hy
    if closed:
        return a
    # Along y the sums give u; what is left is the line a(x, y_0), from v.
    line = -np.cumsum(states[:, 1, :, 0], axis=1) * hx
    return a - a[:, :, :1] + line[:, :, None]


def test_tensors_give_the_same_correction_for_batches_and_windows():
    torch = pytest.importorskip("torch")
    for case, _ in PROBLEMS.values():
        equation = PotentialResidual(case, viscosity=0.01, p=NONE)
        fields = 2 if case.grid.ndim == 2 else 4
        old, new = np.random.default_rng(1).normal(size=(2, 3, 2, fields, *case.grid.shape))
        found = equation.correction(torch.tensor(old), torch.tensor(new), 0.0, 0.1)
        assert found.shape == (3, 2, case.grid.ndim, *case.grid.shape)
        expected = np.stack([[equation.correction(old[i, j], new[i, j], 0.0, 0.1) for j in (0, 1)] for i in range(3)])
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-11 * np.abs(expected).max())
        assert equation.size(torch.tensor(old)).shape == found.shape


@pytest.mark.parametrize("name", ["a driven box around a block", "eddies in a periodic box"])
def test_trajectories_in_three_dimensions_make_the_defect_vanish(name):
    if name.startswith("eddies"):
        case, solid = make_case((6, 6, 4), (1.0, 1.0, 1.0), initial=eddies, **STEPS), None
    else:
        case, solid = PROBLEMS["box"][0], in_the_box
    states, equation = run(case), PotentialResidual(case, viscosity=0.01, p=NONE, solid=solid)
    size = 3 * int(np.prod(case.grid.shape))
    # The curl as a matrix; its least-squares inverse finds a potential of every state.
    curl = equation.velocity(np.eye(size).reshape(size, 3, *case.grid.shape).swapaxes(0, 1)).swapaxes(0, 1)
    curl = curl.reshape(size, size).T
    potentials = np.linalg.lstsq(curl, states[:, :3].reshape(len(states), size).T, rcond=None)[0].T
    fields = np.concatenate([potentials.reshape(-1, 3, *case.grid.shape), states[:, 3:]], axis=1)
    np.testing.assert_allclose(equation.state(fields)[:3], np.moveaxis(states[:, :3], 1, 0), atol=1e-10)
    assert np.abs(states[-1, :3]).max() > 0.01
    for n in range(3):
        assert np.abs(equation.correction(fields[n], fields[n + 1], n * 0.02, 0.02)).max() < 0.02 * 1e-8
        assert np.abs(equation.correction(fields[n], fields[n], n * 0.02, 0.02)).max() > 1e-4


@pytest.mark.parametrize("name", ["street", "pipe"])
def test_flows_that_enter_and_leave_are_a_base_and_a_potential(name):
    if name == "street":
        case, solid, viscosity = street((16, 8), **STEPS), cylinder, 0.01
        base, p = np.zeros((2, *case.grid.shape)), case.accept({"reynolds": 100.0})
        base[0] = 1.0
    else:
        case, solid, viscosity, p = pipe((5, 5, 4), solid=None, **STEPS), None, 0.01, NONE
        x, z = (case.grid.points(axis, periodic=False) for axis in (0, 2))
        base = np.zeros((3, *case.grid.shape))
        base[1] = (x * (1 - x))[:, None, None] * (1 + z)
    ndim, equation = case.grid.ndim, PotentialResidual(case, viscosity=viscosity, p=p, solid=solid, base=base)
    states = run(case, {"reynolds": 100.0} if name == "street" else None)
    components, size = (1, 3)[ndim - 2], int(np.prod(case.grid.shape))
    units = np.eye(components * size).reshape(components * size, components, *case.grid.shape).swapaxes(0, 1)
    still = equation.velocity(np.zeros_like(units))
    curl = (equation.velocity(units) - still).swapaxes(0, 1).reshape(components * size, ndim * size).T
    wanted = (states[:, :ndim] - base).reshape(len(states), -1).T
    potentials = np.linalg.lstsq(curl, wanted, rcond=None)[0].T.reshape(-1, components, *case.grid.shape)
    fields = np.concatenate([potentials, states[:, ndim:]], axis=1)
    # The first state is as the case gives it, perhaps with a divergence; the solver's own have none.
    np.testing.assert_allclose(equation.state(fields)[:ndim, 1:], np.moveaxis(states[1:, :ndim], 1, 0), atol=1e-9)
    for n in (1, 2):
        assert np.abs(equation.correction(fields[n], fields[n + 1], n * 0.02, 0.02)).max() < 0.02 * 1e-8
        assert np.abs(equation.correction(fields[n], fields[n], n * 0.02, 0.02)).max() > 1e-5
    with pytest.raises(ValueError, match="base flow has a divergence"):
        PotentialResidual(case, viscosity=viscosity, p=p, solid=solid)


def test_a_base_led_around_obstacles_closes_the_potential_on_them():
    rng = np.random.default_rng(4)
    block = lambda x: (abs(x[0] - 0.5) < 0.2) & (abs(x[1] - 0.4) < 0.2) & (abs(x[2] - 0.5) < 0.2)  # noqa: E731
    two = lambda x: cylinder(x) | ((abs(x[0] - 9) < 1) & (x[1] < 2)) | ((abs(x[0] - 9) < 1) & (x[1] > 5))  # noqa: E731

    def past_two(case, p, comm, rng):
        return solve_mac(case, p, comm, rng, viscosity=0.01, solid=two)

    plane = replace(street((32, 16), **STEPS), solver=past_two)
    for case, solid in ((plane, two), (pipe((6, 6, 5), solid=block, **STEPS), block)):
        ndim, p = case.grid.ndim, case.accept({"reynolds": 100.0} if case.parameters else {})
        base = np.zeros((ndim, *case.grid.shape))
        if ndim == 2:
            base[0] = 1.0
        else:
            x, z = (case.grid.points(axis, periodic=False) for axis in (0, 2))
            base[1] = (x * (1 - x))[:, None, None] * (1 + z)
        around = flow_around(case, base, p=p, solid=solid)
        equation = PotentialResidual(case, viscosity=0.01, p=p, solid=solid, base=around)
        blocked = 1 - equation.residual.grid.free
        assert blocked.any() and np.abs(around).max() > 0.1 and not np.abs(around * blocked).max() > 1e-12
        potential = rng.normal(size=((1, 3)[ndim - 2], 1, *case.grid.shape))
        velocity = equation.velocity(potential)[:, 0]
        assert np.abs(velocity * blocked).max() <= 1e-12 * np.abs(velocity).max() < 100
        left = divergence(equation.residual.padded(velocity, p, 0.0), case.grid.spacing)
        assert np.abs(left).max() <= 1e-12 * np.abs(velocity).max() / min(case.grid.spacing)
        # Nothing that flows past the obstacles is lost: the solver's states are flows of such potentials.
        states = run(case, {"reynolds": 100.0} if case.parameters else None)
        size = potential.size
        units = np.eye(size).reshape(size, potential.shape[0], *case.grid.shape).swapaxes(0, 1)
        curl = (equation.velocity(units) - around[:, None]).swapaxes(0, 1).reshape(size, -1).T
        wanted = (states[-1, :ndim] - around).reshape(-1)
        found = curl @ np.linalg.lstsq(curl, wanted, rcond=None)[0]
        np.testing.assert_allclose(found, wanted, atol=1e-9)
