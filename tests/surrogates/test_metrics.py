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
