"""Blocks that two threads put in their place: each once, and the step as one thread would have made it."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest

from headrace.online_training.assembly import Box, StepAssembly
from headrace.online_training.client import checksum_of
from headrace.online_training.placing import Helper, Placement


def test_a_block_is_put_in_its_place_once_whoever_comes_first() -> None:
    calls: list[int] = []

    def work(number: int) -> tuple[int, bool]:
        calls.append(number)
        return number, True

    helper = Helper()
    placements = [Placement(partial(work, number)) for number in range(200)]
    for placement in placements:
        helper.offer(placement)
    assert [placement.result() for placement in reversed(placements)] == [(n, True) for n in reversed(range(200))]
    helper.close()
    assert sorted(calls) == list(range(200))
    assert all(placement.done and not placement.run() for placement in placements)


def test_what_goes_wrong_in_the_helper_is_raised_where_the_block_is_finished() -> None:
    def fail() -> tuple[int, bool]:
        raise ValueError("no such place")

    helper, placement = Helper(), Placement(fail)
    helper.offer(placement)
    helper.close()
    with pytest.raises(ValueError, match="no such place"):
        placement.result()


@pytest.mark.parametrize("checksum", ["xxh3", "crc32"])
def test_a_step_that_two_threads_put_together_is_the_same(checksum: str) -> None:
    step = np.random.default_rng(0).random((1, 32, 16384), np.float32)
    rows = [(4 * n, step[0, 4 * n : 4 * n + 4].ravel()) for n in range(8)]
    for start in range(8):
        assembly = StepAssembly(np.zeros_like(step), step.size, 0.0)
        order = rows[start:] + rows[:start]
        placements = [
            Placement(partial(assembly.place, Box(0, 1, (first, 0), (4, 16384)), values, checksum))
            for first, values in order
        ]
        other = threading.Thread(target=lambda ones: [one.run() for one in ones], args=(placements,))
        other.start()
        for placement in reversed(placements):
            placement.run()
        other.join()
        found = [placement.result() for placement in placements]
        assert found == [(checksum_of(values, checksum), True) for _, values in order]
        assert np.array_equal(assembly.target, step)
        assert assembly.checksum() == checksum_of(step, "xxh3")
