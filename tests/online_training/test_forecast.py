"""The forecast of a study: what it counts, and that its longest part is what limits it."""

from dataclasses import replace

import pytest

from headrace.online_training.forecast import INTAKE_BYTES_PER_SECOND, Costs, forecast
from headrace.online_training.layout import StreamLayout
from headrace.online_training.settings import StudySettings

LAYOUT = StreamLayout(fields=("u", "v"), shape=(50, 20), num_steps=11, window=2)
SETTINGS = StudySettings(
    simulations=90, held_out=10, jobs=5, ranks=4, views=3, batch_size=30, buffer="1GB", scheduler="slurm"
)
COSTS = Costs(simulation=2.0, batch=0.5, rank_bytes=1e8, model_bytes=1e6)


def test_a_study_is_as_long_as_its_longest_part() -> None:
    needs = forecast(LAYOUT, SETTINGS, COSTS)
    step = 2 * 50 * 20 * 4
    assert needs.streamed == 100 * 11 * step
    assert needs.seconds == {
        "solvers": 20 * 2.0, "intake": needs.streamed / INTAKE_BYTES_PER_SECOND, "trainer": 90 * 10 * 3 / 30 * 0.5,
    }  # fmt: skip
    assert needs.limit == "trainer" and needs.total_seconds == 45.0
    assert needs.rate == pytest.approx(needs.streamed / 45.0)
    # 100 simulations of 2 s beside 45 s of training: five jobs, four would be too few.
    assert needs.jobs_enough == 5
    slow = forecast(LAYOUT, SETTINGS, replace(COSTS, simulation=20.0))
    assert slow.limit == "solvers" and slow.total_seconds == 400.0 and slow.jobs_enough == 45


def test_memory_and_storage_are_counted_by_part() -> None:
    needs = forecast(LAYOUT, SETTINGS, COSTS)
    step = 2 * 50 * 20 * 4
    assert needs.memory["reservoir (shared memory)"] == 90 * 11 * step  # never more than there will be
    assert needs.memory["solvers"] == 5 * 4 * 1e8
    assert needs.memory["rings (shared memory)"] == 0
    assert needs.storage["held-out simulations"] == 10 * 11 * 2 * step
    small = forecast(LAYOUT, SETTINGS.model_copy(update={"buffer": "1MB", "scheduler": "local"}), COSTS)
    assert small.memory["reservoir (shared memory)"] == 1e6
    assert small.memory["rings (shared memory)"] == 20 * 16 * 2**20
    more = forecast(LAYOUT, SETTINGS.model_copy(update={"workers": 2}), COSTS)
    assert more.memory["trainer"] - needs.memory["trainer"] == pytest.approx(450e6 + 4e6)
    # A batch has 30 windows of two steps of 8,000 bytes: 34 are 16 MiB, and twice as many and four are in memory.
    feeders = forecast(LAYOUT, SETTINGS, COSTS, on_gpus=True).memory["feeders"]
    assert "feeders" not in needs.memory and feeders == pytest.approx(21e6 + (2 * 34 + 4) * 30 * 2 * step, rel=0.01)


def test_solvers_and_trainer_share_the_cores_of_one_node() -> None:
    """100 simulations of 2 s on 4 ranks and 45 s of training are 845 core seconds, of which 8 cores do 8 a second."""
    local, shared = SETTINGS.model_copy(update={"scheduler": "local"}), replace(COSTS, cores=8)
    needs = forecast(LAYOUT, local, shared)
    assert needs.limit == "cores of this node" and needs.total_seconds == 845.0 / 8
    assert "cores of this node" not in forecast(LAYOUT, SETTINGS, shared).seconds


def test_workers_on_other_nodes_draw_over_the_network() -> None:
    assert forecast(LAYOUT, SETTINGS, COSTS).fetched == 0
    apart = SETTINGS.model_copy(update={"workers": 4, "spread_workers": True})
    assert forecast(LAYOUT, apart, COSTS).fetched == 90 * 10 * 3 * 2 * (2 * 50 * 20 * 4) * 3 / 4


def test_a_cost_must_be_positive() -> None:
    with pytest.raises(ValueError, match="seconds of a batch must be a positive number; got 0"):
        forecast(LAYOUT, SETTINGS, replace(COSTS, batch=0.0))
