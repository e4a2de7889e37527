"""The design: extensible, low discrepancy, training and held-out points independent."""

import warnings

import numpy as np
import pytest
from scipy.stats import qmc

from headrace.online_training.design import draw_design

KINDS = ("sobol", "uniform")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 64, 100])
def test_points_lie_in_the_unit_cube_and_nothing_warns(kind, count):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = draw_design(6, count, seed=3, kind=kind)
    assert points.shape == (count, 6) and points.dtype == np.float64
    assert np.all((points >= 0) & (points < 1))
    assert len(np.unique(points, axis=0)) == count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_a_longer_design_begins_with_the_shorter_one(kind, held_out):
    longest = draw_design(4, 300, seed=11, kind=kind, held_out=held_out)
    for count in (1, 5, 64, 65, 128, 299):
        assert np.array_equal(draw_design(4, count, seed=11, kind=kind, held_out=held_out), longest[:count])


@pytest.mark.parametrize("kind", KINDS)
def test_seed_and_stream_choose_the_points(kind):
    first = draw_design(3, 32, seed=1, kind=kind)
    assert np.array_equal(first, draw_design(3, 32, seed=1, kind=kind))
    assert not np.array_equal(first, draw_design(3, 32, seed=2, kind=kind))
    held_out = draw_design(3, 32, seed=1, kind=kind, held_out=True)
    both = np.concatenate([first, held_out])
    assert len(np.unique(both.round(12), axis=0)) == 64


def test_held_out_points_are_not_correlated_with_training_points():
    training = draw_design(2, 4096, seed=5, kind="uniform")
    held_out = draw_design(2, 4096, seed=5, kind="uniform", held_out=True)
    correlation = np.corrcoef(training.ravel(), held_out.ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(training.size)


def test_sobol_is_more_even_than_independent_points():
    sobol = qmc.discrepancy(draw_design(6, 128, seed=0, kind="sobol"))
    uniform = qmc.discrepancy(draw_design(6, 128, seed=0, kind="uniform"))
    assert sobol < 0.5 * uniform, (sobol, uniform)


def test_a_case_without_parameters_has_points_without_coordinates():
    assert draw_design(0, 5, seed=0).shape == (5, 0)


def test_unknown_kind_names_the_allowed_ones():
    with pytest.raises(ValueError, match="'sobol' or 'uniform'"):
        draw_design(2, 4, seed=0, kind="grid")
