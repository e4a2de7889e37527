"""Laws: order of the integration, its limit against an adaptive Radau solution, tangents, limits, errors."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from headrace.rom.elastic import CubicElasticity, IsotropicElasticity, strain_rotation
from headrace.rom.law import ConvergenceError, Table, coefficient_at
from headrace.rom.viscoplastic import KinematicHardening, NortonChaboche, VoceHardening

COMPILED = importlib.util.find_spec("numba") is not None
ELASTIC = IsotropicElasticity(
    young=Table((20, 800), (200e3, 140e3)), poisson=0.3, expansion=Table((20, 800), (1.1e-5, 1.5e-5))
)
LAWS = {
    "norton": NortonChaboche(elasticity=ELASTIC, yield_stress=0.0, viscosity=900.0, exponent=6.0),
    "voce": NortonChaboche(
        elasticity=ELASTIC,
        yield_stress=60.0,
        viscosity=300.0,
        exponent=8.0,
        isotropic=(VoceHardening(saturation=50, rate=80),),
    ),
    "two back-stresses": NortonChaboche(
        elasticity=ELASTIC,
        yield_stress=Table((20, 800), (80, 40)),
        viscosity=Table((20, 800), (400, 700)),
        exponent=Table((20, 800), (12, 7)),
        kinematic=(
            KinematicHardening(modulus=60e3, recall=Table((20, 800), (500, 700))),
            KinematicHardening(modulus=5e3, recall=20),
        ),
        linear_hardening=500.0,
    ),
    "rate-independent": NortonChaboche(
        elasticity=ELASTIC,
        yield_stress=80.0,
        kinematic=(KinematicHardening(modulus=40e3, recall=300),),
        linear_hardening=1e3,
    ),
}
DIRECTIONS = np.array(
    [
        [1, -0.3, -0.3, 0, 0, 0],
        [0, 0, 0, 1.5, 0, 0],
        [0.5, -1, 0.4, 0.3, -0.7, 0.2],
        [1, 1, 1, 0, 0, 0],
        [1, 0.2, -1, 0, 0.5, 0.5],
    ]
)


def histories(t):
    """Strains of five histories, (5, 6), and temperatures, (5,): ramp and hold, cycles, ratchet, thermal ramp."""
    amplitude = np.array(
        [np.tanh(2 * t), np.sin(5 * t), np.sin(4 * t) + 0.5 * t, 0.05 * np.sin(t), np.sin(3 * t) * np.cos(7 * t)]
    )
    return 4e-3 * amplitude[:, None] * DIRECTIONS, np.array(
        [20.0, 300.0, 150 + 100 * np.sin(t), 20 + 500 * t, 600 - 300 * t]
    )


def integrate(law, steps, duration=1.0):
    """Stress and state of all histories at the end of equal backward Euler steps."""
    state = law.initial_state(len(DIRECTIONS))
    eps, T = histories(0.0)
    for k in range(1, steps + 1):
        eps1, T1 = histories(duration * k / steps)
        stress, state, _ = law.update(T, T1, eps, eps1 - eps, state, duration / steps)
        eps, T = eps1, T1
    return stress, state


def romberg(law, coarsest, levels):
    """Extrapolate backward Euler in powers of the step (Aitken-Neville)."""
    numbers = coarsest * 2 ** np.arange(levels)
    law = replace(law, compiled=COMPILED)  # the same law, as a test below says
    table = [np.concatenate(integrate(law, n), axis=1) for n in numbers]
    for column in range(1, levels):
        factors = numbers[column:] / numbers[:-column]
        table = [(f * fine - rough) / (f - 1) for f, rough, fine in zip(factors, table[:-1], table[1:], strict=True)]
    return table[-1]


def exact(law, history, duration=1.0):
    """The law's rate equations solved by an adaptive implicit method, written without the code under test."""

    def at(coefficient, T):
        return (
            float(np.interp(T, coefficient.temperatures, coefficient.values))
            if isinstance(coefficient, Table)
            else (coefficient)
        )

    def tensor(v):
        return np.array([[v[0], v[3] / 2, v[4] / 2], [v[3] / 2, v[1], v[5] / 2], [v[4] / 2, v[5] / 2, v[2]]])

    def parts(t, y):
        eps, T = (a[history] for a in histories(t))
        E, nu = at(law.elasticity.young, T), law.elasticity.poisson
        e = tensor(eps) - at(law.elasticity.expansion, T) * (T - 20) * np.eye(3) - tensor(y[:6])
        s = E / (1 + nu) * (e - np.trace(e) / 3 * np.eye(3))
        sigma = s + E / (1 - 2 * nu) / 3 * np.trace(e) * np.eye(3)
        alphas = [tensor(y[7 + 6 * i : 13 + 6 * i]) for i in range(len(law.kinematic))]
        xi = s - sum(
            (2 / 3 * at(k.modulus, T) * a for k, a in zip(law.kinematic, alphas, strict=True)), np.zeros((3, 3))
        )
        R = at(law.yield_stress, T) + at(law.linear_hardening, T) * y[6]
        R += sum(at(v.saturation, T) * (1 - np.exp(-at(v.rate, T) * y[6])) for v in law.isotropic)
        J = np.sqrt(1.5 * np.sum(xi**2))
        rate = (max(J - R, 0) / at(law.viscosity, T)) ** at(law.exponent, T)
        flow = 1.5 * rate * xi / J if J > 0 else np.zeros((3, 3))
        recalls = [flow - at(k.recall, T) * a * rate for k, a in zip(law.kinematic, alphas, strict=True)]
        return sigma, rate, flow, recalls

    def vector(m, shear):
        return np.array([m[0, 0], m[1, 1], m[2, 2], shear * m[0, 1], shear * m[0, 2], shear * m[1, 2]])

    def slope(t, y):
        _, rate, flow, recalls = parts(t, y)
        return np.concatenate([vector(flow, 2), [rate], *(vector(r, 2) for r in recalls)])

    with np.errstate(over="ignore", invalid="ignore"):  # Radau tries absurd states and rejects them
        end = solve_ivp(
            slope,
            (0, duration),
            np.zeros(len(law.state_names)),
            method="Radau",
            rtol=1e-12,
            atol=1e-14,
            first_step=1e-6,
        ).y[:, -1]
    return np.concatenate([vector(parts(duration, end)[0], 1), end])


@pytest.mark.parametrize("name", ["norton", "voce", "two back-stresses"])
def test_first_order_and_its_limit_is_the_radau_solution(name):
    law = LAWS[name]
    limit = romberg(law, 40, 6)
    stress_error = [np.abs(integrate(law, n)[0] - limit[:, :6]).max() for n in (160, 320)]
    assert 1.8 < stress_error[0] / stress_error[1] < 2.2, stress_error
    for history in {"norton": (2,), "voce": (1,), "two back-stresses": (4,)}[name]:
        truth = exact(law, history)
        assert np.abs(limit[history, :6] - truth[:6]).max() <= 1e-8 * np.abs(truth[:6]).max(), (
            history,
            limit[history] - truth,
        )
        assert np.abs(limit[history, 6:] - truth[6:]).max() <= 1e-8 * np.abs(truth[6:]).max(), (
            history,
            limit[history] - truth,
        )


def random_step(law, num_points=40, scale=2e-3):
    """States reached by random loading, and a further random step, at random temperatures."""
    rng = np.random.default_rng(7)
    T = rng.uniform(20, 800, num_points)
    eps, state = np.zeros((num_points, 6)), law.initial_state(num_points)
    for _ in range(3):
        deps = scale * rng.standard_normal((num_points, 6))
        state = law.update(T, T, eps, deps, state, 0.1)[1]
        eps = eps + deps
    return T, eps, scale * rng.standard_normal((num_points, 6)), state


@pytest.mark.parametrize("name", LAWS)
def test_tangent_is_the_derivative_of_the_stress(name):
    law = LAWS[name]
    T, eps, deps, state = random_step(law)
    _, new, tangent = law.update(T, T, eps, deps, state, 0.1)
    assert np.count_nonzero(new[:, 6] > state[:, 6] + 1e-6) > 10  # the comparison is about plastic points
    h = 1e-7
    for j in range(6):
        d = h * np.eye(6)[j]
        slope = (law.update(T, T, eps, deps + d, state, 0.1)[0] - law.update(T, T, eps, deps - d, state, 0.1)[0]) / (
            2 * h
        )
        assert np.abs(slope - tangent[:, :, j]).max() <= 2e-6 * 200e3, (name, j)


@pytest.mark.parametrize("name", LAWS)
def test_symmetric_is_said_truly(name):
    law = LAWS[name]
    T, eps, deps, state = random_step(law)
    tangent = law.update(T, T, eps, deps, state, 0.1)[2]
    skew = np.abs(tangent - np.swapaxes(tangent, 1, 2)).max()
    assert (skew < 1e-6) == law.symmetric, skew


def test_below_yield_the_response_is_elastic():
    T = np.array([20.0, 410.0, 900.0])
    eps = 1e-5 * DIRECTIONS[:3]
    for name in ("voce", "two back-stresses", "rate-independent"):
        law = LAWS[name]
        eps_th = (coefficient_at(ELASTIC.expansion, T) * (T - 20))[:, None] * np.array([1, 1, 1, 0, 0, 0])
        stress, state, tangent = law.update(T, T, eps_th, eps, law.initial_state(3), 1.0)
        expected = np.einsum("pij,pj->pi", ELASTIC.stiffness(T), eps)
        np.testing.assert_allclose(stress, expected, atol=1e-9)
        assert not state.any()
        np.testing.assert_allclose(tangent, ELASTIC.stiffness(T))


def test_without_viscosity_time_does_not_matter_and_small_viscosity_tends_to_it():
    law = LAWS["rate-independent"]
    T, eps, deps, state = random_step(law)
    fast, slow = law.update(T, T, eps, deps, state, 1e-6), law.update(T, T, eps, deps, state, 1e6)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(a, b)
    gaps = []
    for K in (1e-1, 1e-3, 1e-5):
        viscous = NortonChaboche(elasticity=law.elasticity, yield_stress=law.yield_stress, viscosity=K, exponent=30.0,
                                 kinematic=law.kinematic, linear_hardening=law.linear_hardening)  # fmt: skip
        gaps.append(np.abs(viscous.update(T, T, eps, deps, state, 1.0)[0] - fast[0]).max())
    assert gaps[1] < 0.02 * gaps[0] and gaps[2] < 0.02 * gaps[1], gaps


def test_saturation_of_the_back_stress_is_modulus_over_recall():
    law = NortonChaboche(elasticity=IsotropicElasticity(young=200e3, poisson=0.3), yield_stress=10.0, viscosity=300.0,
                         exponent=30.0, kinematic=(KinematicHardening(modulus=100e3, recall=1000.0),))  # fmt: skip
    T, state, eps, rate = np.full(1, 20.0), law.initial_state(1), np.zeros((1, 6)), 1e-3
    for _ in range(60):
        deps = rate * np.array([[1, -0.5, -0.5, 0, 0, 0]])
        stress, state, _ = law.update(T, T, eps, deps, state, 1.0)
        eps = eps + deps
    # At saturation J(s) = R0 + C/D + K p_dot^(1/n), and p_dot is the strain rate.
    deviator = stress[0] - stress[0, :3].mean() * np.array([1, 1, 1, 0, 0, 0])
    assert np.sqrt(1.5 * (deviator[:3] ** 2).sum()) == pytest.approx(10 + 100 + 300 * rate ** (1 / 30), rel=1e-9)


def test_extreme_steps_converge():
    """Trial stresses from 1e-9 to 1e9 of the viscosity, exponent 50: the scalar equation still has its root."""
    law = NortonChaboche(elasticity=IsotropicElasticity(young=200e3, poisson=0.3), yield_stress=10.0, viscosity=300.0,
                         exponent=50.0, kinematic=(KinematicHardening(modulus=100e3, recall=1000.0),))  # fmt: skip
    size = np.logspace(-9, 6, 31)
    deps = size[:, None] * DIRECTIONS[2]
    T = np.full(len(size), 20.0)
    for dt in (1e-9, 1.0, 1e9):
        stress, state, tangent = law.update(T, T, 0 * deps, deps, law.initial_state(len(size)), dt)
        assert np.isfinite(stress).all() and np.isfinite(tangent).all() and np.all(state[:, 6] >= 0)
        p = state[:, 6]
        alpha = state[:, 7:] * np.array([1, 1, 1, 0.5, 0.5, 0.5])
        xi = stress - stress[:, :3].mean(axis=1, keepdims=True) * np.array([1, 1, 1, 0, 0, 0]) - 2 / 3 * 100e3 * alpha
        J = np.sqrt(1.5 * (xi**2 * np.array([1, 1, 1, 2, 2, 2])).sum(axis=1))
        flowing = p > 0
        np.testing.assert_allclose(
            J[flowing], (10 + 300 * (p / dt) ** (1 / 50))[flowing], rtol=1e-9, atol=2e-10 * 1e5 * size.max()
        )


def test_hardening_curve_is_followed_in_tension():
    """Rate-independent uniaxial states lie on the given curve."""
    law = NortonChaboche(elasticity=IsotropicElasticity(young=200e3, poisson=0.3), yield_stress=100.0,
                         curve=((0, 0), (0.01, 50), (0.05, 90)))  # fmt: skip
    T, state, eps = np.full(1, 20.0), law.initial_state(1), np.zeros((1, 6))
    seen = []
    for _ in range(80):
        deps = 1e-3 * np.array([[1, -0.5, -0.5, 0, 0, 0]])
        stress, state, _ = law.update(T, T, eps, deps, state, 0.0)
        eps = eps + deps
        seen.append((state[0, 6], 1.5 * (stress[0, 0] - stress[0, :3].mean())))
    p, sigma = np.array(seen).T
    np.testing.assert_allclose(sigma[p > 0], 100 + np.interp(p[p > 0], [0, 0.01, 0.05], [0, 50, 90]), rtol=1e-10)
    assert p.max() > 0.06


def test_machine_code_is_the_same_law():
    """Stress, state and tangent of random and of extreme steps, with every kind of hardening; and its failures."""
    pytest.importorskip("numba")
    curved = NortonChaboche(elasticity=ELASTIC, yield_stress=90.0, viscosity=200.0, exponent=5.0,
                            curve=((0, 0), (1e-3, 20), (0.05, 90)))  # fmt: skip
    for law in [*LAWS.values(), curved]:
        T, eps, deps, state = random_step(law)
        steps = np.logspace(-9, 4, len(T))[:, None]
        for change, dt in ((deps, 0.1), (deps * steps, 1e-9), (deps * steps, 1e9), (deps, 0.0)):
            expected = law.update(T, T, eps, change, state, dt)
            found = replace(law, compiled=True).update(T, T, eps, change, state, dt)
            for a, b in zip(expected, found, strict=True):
                size = np.abs(a).reshape(len(a), -1).max(axis=1)
                assert np.all(np.abs(a - b).reshape(len(a), -1).max(axis=1) <= 1e-9 * size), (law, dt)
    softening = NortonChaboche(elasticity=IsotropicElasticity(young=1.0, poisson=0.3), yield_stress=1.0,
                               linear_hardening=-50.0, compiled=True)  # fmt: skip
    for bad, message in ((5.0, r"point 1: .*state p = 0"), (np.nan, "not finite at point 1")):
        eps = np.zeros((3, 6))
        eps[1, 3] = bad
        with pytest.raises(ConvergenceError, match=message):
            softening.update(np.full(3, 20.0), np.full(3, 20.0), 0 * eps, eps, softening.initial_state(3), 1.0)


def test_cubic_elasticity_turns_with_its_axes_and_contains_the_isotropic_case():
    c, s = np.cos(0.7), np.sin(0.7)
    Q = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, s], [0, -s, c]])
    cubic = dict(c11=250e3, c12=160e3, c44=120e3)
    T = np.array([20.0])
    rng = np.random.default_rng(0)
    e = rng.standard_normal((3, 3))
    e = (e + e.T) / 2

    def voigt(m, k):
        return np.array([m[0, 0], m[1, 1], m[2, 2], k * m[0, 1], k * m[0, 2], k * m[1, 2]])

    def tensor(v):
        return np.array([[v[0], v[3], v[4]], [v[3], v[1], v[5]], [v[4], v[5], v[2]]])

    np.testing.assert_allclose(strain_rotation(Q) @ voigt(e, 2), voigt(Q @ e @ Q.T, 2), atol=1e-14)
    straight = CubicElasticity(**cubic).update(
        T, T, np.zeros((1, 6)), voigt(Q @ e @ Q.T, 2)[None], np.zeros((1, 0)), 1.0
    )[0]
    turned = CubicElasticity(**cubic, axes=Q).update(T, T, np.zeros((1, 6)), voigt(e, 2)[None], np.zeros((1, 0)), 1.0)[
        0
    ]
    np.testing.assert_allclose(tensor(turned[0]), Q.T @ tensor(straight[0]) @ Q, rtol=1e-10)
    lam, mu = 120e3, 80e3
    same = CubicElasticity(c11=lam + 2 * mu, c12=lam, c44=mu, axes=Q).stiffness(T)
    isotropic = IsotropicElasticity(
        young=mu * (3 * lam + 2 * mu) / (lam + mu), poisson=lam / (2 * (lam + mu))
    ).stiffness(T)
    np.testing.assert_allclose(same, isotropic, atol=1e-6)


def test_bad_coefficients_and_strains_are_named():
    with pytest.raises(ValueError, match="poisson takes values from"):
        IsotropicElasticity(young=1.0, poisson=0.5)
    with pytest.raises(ValueError, match="exponent"):
        NortonChaboche(elasticity=ELASTIC, yield_stress=1.0, exponent=0.5)
    with pytest.raises(ValueError, match="must increase"):
        Table((20, 20), (1, 2))
    with pytest.raises(ValueError, match="positive definite"):
        CubicElasticity(c11=1.0, c12=2.0, c44=1.0)
    law = LAWS["voce"]
    eps = np.zeros((4, 6))
    eps[2, 3] = np.nan
    with pytest.raises(ConvergenceError, match="point 2") as caught:
        law.update(np.full(4, 20.0), np.full(4, 20.0), eps, eps, law.initial_state(4), 1.0)
    assert caught.value.points.tolist() == [2]


def test_a_law_that_cannot_converge_names_point_and_state():
    """Softening to a negative radius faster than elasticity unloads has no solution."""
    law = NortonChaboche(
        elasticity=IsotropicElasticity(young=1.0, poisson=0.3), yield_stress=1.0, linear_hardening=-50.0
    )
    eps = np.zeros((3, 6))
    eps[1, 3] = 5.0
    with pytest.raises(ConvergenceError, match=r"point 1: .*state p = 0") as caught:
        law.update(np.full(3, 20.0), np.full(3, 20.0), 0 * eps, eps, law.initial_state(3), 1.0)
    assert caught.value.points.tolist() == [1]
