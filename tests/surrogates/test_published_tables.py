"""The published tables made again: their errors, their data and their schedule."""

import numpy as np
import pytest
import torch

from headrace.cases import mixed1d


@pytest.fixture(scope="module")
def tables(loaded):
    return loaded("tables")


def test_the_accumulated_error_sums_squares_over_time_after_the_frames_that_are_given(tables):
    states = torch.zeros(2, 80, 1, 100)
    # Persistence of frame 49: 30 frames follow, each off by 1 in one run and by 2 in the other.
    states[0, 50:], states[1, 50:] = 1.0, 2.0
    data = tables.data.Trajectories(states=states, times=torch.arange(80.0), parameters=torch.zeros(2, 0))
    assert tables.error(tables.TABLES["e1"], 25, data, None) == pytest.approx(30 * (1 + 4) / 2)


def test_the_relative_error_is_taken_over_space_and_time_of_each_run(tables):
    states = torch.ones(1, 14, 1, 4, 4)
    states[:, 10:] *= 2
    data = tables.data.Trajectories(states=states, times=torch.arange(14.0), parameters=torch.zeros(1, 0))
    assert tables.error(tables.TABLES["ns-1e-5"], 10, data, None) == pytest.approx(0.5)


def test_states_of_e1_are_means_of_five_points_and_begin_with_the_forcing(tables):
    found = tables.data.mixed("e1", 2, seed=5, device="cpu", frames=2)
    rng, x = np.random.default_rng(5), np.arange(200) * 0.08
    for state in found.states[:, 0, 0]:
        p = mixed1d.e1.draw(rng.random(len(mixed1d.e1.parameters)))
        fine = mixed1d.forcing(x, p, 0.0)
        mean = sum(np.roll(fine, shift) for shift in range(-2, 3)) / 5
        assert np.allclose(state, mean[::2], atol=1e-6)
    assert found.times.tolist() == pytest.approx([0.0, 4 / 249])


def test_rates_rise_and_fall_to_zero(tables):
    plan = tables.TABLES["e3"].plan
    rates = [plan.rate_at(done) for done in (0.0, 0.01, 0.02, 0.51, 1.0)]
    assert rates == pytest.approx([0.0, 5e-4, 1e-3, 5e-4, 0.0], abs=1e-8)


def test_a_bundle_after_a_free_one_is_the_end_of_a_roll_out(tables):
    table = tables.TABLES["e1"]
    draw = torch.Generator().manual_seed(0)
    seen = tables.data.Trajectories(
        states=torch.randn(3, 75, 1, 100, generator=draw), times=torch.arange(75.0) / 62, parameters=torch.zeros(3, 0)
    )
    network = tables.prepared(table, seen, 0, quick=True)
    torch.nn.init.normal_(network.network.output.weight, std=0.1, generator=draw)
    _, pushed = tables.losses(table, network, seen)[0]
    found = network.predict(seen.states[:, :25], seen.parameters, seen.times[25:])
    squares = ((found - seen.states[:, 25:]) / network.normaliser.std).square()[:, 25:]
    torch.testing.assert_close(pushed(torch.arange(3)), squares.flatten(1).mean(1).sqrt())


def test_a_training_that_was_put_aside_goes_on_as_if_it_had_not_been(tables, tmp_path):
    points = torch.linspace(-1, 1, 12)

    def fresh():
        torch.manual_seed(0)
        network = torch.nn.Linear(1, 1)
        loss = lambda index: (network(points[index, None])[:, 0] - points[index] ** 2).square()  # noqa: E731
        return network, tables.Run(network, [loss], len(points), tables.Plan(batch=5, warm=0.2), seed=0)

    def steps(run, some):
        for step in some:
            run.steps[run.draw(step / 20)]()

    expected, run = fresh()
    steps(run, range(14))
    before = fresh()[1]
    steps(before, range(7))
    before.seconds = 3.5
    torch.save(before.state(), tmp_path / "aside.pt")
    found, after = fresh()
    after.go_on(torch.load(tmp_path / "aside.pt", weights_only=True))
    assert (after.step, after.seconds) == (7, 3.5)
    steps(after, range(7, 14))
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.bias, expected.bias)
