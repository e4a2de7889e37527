"""The linear step: exact for linear equations, real, and the same on other grids."""

import math

import pytest
import torch

from headrace.surrogates import ConvNet, Stepping, load_surrogate
from headrace.surrogates.linear_step import LinearStep
from tests.surrogates.problems import wave_problem, wave_windows


def random_states(problem, count, seed=0):
    return torch.randn(count, len(problem.fields), *problem.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16,), (15,), (8, 7), (6, 8)])
def test_a_shift_of_one_field_into_another_is_found_from_pairs(shape):
    problem = wave_problem(shape)
    axes = tuple(range(1, len(shape) + 1))

    def shifted(x):
        u, v = x[:, 0], x[:, 1]
        return torch.stack((0.5 * u - v.roll((1,) * len(shape), axes), u.roll((2,) * len(shape), axes)), 1)

    step, before = LinearStep(problem), random_states(problem, 40)
    assert torch.allclose(step(before), before, atol=1e-6)  # the identity until it is fitted
    step.fit(before, shifted(before))
    new = random_states(problem, 3, seed=1)
    assert torch.allclose(step(new), shifted(new), atol=1e-4)
    assert step.rest.max() < 1e-4


def test_waves_that_the_pairs_do_not_hold_go_to_zero():
    problem = wave_problem((32,), fields=("u",))
    phase = torch.rand(20, 1, 1)
    before = torch.sin(2 * math.pi * (torch.arange(32) / 32 + phase))
    step = LinearStep(problem)
    step.fit(before, 0.5 * before)
    rough = torch.sin(2 * math.pi * 7 * torch.arange(32) / 32)[None, None]
    assert step(rough).abs().max() < 1e-2
    assert torch.allclose(step(before[:2]), 0.5 * before[:2], atol=1e-5)


@pytest.mark.parametrize("shape", [(8,), (6, 4)])
def test_a_field_that_is_zero_everywhere_stays_so_and_disturbs_no_other(shape):
    step, before = LinearStep(wave_problem(shape)), random_states(wave_problem(shape), 300)
    before[:, 1] = 0
    step.fit(before, 0.5 * before)
    assert torch.allclose(step(before), 0.5 * before, atol=1e-5)


def test_a_batch_of_none_takes_its_step():
    assert LinearStep(wave_problem((6, 4)))(torch.zeros(0, 2, 6, 4)).shape == (0, 2, 6, 4)


def test_what_is_left_counts_every_pair_once():
    problem = wave_problem((8,))
    step, before, after = LinearStep(problem), random_states(problem, 257), random_states(problem, 257, seed=1)
    after[256] *= 100  # the only one of its part
    step.fit(before, after)
    assert torch.allclose(step.rest, (after - step(before)).square().mean((0, 2)).sqrt(), rtol=1e-4)


@pytest.mark.parametrize("finer", [(24,), (17,), (12,)])
def test_a_smooth_state_takes_the_same_step_on_another_grid(finer):
    problem = wave_problem((16,), fields=("u",))
    before = random_states(problem, 40)
    step = LinearStep(problem)
    step.fit(before, 0.7 * before.roll(1, -1))

    def wave(n, shift=0.0):
        return torch.sin(2 * math.pi * (3 * torch.arange(n) / n - shift))[None, None]

    assert torch.allclose(step(wave(*finer)), 0.7 * wave(*finer, shift=3 / 16), atol=1e-4)


def test_walls_and_bundles_are_refused():
    with pytest.raises(ValueError, match=r"walls on axis 1.*delta"):
        LinearStep(wave_problem((8, 8), periodic=(True, False)))
    with pytest.raises(ValueError, match="bundle 2 must be 1"):
        Stepping(target="linear", bundle=2)
    surrogate = ConvNet(width=4, blocks=1)
    surrogate.setup(wave_problem())
    with pytest.raises(ValueError, match=r"'delta' has no linear step"):
        surrogate.fit_linear_step(torch.zeros(2, 2, 16, 12), torch.zeros(2, 2, 16, 12))


def test_a_surrogate_with_a_linear_step_begins_with_it_and_keeps_it_in_its_file(tmp_path):
    problem = wave_problem((16,), fields=("u",))
    surrogate = ConvNet(width=4, blocks=1, stepping=Stepping(target="linear"))
    surrogate.setup(problem)
    before = 3 + random_states(problem, 40)
    surrogate.set_statistics([3.0], [1.0])
    surrogate.fit_linear_step(before, 3 + 0.5 * (before - 3).roll(1, -1))
    rows, times = torch.tensor([[2.0, 1.0]]), torch.tensor([0.1, 0.2])
    found = surrogate.predict(before[:1, None], rows, times)
    assert torch.allclose(found[:, 1], 3 + 0.25 * (before[:1] - 3).roll(2, -1), atol=1e-3)
    surrogate.save(tmp_path / "model")
    assert torch.equal(load_surrogate(tmp_path / "model").predict(before[:1, None], rows, times), found)


def test_the_first_training_batch_fits_the_linear_step():
    problem = wave_problem()
    surrogate = ConvNet(width=4, blocks=1, stepping=Stepping(target="linear"))
    surrogate.setup(problem)
    batch = wave_windows(problem, surrogate.window, batch=64)
    surrogate.eval().training_loss(batch)
    assert not surrogate.linear_step.fitted
    first = surrogate.train().training_loss(batch).mean()
    # The network begins with nothing: the loss is what the linear step leaves, in its own units.
    assert first.item() == pytest.approx(1.0, rel=1e-3)
    fitted = surrogate.linear_step.real.clone()
    surrogate.training_loss(wave_windows(problem, surrogate.window, seed=1))
    assert torch.equal(surrogate.linear_step.real, fitted)
