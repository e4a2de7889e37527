"""One-pass statistics against numpy on everything at once; Sobol indices against the Ishigami function's."""

import numpy as np
import pytest

from headrace.online_training.client import Connection
from headrace.online_training.design import draw_design
from headrace.online_training.field_statistics import FieldStatistics
from headrace.online_training.stream_statistics import StreamStatistics
from headrace.solvers import Uniform
from headrace.solvers.parameters import Choice

from .intake_setup import make_layout, plan, running_intake, use_environment, wait_until

A, B = 7.0, 0.1


def ishigami(point):
    """Ishigami and Homma (1990) on the unit cube, with the exact first-order indices below."""
    x = np.pi * (2 * point - 1)
    return np.sin(x[0]) + A * np.sin(x[1]) ** 2 + B * x[2] ** 4 * np.sin(x[0])


VARIANCE = A**2 / 8 + B * np.pi**4 / 5 + B**2 * np.pi**8 / 18 + 0.5
EXACT = np.array([0.5 * (1 + B * np.pi**4 / 5) ** 2, A**2 / 8, 0.0]) / VARIANCE


def filled(count, *, seed=0, bins=8, offset=0.0):
    """Statistics of fields (2 steps, 1 field, 3 points) and all of the fields."""
    statistics = FieldStatistics(2, (1, 3), ("a", "b", "c"), bins=bins)
    points = draw_design(3, count, seed)
    values = np.array([[np.full((1, 3), offset + s * ishigami(p)) + np.arange(3) for s in (1, 2)] for p in points])
    for n in np.random.default_rng(1).permutation(count):
        for step in (1, 0):
            assert statistics.add(int(n), step, points[n], values[n, step])
    return statistics, values, points


def test_moments_and_extremes_are_those_of_numpy():
    statistics, values, _ = filled(333)
    np.testing.assert_allclose(statistics.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance, values.var(0, ddof=1), rtol=1e-12)
    np.testing.assert_array_equal(statistics.least, values.min(0))
    np.testing.assert_array_equal(statistics.largest, values.max(0))
    assert statistics.count.tolist() == [333, 333]


def test_nothing_cancels_beside_a_large_mean():
    statistics, values, _ = filled(200, offset=1e8)
    np.testing.assert_allclose(statistics.variance, values.var(0, ddof=1), rtol=1e-6)


def test_sobol_indices_are_those_of_the_ishigami_function():
    for seed in range(3):
        statistics, _, _ = filled(4096, seed=seed, bins=32)
        found = statistics.sobol()
        assert found.shape == (3, 2, 1, 3)
        np.testing.assert_allclose(found, np.broadcast_to(EXACT[:, None, None, None], found.shape), atol=0.02)


def test_chance_is_taken_off_the_indices():
    """With few simulations and many bins the naive ratio is far too large; the estimate is right on average."""
    found, naive = [], []
    for seed in range(60):
        statistics = FieldStatistics(1, (1, 1), ("a", "b", "c"), bins=16)
        points = draw_design(3, 64, seed, kind="uniform")
        for n, point in enumerate(points):
            statistics.add(n, 0, point, np.full((1, 1), ishigami(point)))
        found.append(statistics.sobol()[:, 0, 0, 0])
        spread = statistics._bin_means[0, :, :, 0, 0] - statistics.mean[0, 0, 0]
        naive.append((statistics._bin_counts[0] * spread**2).sum(-1) / statistics._m2[0, 0, 0])
    assert np.mean(naive, axis=0)[2] > 0.15  # an index that is 0
    np.testing.assert_allclose(np.mean(found, axis=0), EXACT, atol=0.05)


def test_what_does_not_vary_has_no_index():
    statistics = FieldStatistics(1, (1, 2), ("a",))
    for n in range(20):
        statistics.add(n, 0, np.array([n / 20]), np.array([[5.0, n]]))
    index = statistics.sobol()[0, 0, 0]
    assert np.isnan(index[0]) and index[1] > 0.9
    assert np.isnan(FieldStatistics(1, (1, 2), ("a",)).sobol()).all()
    assert np.isnan(FieldStatistics(1, (1, 2), ("a",)).variance).all()


def test_a_step_counts_once_also_after_a_restart(tmp_path):
    whole, values, points = filled(50)
    part = FieldStatistics(2, (1, 3), ("a", "b", "c"))
    for n in range(30):
        for step in (0, 1):
            part.add(n, step, points[n], values[n, step])
    part.write(tmp_path / "statistics.h5", fields=["u"])
    again = FieldStatistics.read(tmp_path / "statistics.h5")
    taken = [again.add(n, step, points[n], values[n, step]) for n in range(50) for step in (0, 1)]
    assert sum(taken) == 40 and not any(taken[:60])
    np.testing.assert_allclose(again.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(again.sobol(), whole.sobol(), rtol=1e-9, atol=1e-12)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(OSError, match=r"statistics|open"):
        FieldStatistics.read(tmp_path / "other.h5")


def test_each_value_of_a_choice_has_bins_of_its_own(tmp_path):
    """Of numbers far apart, too: they are mapped as they are drawn, equally likely, and all variance is theirs."""
    layout, choice = make_layout(parameters=("nu",)), Choice((1.0, 2.0, 1000.0))
    statistics = StreamStatistics(tmp_path / "statistics.h5", layout, {"nu": choice})
    for number in range(30):
        value = choice.values[number % 3]
        statistics.take(number, 0, {"nu": value}, np.full((1, 7, 5), value % 7, np.float32))
    statistics.save()
    np.testing.assert_allclose(FieldStatistics.read(statistics.path).sobol()[0, 0], 1.0, rtol=1e-12)


def test_the_intake_keeps_the_statistics_of_what_it_accepts(tmp_path, monkeypatch):
    layout = make_layout()
    distributions = {"nu": Uniform(0.0, 4.0)}
    values = np.random.default_rng(0).standard_normal((4, 6, 1, 7, 5)).astype(np.float32)
    statistics = StreamStatistics(tmp_path / "statistics.h5", layout, distributions)
    with running_intake(tmp_path, layout, statistics=statistics) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 4)
        with Connection({"u": (7, 5)}) as connection:
            for stream in connection.simulations():
                with stream:
                    for step in range(6):
                        stream.send(step=step, time=0.1 * step, values=values[stream.simulation, step])
        wait_until(lambda: intake.status()["done"] == 4)
    found = FieldStatistics.read(tmp_path / "statistics.h5")
    np.testing.assert_allclose(found.mean, values.astype(float).mean(0), atol=1e-12)
    np.testing.assert_allclose(found.variance, values.astype(float).var(0, ddof=1), rtol=1e-9)
    again = StreamStatistics(tmp_path / "statistics.h5", layout, distributions)
    again.take(2, 3, {"nu": 2.5}, values[0, 0])  # run again after a restart: counted once
    again.save()
    assert FieldStatistics.read(tmp_path / "statistics.h5").count.tolist() == [4] * 6
