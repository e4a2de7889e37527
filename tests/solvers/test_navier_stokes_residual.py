"""The spectral solver's residual vanishes on its own steps, for arrays and tensors, with gradients."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from headrace.cases.kolmogorov import DRAG, sine_wave
from headrace.cases.kolmogorov import case as kolmogorov
from headrace.cases.navier_stokes2d import case as decaying
from headrace.solvers import Neumann
from headrace.solvers.navier_stokes_residual import SpectralResidual
from headrace.solvers.navier_stokes_spectral import CRANK_NICOLSON_EULER, ETDRK4, solve_vorticity

from .problems import run

EACH = pytest.mark.parametrize("integrator", [ETDRK4, CRANK_NICOLSON_EULER], ids=lambda one: type(one).__name__)
DT, VISCOSITY = 0.01, 1 / 300


def trajectory(integrator, steps=1, shape=(24, 20)):
    def flow(case, p, comm, rng):
        return solve_vorticity(
            case, p, comm, rng, viscosity=1 / p.reynolds, drag=DRAG, forcing=sine_wave, integrator=integrator
        )

    case = replace(kolmogorov.resized(shape), solver=flow, duration=5 * DT, num_snapshots=5, steps_per_snapshot=steps,
                   initial=lambda x, p, rng: rng.normal(size=x[0].shape))  # fmt: skip
    return case, run(case, {"reynolds": 300.0}).values[:, 0]


@EACH
@pytest.mark.parametrize("steps", [1, 3])
def test_the_trajectory_makes_the_residual_vanish(integrator, steps):
    case, w = trajectory(integrator, steps)
    residual = SpectralResidual(case, drag=DRAG, forcing=sine_wave, integrator=integrator)
    defect = np.abs(residual(w[:-1], w[1:], DT, viscosity=VISCOSITY, steps=steps)).max()
    scale = np.abs(w).max() / DT
    assert defect / scale < 1e-13, defect / scale
    other = np.abs(residual(w[:-1], w[1:], DT, viscosity=2 * VISCOSITY, steps=steps)).max()
    assert other / scale > 1e-4


@EACH
def test_tensors_give_the_same_residual_and_gradients(integrator):
    torch = pytest.importorskip("torch")
    case, _ = trajectory(integrator)
    residual = SpectralResidual(case, drag=DRAG, forcing=sine_wave, integrator=integrator)
    rng = np.random.default_rng(3)
    old, new = (rng.normal(size=(2, 24, 20)) for _ in range(2))
    nu = np.array([1e-3, 1e-2]).reshape(2, 1, 1)
    expected = residual(old, new, DT, viscosity=nu)
    tensors = [torch.from_numpy(a).requires_grad_() for a in (old, new)]
    found = residual(*tensors, DT, viscosity=torch.from_numpy(nu))
    assert np.abs(found.detach().numpy() - expected).max() < 1e-12 * np.abs(expected).max()
    found.square().sum().backward()
    direction, small = rng.normal(size=old.shape), 1e-6
    ahead, behind = (residual(old + s * small * direction, new, DT, viscosity=nu) for s in (1, -1))
    slope = ((ahead**2).sum() - (behind**2).sum()) / (2 * small)
    assert (tensors[0].grad.numpy() * direction).sum() == pytest.approx(slope, rel=1e-6)
    single = residual(*(t.detach().float() for t in tensors), DT, viscosity=torch.from_numpy(nu))
    assert single.dtype == torch.float32 and np.abs(single.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_number_is_taken_as_exactly_as_a_tensor():
    torch = pytest.importorskip("torch")
    case, _ = trajectory(ETDRK4)
    residual = SpectralResidual(case)
    old = torch.from_numpy(np.random.default_rng(3).normal(size=(24, 20)))
    exact = torch.tensor(1e-1, dtype=torch.float64)
    number, tensor = (residual(old, old, DT, viscosity=viscosity) for viscosity in (1e-1, exact))
    torch.testing.assert_close(number, tensor, rtol=0, atol=1e-14 * float(tensor.abs().max()))


def test_a_first_use_in_inference_mode_leaves_terms_that_training_can_keep():
    torch = pytest.importorskip("torch")
    case, _ = trajectory(ETDRK4)
    residual, fresh = SpectralResidual(case), SpectralResidual(case)
    values = torch.from_numpy(np.random.default_rng(3).normal(size=(24, 20)))
    with torch.inference_mode():
        residual(values.clone(), values, DT, viscosity=VISCOSITY)
    slopes = []
    for each in (residual, fresh):
        old = values.clone().requires_grad_()
        each(old, values, DT, viscosity=VISCOSITY).square().sum().backward()
        slopes.append(old.grad)
    assert torch.equal(*slopes)


@pytest.mark.parametrize("of_graph", [False, True])
def test_no_state_and_no_graph_is_kept(of_graph):
    torch = pytest.importorskip("torch")
    case, w = trajectory(ETDRK4)
    residual, array = SpectralResidual(case), w[0].copy()
    kept, old = weakref.ref(array), torch.from_numpy(array)
    if of_graph:
        old = old * torch.ones_like(old).requires_grad_()  # keeps the array for its gradient
    del array
    residual(old, old, DT, viscosity=VISCOSITY)
    assert kept() is not None
    del old
    gc.collect()
    assert kept() is None


def test_another_geometry_is_refused():
    with pytest.raises(ValueError, match="two periodic axes"):
        SpectralResidual(replace(decaying, boundary=Neumann()))
