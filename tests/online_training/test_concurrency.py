"""The number of running simulations follows what trainer and solvers wait for."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.online_training.concurrency import Concurrency
from headrace.online_training.settings import StudySettings


class Plant:
    """A trainer that could use the samples of `need` simulations, and solvers that share the time they wait."""

    def __init__(self, need: float) -> None:
        self.need, self.now, self.batch = need, 0.0, 0
        self.status = {"blocked_seconds": 0.0, "solver_seconds": 0.0, "watermark_reached": True, "queued": 9}

    def second(self, concurrency: Concurrency) -> None:
        """Let a second pass, and tell the controller of it."""
        running = concurrency.limit
        self.now += 1.0
        self.batch += 1
        self.status["solver_seconds"] += running
        self.status["blocked_seconds"] += running * max(0.0, 1 - self.need / running)
        trainer = {"batch": self.batch, "starved": max(0.0, 1 - running / self.need)}
        concurrency.follow(self.status, trainer, self.now)


@given(need=st.floats(0.1, 40), least=st.integers(1, 6), more=st.integers(0, 30), start=st.integers(0, 30))
def test_it_settles_where_neither_side_waits_much_and_stays_there(need, least, more, start) -> None:
    most = least + more
    concurrency, plant = Concurrency(least, most, period=2.0), Plant(need)
    concurrency.limit = min(most, least + start)
    seen = []
    for _ in range(200):
        plant.second(concurrency)
        seen.append(concurrency.limit)
    assert all(least <= limit <= most for limit in seen)
    settled = seen[-1]
    assert seen[100:] == [settled] * 100, "no hunting"
    assert settled == most or settled >= 0.9 * need - 1e-9, "the trainer waits for a tenth of its time at most"
    assert settled == least or settled <= math.ceil(need + 0.2) + 1, "and no more than that run"


def test_it_hurries_to_the_watermark_and_leaves_the_last_simulations_alone() -> None:
    concurrency = Concurrency(1, 8, period=1.0)
    status = {"blocked_seconds": 0.0, "solver_seconds": 0.0, "watermark_reached": False, "queued": 5}
    assert [concurrency.follow(status, None, float(now)) for now in range(5)] == [False, True, True, True, False]
    assert concurrency.limit == 8
    concurrency = Concurrency(1, 8, period=1.0)
    assert not any(concurrency.follow({**status, "queued": 0}, None, float(now)) for now in range(5))


def test_old_news_of_the_trainer_counts_once() -> None:
    concurrency = Concurrency(1, 8, period=3.0)
    status = {"blocked_seconds": 0.0, "solver_seconds": 0.0, "watermark_reached": True, "queued": 5}
    record = {"batch": 7, "starved": 0.9}
    assert [concurrency.follow(status, record, float(now)) for now in range(7)] == [False] * 3 + [True] + [False] * 3


def test_limits_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="least <= most"):
        Concurrency(3, 2)
    with pytest.raises(ValueError, match="most_jobs is 2, less than jobs, 3"):
        StudySettings(jobs=3, most_jobs=2)
    assert StudySettings(jobs=3).max_running == 3
    assert StudySettings(jobs=3, most_jobs=5).max_running == 5
