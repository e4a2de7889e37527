"""The normaliser: inverse pairs, bounds, and that its first statistics stay."""

import logging

import pytest
import torch

from headrace.surrogates.normaliser import Normaliser
from tests.surrogates.problems import wave_problem


def test_normalised_states_have_mean_0_and_deviation_1_and_come_back():
    normaliser = Normaliser(wave_problem())
    states = torch.randn(5, 3, 2, 16, 12, generator=torch.Generator().manual_seed(0))
    states = states * torch.tensor([2.0, 300.0]).reshape(2, 1, 1) + torch.tensor([-4.0, 1000.0]).reshape(2, 1, 1)
    normaliser.freeze(states.mean((0, 1, 3, 4)).tolist(), states.std((0, 1, 3, 4)).tolist())
    scaled = normaliser.normalise(states)
    assert scaled.mean((0, 1, 3, 4)).abs().max() < 1e-4
    assert (scaled.std((0, 1, 3, 4)) - 1).abs().max() < 1e-4
    assert torch.allclose(normaliser.denormalise(scaled), states, rtol=1e-5, atol=1e-3)


def test_bounds_of_parameters_become_minus_1_and_1_and_decades_are_even():
    scaled = Normaliser(wave_problem()).scale_parameters(torch.tensor([[1.0, 0.1], [2.0, 1.0], [3.0, 10.0]]))
    assert torch.allclose(scaled, torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]), atol=1e-6)


def test_a_problem_without_parameters_is_fine():
    problem = wave_problem()
    bare = type(problem).from_dict({**problem.to_dict(), "parameters": {}, "logarithmic": ()})
    assert Normaliser(bare).scale_parameters(torch.zeros(4, 0)).shape == (4, 0)


def test_a_field_that_does_not_vary_is_scaled_by_its_magnitude():
    normaliser = Normaliser(wave_problem())
    normaliser.freeze([300.0, 0.0], [1e-6, 0.0])
    assert normaliser.std.tolist() == [300.0, 1.0]
    normaliser = Normaliser(wave_problem())
    normaliser.freeze([0.0, 1e-60], [1e-50, 0.0])  # nothing in float32
    assert normaliser.std.tolist() == [1.0, 1.0]


def test_the_first_statistics_stay_and_drift_is_logged(caplog):
    normaliser = Normaliser(wave_problem())
    normaliser.freeze([1.0, 2.0], [3.0, 4.0])
    with caplog.at_level(logging.INFO):
        normaliser.freeze([4.0, 2.0], [6.0, 4.0])
    assert normaliser.mean.tolist() == [1.0, 2.0] and normaliser.std.tolist() == [3.0, 4.0]
    assert "field u" in caplog.text and "1 deviations, its deviation 2-fold" in caplog.text


@pytest.mark.parametrize(
    ("mean", "std", "named"),
    [([0.0], [1.0], "u, v"), ([0.0, float("nan")], [1.0, 1.0], "field v"), ([0.0, 0.0], [-1.0, 1.0], "field u")],
)
def test_bad_statistics_are_named(mean, std, named):
    normaliser = Normaliser(wave_problem())
    with pytest.raises(ValueError, match=named):
        normaliser.freeze(mean, std)
    assert not normaliser.frozen.item()
