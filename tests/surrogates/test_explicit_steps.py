"""Explicit steps of the staggered scheme on tensors, which grade networks and are their rival: the solver's own."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.solvers import MemorySink, Parameters
from headrace.solvers.mac_operators import divergence
from headrace.solvers.mac_residual import MacResidual
from headrace.solvers.scheme import RK4
from headrace.solvers.simulate import simulate


@pytest.fixture(scope="module")
def staggered(loaded):
    """Return modules of the benchmark."""
    return tuple(loaded(f"staggered.{name}") for name in ("channel", "mac_steps", "training"))


def slow_block(channel):
    """Return a channel whose explicit steps may be as long as a twentieth."""
    scene = channel.CHANNELS["P5, 60 x 20"]
    return replace(scene, shape=(96, 32), cells=6, centre=(2.5, 2.67), reynolds=100.0, frame=0.1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_steps_past_a_block_are_those_of_the_solver_with_its_pressure(staggered, ndim):
    channel, mac_steps, _ = staggered
    scene = slow_block(channel)
    if ndim == 3:
        scene = replace(channel.CHANNELS["P7"], shape=(24, 12, 12), cells=3, frame=0.1)
    start = scene.velocity(scene.start_windows("", 1, 1, "cpu", 3, torch.ones(1)).double())[:, 0].numpy()
    sink = MemorySink()
    case = replace(scene.case(duration=0.3, start=start), scheme=RK4, steps_per_snapshot=2)
    simulate(case, Parameters({}), sink)
    first, *_, last = (torch.tensor(values) for values in sink.values)
    steps = mac_steps.StaggeredSteps(scene.potential.residual, p=Parameters({}), device="cpu", dtype=torch.float64)
    found = steps.advanced(first[:-1, None], 0.05, 1 / scene.reynolds, 6)
    np.testing.assert_allclose(found[:, 0], last[:-1], atol=1e-11)
    pressure = steps.slope(found, 1 / scene.reynolds)[1][0]
    np.testing.assert_allclose(pressure, last[-1] * steps.fluid, atol=1e-10)


@pytest.mark.parametrize("name", ["P5", "P7"])
def test_the_block_is_as_large_on_the_coarser_grids_of_classical_solvers(staggered, name):
    scene = staggered[0].CHANNELS[name]
    for cells in scene.coarser:
        coarse = replace(scene, shape=tuple(n * cells // scene.cells for n in scene.shape), cells=cells)
        grid = coarse.case(start=np.zeros((scene.ndim, *coarse.shape))).grid
        solid = coarse.solid(np.ix_(*(grid.points(axis, periodic=False) for axis in range(scene.ndim))))
        sizes = [solid.any(tuple(set(range(scene.ndim)) - {axis})).sum() / cells for axis in range(scene.ndim)]
        assert sizes == list(scene.block)


def test_a_section_on_coarser_cells_keeps_what_they_hold_and_smooth_values(staggered):
    on_coarser = staggered[0].on_coarser
    values = np.random.default_rng(0).random((6, 4))
    np.testing.assert_allclose(on_coarser(values, (2, 4)), values.reshape(2, 3, 4).mean(1))
    fine, coarse = (np.sin(3 * (np.arange(n) + 0.5) / n) for n in (100, 80))
    np.testing.assert_allclose(on_coarser(fine, (80,)), coarse, atol=1e-6)


def test_classical_solvers_take_shorter_steps_as_long_as_these_are_more_accurate(loaded, monkeypatch):
    classical, problem = loaded("staggered.classical"), loaded("staggered.training").PROBLEMS["P5"]
    computed = []

    def rival(name, error):
        return classical.Rival(name, lambda: computed.append(name) or error, lambda batch: 1.0)

    tried = {"8, dt 4": np.nan, "8, dt 3": 0.4, "8, dt 2": 0.2, "8, dt 1": 0.19, "8, dt 0.5": 0.1, "16, dt 4": 0.02}
    monkeypatch.setattr(classical, "rivals", lambda *_: [rival(*item) for item in tried.items()])
    found = [one.name for one, _ in classical.usable(problem, "cpu")]
    assert found == ["8, dt 3", "8, dt 2", "16, dt 4"] and "8, dt 0.5" not in computed
    known = {f"P5: 8, dt 3: {problem.judged}": {"value": 0.3}}
    for more, names in ((False, ["8, dt 3"]), (True, found)):
        computed.clear()
        assert [one.name for one, _ in classical.usable(problem, "cpu", known=known, more=more)] == names
        assert "8, dt 3" not in computed and bool(computed) is more


def test_classical_solvers_have_names_of_their_own_and_steps_that_end_with_the_trajectory(loaded):
    classical, training = loaded("staggered.classical"), loaded("staggered.training")
    for problem in training.PROBLEMS.values():
        names = [rival.name for rival in classical.rivals(problem, "cuda")]  # nothing runs before it is asked for
        assert names and len(set(names)) == len(names), problem.name
    assert all(abs(round(classical.END / dt) * dt - classical.END) < 1e-9 for dt in classical.LADDER)


def test_whatever_a_network_gives_is_read_without_divergence_and_at_rest_on_the_block(staggered):
    channel, *_ = staggered
    scene = channel.CHANNELS["P5, 60 x 20"]
    window = scene.start_windows("", 1, 1, "cpu", 3, torch.ones(1)).double()
    window[:, :, :2] += torch.randn(1, 1, 2, *scene.shape, generator=torch.Generator().manual_seed(0))
    flow = scene.velocity(window)
    residual = scene.potential.residual
    assert divergence(residual.padded(flow, Parameters({}), 0.0), scene.potential.spacing).abs().max() < 1e-10
    assert not (flow[:, 0].numpy() * (1 - residual.grid.free)).any()


def test_what_goes_into_a_projected_network_again_is_a_flow_with_its_pressure(staggered):
    channel, _, training = staggered
    scene = channel.CHANNELS["P5, 60 x 20"]
    row = training.Row(scene.name, 2, "projected", "steps", shared=True)
    network = training.network_of(row, scene, 0, "cpu").double()
    generator = torch.Generator().manual_seed(0)
    for values in network.parameters():
        values.data += 0.05 * torch.randn(values.shape, generator=generator)
    window = scene.start_windows("", 1, 1, "cpu", 3, torch.tensor([0.5])).double().requires_grad_(True)
    new, residual, inflow = network.eval()(window), scene.potential.residual, window[:, :, -1]
    flow = torch.movedim(new[:, :, :2], 2, 0) + scene.base_like(new)
    padded = residual.padded(flow[:, 0].detach(), Parameters({}), 0.0)
    assert divergence(padded, scene.potential.spacing).abs().max() < 1e-10
    pressure = scene.solver("cpu", torch.float64).slope(flow, 1 / (scene.reynolds * inflow[..., :1, :1]))[1]
    torch.testing.assert_close(new[:, :, 2], pressure)
    assert torch.equal(new[:, :, 3], inflow)
    for changed in (new, network.train()(window)):  # in training no gradient goes through the pressure
        (slope,) = torch.autograd.grad(changed[:, :, 2].square().sum(), window)
        assert bool(slope.any()) is (changed is new)


def test_the_stabilised_method_is_of_second_order_where_the_classical_one_is_not_stable(staggered):
    channel, mac_steps, _ = staggered
    scene = slow_block(channel)
    residual, viscosity = MacResidual(scene.case(start=scene.base), solid=scene.solid), 0.2
    start = torch.tensor(scene.base)[:, None]
    exact = mac_steps.StaggeredSteps(residual, p=Parameters({}), device="cpu", dtype=torch.float64)
    wanted = exact.advanced(start, 0.01, viscosity, 40)
    assert exact.advanced(start, 0.1, viscosity, 4).abs().max() > 1e3
    steps = mac_steps.StaggeredSteps(residual, p=Parameters({}), device="cpu", dtype=torch.float64, stages=5)
    errors = [float((steps.advanced(start, 0.4 / n, viscosity, n) - wanted).norm()) for n in (8, 16)]
    assert 1.7 < np.log2(errors[0] / errors[1]) < 2.6, errors


def test_common_layers_have_no_effect_before_they_have_learned(staggered):
    channel, _, training = staggered
    scene = channel.CHANNELS["P5, 60 x 20"]
    window = scene.start_windows("", 1, 1, "cpu", 3, torch.ones(1))
    found = []
    for common in (0, 4):
        row = training.Row(scene.name, 2, "projected", "steps", shared=True, common=common)
        found.append(training.network_of(row, scene, 0, "cpu").eval()(window))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


@pytest.mark.parametrize("still", [1e-3, 1e-1])
def test_standing_still_is_as_wrong_as_the_flow_changes_for_errors_in_units_of_the_change(staggered, still):
    channel, *_ = staggered
    scene = replace(channel.CHANNELS["P5, 60 x 20"], still=still)
    plain, by_change = (replace(scene, still=s).equation("steps", "cpu") for s in (0.0, still))
    old = scene.start_windows("", 1, 2, "cpu", 3, torch.tensor([0.5, 1.0]))
    size = plain.size(old).square().flatten(1).mean(1)
    unweighed = channel.ChannelSteps(scene, "cpu", weighed=False).correction(old, old, 0.0, scene.frame)
    change = unweighed.square().flatten(1).mean(1) / size
    wrong, found = (
        e.correction(old, old, 0.0, scene.frame).square().flatten(1).mean(1) / size for e in (plain, by_change)
    )
    torch.testing.assert_close(found, wrong / (change + still**2))


def test_errors_that_last_count_for_more_in_training_and_what_alternates_does_not(staggered):
    channel, *_ = staggered
    scene = channel.CHANNELS["P5, 60 x 20"]
    old = scene.start_windows("", 1, 1, "cpu", 3, torch.ones(1))
    uniform, alternating = torch.zeros(2, *old.shape)
    uniform[:, :, 0], alternating[:, :, 0, ::2], alternating[:, :, 0, 1::2] = 1e-2, 1e-2, -1e-2
    told, judged = scene.equation("steps", "cpu"), channel.ChannelSteps(scene, "cpu", weighed=False)
    for wrong, factor in ((uniform, 3.0), (alternating, 1.0)):
        found, plain = (
            e.correction(old, old + wrong, 0.0, 0.2) - e.correction(old, old, 0.0, 0.2) for e in (told, judged)
        )
        torch.testing.assert_close(found, factor * plain, rtol=0, atol=1e-6)


def two_starts_past_a_block(staggered):
    """Return the short channel, its flow at two inflows, and the steps that judge it."""
    channel, *_ = staggered
    scene = channel.CHANNELS["P5, 60 x 20"]
    old = scene.start_windows("", 1, 2, "cpu", 3, torch.tensor([0.5, 1.0]))
    return scene, old, channel.ChannelSteps(scene, "cpu", weighed=False)


def test_the_mirror_image_of_a_step_past_the_block_is_the_step_of_the_mirror_image(staggered, loaded):
    scene, old, steps = two_starts_past_a_block(staggered)
    mirrored = loaded("staggered.channel_pool").mirrored
    new = old.clone()
    new[:, :, :-1] -= steps.correction(old, old, 0.0, scene.frame)
    image = mirrored(old, 1, 2)
    assert float((image - old).abs().max()) > 1e-2
    torch.testing.assert_close(mirrored(image, 1, 2), old, rtol=0, atol=1e-6)
    left = steps.correction(image, mirrored(new, 1, 2), 0.0, scene.frame)
    torch.testing.assert_close(left, torch.zeros_like(left), rtol=0, atol=2e-5)


def test_a_window_is_graded_as_one_roll_out_of_the_solver_from_the_frame_before_it(staggered, loaded):
    scene, old, steps = two_starts_past_a_block(staggered)
    unrolled = loaded("staggered.channel_network").Unrolled

    def solved(window):
        step = steps.correction(window, window, 0.0, scene.frame)
        return torch.cat((window[:, :, :-1] - step, window[:, :, -1:]), dim=2)

    found = unrolled(solved, 3)(old.repeat(1, 3, 1, 1, 1))
    torch.testing.assert_close(found[:, :1], solved(old))
    before = torch.cat((old, found[:, :-1]), dim=1)
    wrong = steps.correction(before, found, 0.0, scene.frame)
    assert float(wrong.abs().max()) < 1e-4
    shifted = found.clone()
    shifted[:, 0, 0] += 1e-2  # the frames after it are the solver's own, whatever is in it
    left = steps.correction(torch.cat((old, shifted[:, :-1]), dim=1), shifted, 0.0, scene.frame)
    assert float(left[:, 1:].abs().max()) < 1e-4
    assert float(left[:, 0].abs().max()) > 9e-3


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"))])  # fmt: skip
def test_states_that_a_network_comes_to_by_itself_are_of_its_weights_now_and_no_others(loaded, graph):
    pool, device = loaded("staggered.channel_pool"), "cuda" if graph else "cpu"
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(1, 1, bias=False)).train().to(device)
    alone = pool.left_alone(network, torch.ones(2, 1, device=device), graph=graph)
    network[1].weight.data.fill_(1.01)  # after the step was taken
    starts = torch.tensor([[1.0], [2.0]], device=device)
    found = pool.own_states(alone, starts, 2 * pool.OWN, 3.0)
    grown = 1.01 ** torch.arange(0.0, 2 * pool.OWN + 1, 2, device=device)
    wanted = (grown[:, None] * starts[:, 0]).flatten()  # the starts first, then every other frame of both
    torch.testing.assert_close(found[:, 0], wanted[wanted < 3.0])
    assert len(found) < len(wanted) and network.training and not found.requires_grad


def test_runs_from_several_starts_are_those_from_each(staggered):
    channel, *_ = staggered
    scene = channel.CHANNELS["P5, 60 x 20"]
    starts = [scene.start_windows("", 1, 1, "cpu", seed, torch.ones(1)) for seed in (1_000_000, 3)]
    together = scene.runs_on("cpu", 5, torch.cat(starts))
    for run, alone in zip(together, (scene.solved_on("cpu", 5), scene.runs_on("cpu", 5, starts[1])[0]), strict=True):
        for name, series in alone.items():
            np.testing.assert_allclose(run[name], series, rtol=0, atol=1e-4 * np.abs(series).max())
    assert np.abs(together[0]["across"] - together[1]["across"]).max() > 1e-3
