"""Surrogates whose loss needs no target, but single states or parameters alone, in the same trainer."""

from pathlib import Path

import numpy as np
import pytest

from headrace.cases.generate_command import generate_data_set
from headrace.cases.models import make_model
from headrace.online_training import Study
from headrace.online_training.audit import audit
from headrace.online_training.field_statistics import FieldStatistics
from headrace.online_training.ledger import Ledger
from headrace.solvers.case_file import CaseReference

CASE = CaseReference.of(Path(__file__).with_name("physics_case.py"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("physics") / "data"
    assert generate_data_set(CASE, simulations=16, held_out=4, folder=folder, seed=0, sampler="sobol", jobs=1,
                             plain=True) == 0  # fmt: skip
    return folder


@pytest.mark.parametrize(("name", "error"), [("Stagger", 0.03), ("Points", 0.15)])
def test_a_surrogate_without_targets_is_trained_and_validated(name, error, data, tmp_path, validated_at_the_end):
    surrogate = getattr(CASE.load_module(), name)()
    result = Study(CASE, surrogate, run_dir=tmp_path / "run", offline=str(data), views=100, learning_rate=1e-2).run()
    # Windows are single states, so every one of the eleven is drawn, the last one too.
    assert surrogate.window == 1
    assert result.status == "finished" and result.validation["nrmse"] < error, result.validation


@pytest.mark.ray
def test_it_learns_from_a_live_stream_whose_sampler_follows_it_and_whose_statistics_are_kept(tmp_path, ray_here):
    surrogate = make_model("neuralstagger", ["modes=3", "width=8"])
    result = Study(CASE, surrogate, run_dir=tmp_path / "run", simulations=24, held_out=2, ranks=1, views=60,
                   learning_rate=1e-2, buffer="64KB", sampler="breed", statistics=True).run()  # fmt: skip
    assert result.status == "finished" and result.validation["nrmse"] < 0.05, result.validation
    report = audit(tmp_path / "run")
    assert report.ok and report.counts["simulations planned"] == 26, report.lines
    statistics = FieldStatistics.read(tmp_path / "run" / "statistics.h5")
    assert statistics.count.tolist() == [24] * 11
    # u(0) = a sin 2πx of the very parameters that were drawn, which follow the losses; its zeros have no index.
    known = FieldStatistics(1, (1, 7), ("a", "rate"))
    for number, one in Ledger(tmp_path / "run" / "ledger").simulations.items():
        if not one.held_out:
            a, rate = one.parameters["a"], one.parameters["rate"]
            known.add(number, 0, np.array([a - 0.5, rate]), a * np.sin(2 * np.pi * np.arange(1, 8) / 16)[None])
    np.testing.assert_allclose(statistics.sobol()[:, :1, :, 1:8], known.sobol(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(statistics.mean[:1, :, 1:8], known.mean, rtol=1e-5)
    assert list((tmp_path / "run" / "losses").glob("*.log"))
