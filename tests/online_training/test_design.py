"""The design: extensible, low discrepancy, training and held-out points independent."""

import warnings

import numpy as np
import pytest
from scipy.stats import qmc

from headrace.online_training.design import draw_design, own_sampler

KINDS = ("sobol", "halton", "uniform")


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
    with pytest.raises(ValueError, match=r"'grid' is unknown.*sobol, halton, lhs, uniform"):
        draw_design(2, 4, seed=0, kind="grid")


@pytest.mark.parametrize("kind", ["halton", "lhs"])
def test_halton_and_latin_hypercubes_are_more_even_than_independent_points(kind):
    uniform = np.mean([qmc.discrepancy(draw_design(4, 100, seed=s, kind="uniform")) for s in range(5)])
    assert np.mean([qmc.discrepancy(draw_design(4, 100, seed=s, kind=kind)) for s in range(5)]) < 0.8 * uniform


def test_a_latin_hypercube_has_one_point_in_each_slice_of_every_axis():
    for held_out in (False, True):
        points = draw_design(5, 37, seed=4, kind="lhs", held_out=held_out)
        assert np.array_equal(np.sort(np.floor(points * 37), axis=0), np.tile(np.arange(37.0)[:, None], 5))


def test_an_own_function_draws_with_the_studys_generator():
    def corners(count, dims, rng):
        return rng.integers(0, 2, (count, dims)) * 0.75

    assert own_sampler("sobol", None) is None
    module = type("Module", (), {"corners": staticmethod(corners)})
    own = own_sampler("own:corners", module)
    points = draw_design(3, 40, seed=1, kind="own:corners", own=own)
    assert set(points.ravel()) == {0.0, 0.75}
    assert np.array_equal(points, draw_design(3, 40, seed=1, kind="own:corners", own=own))
    assert not np.array_equal(points, draw_design(3, 40, seed=1, kind="own:corners", own=own, held_out=True))
    with pytest.raises(ValueError, match=r"no function edges\(count, dims, rng\)"):
        own_sampler("own:edges", module)


@pytest.mark.parametrize(
    ("own", "found"), [(lambda n, d, rng: np.ones((n, d)), r"values in \[1, 1\]"),
                       (lambda n, d, rng: np.zeros(n), r"shape \(4,\)")],
)  # fmt: skip
def test_an_own_function_that_leaves_the_cube_is_named(own, found):
    with pytest.raises(ValueError, match=f"own:bad must return .*{found}"):
        draw_design(2, 4, seed=0, kind="own:bad", own=own)
