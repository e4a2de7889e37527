"""The comparison on APEBench: its metric, its ranks, and its networks rewritten, without JAX."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks():
    """Return the benchmark's modules, whose folder is no package."""
    sys.path.insert(0, str(FOLDER))
    try:
        import emulators
        from rivals import apebench_networks
    finally:
        sys.path.remove(str(FOLDER))
    return emulators, apebench_networks


def test_errors_are_relative_to_each_sample_and_step_and_summed_over_fields(benchmarks):
    truth = torch.ones(2, 3, 2, 8) * torch.tensor([1.0, 10.0]).reshape(1, 1, 2, 1)
    found = truth.clone()
    found[0, 1] *= 1.5
    found[1, 1, 0] *= 3.0
    # Of the first sample both fields are off by 1/2, of the second one field by 2.
    assert benchmarks[0].mean_nrmse(found, truth).tolist() == pytest.approx([0.0, (0.5 + 0.5 + 2.0) / 2, 0.0])


def test_the_aggregate_is_a_geometric_mean_and_infinite_for_roll_outs_that_blew_up(benchmarks):
    emulators = benchmarks[0]
    errors = torch.full((150,), 1.0)
    errors[:100] = torch.tensor([0.01, 1.0]).repeat(50)
    assert emulators.aggregate(errors) == pytest.approx(0.1)
    assert emulators.aggregate(torch.tensor([0.1, math.nan])) == math.inf


def test_ranks_are_means_over_scenarios_and_ties_share_theirs(benchmarks):
    errors = {"a": {"x": 1.0, "y": 2.0, "z": 2.0}, "b": {"x": 4.0, "y": 1.0, "z": math.inf}}
    found = benchmarks[0].ranks(errors)
    assert found["x"] == pytest.approx((1.5, 2.0))
    assert found["y"] == pytest.approx((1.75, math.sqrt(2)))
    assert found["z"] == (2.75, math.inf)


@pytest.mark.parametrize(
    ("config", "count"),
    # As APEBench 0.1.1 counts them.
    [("Conv;34;10;relu", 31_757), ("Res;26;8;relu", 32_943), ("UNet;12;2;relu", 27_193), ("Dil;2;32;2;relu", 31_777)],
)
def test_rewritten_networks_have_the_weights_of_the_originals_and_commute_with_shifts(benchmarks, config, count):
    torch.manual_seed(0)
    network, shift = benchmarks[1].network(config, 1, 1), 4
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    x = torch.randn(2, 1, 32)
    with torch.no_grad():
        assert torch.allclose(network(x).roll(shift, -1), network(x.roll(shift, -1)), atol=1e-5)


def test_a_transposed_convolution_puts_zeros_between_the_points(benchmarks):
    doubled = benchmarks[1].Doubled(1, 1, 1)
    x, (a, b, c) = torch.randn(1, 1, 6), doubled.weight.detach()[0, 0]
    z = torch.zeros(12)
    z[::2] = x[0, 0]
    expected = a * z.roll(1) + b * z + c * z.roll(-1) + doubled.bias.detach()
    assert torch.allclose(doubled(x).detach()[0, 0], expected, atol=1e-6)


def test_weights_of_another_network_are_refused(benchmarks):
    network = benchmarks[1].network("Conv;4;2;relu", 1, 1)
    with pytest.raises(ValueError, match="other sizes"):
        benchmarks[1].load(network, [np.zeros(3)])


def test_trajectories_are_read_without_executing_anything(benchmarks, tmp_path):
    path = tmp_path / "waves-1d.npz"
    np.savez(path, train=np.zeros((2, 3, 1, 8), np.float32), test=np.zeros((1, 150, 1, 8), np.float32))
    scenario = benchmarks[0].Scenario.read(path, "cpu")
    assert scenario.name == "waves-1d" and scenario.ndim == 1 and scenario.test.shape[1] == 101
    np.savez(path, train=np.array([{}], dtype=object), test=np.zeros(1))
    with pytest.raises(ValueError, match="pickle"):
        benchmarks[0].Scenario.read(path, "cpu")
