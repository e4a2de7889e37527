"""Our Norton-Chaboche law against NEML's, an implementation by others. Runs where the package neml is installed."""

import numpy as np
import pytest

from headrace.rom.box import box_mesh
from headrace.rom.elastic import IsotropicElasticity
from headrace.rom.law import ConvergenceError
from headrace.rom.loads import Amplitude, Pressure, Support
from headrace.rom.neml_law import NemlLaw
from headrace.rom.problem import Problem
from headrace.rom.solver import NewtonSettings, solve
from headrace.rom.viscoplastic import KinematicHardening, NortonChaboche, VoceHardening

C, D = (60e3, 5e3), (500.0, 20.0)
OURS = NortonChaboche(
    elasticity=IsotropicElasticity(young=200e3, poisson=0.3, expansion=1e-5),
    yield_stress=60.0, viscosity=300.0, exponent=8.0,
    isotropic=(VoceHardening(saturation=50.0, rate=80.0),),
    kinematic=tuple(KinematicHardening(modulus=c, recall=d) for c, d in zip(C, D, strict=True)),
)  # fmt: skip


@pytest.fixture(scope="module")
def theirs():
    """The same law built from NEML's parts."""
    pytest.importorskip("neml")
    from neml import elasticity, general_flow, hardening, models, surfaces, visco_flow

    elastic = elasticity.IsotropicLinearElasticModel(200e3, "youngs", 0.3, "poissons")
    isotropic = hardening.VoceIsotropicHardeningRule(60.0, 50.0, 80.0)
    back = hardening.Chaboche(isotropic, list(C), [hardening.ConstantGamma(d) for d in D], [0.0, 0.0], [1.0, 1.0])
    flow = visco_flow.ChabocheFlowRule(surfaces.IsoKinJ2(), back, visco_flow.ConstantFluidity(300.0), 8.0)
    return NemlLaw(models.GeneralIntegrator(elastic, general_flow.TVPFlowRule(elastic, flow)), expansion=1e-5)


def test_cyclic_histories_agree_with_neml(theirs):
    rng = np.random.default_rng(0)
    points, steps = 6, 60
    directions, drift = rng.standard_normal((2, points, 6))
    T = lambda t: 20 + 100 * t * np.linspace(0, 1, points)  # noqa: E731
    states = [OURS.initial_state(points), theirs.initial_state(points)]
    eps = np.zeros((points, 6))
    for k in range(1, steps + 1):
        t = k / steps
        new = 3e-3 * np.sin(8 * t) * directions + 1e-3 * t * drift
        inputs = (T(t - 1 / steps), T(t), eps, new - eps)
        (s, states[0], A), (q, states[1], B) = (
            law.update(*inputs, state, 1 / steps) for law, state in zip((OURS, theirs), states, strict=True)
        )
        eps = new
        np.testing.assert_allclose(s, q, atol=2e-8 * np.abs(q).max())
        np.testing.assert_allclose(A, B, atol=1e-7 * np.abs(B).max())
    assert states[0][:, 6].min() > 1e-3


def test_the_solver_takes_a_law_of_others(theirs):
    loads = (Pressure(faces="x1", value=lambda x: -300 * x[:, 1], amplitude=Amplitude((0, 1), (0, 1))),)
    supports = [Support(nodes="x0", direction=d) for d in "xyz"]
    u = [
        solve(
            Problem(mesh=box_mesh("hex8", (2, 2, 1)), laws={"all": law}, supports=supports, loads=loads),
            [0, 0.5, 1],
            settings=NewtonSettings(tolerance=1e-10),
        ).displacements
        for law in (OURS, theirs)
    ]
    np.testing.assert_allclose(u[0], u[1], atol=1e-7 * np.abs(u[0]).max())


def test_a_failure_of_the_model_is_a_convergence_error():
    class Failing:
        def init_store(self):
            return np.zeros(3)

        def update_sd(self, *inputs):
            if inputs[0][0] > 1e-3:
                raise RuntimeError("no solution")
            return np.zeros(6), np.zeros(3), np.eye(6), 0.0, 0.0

    law = NemlLaw(Failing())
    eps = np.zeros((4, 6))
    eps[2, 0] = 0.01
    with pytest.raises(ConvergenceError, match=r"point 2.*no solution") as caught:
        law.update(np.full(4, 20.0), np.full(4, 20.0), 0 * eps, eps, law.initial_state(4), 1.0)
    assert caught.value.points.tolist() == [2]
