"""The residual of the staggered scheme: zero on the solver's trajectories, the same for arrays and tensors."""

import numpy as np
import pytest

from headrace.solvers import Parameters
from headrace.solvers.mac import MAC_MIDPOINT
from headrace.solvers.mac_residual import MacResidual

from .mac_cases import cylinder, driven_box, duct, eddies, make_case, pipe, run, street

NONE = Parameters({})


def block(x):
    return (abs(x[0] - 0.5) < 0.2) & (x[1] < 0.4) & (abs(x[2] - 0.4) < 0.2)


def push(x, t):
    return 1.0 + t, 0.0, 0.0


STEPS = dict(scheme=MAC_MIDPOINT, num_snapshots=4, steps_per_snapshot=1, duration=0.08)
PROBLEMS = {
    "lid": (driven_box(**STEPS), 0.01, {}),
    "cylinder": (street(**STEPS), 0.01, {"solid": cylinder}),
    "pipe": (pipe(**STEPS, solid=None), 0.01, {}),
    "torus": (make_case((8, 6, 5), (1.0, 1.0, 1.0), initial=eddies, **STEPS), 0.01, {}),
    "duct": (duct(**STEPS), 0.01, {"solid": block, "force": push}),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_trajectory_makes_the_residual_vanish(name):
    case, viscosity, options = PROBLEMS[name]
    states, residual = run(case, {"reynolds": 100} if name == "cylinder" else {}), MacResidual(case, **options)
    for n in range(4):
        defect = residual(states[n], states[n + 1], n * 0.02, 0.02, viscosity=viscosity, p=NONE)
        assert defect.shape == states[n].shape
        assert np.abs(defect).max() < 1e-8, n
        # Each field alone, moved anywhere inside, is noticed.
        for field in range(len(case.fields)):
            wrong = states[n + 1].copy()
            wrong[(field, *[2] * case.grid.ndim)] += 1e-3
            assert np.abs(residual(states[n], wrong, n * 0.02, 0.02, viscosity=viscosity, p=NONE)).max() > 1e-3


@pytest.mark.parametrize("name", PROBLEMS)
def test_walls_and_obstacles_are_part_of_the_residual(name):
    case, viscosity, options = PROBLEMS[name]
    residual = MacResidual(case, **options)
    rest = np.zeros((len(case.fields), *case.grid.shape))
    moving = rest.copy()
    moving[:-1] = 1 - residual.grid.free
    defect = residual(rest, moving, 0.0, 0.5, viscosity=viscosity, p=NONE)[:-1]
    np.testing.assert_allclose(defect[residual.grid.free == 0], 2.0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_tensors_give_the_same_residual_and_gradients(name):
    torch = pytest.importorskip("torch")
    case, viscosity, options = PROBLEMS[name]
    residual = MacResidual(case, **options)
    rng = np.random.default_rng(3)
    old, new = rng.normal(size=(2, len(case.fields), *case.grid.shape))

    def defect(old, new):
        return residual(old, new, 0.3, 0.05, viscosity=viscosity, p=NONE)

    expected = defect(old, new)
    # Two samples in a batch, the second one the first one scaled.
    batch_old, batch_new = (torch.tensor(np.stack([a, 0.5 * a], axis=1), requires_grad=True) for a in (old, new))
    found = defect(batch_old, batch_new)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[:, 0].detach().numpy(), expected, atol=1e-12 * scale)
    np.testing.assert_allclose(found[:, 1].detach().numpy(), defect(0.5 * old, 0.5 * new), atol=1e-12 * scale)

    (found[:, 0] ** 2).mean().backward()
    direction, step = rng.normal(size=new.shape), 1e-6
    losses = [np.mean(defect(old, new + sign * step * direction) ** 2) for sign in (1, -1)]
    slope = float((batch_new.grad[:, 0].numpy() * direction).sum())
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)
    assert not batch_new.grad[:, 1].any()
