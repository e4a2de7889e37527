"""Spectral Navier-Stokes: exact decay, conservation, order in time, the published recipe; random initial fields."""

import math
from dataclasses import replace

import numpy as np
import pytest

from headrace.cases.kolmogorov import case as kolmogorov
from headrace.cases.navier_stokes2d import case as navier_stokes
from headrace.cases.navier_stokes2d import recipe, stirring
from headrace.solvers import Case, Grid, MemorySink, Neumann
from headrace.solvers.navier_stokes_spectral import (
    ALL_INTEGRATORS,
    Torus,
    phi_functions,
    solve_vorticity,
)
from headrace.solvers.random_fields import gaussian_random_field
from headrace.solvers.simulate import simulate
from headrace.solvers.transforms import slabs


def run(case, values=None):
    sink = MemorySink()
    simulate(case, case.accept(values or {}), sink, simulation=4)
    return sink.values[:, 0]


def make_case(initial, *, shape=(32, 32), duration=1.0, viscosity=0.0, steps=None, extent=(1.0, 1.0), **options):
    def flow(case, p, comm, rng):
        return solve_vorticity(case, p, comm, rng, viscosity=viscosity, **options)

    return Case(
        name="flow", fields=("w",), grid=Grid(shape=shape, extent=extent), initial=initial, solver=flow,
        duration=duration, num_snapshots=1, steps_per_snapshot=steps,
    )  # fmt: skip


def smooth(x, p, rng):
    """A few low modes that interact."""
    x, y = 2 * np.pi * x[0], 2 * np.pi * x[1]
    return 8 * (np.cos(x) * np.sin(2 * y) + np.sin(2 * x + y) + 0.5 * np.cos(3 * y - x))


def one_shell(x, p, rng):
    """Modes of one wavenumber |k| = 5·2π/1: ω is a function of ψ, so that advection vanishes."""
    x, y = 2 * np.pi * x[0], 2 * np.pi * x[1]
    return np.cos(5 * x) + np.sin(3 * x + 4 * y) + np.cos(4 * x - 3 * y)


def test_one_shell_of_wavenumbers_decays_exactly():
    found = run(make_case(one_shell, viscosity=0.002, duration=0.5, drag=0.3))
    decay = math.exp(-(0.002 * (2 * np.pi * 5) ** 2 + 0.3) * 0.5)
    np.testing.assert_allclose(found[1], decay * found[0], atol=1e-12)


def test_a_rectangular_torus_has_its_own_wavenumbers():
    def wave(x, p, rng):
        return np.sin(2 * np.pi * (x[0] / 2 + 2 * x[1] / 0.5))

    found = run(make_case(wave, shape=(20, 24), extent=(2.0, 0.5), viscosity=0.01, duration=0.2))
    decay = math.exp(-0.01 * (2 * np.pi) ** 2 * (0.25 + 16) * 0.2)
    np.testing.assert_allclose(found[1], decay * found[0], atol=1e-12)


@pytest.fixture(scope="module")
def spectrum():
    torus = Torus(slabs((24, 30), (True, True)), (1.0, 1.3), whole=True)
    w = torus.transform.forward(np.random.default_rng(1).normal(size=(24, 30)))
    return torus, np.where(torus.kept & (torus.squared > 0), w, 0)


def test_both_forms_of_advection_agree(spectrum):
    torus, w = spectrum
    expected = np.where(torus.kept, torus.advection_of_products(w), 0)
    np.testing.assert_allclose(torus.advection(w), expected, atol=1e-12 * np.abs(expected).max())


def test_the_modes_that_are_not_kept_need_not_be_held(spectrum):
    torus, w = spectrum
    part = Torus(slabs((24, 30), (True, True)), (1.0, 1.3), whole=False)
    assert part.transform.shape == (24, 10)
    np.testing.assert_array_equal(part.velocity(w[:, :10]), torus.velocity(w))
    np.testing.assert_allclose(part.advection(w[:, :10]), torus.advection(w)[:, :10], rtol=0, atol=1e-15)
    assert not torus.advection(w)[:, 10:].any()


def test_advection_conserves_vorticity_energy_and_enstrophy(spectrum):
    torus, w = spectrum
    omega, rate = torus.transform.inverse(w), torus.transform.inverse(torus.advection(w))
    squared = np.where(torus.squared == 0, np.inf, torus.squared)
    psi = torus.transform.inverse(w / squared)
    scale = np.abs(omega).max() * np.abs(rate).max()
    assert abs(rate.mean()) < 1e-13 * np.abs(rate).max()
    assert abs((omega * rate).mean()) < 1e-13 * scale
    assert abs((psi * rate).mean()) < 1e-13 * np.abs(psi).max() * np.abs(rate).max()


def test_velocity_is_divergence_free_and_has_the_vorticity(spectrum):
    torus, w = spectrum
    u, v = torus.transform.forward(torus.velocity(w))
    np.testing.assert_allclose(torus.kx * u + torus.ky * v, 0, atol=1e-11)
    np.testing.assert_allclose(1j * (torus.kx * v - torus.ky * u), w, atol=1e-11)


@pytest.mark.parametrize("integrator", ALL_INTEGRATORS, ids=lambda i: type(i).__name__)
def test_order_in_time(integrator):
    counts = (64, 128, 256) if integrator.order == 1 else (16, 32, 64)
    options = dict(viscosity=0.01, forcing=stirring, duration=0.5)
    reference = run(make_case(smooth, steps=400, **options))[1]
    errors = [
        np.abs(run(make_case(smooth, steps=n, integrator=integrator, **options))[1] - reference).max() for n in counts
    ]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(np.abs(orders - integrator.order) < 0.25), (errors, orders)


def test_free_steps_keep_the_error_of_fixed_ones_small():
    options = dict(viscosity=1e-3, duration=0.7)
    reference = run(make_case(smooth, steps=800, **options))[1]
    error = np.abs(run(make_case(smooth, **options))[1] - reference).max()
    assert 0 < error < 1e-3 * np.abs(reference).max()


def test_a_flow_that_starts_at_rest_is_resolved():
    def rest(x, p, rng):
        return np.zeros(x[0].shape)

    options = dict(viscosity=0.01, forcing=lambda x: 40 * smooth(x, None, None), duration=0.5)
    reference = run(make_case(rest, steps=500, **options))[1]
    error = np.abs(run(make_case(rest, **options))[1] - reference).max()
    assert error < 1e-2 * np.abs(reference).max()


def published_recipe(w0, nu, dt, steps):
    """The published algorithm, with its own wavenumbers: the Nyquist ones are negative on both axes."""
    s = len(w0)
    k = np.concatenate([np.arange(s // 2), np.arange(-s // 2, 0)])
    kx, ky = k[:, None], k[None, : s // 2 + 1]
    laplacian = 4 * np.pi**2 * (kx**2 + ky**2)
    inverse = laplacian.copy()
    inverse[0, 0] = 1
    kept = (np.abs(kx) <= 2 / 3 * (s // 2)) & (np.abs(ky) <= 2 / 3 * (s // 2))
    x = np.arange(s) / s
    f = np.fft.rfft2(stirring((x[:, None], x[None, :])))
    w = np.fft.rfft2(w0)
    for _ in range(steps):
        psi = w / inverse
        fields = [2j * np.pi * ky * psi, -2j * np.pi * kx * psi, 2j * np.pi * kx * w, 2j * np.pi * ky * w]
        u, v, wx, wy = (np.fft.irfft2(field) for field in fields)
        product = kept * np.fft.rfft2(u * wx + v * wy)
        w = (-dt * product + dt * f + (1 - 0.5 * dt * nu * laplacian) * w) / (1 + 0.5 * dt * nu * laplacian)
    return np.fft.irfft2(w)


def test_the_recipe_is_the_published_one():
    case = replace(recipe, grid=Grid(shape=(32, 32), extent=(1.0, 1.0)), duration=0.4, num_snapshots=1,
                   steps_per_snapshot=40)  # fmt: skip
    found = run(case, {"nu": 1e-4})
    np.testing.assert_allclose(found[1], published_recipe(found[0], 1e-4, 0.01, 40), atol=1e-12)
    assert recipe.duration / recipe.num_snapshots / recipe.steps_per_snapshot == pytest.approx(1e-4)


def test_the_better_integrator_solves_the_same_problem():
    changes = dict(grid=Grid(shape=(48, 48), extent=(1.0, 1.0)), duration=0.5, num_snapshots=1)
    fine = run(replace(recipe, **changes, steps_per_snapshot=500), {"nu": 1e-3})[1]
    found = run(replace(navier_stokes, **changes), {"nu": 1e-3})[1]
    assert np.abs(found - fine).max() < 2e-3 * np.abs(fine).max()


def test_kolmogorov_flow_has_its_laminar_solution():
    """At rest and low Reynolds number ω tends to f / (k²/Re + drag): steady, parallel."""
    at_rest = replace(kolmogorov, initial=lambda x, p, rng: 0 * x[0], duration=60.0, num_snapshots=1)
    found = run(replace(at_rest, grid=Grid(shape=(16, 16), extent=kolmogorov.grid.extent)), {"reynolds": 100.0})[1]
    y = kolmogorov.grid.resized((16, 16)).points(1, periodic=True)
    limit = 1 - math.exp(-(16 / 100 + 0.1) * 60)
    expected = np.tile(-4 * np.cos(4 * y) / (16 / 100 + 0.1) * limit, (16, 1))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("case", [navier_stokes, kolmogorov, recipe], ids=lambda case: case.name)
def test_cases_are_valid(case):
    case.resized((16, 16)).verify()


def test_another_geometry_is_refused():
    case = replace(make_case(smooth), boundary={"x": Neumann(), "y": Neumann()})
    with pytest.raises(ValueError, match="takes one field on two periodic axes"):
        run(case)


@pytest.mark.parametrize("z", [-1e3, -30.0, -1.0001, -0.9999, -1e-3, -1e-9, 0.0, 0.5])
def test_phi_functions_keep_their_digits(z):
    """φ_j(z) = Σ z^n / (n + j)!, summed with exact fractions."""
    from fractions import Fraction

    if z < -40:
        expected = [-1 / z, (-1 / z - 1) / z, ((-1 / z - 1) / z - 0.5) / z]
    else:
        expected = []
        for j in (1, 2, 3):
            term = total = Fraction(1, math.factorial(j))
            for n in range(1, 140):
                term = term * Fraction(z) / (n + j)
                total += term
            expected.append(float(total))
    torch = pytest.importorskip("torch")
    for given in (np.array(z), torch.tensor(z, dtype=torch.float64)):
        found = [float(phi) for phi in phi_functions(given)]
        np.testing.assert_allclose(found, expected, rtol=2e-14)


def test_random_vorticity_has_the_published_variance():
    rng = np.random.default_rng(0)
    fields = np.stack([gaussian_random_field((32, 32), rng) for _ in range(400)])
    k = np.fft.fftfreq(64, 1 / 64)
    squared = k[:, None] ** 2 + k[None, :] ** 2
    exact = 7.0**3 * ((4 * np.pi**2 * squared + 49) ** -2.5).ravel()[1:].sum()
    assert exact == pytest.approx(0.0343, abs=5e-5)
    # The standard error of the mean over 400 fields, dominated by 8 modes each, is about 2 per cent.
    assert np.mean(fields**2) == pytest.approx(exact, rel=0.06)
    assert np.abs(fields.mean(axis=(1, 2))).max() < 1e-14


def test_variance_holds_mode_by_mode():
    rng = np.random.default_rng(3)
    power = np.mean([np.abs(np.fft.fft2(gaussian_random_field((8, 8), rng)) / 64) ** 2 for _ in range(3000)], axis=0)
    for mode in ((1, 0), (0, 2), (-1, 1), (3, -2)):
        expected = 7.0**3 * (4 * np.pi**2 * (mode[0] ** 2 + mode[1] ** 2) + 49) ** -2.5
        assert power[mode] == pytest.approx(expected, rel=0.1), mode


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_a_draw_is_one_function_on_every_grid(ndim):
    coarse, fine = (
        np.fft.fftn(gaussian_random_field((n,) * ndim, np.random.default_rng(9), smoothness=3.0), norm="forward")
        for n in (8, 16)
    )
    low = np.ix_(*[[0, 1, 2, 3, -3, -2, -1]] * ndim)
    np.testing.assert_allclose(coarse[low], fine[low], atol=1e-14)
    assert np.abs(fine[low]).max() > 1e-3


def test_a_field_of_infinite_variance_is_refused():
    with pytest.raises(ValueError, match="smoothness 1 gives no field in 2 dimensions"):
        gaussian_random_field((8, 8), np.random.default_rng(0), smoothness=1.0)
