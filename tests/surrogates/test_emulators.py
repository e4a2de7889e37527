"""The comparison on APEBench: its metric, its ranks, and what is read of its own side, without JAX."""

import json
import math

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def emulators(loaded):
    return loaded("emulators")


def test_errors_are_relative_to_each_sample_and_step_and_summed_over_fields(emulators):
    truth = torch.ones(2, 3, 2, 8) * torch.tensor([1.0, 10.0]).reshape(1, 1, 2, 1)
    found = truth.clone()
    found[0, 1] *= 1.5
    found[1, 1, 0] *= 3.0
    # Of the first sample both fields are off by 1/2, of the second one field by 2.
    assert emulators.mean_nrmse(found, truth).tolist() == pytest.approx([0.0, (0.5 + 0.5 + 2.0) / 2, 0.0])


def test_the_aggregate_is_a_geometric_mean_and_infinite_for_roll_outs_that_blew_up(emulators):
    errors = torch.full((150,), 1.0)
    errors[:100] = torch.tensor([0.01, 1.0]).repeat(50)
    assert emulators.aggregate(errors) == pytest.approx(0.1)
    assert emulators.aggregate(torch.tensor([0.1, math.nan])) == math.inf


def test_ranks_are_means_over_scenarios_and_ties_share_theirs(emulators):
    errors = {"a": {"x": 1.0, "y": 2.0, "z": 2.0}, "b": {"x": 4.0, "y": 1.0, "z": math.inf}}
    found = emulators.ranks(errors)
    assert found["x"] == pytest.approx((1.5, 2.0))
    assert found["y"] == pytest.approx((1.75, math.sqrt(2)))
    assert found["z"] == (2.75, math.inf)


def test_trajectories_are_read_without_executing_anything(emulators, tmp_path):
    path = tmp_path / "waves-1d.npz"
    np.savez(path, train=np.zeros((2, 3, 1, 8), np.float32), test=np.zeros((1, 150, 1, 8), np.float32))
    scenario = emulators.Scenario.read(path, "cpu")
    assert scenario.name == "waves-1d" and scenario.ndim == 1 and scenario.test.shape[1] == 101
    np.savez(path, train=np.array([{}], dtype=object), test=np.zeros(1))
    with pytest.raises(ValueError, match="pickle"):
        emulators.Scenario.read(path, "cpu")


def test_errors_that_apebench_found_become_lines_of_their_networks(emulators, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADRACE_RESULTS", str(tmp_path))
    for seed, error in enumerate((0.1, 0.4, 0.2)):
        score = {"scenario": "waves-1d", "network": "Res;26;8;relu", "seed": seed, "errors": [error] * 200,
                 "weights": 9, "steps": 10, "seconds": 1.0, "device": "a GPU", "jax": "0.4"}  # fmt: skip
        (tmp_path / f"waves-1d-Res_26_8_relu-{seed}.score.json").write_text(json.dumps(score))
    report = emulators.Report("emulators")
    judge = emulators.Judge(emulators.parsed([str(tmp_path)]), report)
    judge.read_rivals(tmp_path)
    judge.conclude()
    values = {line["name"]: line["value"] for line in report.lines}
    assert values["median waves-1d Res"] == pytest.approx(0.2)
    assert values["final waves-1d Res seed 1"] == pytest.approx(0.4)
    assert values["rank Res"] == 1.0


def test_networks_trained_side_by_side_end_as_those_trained_alone(emulators):
    data, plan = emulators.wave_scenario().train, emulators.Plan(batch=4, warm=0.4)
    candidate = emulators.Candidate(make=lambda: emulators.ConvNet(width=4, blocks=1, stepping=emulators.DELTA))

    def run(seed):
        surrogate, step = emulators.prepared(candidate, data, seed)
        losses, windows = [emulators.one_step(step, data)], len(data) * (data.shape[1] - 1)
        return surrogate, emulators.Run(surrogate, losses, windows, plan, seed=seed)

    together, alone = [run(seed) for seed in (0, 1)], [run(seed) for seed in (0, 1)]
    emulators.SideBySide([training for _, training in together]).train(5)
    for (one, _), (other, training) in zip(together, alone, strict=True):
        training.train(5)
        for mine, its in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(mine, its)
