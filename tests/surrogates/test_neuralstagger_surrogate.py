"""NeuralStagger as a surrogate: learns from a case's own equation, with the states of a stream or with its own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.cases.navier_stokes2d import case as navier_stokes2d
from headrace.cases.navier_stokes2d import recipe
from headrace.solvers import Case, Dirichlet, Grid, MemorySink, Periodic, Uniform
from headrace.solvers.scheme import CRANK_NICOLSON, IMPLICIT_EULER
from headrace.solvers.simulate import simulate
from headrace.solvers.step_correction import step_correction
from headrace.surrogates import NeuralStagger, Problem, WindowBatch, load_surrogate
from headrace.surrogates.recorded import Recorded


def swirl(u, d, p, t):
    """∂a/∂t + (1, 1/2)·∇a = ν ∇²a - k a²,  ∂b/∂t = ν ∇²b + k a²."""
    a, b = u
    made = p.k * a**2
    return p.nu * d.laplacian(a) - d.advect((1.0, 0.5), a) - made, p.nu * d.laplacian(b) + made


def start(x, p, rng):
    """One wave each, of random phase."""
    phase = 2 * np.pi * rng.random()
    return 1 + 0.5 * np.sin(2 * np.pi * x[0] + phase), 0.2 * np.cos(2 * np.pi * x[1] + phase)


CASE = Case(
    name="swirl", fields=("a", "b"), grid=Grid(shape=(16, 16), extent=(1.0, 1.0)), initial=start, rhs=swirl,
    parameters={"nu": Uniform(2e-3, 1e-2), "k": Uniform(0.0, 1.0)}, duration=0.4, num_snapshots=10,
)  # fmt: skip
SMALL = {"modes": 3, "width": 8}


def trajectories(count, case=CASE):
    """Simulations of the MPI solver, (count, time, fields, *grid), and their parameters."""
    rng, states, rows = np.random.default_rng(0), [], []
    for number in range(count):
        p, sink = case.draw(rng.random(len(case.parameters))), MemorySink()
        simulate(case, p, sink, simulation=number)
        states.append(np.asarray(sink.values))
        rows.append(list(p.values()))
    return torch.tensor(np.stack(states), dtype=torch.float32), torch.tensor(rows, dtype=torch.float32)


@pytest.fixture(scope="module")
def simulations():
    return trajectories(24)


def made(case=CASE, seed=0, **arguments):
    surrogate = NeuralStagger(**{**SMALL, **arguments})
    surrogate.setup(Problem.of(case), seed=seed)
    surrogate.set_statistics([1.0, 0.1], [0.4, 0.2])
    surrogate.use_case(case)
    return surrogate


def windows(simulations, window, seed, count=16):
    states, rows = simulations
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(20, (count,), generator=generator)  # the last four are held out
    first = torch.randint(states.shape[1] - window + 1, (count,), generator=generator)
    steps = first[:, None] + torch.arange(window)
    return WindowBatch(states=states[which[:, None], steps], times=steps * CASE.duration / 10, parameters=rows[which])


def error_of(surrogate, simulations):
    states, rows = simulations
    known, h = states[20:, : surrogate.history], surrogate.history
    found = surrogate.predict(known, rows[20:], torch.arange(h, 11) * CASE.duration / 10)
    return float((found - states[20:, h:]).norm() / (states[20:, h - 1 : h] - states[20:, h:]).norm())


@pytest.mark.parametrize("shape", [(12,), (8, 12), (6, 8, 4)])
def test_the_correction_is_the_error_of_a_crank_nicolson_step(shape):
    def diffusion(u, d, p, t):
        """∂u/∂t = ν ∇²u + sin t."""
        return p.nu * d.laplacian(u) + np.sin(t)

    wall = Dirichlet(0.0)
    boundary = {axis: Periodic() if axis == "x" else (wall, wall) for axis in "xyz"[: len(shape)]}
    case = replace(CASE, fields=("u",), grid=Grid(shape=shape, extent=(1.0,) * len(shape)), rhs=diffusion,
                   boundary=boundary, initial=lambda x, p, rng: np.sin(2 * np.pi * x[0]))  # fmt: skip
    correction = step_correction(case)
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(3, 1, *shape, generator=generator).double()
    rows, t = torch.tensor([[2e-3, 0.0], [5e-3, 0.0], [1e-2, 0.0]]), torch.tensor([0.0, 0.5, 1.0]).double()
    new = old.clone()
    for _ in range(200):
        new = new - 0.5 * correction(old, new, t, 0.02, rows)
    assert float(correction(old, new, t, 0.02, rows).abs().max()) < 1e-10
    # The mean of the source over the step is the trapezium's, for each sample at its own time.
    change = (new - old)[0, 0].mean() if len(shape) == 1 else None
    if change is not None:
        torch.testing.assert_close(change, 0.01 * (torch.sin(t[0]) + torch.sin(t[0] + 0.02)), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("scheme", [None, CRANK_NICOLSON, IMPLICIT_EULER], ids=str)
def test_the_correction_of_a_case_with_rhs_vanishes_on_its_solver(scheme):
    case = replace(CASE, scheme=scheme or CRANK_NICOLSON, num_snapshots=4, steps_per_snapshot=1)
    sink, p = MemorySink(), case.accept({"nu": 5e-3, "k": 0.7})
    simulate(case, p, sink, simulation=1)
    states, t = torch.tensor(np.asarray(sink.values)), torch.arange(4, dtype=torch.float64) * 0.1
    rows = torch.tensor([[5e-3, 0.7]] * 4, dtype=torch.float64)
    correction = step_correction(replace(case, scheme=scheme))
    error = correction(states[:-1], states[1:], t, 0.1, rows)
    assert float(error.abs().max()) < 0.1 * 1e-8 and float((states[1:] - states[:-1]).abs().max()) > 1e-2
    other = correction(states[:-1], states[1:], t, 0.1, rows * torch.tensor([1.0, 1.5]))
    assert float(other.abs().max()) > 1e-3


@pytest.mark.parametrize(("steps", "bound"), [(None, 1e-4), (30, 1e-8)])
@pytest.mark.parametrize("nu", [1e-3, 1e-5])
def test_the_correction_of_the_spectral_case_vanishes_on_its_solver(nu, steps, bound):
    """Left to itself the solver chooses its steps; where the case gives them, they are the same to rounding."""
    case = replace(navier_stokes2d.resized((32, 32)), duration=2.0, num_snapshots=2, steps_per_snapshot=steps)
    sink = MemorySink()
    simulate(case, case.accept({"nu": nu}), sink, simulation=1)
    states = torch.tensor(np.asarray(sink.values))
    rows, t = torch.full((2, 1), nu, dtype=torch.float64), torch.zeros(2)
    error = step_correction(case)(states[:-1], states[1:], t, 1.0, rows)
    assert float(error.abs().max()) < bound * float(states.abs().max())
    old, new = (states[k].clone().requires_grad_() for k in (slice(0, 1), slice(1, 2)))
    step_correction(case)(old, new, t[:1], 1.0, rows[:1]).sum().backward()
    assert old.grad is None and bool((new.grad == 1).all())


def test_a_case_that_cannot_tell_the_error_of_a_step_is_refused():
    with pytest.raises(ValueError, match=r"solver of its own.*correction"):
        step_correction(recipe)


@pytest.mark.parametrize(
    "arguments",
    [{"time": 2, "space": (2, 1), "shared": False}, {"time": 2, "reading": "offset"},
     {"exchange": 2, "data_weight": 0.5}, {"streamed": False}],
    ids=str,
)  # fmt: skip
def test_it_learns_from_the_equation(arguments, simulations):
    surrogate = made(**arguments)
    optimiser = torch.optim.Adam(surrogate.parameters(), lr=5e-3)
    torch.manual_seed(0)
    for step in range(60):
        loss = surrogate(windows(simulations, surrogate.window, step)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    error = error_of(surrogate.eval(), simulations)
    assert error < 0.5, error  # 1 is persistence


def test_states_of_its_own_making_go_on_whatever_their_units(simulations):
    def warm(x, p, rng):
        return tuple(5e4 + 10 * values for values in start(x, p, rng))

    parameters = {"nu": Uniform(2e-3, 1e-2), "k": Uniform(0.0, 1e-9), "pressure": Uniform(1e5, 2e5)}
    surrogate = made(replace(CASE, initial=warm, parameters=parameters), streamed=False).train()
    surrogate.normaliser.mean.fill_(5e4)
    batch = replace(windows(simulations, 1, 0), parameters=torch.ones(16, 3))
    for _ in range(3):
        surrogate(batch)
    assert surrogate._pool.diverged == 0
    with torch.no_grad():  # beyond 1000 deviations they start again
        surrogate.network.network.output.weight.fill_(1e6)
    surrogate(batch)
    assert surrogate._pool.diverged == 16
    assert float((surrogate._pool.states[:, :, :2] - 5e4).abs().max()) < 1000 * 0.4


def pulsed(u, d, p, t):
    """As `swirl`, with a source that depends on the time; for what is graded only."""
    a, b = swirl(u, d, p, t)
    return a + 20 * t, b


def with_weights(arguments, seed=1, std=0.05):
    """Two surrogates of the same weights, in double precision, which are not zero at the end: windows 1 and 2."""
    case, found = replace(CASE, rhs=pulsed), []
    for unroll in (1, 2):
        surrogate = made(case, unroll=unroll, pushforward=0, space=(2, 1), **arguments).double().eval()
        generator = torch.Generator().manual_seed(seed)
        for values in surrogate.network.parameters():
            values.data += std * torch.randn(values.shape, generator=generator, dtype=values.dtype)
        found.append(surrogate)
    return case, *found


def in_double(batch):
    return WindowBatch(
        states=batch.states.double(), times=batch.times.double(), parameters=batch.parameters.double()
    )  # fmt: skip


READINGS = pytest.mark.parametrize("arguments", [{"time": 2}, {"time": 2, "reading": "offset"}, {}], ids=str)


@READINGS
def test_every_frame_is_graded_as_a_step_from_the_one_before_at_its_own_time(arguments, simulations):
    case, one, two = with_weights(arguments)
    batch = in_double(windows(simulations, one.window, 3, count=4))
    correction, h, dt, std = step_correction(case), one.history, CASE.duration / 10, torch.tensor([0.4, 0.2]).double()

    def graded(known, last):
        states, squares = [known[:, -1], *one.stepped(known, batch.parameters).unbind(1)], []
        for k in range(len(states) - 1):
            error = correction(states[k], states[k + 1], last + k * dt, dt, batch.parameters)
            squares.append((error / std[:, None, None]).square().flatten(1).mean(1))
        return sum(squares) / len(squares)

    with torch.no_grad():
        wanted = graded(batch.states, batch.times[:, h - 1])
        torch.testing.assert_close(one(batch), wanted, rtol=1e-6, atol=0)
        new = one.stepped(batch.states, batch.parameters)
        later = graded(torch.cat((batch.states, new), 1)[:, -h:], batch.times[:, h - 1] + one.time * dt)
        torch.testing.assert_close(two(batch), 0.5 * (wanted + later), rtol=1e-6, atol=0)
        assert float((later / wanted - 1).abs().min()) > 1e-3


@READINGS
def test_the_gradient_goes_back_through_all_windows_of_a_roll_out(arguments, simulations):
    _, _, surrogate = with_weights(arguments)
    batch = in_double(windows(simulations, surrogate.window, 3, count=2))
    weights = list(surrogate.network.parameters())
    slopes = torch.autograd.grad(surrogate(batch).sum(), weights, allow_unused=True)
    generator = torch.Generator().manual_seed(4)
    directions = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
    found = sum(float((s * d).real.sum()) for s, d in zip(slopes, directions, strict=True) if s is not None)
    ends = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for w, d in zip(weights, directions, strict=True):
                w += step * d
            ends.append(float(surrogate(batch).sum()))
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("streamed", [True, False])
def test_saving_memory_computes_windows_again_and_changes_no_gradient(streamed, simulations):
    batch, found, calls = windows(simulations, 1, 3, count=4), [], []
    for saving in (False, True):
        surrogate = made(unroll=3, pushforward=0, streamed=streamed, save_memory=saving).train()
        output, called = surrogate.network.network.output.weight, []
        torch.nn.init.normal_(output, std=0.1, generator=torch.Generator().manual_seed(2))
        surrogate.network.register_forward_pre_hook(lambda *_, called=called: called.append(1))
        loss = surrogate(batch)
        found.append([loss, *torch.autograd.grad(loss.sum(), list(surrogate.parameters()))])
        calls.append(len(called))
        assert surrogate.recordable is (streamed and not saving) and surrogate.architecture()["save_memory"] is saving
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-5, atol=1e-5 * float(kept.detach().abs().max()))
    assert calls == [3, 6]


def test_a_weight_of_data_adds_the_error_of_the_next_window(simulations):
    _, without, _ = with_weights({"time": 2})
    _, weighed, _ = with_weights({"time": 2, "data_weight": 0.5})
    batch = in_double(windows(simulations, weighed.window, 3, count=4))
    first = WindowBatch(states=batch.states[:, :2], times=batch.times[:, :2], parameters=batch.parameters)
    with torch.no_grad():
        error = without.stepped(first.states, first.parameters) - batch.states[:, 2:]
        error = error / torch.tensor([0.4, 0.2]).double()[:, None, None]
        torch.testing.assert_close(weighed(batch) - without(first), 0.5 * error.square().flatten(1).mean(1))


@pytest.mark.parametrize(
    ("arguments", "calls"), [({}, 10), ({"time": 2, "reading": "offset", "unroll": 5}, 1)], ids=str
)  # fmt: skip
def test_simulations_of_its_own_last_as_long_as_the_cases(arguments, calls):
    surrogate = made(CASE.resized((8, 8)), streamed=False, **arguments)
    assert not surrogate.recordable and made().recordable
    whole = WindowBatch(states=torch.zeros(256, 1, 2, 8, 8), times=torch.zeros(256, 1), parameters=torch.zeros(256, 2))
    with torch.no_grad():
        surrogate.eval()(whole)
        before = surrogate._pool.states.clone()
        surrogate(whole)
        assert torch.equal(surrogate._pool.states, before) and not surrogate._pool.restarted, "only training moves it"
        # Each lasts ten snapshots and starts with parameters of its own.
        drawn = before[:, 0, 2:, 0, 0]
        for column, (low, high) in enumerate(((2e-3, 1e-2), (0.0, 1.0))):
            assert low <= float(drawn[:, column].min()) < float(drawn[:, column].max()) <= high
        surrogate.train()
        for _ in range(calls):
            surrogate(whole)
    assert surrogate._pool.restarted == 256 and not surrogate._pool.diverged


def test_a_batch_larger_than_the_states_of_its_own_has_a_loss_for_each_window():
    surrogate = made(CASE.resized((8, 8)), streamed=False).eval()
    whole = WindowBatch(states=torch.zeros(300, 1, 2, 8, 8), times=torch.zeros(300, 1), parameters=torch.zeros(300, 2))
    loss = surrogate(whole)
    assert loss.shape == (300,) and torch.equal(loss[256:], loss[:44])
    loss.sum().backward()


def test_equal_shares_of_a_batch_are_pushed_forward_before_they_are_graded(simulations):
    surrogate = made(pushforward=2)
    torch.nn.init.normal_(surrogate.network.network.output.weight, std=0.1, generator=torch.Generator().manual_seed(2))
    batch = windows(simulations, 1, 5, count=6)
    torch.manual_seed(0)
    trained, known, graded = surrogate.train()(batch), batch.states, []
    surrogate.eval()
    for _ in range(3):
        graded.append(surrogate(replace(batch, states=known)))  # the equation does not depend on the time
        known = surrogate.predict(known, batch.parameters, torch.tensor([CASE.duration / 10])).detach()
    is_of_share = torch.isclose(trained, torch.stack(graded), rtol=1e-4)
    assert is_of_share.sum(0).tolist() == [1] * 6, "each window's loss is at its place"
    assert is_of_share.sum(1).tolist() == [2] * 3
    assert (is_of_share.int().argmax(0).diff() < 0).any(), "not in the batch's order"


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_the_windows_of_every_place_are_pushed_equally_often(count, monkeypatch):
    surrogate, calls = made(pushforward=2), 2000
    rows = torch.arange(1.0, count + 1)[:, None]
    known = 100 * rows[:, :, None, None, None]
    monkeypatch.setattr(surrogate, "stepped", lambda known, rows: known + rows[:, :, None, None, None])
    torch.manual_seed(0)
    often = torch.zeros(3, count)
    for _ in range(calls):
        states, times = surrogate._pushed_forward(known, rows, torch.zeros(count))
        pushes = times / (CASE.duration / 10)
        torch.testing.assert_close(states, known + pushes[:, None, None, None, None] * known / 100)
        share = pushes.round() == torch.arange(3)[:, None]
        assert set(share.sum(1).tolist()) <= {count // 3, -(-count // 3)}
        often += share
    torch.testing.assert_close(often / calls, torch.full_like(often, 1 / 3), rtol=0, atol=0.04)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_losses_and_gradients_are_those_that_were_not_recorded():
    case = navier_stokes2d.resized((32, 32))
    surrogate = NeuralStagger(width=8, modes=6, pushforward=2)
    surrogate.setup(Problem.of(case))
    surrogate.set_statistics([0.0], [0.3])
    surrogate.use_case(case)
    output = surrogate.network.network.output.weight  # of zeros a window pushed forward would be what it was
    torch.nn.init.normal_(output, std=0.1, generator=torch.Generator().manual_seed(2))
    surrogate.to("cuda").train()
    assert surrogate.recordable and not NeuralStagger(streamed=False).recordable
    generator = torch.Generator().manual_seed(0)

    def batch(scale):
        states = scale * torch.randn(4, 1, 1, 32, 32, generator=generator)
        return states.cuda(), torch.zeros(4, 1).cuda(), torch.tensor([[1e-3], [1e-4], [3e-5], [1e-5]]).cuda() * scale

    def graded(states, times, rows):
        loss = surrogate(WindowBatch(states=states, times=times, parameters=rows))
        slopes = torch.autograd.grad(loss.sum(), list(surrogate.network.parameters()))
        return loss.detach(), torch.stack([slope.abs().max() for slope in slopes])

    def replayed(seed=None):
        if seed is not None:
            torch.manual_seed(seed)
        return recorded(*other)[0].clone()

    recorded = Recorded(graded, *batch(0.3))
    for other in (batch(0.2), batch(0.5)):
        torch.manual_seed(1)  # a replay draws what an eager call draws after the same seed
        found = [result.clone() for result in recorded(*other)]
        torch.manual_seed(1)
        torch.testing.assert_close(found, list(graded(*other)), rtol=1e-4, atol=1e-7)
    first, *more = replayed(1), replayed(), replayed(), replayed()
    torch.testing.assert_close(replayed(1), first)
    assert any(not torch.allclose(one, first, rtol=1e-2) for one in more), "each draws which windows it pushes forward"


@pytest.mark.parametrize("backbone", ["fno", "unet", "mixer"])
def test_every_backbone_is_saved_loaded_and_predicts_the_same_without_its_case(backbone, simulations, tmp_path):
    surrogate = made(backbone=backbone, space=(2, 1), time=2)
    with torch.no_grad():
        for parameter in surrogate.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    surrogate.save(tmp_path / "model")
    loaded = load_surrogate(tmp_path / "model")
    assert loaded.architecture() == surrogate.architecture()
    states, rows = simulations
    times = torch.arange(2, 9) * CASE.duration / 10
    found = loaded.predict(states[:3, :2], rows[:3], times)
    assert found.shape == (3, 7, 2, 16, 16) and torch.equal(found, surrogate.predict(states[:3, :2], rows[:3], times))
    assert float((found - states[:3, 1:2]).abs().max()) > 1e-3
    with pytest.raises(RuntimeError, match="use_case"):
        loaded(windows(simulations, loaded.window, 0))


@pytest.mark.parametrize("reading", ["phase", "offset"])
def test_a_part_by_itself_is_a_coarse_solver_that_gives_its_points_of_the_whole(reading, simulations):
    surrogate = made(space=(2, 1), time=2, reading=reading).eval()
    for parameter in surrogate.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    states, rows = simulations
    known, stagger = states[:3, : surrogate.history], surrogate.network.stagger
    count = 6 if reading == "phase" else 2
    whole = surrogate.predict(known, rows[:3], torch.arange(surrogate.history, surrogate.history + count) * 0.04)
    for index, (frame, first, _) in enumerate(stagger.places):
        start = known[:, frame if reading == "phase" else 0, :, first::2]
        found = surrogate.predict_part(index, start, rows[:3], count // 2)
        torch.testing.assert_close(found, stagger.part(whole, index), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="from 0 to 3"):
        surrogate.predict_part(4, start, rows[:3], 1)
    with pytest.raises(ValueError, match="num_frames 0"):
        surrogate.predict_part(0, start, rows[:3], 0)
    with pytest.raises(ValueError, match=r"needs \(3, 2, 8, 16\)"):
        surrogate.predict_part(0, known[:, 0], rows[:3], 1)


def test_weights_depend_on_the_seed_alone():
    before = torch.get_rng_state()
    one, same, other = made(seed=3).state_dict(), made(seed=3).state_dict(), made(seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"backbone": "cnn"}, "'cnn'.*fno"), ({"reading": "both"}, "'both'"), ({"time": 0}, "time 0"),
     ({"streamed": False, "time": 2}, "streamed=false"), ({"space": 3}, "divide"), ({"space": 8}, r"\(2, 2\) points"),
     ({"time": 12}, "windows of 12")],
)  # fmt: skip
def test_what_does_not_fit_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        made(**arguments)
