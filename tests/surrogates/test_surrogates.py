"""What every surrogate promises, whatever its network, and what MLP and FNO promise beyond it."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from headrace.surrogates import (
    FNO,
    LPINN,
    MLP,
    ConvNet,
    MessagePassing,
    NeuralStagger,
    Problem,
    Stepping,
    UNet,
    WindowBatch,
)
from tests.surrogates.problems import FROM_DATA, wave_problem, wave_states, wave_windows

SMALL = {
    MLP: {"hidden": (32, 32)},
    FNO: {"modes": 3, "width": 8, "layers": 2},
    UNet: {"width": 8, "multipliers": (1, 2), "blocks": 1},
    ConvNet: {"width": 8, "blocks": 2},
    MessagePassing: {"hidden": 16, "layers": 2, "radius": 1, "stepping": {"conditioning": "film"}},
}
STEPPING = [cls for cls in FROM_DATA if cls is not MLP]


def test_every_surrogate_has_a_small_form_here():
    assert set(SMALL) == set(FROM_DATA)


def made(cls, *, problem=None, seed=0, **changes):
    surrogate = cls(**{**SMALL[cls], **changes})
    surrogate.setup(problem or wave_problem(), seed=seed)
    surrogate.set_statistics([5.0, 0.0], [1.0, 0.1])
    return surrogate


def with_random_output(surrogate):
    """Undo the start from persistence, so that the states matter."""
    output = surrogate.network.output
    weight = output.conv.weight if hasattr(output, "conv") else output.weight
    torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(5))
    return surrogate


def trained(surrogate, steps, lr=5e-3):
    """Mean losses of the first and the last tenth of a short training on fresh windows."""
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=lr)
    losses = []
    for step in range(steps):
        loss = surrogate.training_loss(wave_windows(surrogate.problem, surrogate.window, batch=16, seed=step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tenth = steps // 10
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


@pytest.mark.parametrize("cls", FROM_DATA)
def test_the_architecture_rebuilds_the_surrogate(cls):
    surrogate = cls(**SMALL[cls])
    assert cls(**surrogate.architecture()).architecture() == surrogate.architecture()


@pytest.mark.parametrize("cls", FROM_DATA)
def test_weights_depend_on_the_seed_alone(cls):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = made(cls, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before), "setup drew from torch's global generator"
    torch.manual_seed(2)
    same, other = made(cls, seed=3).state_dict(), made(cls, seed=4).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("cls", FROM_DATA)
def test_every_weight_is_finite_and_receives_a_gradient(cls):
    surrogate = made(cls)
    if cls is not MLP:
        with_random_output(surrogate)
    surrogate(wave_windows(surrogate.problem, surrogate.window)).mean().backward()
    for name, parameter in surrogate.named_parameters():
        assert torch.isfinite(parameter).all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("cls", FROM_DATA)
def test_the_loss_is_one_number_per_window_and_each_window_stands_alone(cls):
    surrogate = made(cls)
    batch = wave_windows(surrogate.problem, surrogate.window, batch=5)
    losses = surrogate.training_loss(batch)
    assert losses.shape == (5,)
    part = WindowBatch(**{f.name: getattr(batch, f.name)[2:4] for f in dataclasses.fields(batch)})
    assert torch.allclose(surrogate.training_loss(part), losses[2:4], rtol=1e-5)


@pytest.mark.parametrize(
    ("cls", "steps", "rate", "factor"),
    [(MLP, 150, 5e-3, 10), (FNO, 120, 5e-3, 6), (UNet, 100, 3e-3, 4), (ConvNet, 120, 3e-3, 4),
     (MessagePassing, 80, 3e-3, 2)],
)  # fmt: skip
def test_learns_an_analytic_problem(cls, steps, rate, factor):
    surrogate = made(cls)
    first, last = trained(surrogate, steps, rate)
    assert last < first / factor, f"the loss went from {first:.2e} to {last:.2e}"


@pytest.mark.parametrize("cls", FROM_DATA)
def test_training_is_deterministic(cls):
    one, two = made(cls), made(cls)
    assert trained(one, 10) == trained(two, 10)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("cls", FROM_DATA)
def test_the_unit_of_the_states_does_not_matter(cls):
    celsius = made(cls)
    kelvin = cls(**SMALL[cls])
    kelvin.setup(celsius.problem)
    kelvin.set_statistics([5.0 * 1.8 + 32, 32.0], [1.8, 0.18])
    batch = wave_windows(celsius.problem, celsius.window)
    scaled = dataclasses.replace(batch, states=1.8 * batch.states + 32)
    assert torch.allclose(kelvin.training_loss(scaled), celsius.training_loss(batch), rtol=1e-3)


@pytest.mark.parametrize("cls", [*FROM_DATA, LPINN, NeuralStagger])
def test_setup_for_something_else_than_a_problem_names_the_way(cls):
    with pytest.raises(TypeError, match=r"setup takes a Problem, not dict; of a case it is Problem.of\(case\)"):
        cls().setup({"case": "waves"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"fields": "u"}, "fields 'u'"), ({"fields": ()}, "one or more names"), ({"extent": (1.0,)}, "the same axes"),
     ({"duration": math.nan}, "duration nan"), ({"num_snapshots": 0}, "num_snapshots 0"),
     ({"logarithmic": ("nu",)}, "'nu' must be a parameter"),
     ({"parameters": {"amplitude": (1.0, 3.0), "decay": (0.0, 1.0)}}, "'decay' must be a parameter with positive")],
)  # fmt: skip
def test_a_problem_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(wave_problem(), **changes)


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [(MLP, "hidden", (1.5,)), (UNet, "width", 2.5), (UNet, "multipliers", (1, 1.5)), (ConvNet, "width", True),
     (ConvNet, "dilations", (1.5,)), (ConvNet, "kernel", 3.5), (MessagePassing, "hidden", 2.5),
     (MessagePassing, "layers", 0), (NeuralStagger, "space", (2, 1.5)), (NeuralStagger, "time", 1.5),
     (NeuralStagger, "space", 2.0), (FNO, "modes", (2.7, 3)), (FNO, "modes", 2.7), (LPINN, "hidden", (8.5, 8)),
     (LPINN, "harmonics", 2.5), (LPINN, "points", 0)],
)  # fmt: skip
def test_sizes_are_whole_numbers(cls, name, value):
    with pytest.raises(ValueError, match=f"{cls.__name__} {name} .* must be a whole number, at least 1"):
        cls(**{name: value})


@pytest.mark.parametrize("cls", FROM_DATA)
def test_windows_in_double_precision_count_as_those_of_the_weights(cls):
    surrogate = made(cls)
    batch = wave_windows(surrogate.problem, surrogate.window)
    doubles = {f.name: getattr(batch, f.name).double() for f in dataclasses.fields(batch)}
    losses = surrogate.training_loss(WindowBatch(**doubles))
    assert losses.dtype == torch.float32 and torch.equal(losses, surrogate.training_loss(batch))


@pytest.mark.parametrize("cls", FROM_DATA)
def test_wrong_batches_are_named(cls):
    surrogate = made(cls)
    good = wave_windows(surrogate.problem, surrogate.window)
    for wrong, words in (
        ({"states": good.states[:, :, :1]}, "2 fields u, v"),
        ({"states": good.states[..., 0]}, "2 grid axes"),
        ({"states": good.states[:, :0]}, f"{surrogate.window} steps"),
        ({"times": good.times[:4]}, "Times"),
        ({"parameters": good.parameters[:, :1]}, "amplitude, decay"),
    ):
        with pytest.raises(ValueError, match=words):
            surrogate.training_loss(dataclasses.replace(good, **wrong))


@pytest.mark.parametrize("cls", FROM_DATA)
def test_use_before_setup_is_named(cls):
    with pytest.raises(RuntimeError, match="call setup"):
        cls(**SMALL[cls]).predict(None, torch.zeros(1, 2), torch.zeros(1))


def test_the_published_direct_network():
    problem = Problem(case="heat", fields=("T",), shape=(100, 100), extent=(1.0, 1.0), periodic=(False, False),
                      parameters={f"t{i}": (100, 500) for i in range(5)}, duration=1.0, num_snapshots=100)  # fmt: skip
    published = MLP(activation="relu", log_time=False)
    published.setup(problem)
    layers = [(layer.in_features, layer.out_features) for layer in published.network[::2]]
    assert layers == [(6, 256), (256, 256), (256, 10_000)]


def test_mlp_predicts_at_any_time_and_each_row_stands_alone():
    surrogate = made(MLP)
    parameters, times = torch.tensor([[1.5, 0.2], [2.5, 3.0]]), torch.tensor([0.0, 0.512, 0.05])
    states = surrogate.predict(None, parameters, times)
    assert states.shape == (2, 3, 2, 16, 12) and not states.requires_grad
    assert torch.allclose(surrogate.predict(None, parameters[1:], times[1:2])[0, 0], states[1, 1], atol=1e-5)


def test_mlp_loss_is_the_mean_squared_error_of_its_prediction_over_the_variances():
    surrogate = made(MLP)
    batch = wave_windows(surrogate.problem, 1, batch=1)
    error = surrogate.predict(None, batch.parameters, batch.times[0]) - batch.states
    expected = (error / torch.tensor([1.0, 0.1]).reshape(2, 1, 1)).square().mean()
    assert torch.allclose(surrogate.training_loss(batch), expected, rtol=1e-4)


def test_mlp_refuses_another_grid():
    with pytest.raises(ValueError, match=r"bound to the grid \(16, 12\)"):
        made(MLP).training_loss(wave_windows(wave_problem((8, 8)), 1))


@pytest.mark.parametrize(("shape", "count"), [((64, 64), 414_517), ((64, 64, 40), 6_558_537)])
def test_fno_has_the_published_number_of_weights(shape, count):
    # Li et al. (2021): modes 8, width 20; ten known frames and the coordinates. Their 4·2·20 weights of batch
    # normalisation are never used in their forward pass; we do not have them.
    problem = Problem(case="ns", fields=("w",), shape=shape, extent=(1.0,) * len(shape),
                      periodic=(False,) * len(shape), parameters={}, duration=1.0, num_snapshots=20)  # fmt: skip
    surrogate = FNO(modes=8, width=20, stepping=Stepping(history=10, inputs=("position",)))
    surrogate.setup(problem)
    assert sum(parameter.numel() for parameter in surrogate.parameters()) + 4 * 2 * 20 == count


@pytest.mark.parametrize("cls", STEPPING)
@pytest.mark.parametrize(("shape", "history"), [((17,), 2), ((16, 13), 1), ((8, 9, 10), 2)])
def test_steppers_start_from_persistence_in_every_dimension(cls, shape, history):
    problem = wave_problem(shape, periodic=(True, False, True)[: len(shape)])
    surrogate = made(cls, problem=problem, stepping=Stepping(history=history))
    batch = wave_windows(problem, surrogate.window)
    known, target = batch.states[:, :history], batch.states[:, history:]
    states = surrogate.predict(known, batch.parameters, batch.times[0, history:])
    assert torch.allclose(states, known[:, -1:], rtol=1e-5, atol=1e-6)
    change = (target - known[:, -1:]) / torch.tensor([1.0, 0.1]).reshape(2, *(1,) * len(shape))
    assert torch.allclose(surrogate.training_loss(batch), change.square().flatten(1).mean(1), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("target", ["delta", "direct"])
def test_fno_rolls_out_in_training_as_it_predicts(target):
    surrogate = with_random_output(made(FNO, stepping=Stepping(history=2, unroll=3, target=target)))
    problem = surrogate.problem
    parameters = torch.tensor([[1.5, 0.2], [2.5, 3.0]])
    times = torch.arange(5) * problem.interval
    states = wave_states(problem, parameters, times)
    predicted = surrogate.predict(states[:, :2], parameters, times[2:])
    error = (predicted - states[:, 2:]) / torch.tensor([1.0, 0.1]).reshape(2, 1, 1)
    batch = WindowBatch(states=states, times=times.expand(2, -1), parameters=parameters)
    assert torch.allclose(surrogate.training_loss(batch), error.square().flatten(1).mean(1), rtol=1e-4)
    first = surrogate.predict(states[:, :2], parameters, times[2:3])
    second = surrogate.predict(torch.cat((states[:, 1:2], first), 1), parameters, times[3:4])
    assert torch.allclose(torch.cat((first, second), 1), predicted[:, :2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "extra",
    [{"norm": "instance"}, {"norm": "layer"}, {"channel_mlp": 0.5}, {"rank": 4}, {"stepping": {"conditioning": "film"}},
     {"norm": "layer", "channel_mlp": 1, "rank": 3, "stepping": {"conditioning": "film", "bundle": 2, "unroll": 2}}],
)  # fmt: skip
def test_fno_learns_with_each_of_its_extras_and_uses_all_weights(extra):
    surrogate = with_random_output(made(FNO, **extra))
    surrogate(wave_windows(surrogate.problem, surrogate.window)).mean().backward()
    for name, parameter in surrogate.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    first, last = trained(made(FNO, **extra), 120)
    assert last < first / 2, f"the loss went from {first:.2e} to {last:.2e}"


@pytest.mark.parametrize("cls", [UNet, ConvNet])
@pytest.mark.parametrize("conditioning", ["channels", "film"])
def test_convolutions_use_all_their_weights_in_both_forms(cls, conditioning):
    surrogate = with_random_output(made(cls, norm=True, stepping=Stepping(conditioning=conditioning, bundle=2)))
    surrogate(wave_windows(surrogate.problem, surrogate.window)).mean().backward()
    for name, parameter in surrogate.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_film_starts_without_effect_and_then_modulates():
    surrogate = with_random_output(made(FNO, stepping={"conditioning": "film"}))
    batch = wave_windows(surrogate.problem, 1, batch=2)
    at = torch.tensor([0.1])
    before = surrogate.predict(batch.states, batch.parameters, at)
    assert torch.equal(surrogate.predict(batch.states, batch.parameters + 0.5, at), before)
    torch.nn.init.ones_(surrogate.network.layers[0].film.linear.weight)
    assert not torch.allclose(surrogate.predict(batch.states, batch.parameters + 0.5, at), before)


def test_norms_make_mean_zero_and_deviation_one():
    from headrace.surrogates.fourier_network import Norm

    noise = torch.randn(5, 4, 8, 9, generator=torch.Generator().manual_seed(0))
    x = 3 + 2 * noise * torch.arange(1, 6).reshape(5, 1, 1, 1)
    for kind, axes in (("instance", (2, 3)), ("layer", (0, 2, 3))):
        y = Norm(5, kind)(x)
        assert torch.allclose(y.mean(axes), torch.zeros(()), atol=1e-5)
        assert torch.allclose(y.std(axes, correction=0), torch.ones(()), atol=1e-4)


@pytest.mark.parametrize("cls", STEPPING)
def test_steppers_without_position_commute_with_translations(cls):
    surrogate = with_random_output(made(cls, stepping=Stepping(inputs=("parameters", "time"))))
    batch = wave_windows(surrogate.problem, 1, batch=2)
    times = torch.tensor([0.1, 0.2])
    noisy = batch.states + torch.randn(batch.states.shape, generator=torch.Generator().manual_seed(0))
    shifted = surrogate.predict(noisy.roll((4, 6), (-2, -1)), batch.parameters, times)
    assert torch.allclose(shifted, surrogate.predict(noisy, batch.parameters, times).roll((4, 6), (-2, -1)), atol=1e-4)


def test_fno_agrees_with_itself_on_a_finer_grid():
    surrogate = with_random_output(made(FNO, stepping=Stepping(target="direct")))
    parameters, times = torch.tensor([[1.5, 0.2]]), torch.tensor([0.1])
    coarse, fine = (
        surrogate.predict(wave_states(wave_problem(shape), parameters, torch.zeros(1)), parameters, times)
        for shape in ((16, 12), (48, 60))
    )
    difference = (fine[..., ::3, ::5] - coarse).norm() / (coarse - coarse.mean((-1, -2), keepdim=True)).norm()
    assert difference < 0.02  # what the pointwise nonlinearity folds into the kept modes on the coarse grid


@pytest.mark.parametrize("cls", STEPPING)
def test_steppers_see_each_input_that_they_are_given(cls):
    surrogate = with_random_output(made(cls))
    batch = wave_windows(surrogate.problem, 1, batch=1)
    at = torch.tensor([0.1])
    states = surrogate.predict(batch.states, batch.parameters, at)
    assert not torch.allclose(surrogate.predict(batch.states, batch.parameters + 0.5, at), states)
    assert not torch.allclose(surrogate.predict(batch.states, batch.parameters, at + 0.5), states)
    blind = with_random_output(made(cls, stepping=Stepping(inputs=())))
    assert torch.equal(
        blind.predict(batch.states, batch.parameters + 0.5, at + 0.5),
        blind.predict(batch.states, batch.parameters, at),
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modes": 9}, r"do not fit the grid \(16, 12\)"), ({"modes": (3,)}, "1 axes"),
        ({"padding": -1}, "padding -1"), ({"width": 0}, "width 0"), ({"rank": 0}, "rank 0"),
        ({"padding": math.inf}, "padding inf must be finite"), ({"rank": 1.5}, "rank 1.5 must be a whole number"),
        ({"layers": True}, "layers True must be a whole number"),
        ({"norm": "batch"}, "layer"), ({"channel_mlp": -0.5}, "channel_mlp -0.5"), ({"stepping": {"x": 1}}, "no x"),
    ],
)  # fmt: skip
def test_fno_names_what_does_not_fit(arguments, words):
    with pytest.raises(ValueError, match=words):
        made(FNO, **arguments)


def test_fno_takes_whole_numbers_of_numpy_as_its_own():
    numbers = {"modes": 2, "width": 4, "layers": 1, "rank": 2}
    surrogate = FNO(**{name: np.int64(n) for name, n in numbers.items()}, stepping=Stepping(history=np.int32(2)))
    expected = FNO(**numbers, stepping=Stepping(history=2))
    assert json.dumps(surrogate.architecture()) == json.dumps(expected.architecture())


@pytest.mark.parametrize(
    ("arguments", "words"), [({"hidden": ()}, "hidden"), ({"hidden": (0,)}, "hidden"), ({"activation": "x"}, "gelu")]
)
def test_mlp_names_what_does_not_fit(arguments, words):
    with pytest.raises(ValueError, match=words):
        MLP(**arguments)


def test_fno_names_requests_that_it_cannot_answer():
    surrogate = made(FNO)
    initial, parameters = torch.zeros(2, 1, 2, 16, 12), torch.ones(2, 2)
    for request, words in (
        ((None, parameters, torch.tensor([0.1])), "known states"),
        ((initial[:, :, :1], parameters, torch.tensor([0.1])), "2 fields"),
        ((initial[..., :3], parameters, torch.tensor([0.1])), r"Modes"),
        ((initial, parameters[:1], torch.tensor([0.1])), "2 simulations, parameters 1"),
        ((initial, parameters, torch.tensor([0.1, 0.3])), "0.1 and 0.3 are not consecutive"),
        ((initial, parameters, torch.tensor([0.1, math.nan])), "0.1 and nan are not consecutive"),
        ((initial, parameters, torch.tensor(0.1)), "at least one time"),
        ((initial, parameters[0], torch.tensor([0.1])), "amplitude, decay"),
    ):
        with pytest.raises(ValueError, match=words):
            surrogate.predict(*request)


def test_predictions_take_arrays_of_any_precision():
    surrogate = made(FNO)
    parameters, times = torch.tensor([[1.5, 0.2]]), torch.arange(3) * 0.1
    states = wave_states(surrogate.problem, parameters, times)
    expected = surrogate.predict(states[:, :1], parameters, times[1:])
    doubles = states[:, :1].double().numpy(), parameters.double().numpy(), times[1:].double().numpy()
    assert torch.allclose(surrogate.predict(*doubles), expected, rtol=1e-5)


def test_the_problem_of_a_case_survives_json():
    import json

    from headrace.solvers import Case, Dirichlet, Grid, LogUniform, Periodic, Uniform

    case = Case(
        name="c", fields=("u",), grid=Grid(shape=(8, 9), extent=(1, 2)), duration=2.0, num_snapshots=4,
        boundary={"x": Periodic(), "y": Dirichlet(0.0)}, initial=math.sin, rhs=math.sin,
        parameters={"a": Uniform(0, 1), "nu": LogUniform(1e-3, 1.0)},
    )  # fmt: skip
    problem = Problem.of(case)
    assert problem.periodic == (True, False) and problem.logarithmic == ("nu",) and problem.interval == 0.5
    assert problem.parameters["nu"] == pytest.approx((1e-3, 1.0))
    assert Problem.from_dict(json.loads(json.dumps(problem.to_dict()))) == problem


def test_importing_the_surrogates_does_not_start_mpi():
    program = "import sys, headrace.surrogates; print('mpi4py.MPI' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
