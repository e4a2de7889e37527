"""POD + regression and operator inference: known answers, held-out errors that are what they say, what is refused."""

import numpy as np
import pytest

from headrace.rom import Problem, solve
from headrace.rom.box import box_mesh
from headrace.rom.elastic import IsotropicElasticity
from headrace.rom.kinematics import Kinematics
from headrace.rom.loads import Pressure, Support
from headrace.rom.pod import MassProduct
from headrace.rom.regression import OperatorInference, PodRegression

X = np.linspace(0, 1, 200)


def bumps(parameters):
    return np.exp(-(((X - parameters[:, :1]) / 0.3) ** 2)) * (1 + parameters[:, 1:])


def test_rbf_learns_a_smooth_map_and_says_how_well():
    rng = np.random.default_rng(0)
    parameters = rng.uniform(0.2, 0.8, (80, 2))
    model = PodRegression(tolerance=1e-5).fit(parameters, bumps(parameters))
    new = rng.uniform(0.25, 0.75, (50, 2))
    error = np.linalg.norm(model.predict(new) - bumps(new)) / np.linalg.norm(bumps(new))
    assert error < 0.01 and 0.2 * error < model.held_out_error < 10 * error
    assert model.projection_error < model.held_out_error
    few = PodRegression(tolerance=1e-5).fit(parameters[:15], bumps(parameters[:15]))
    assert few.held_out_error > 3 * model.held_out_error


def test_gaussian_processes_and_regressors_of_others():
    pytest.importorskip("sklearn", reason="no scikit-learn: pip install 'headrace[regression]'")
    from sklearn.neighbors import KNeighborsRegressor

    place = np.random.default_rng(0).uniform(0.2, 0.8, 20)
    fields = bumps(np.stack([place, 0 * place], axis=1))
    gp = PodRegression("gp", tolerance=1e-2).fit(place, fields)
    nearest = PodRegression(KNeighborsRegressor(1), tolerance=1e-2).fit(place, fields)
    assert gp.held_out_error < 0.02 < nearest.held_out_error


def test_fields_of_the_embedded_solver_by_load_and_stiffness():
    """u is linear in pressure over stiffness: RBF of two parameters finds that to its accuracy."""
    mesh = box_mesh("hex8", (3, 2, 2))

    def displacement(young, pressure):
        problem = Problem(
            mesh=mesh, laws={"all": IsotropicElasticity(young=young, poisson=0.3)},
            supports=[Support(nodes="x0", direction=d) for d in "xyz"], loads=[Pressure(faces="z1", value=pressure)],
        )  # fmt: skip
        return solve(problem, [0, 1]).displacement(1)

    grid = np.array([(E, p) for E in np.linspace(1, 2, 7) for p in np.linspace(-1, 1, 5)])
    fields = np.stack([displacement(*row) for row in grid])
    model = PodRegression(held_out=0.0, tolerance=1e-6).fit(grid, fields, MassProduct(Kinematics(mesh)))
    assert model.num_modes == 1
    answer = model.predict([[1.6, 0.7]])[0]
    assert answer.shape == (mesh.num_nodes, 3)
    assert np.linalg.norm(answer - displacement(1.6, 0.7)) < 0.02 * np.linalg.norm(answer)


def burgers(times, steps=4000):
    """Viscous Burgers on a circle by spectra, classical Runge-Kutta: a quadratic system."""
    k = 2j * np.pi * np.fft.rfftfreq(64, 1 / 64)

    def rate(u):
        return np.fft.irfft(0.1 * k**2 * np.fft.rfft(u) - k / 2 * np.fft.rfft(u**2))

    u, now, out = np.sin(2 * np.pi * np.arange(64) / 64), 0.0, []
    for time in times:
        for _ in range(max(1, round((time - now) * steps))):
            h = (time - now) / max(1, round((time - now) * steps)) if time > now else 0.0
            a = rate(u)
            b = rate(u + h / 2 * a)
            c = rate(u + h / 2 * b)
            u = u + h / 6 * (a + 2 * b + 2 * c + rate(u + h * c))
        now = time
        out.append(u)
    return np.array(out)


def test_operator_inference_finds_a_linear_system():
    A = np.array([[-0.1, 2.0, 0.0], [-2.0, -0.1, 0.0], [0.0, 0.0, -0.5]])
    values, vectors = np.linalg.eig(A)
    times = np.linspace(0, 6, 301)
    modes = np.linalg.qr(np.random.default_rng(0).standard_normal((50, 3)))[0]
    states = np.real(np.exp(times[:, None] * values) * np.linalg.solve(vectors, [1, 0, 1]) @ vectors.T)
    model = OperatorInference("cA", tolerance=1e-8, held_out=0.3).fit(times, states @ modes.T)
    assert model.num_modes == 3 and model.held_out_error < 5e-3, model.held_out_error


def test_operator_inference_goes_on_with_burgers():
    times = np.linspace(0, 0.5, 101)
    fields = burgers(times)
    quadratic = OperatorInference("cAH", tolerance=1e-3).fit(times, fields)
    constant = OperatorInference("c", tolerance=1e-3).fit(times, fields)
    assert quadratic.held_out_error < 0.02 < constant.held_out_error
    np.testing.assert_allclose(quadratic.predict([0.25])[0], fields[50], atol=0.02)
    np.testing.assert_allclose(quadratic.predict([0.0, 0.25], fields[0])[1], quadratic.predict([0.25])[0], atol=1e-6)


def test_inputs_drive_the_model():
    times = np.linspace(0, 4, 161)
    u = np.sin(3 * times)
    a = (np.sin(3 * times) - 3 * np.cos(3 * times) + 3 * np.exp(-times)) / 10  # a' = -a + u
    model = OperatorInference("cAB", held_out=0.25).fit(times, a[:, None] * np.array([1.0, 2.0]), u)
    assert model.held_out_error < 0.01


def test_parameters_that_do_not_vary_or_depend_on_each_other_do_no_harm():
    x = np.linspace(0, 1, 12)
    fields = np.sin(np.outer(1 + x, np.arange(1.0, 8.0)))
    for columns in ([x, 0 * x + 3.0], [x, 2 * x + 1]):
        parameters = np.stack(columns, axis=1)
        model = PodRegression(tolerance=1e-8).fit(parameters, fields)
        assert np.abs(model.predict(parameters) - fields).max() < 1e-6
        assert model.held_out_error < 0.2
    with pytest.raises(ValueError, match="same parameters"):
        PodRegression().fit(np.ones((12, 2)), fields)


def test_bad_samples_are_refused():
    good = np.random.default_rng(0).random((10, 2))
    holed = bumps(good)
    holed[4, 7] = np.nan
    with pytest.raises(ValueError, match="fields are not finite in sample 4"):
        PodRegression().fit(good, holed)
    with pytest.raises(ValueError, match="one row per sample"):
        PodRegression().fit(good, bumps(good)[:9])
    with pytest.raises(ValueError, match="'forest' is not known"):
        PodRegression("forest")
    with pytest.raises(RuntimeError, match="fitted before"):
        PodRegression().predict(good)
    model, line = PodRegression().fit(good, bumps(good)), PodRegression().fit(good[:, 0], bumps(good))
    assert model.predict(good[0]).shape == (1, len(X)) and line.predict(good[:, 0]).shape == (10, len(X))
    for one, wrong in ((model, good[:2].ravel()), (model, good.T), (model, [np.nan, 0.5]), (line, good)):
        with pytest.raises(ValueError, match=r"must be \(samples, [12]\) finite numbers"):
            one.predict(wrong)
    with pytest.raises(ValueError, match="some of c, A, H, B"):
        OperatorInference("AQ")
    with pytest.raises(ValueError, match="inputs be given exactly"):
        OperatorInference("AB").fit(np.arange(10.0), bumps(good))
    with pytest.raises(ValueError, match="needs five"):
        OperatorInference("A").fit(np.arange(5.0), bumps(good)[:5])
