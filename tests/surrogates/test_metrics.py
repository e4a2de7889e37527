"""The metrics against closed forms."""

import numpy as np
import pytest
import torch

from headrace.surrogates import metrics


def trajectories(seed=0, shape=(4, 5, 2, 6, 7)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * np.array([1.0, 1e3]).reshape(1, 1, 2, 1, 1)


def test_scaling_the_truth_by_one_plus_a_has_relative_errors_a():
    u = trajectories()
    assert np.allclose(metrics.relative_l2(1.25 * u, u), np.full(4, 0.25))
    assert np.allclose(metrics.relative_l2(1.25 * u, u, per_step=True), np.full((4, 5), 0.25))
    assert np.isclose(metrics.nrmse(1.25 * u, u), 0.25)
    assert np.allclose(metrics.nrmse(1.25 * u, u, per_step=True), np.full(5, 0.25))


def test_predicting_the_mean_has_vrmse_one_whatever_the_unit():
    u = trajectories()
    mean = np.broadcast_to(u.mean(axis=(0, 1, 3, 4), keepdims=True), u.shape)
    assert np.isclose(metrics.vrmse(mean, u), 1.0)
    step_mean = np.broadcast_to(u.mean(axis=(0, 3, 4), keepdims=True), u.shape)
    assert np.allclose(metrics.vrmse(step_mean, u, per_step=True), 1.0)
    frame_mean = np.broadcast_to(u.mean(axis=(3, 4), keepdims=True), u.shape)
    assert np.allclose(metrics.frame_vrmse(frame_mean, u), np.ones((4, 5, 2)))


def test_vrmse_ignores_an_offset_of_the_truth_and_nrmse_does_not():
    u = trajectories()
    worse = u + 0.1
    assert np.isclose(metrics.vrmse(worse + 100, u + 100), metrics.vrmse(worse, u))
    assert metrics.nrmse(worse + 100, u + 100) < 0.2 * metrics.nrmse(worse, u)


def test_a_truth_that_is_constant_in_space_is_no_trouble_for_the_pooled_vrmse():
    u = np.broadcast_to(np.arange(4.0).reshape(4, 1, 1, 1), (4, 3, 1, 8))
    assert np.isclose(metrics.vrmse(u + 1, u), 1 / np.sqrt(1.25 + metrics.EPSILON))
    assert metrics.frame_vrmse(u + 1, u).min() > 1e3


def test_the_nrmse_averages_fields_of_different_units():
    u = trajectories()
    prediction = u.copy()
    prediction[:, :, 1] = 0
    assert np.isclose(metrics.nrmse(prediction, u), 0.5)


def test_the_largest_error_is_found_where_it_is():
    u = trajectories()
    prediction = u.copy()
    prediction[2, 3, 1, 4, 5] -= 7.0
    assert np.allclose(metrics.max_error(prediction, u), [0, 7])
    per_step = metrics.max_error(prediction, u, per_step=True)
    assert per_step.shape == (5, 2) and np.isclose(per_step[3, 1], 7) and np.count_nonzero(per_step) == 1


def test_per_step_values_combine_to_the_whole():
    u, prediction = trajectories(0), trajectories(1)
    squares = metrics.relative_l2(prediction, u, per_step=True) ** 2
    weights = np.sum(u**2, axis=(2, 3, 4))
    whole = np.sqrt((squares * weights).sum(1) / weights.sum(1))
    assert np.allclose(metrics.relative_l2(prediction, u), whole)


def test_tensors_and_arrays_give_the_same_numbers():
    u, prediction = trajectories(0), trajectories(1)
    tensors = torch.tensor(prediction, requires_grad=True), torch.tensor(u)
    for metric in (metrics.relative_l2, metrics.nrmse, metrics.vrmse, metrics.frame_vrmse, metrics.max_error):
        assert np.array_equal(metric(*tensors), metric(prediction, u))


def test_a_zero_truth_gives_zero_or_a_huge_number_but_no_nan():
    zero = np.zeros((1, 2, 1, 4))
    assert metrics.nrmse(zero, zero) == 0
    assert metrics.nrmse(zero + 1, zero) > 1e100


@pytest.mark.parametrize("shape", [(4, 5, 2, 6), (4, 5, 2)])
def test_other_shapes_are_named(shape):
    with pytest.raises(ValueError, match="samples, time, fields"):
        metrics.nrmse(np.zeros(shape), np.zeros((4, 5, 2)))


def wave(k, n=32, amplitude=1.0):
    """A sine of k periods as a trajectory (1, 1, 1, n)."""
    return amplitude * np.sin(2 * np.pi * k * np.arange(n) / n).reshape(1, 1, 1, n)


@pytest.mark.parametrize("k", [1, 5, 15])
def test_the_h1_error_of_a_wave_is_that_of_its_differences(k):
    u, error, h = wave(2), wave(k, amplitude=0.1), 1 / 32
    gradient = {number: (2 / h * np.sin(np.pi * number * h)) ** 2 for number in (2, k)}
    expected = 0.1 * np.sqrt((1 + gradient[k]) / (1 + gradient[2]))
    assert np.isclose(metrics.relative_h1(u + error, u, spacing=(h,), periodic=(True,)), expected)


def test_the_h1_error_sees_jumps_between_neighbours_and_walls_are_no_neighbours():
    u = np.arange(1.0, 9.0).reshape(1, 1, 1, 8)
    assert np.isclose(metrics.relative_h1(u + 1, u, spacing=(1.0,), periodic=(False,)) ** 2, 8 / (204 + 7))
    assert np.isclose(metrics.relative_h1(u + 1, u, spacing=(1.0,), periodic=(True,)) ** 2, 8 / (204 + 7 + 49))
    with pytest.raises(ValueError, match="need one value for each of 1 axes"):
        metrics.relative_h1(u, u, spacing=(1.0, 1.0), periodic=(True,))


@pytest.mark.parametrize(("k", "band"), [(1, 0), (3, 0), (4, 1), (11, 1), (12, 2), (15, 2)])
def test_an_error_at_one_wave_number_is_in_its_band_alone(k, band):
    errors = metrics.band_errors(wave(2) + wave(k, amplitude=0.25), wave(2))
    assert np.allclose(errors, 0.25 * np.eye(3)[band], atol=1e-12)


def test_bands_add_up_to_the_nrmse():
    u, prediction = (trajectories(seed)[:, :, :1] for seed in (0, 1))
    for per_step in (False, True):
        errors = metrics.band_errors(prediction, u, edges=(1, 2), per_step=per_step)
        assert np.allclose((errors**2).sum(-1), metrics.nrmse(prediction, u, per_step=per_step) ** 2)
    with pytest.raises(ValueError, match=r"\(4, 2\) must be positive and increase"):
        metrics.band_errors(prediction, u, edges=(4, 2))


def test_the_spectrum_holds_the_energy_where_it_is():
    energy = metrics.spectrum(2 + wave(3) + wave(7, amplitude=2.0))[0, 0, 0]
    assert np.allclose(energy[[0, 3, 7]], [4, 0.5, 2]) and np.isclose(energy.sum(), 6.5)
    u = trajectories()
    assert np.allclose(metrics.spectrum(u).sum(-1), (u**2).mean((-1, -2)))


def test_conservation_sees_the_mean_and_nothing_else():
    u = trajectories()
    moved = u - u.mean((-1, -2), keepdims=True)
    assert np.allclose(metrics.conservation_error(u + moved, u), 0)
    size = np.sqrt((u**2).mean((0, 1, 3, 4)))
    assert np.allclose(metrics.conservation_error(u + 0.1, u), 0.1 / size)
    assert metrics.conservation_error(u + 0.1, u, per_step=True).shape == (5, 2)


def test_correlation_is_blind_to_size_and_offset_and_sees_shifts():
    u = wave(1)
    assert np.isclose(metrics.correlation(3 * u + 5, u), 1) and np.isclose(metrics.correlation(-u, u), -1)
    assert np.isclose(metrics.correlation(np.roll(u, 8, -1), u), 0)
    flat = np.ones_like(u)
    assert metrics.correlation(flat, 2 * flat) == 1 and metrics.correlation(flat, u) == 0
    for points in range(2, 20):  # the mean of many 0.1 is not 0.1
        flat = np.full((1, 1, 1, points), 0.1)
        assert metrics.correlation(flat, 7 * flat) == 1 and metrics.correlation(flat, 1 + 0 * flat) == 1


def test_the_correlation_time_is_where_the_line_crosses():
    r = np.array([1.0, 0.9, 0.7, 0.95])
    s = np.sqrt(1 - r**2)
    quarter = np.roll(wave(1), 8, -1)
    u = np.repeat(wave(1), 4, axis=1)
    prediction = r.reshape(1, 4, 1, 1) * u + s.reshape(1, 4, 1, 1) * quarter
    assert np.allclose(metrics.correlation(prediction, u), r)
    times = np.array([0.0, 1.0, 3.0, 4.0])
    assert np.allclose(metrics.correlation_time(prediction, u, times), 2.0)
    assert np.allclose(metrics.correlation_time(u, u, times), 4.0)
    assert np.allclose(metrics.correlation_time(-u, u, times), 0.0)
    for lost in (np.nan, np.inf):  # r falls from 0.9 to 0 between t = 1 and 3
        prediction[:, 2:] = lost
        assert np.allclose(metrics.correlation_time(prediction, u, times), 1 + 2 / 9)
    with pytest.raises(ValueError, match=r"shape \(3,\); these trajectories have 4 steps"):
        metrics.correlation_time(u, u, times[:3])
