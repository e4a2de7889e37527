"""The training forms that all stepping surrogates share, on a network whose answer is known."""

import dataclasses

import pytest
import torch

from headrace.surrogates import Autoregressive, Stepping, WindowBatch
from tests.surrogates.problems import wave_problem, wave_windows

MEAN, STD = (5.0, 0.0), (1.0, 0.1)


class Shrink(Autoregressive):
    """Gives one number times the first known state, in every place of the bundle."""

    def __init__(self, *, stepping=None):
        super().__init__(stepping or Stepping())

    def build(self, channels, problem):
        return ShrinkNetwork(channels, len(problem.fields))


class ShrinkNetwork(torch.nn.Module):
    def __init__(self, channels, fields):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(-0.5))
        self.channels, self.fields = channels, fields
        self.calls = []

    def forward(self, x, condition=None):
        self.calls.append((x.detach(), condition, torch.is_grad_enabled()))
        times = self.channels.outputs // self.fields
        newest = x[:, self.channels.states - self.fields : self.channels.states]
        return (self.factor * newest).repeat(1, times, *(1,) * (x.ndim - 2))


def made(**stepping):
    surrogate = Shrink(stepping=Stepping(**stepping))
    surrogate.setup(wave_problem())
    surrogate.set_statistics(MEAN, STD)
    return surrogate


def normalised(states):
    return (states - torch.tensor(MEAN).reshape(2, 1, 1)) / torch.tensor(STD).reshape(2, 1, 1)


def squares(error):
    return error.square().flatten(1).mean(1)


@pytest.mark.parametrize(
    ("stepping", "window"),
    [({}, 2), ({"history": 3}, 4), ({"unroll": 4}, 5), ({"bundle": 3, "unroll": 2}, 7),
     ({"history": 2, "bundle": 2, "unroll": 1, "pushforward": 2}, 8)],
)  # fmt: skip
def test_the_window_holds_what_training_needs(stepping, window):
    assert Stepping(**stepping).window == made(**stepping).window == window


def test_one_step_of_a_change_and_of_a_state():
    batch = wave_windows(wave_problem(), 2)
    u = normalised(batch.states)
    assert torch.allclose(made().training_loss(batch), squares(0.5 * u[:, :1] - u[:, 1:]), rtol=1e-4)
    assert torch.allclose(made(target="direct").training_loss(batch), squares(-0.5 * u[:, :1] - u[:, 1:]), rtol=1e-4)


def test_unrolled_steps_follow_one_another():
    batch = wave_windows(wave_problem(), 4)
    u = normalised(batch.states)
    expected = torch.stack([u[:, 0] * 0.5**k for k in (1, 2, 3)], dim=1)
    assert torch.allclose(made(unroll=3).training_loss(batch), squares(expected - u[:, 1:]), rtol=1e-4)


def test_a_bundle_gives_changes_that_grow_with_their_time():
    batch = wave_windows(wave_problem(), 7)
    u = normalised(batch.states)
    first = torch.stack([u[:, 0] * (1 - 0.5 * share) for share in (1 / 3, 2 / 3, 1)], dim=1)
    second = torch.stack([u[:, 0] * 0.5 * (1 - 0.5 * share) for share in (1 / 3, 2 / 3, 1)], dim=1)
    surrogate = made(bundle=3, unroll=2)
    expected = squares(torch.cat((first, second), 1) - u[:, 1:])
    assert torch.allclose(surrogate.training_loss(batch), expected, rtol=1e-4)
    clocks = [call[0][:, 4] for call in surrogate.network.calls]  # 2 fields, 2 parameters, the time
    wanted = [2 * batch.times[:, step] - 1 for step in (1, 4)]
    assert all(torch.allclose(a[:, 0, 0], b) for a, b in zip(clocks, wanted, strict=True))


def test_rates_of_states_that_change_evenly_are_all_their_slope():
    """A field that is a + b t has the mean rate b between any two times, here in units of the history."""
    surrogate = made(history=4, rates=True)
    start, slope = torch.randn(2, 3, 1, 2, 16, 12, generator=torch.Generator().manual_seed(0)).unbind(0)
    states = start + torch.arange(4.0).reshape(1, 4, 1, 1, 1) * slope
    surrogate.step(states, torch.zeros(3, len(surrogate.problem.parameters)), torch.zeros(3))
    seen = surrogate.network.calls[0][0][:, :8].unflatten(1, (4, 2))
    scaled = 4 * slope / torch.tensor(STD).reshape(2, 1, 1)
    torch.testing.assert_close(seen[:, :3], scaled.expand(-1, 3, -1, -1, -1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(seen[:, 3], normalised(states[:, 3]))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_predictions_need_not_fill_their_last_bundle(steps):
    surrogate = made(bundle=2, history=2)
    batch = wave_windows(surrogate.problem, 2, batch=3)
    times = torch.arange(2, 7) * surrogate.problem.interval
    whole = surrogate.predict(batch.states, batch.parameters, times)
    assert whole.shape[1] == 5
    assert torch.equal(surrogate.predict(batch.states, batch.parameters, times[:steps]), whole[:, :steps])


def test_the_pushforward_learns_from_its_own_states_without_their_gradient():
    surrogate = made(pushforward=2).eval()
    batch = wave_windows(surrogate.problem, 4)
    u = normalised(batch.states)
    factor = surrogate.network.factor
    loss = surrogate.training_loss(batch)
    assert torch.allclose(loss, squares(u[:, :1] * 0.5**3 - u[:, 3:]), rtol=1e-4)
    assert [gradients for _, _, gradients in surrogate.network.calls] == [False, False, True]
    own = u[:, :1] * 0.25  # a constant for the gradient
    (expected,) = torch.autograd.grad(squares((1 + factor) * own - u[:, 3:]).sum(), factor)
    (found,) = torch.autograd.grad(loss.sum(), factor)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_training_draws_the_length_of_the_pushforward_and_grades_the_same_states():
    surrogate = made(pushforward=2, history=2)
    batch = wave_windows(surrogate.problem, 5, batch=2)
    u = normalised(batch.states)
    lengths = set()
    for seed in range(20):
        torch.manual_seed(seed)
        surrogate.network.calls.clear()
        loss = surrogate.training_loss(batch)
        free = len(surrogate.network.calls) - 1
        lengths.add(free)
        assert torch.allclose(loss, squares(u[:, 3 - free, None] * 0.5 ** (free + 1) - u[:, 4:]), rtol=1e-4)
    assert lengths == {0, 1, 2}


def test_noise_is_on_known_states_in_training_only_and_in_units_of_deviations():
    surrogate = made(noise=0.3)
    batch = wave_windows(surrogate.problem, 2, batch=64)
    torch.manual_seed(0)
    surrogate.training_loss(batch)
    surrogate.eval().training_loss(batch)
    (noisy, *_), (clean, *_) = surrogate.network.calls
    assert torch.allclose(clean[:, :2], normalised(batch.states)[:, 0], atol=1e-5)
    difference = noisy - clean
    assert torch.allclose(difference[:, :2].std((0, 2, 3)), torch.tensor([0.3, 0.3]), rtol=0.05)
    assert not difference[:, 2:].any()


@pytest.mark.parametrize(("conditioning", "channels", "conditions"), [("channels", 2 + 3 + 4, 0), ("film", 2 + 4, 3)])
def test_parameters_enter_as_channels_or_as_a_condition(conditioning, channels, conditions):
    surrogate = made(conditioning=conditioning)
    batch = wave_windows(surrogate.problem, 2)
    surrogate.training_loss(batch)
    x, condition, _ = surrogate.network.calls[0]
    assert x.shape[1] == channels and surrogate.network.channels.conditions == conditions
    scaled = surrogate.normaliser.scale_parameters(batch.parameters)
    found = condition[:, :2] if conditions else x[:, 2:4, 3, 5]
    assert torch.allclose(found, scaled)


def test_one_call_in_physical_units_is_the_first_part_of_a_prediction():
    surrogate = made(bundle=2)
    batch = wave_windows(surrogate.problem, 1, batch=3)
    times = torch.tensor([0.4, 0.5, 0.6])
    expected = surrogate.predict(batch.states, batch.parameters, times)[:, :2]
    assert torch.equal(surrogate.step(batch.states, batch.parameters, torch.full((3,), 0.4)), expected)


def test_a_stepping_survives_its_plain_data():
    stepping = Stepping(history=2, bundle=3, noise=0.1, inputs=("time",), conditioning="film")
    assert Stepping.of(stepping.to_dict()) == stepping


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"unroll": 0}, "unroll 0"), ({"history": 1.5}, "1.5"), ({"bundle": True}, "bundle True"),
     ({"pushforward": -1}, "pushforward -1"), ({"target": "next"}, "delta, direct"),
     ({"inputs": ("weather",)}, "weather"),
     ({"inputs": "time"}, "selection"), ({"noise": float("nan")}, "noise nan"), ({"noise": float("inf")}, "noise inf"),
     ({"rates": True}, "history is 1"), ({"conditioning": "x"}, "channels, film")],
)  # fmt: skip
def test_a_stepping_names_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=words):
        Stepping(**arguments)


def test_unknown_names_of_a_stepping_are_named():
    with pytest.raises(ValueError, match=r"no unrol; it has history"):
        Stepping.of({"unrol": 2})


def test_a_window_longer_than_a_trajectory_is_named():
    with pytest.raises(ValueError, match="windows of 12 steps; trajectories of case waves have 11"):
        made(history=6, unroll=6)


def test_each_window_stands_alone_in_every_form():
    surrogate = made(history=2, bundle=2, unroll=2, pushforward=1, conditioning="film").eval()
    batch = wave_windows(surrogate.problem, surrogate.window, batch=5)
    part = WindowBatch(**{f.name: getattr(batch, f.name)[2:4] for f in dataclasses.fields(batch)})
    assert torch.allclose(surrogate.training_loss(part), surrogate.training_loss(batch)[2:4], rtol=1e-5)
