"""Blocks that two threads put in their place: each once, and the step as one thread would have made it."""

from __future__ import annotations

import threading
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.online_training.assembly import Box, StepAssembly
from headrace.online_training.client import (
    BY_INDEX,
    DTYPE_CODES,
    PAYLOAD_SIGNED,
    Connection,
    Header,
    Kind,
    Link,
    checksum_of,
    pieces,
)
from headrace.online_training.placing import Helper, Placement
from headrace.online_training.solver_desk import SolverDesk
from tests.online_training.intake_setup import PATIENCE, make_layout, plan, running_intake, use_environment, wait_until
from tests.online_training.raw_link import next_of, solver_link

SHAPE, STEPS = (512, 512), 6
CELLS = 512 * 512
HELPERS = {
    "helped": lambda helper, placement: placement.run(), "alone": lambda helper, placement: None, "as it comes": None
}  # fmt: skip


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


def step_of(step: int) -> np.ndarray:
    return np.random.default_rng(step).random(SHAPE, np.float32)


def solve(rank: int) -> None:
    """Be one of two ranks, which own half of the rows each."""
    rows = slice(256 * rank, 256 * rank + 256)
    with Connection({"u": SHAPE}, SimpleNamespace(rank=rank, size=2)) as connection:
        for stream in connection.simulations():
            for step in range(STEPS):
                stream.send(step=step, time=0.0, values=step_of(step)[None, rows], where=(rows, slice(0, 512)))


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def solve_all(intake) -> None:
    """Let both ranks run what is planned, and see that it lies in the reservoir."""
    threads = [threading.Thread(target=solve, args=(rank,), daemon=True) for rank in range(2)]
    run_all(threads)
    status, slots = intake.status(), intake.settings.buffer.slots
    assert status["done"] == 1 and status["steps_accepted"] == STEPS and status["error"] is None
    for step in range(STEPS):
        assert np.array_equal(intake.settings.memory.array[slots[0, step], 0], step_of(step))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("helper", HELPERS)
def test_large_blocks_of_two_ranks_arrive_as_they_were_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str, helper: str
) -> None:
    if HELPERS[helper] is not None:
        monkeypatch.setattr(Helper, "offer", HELPERS[helper])
    layout = make_layout(shape=SHAPE, num_steps=STEPS, window=1)
    with running_intake(tmp_path, layout, slots=STEPS, transport=transport) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        solve_all(intake)
        assert intake.status()["rejected"] == {} and intake.status()["duplicates"] == 0


def test_cells_that_two_ranks_own_are_named_while_a_block_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank names all cells: the step is complete with the first block, while the other is on its way."""
    arrived, arrive = [], SolverDesk._arrive

    def arrive_together(desk: SolverDesk, *one: Any) -> None:
        arrived.append(one)
        if len(arrived) == 2:
            for each in arrived:
                arrive(desk, *each)
            desk._finish()  # as a message of another kind has it

    monkeypatch.setattr(Helper, "offer", HELPERS["alone"])
    monkeypatch.setattr(SolverDesk, "_arrive", arrive_together)
    with running_intake(tmp_path, make_layout(shape=SHAPE, num_steps=1, window=1), slots=1, transport="tcp") as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        links = [solver_link(intake, "1-0001", rank, 2) for rank in range(2)]
        for link in links:
            send_all_cells(link)
            link.send(Kind.REQUEST, value=1)
        assert all(next_of(link, Kind.CREDIT) for link in links)
        payload = step_of(0).tobytes()
        for rank, link in enumerate(links):
            header = Header(
                Kind.BLOCK, attempt=1, dtype=1, block=rank, num_blocks=2, global_shape=(CELLS,), offset=(0,),
                block_shape=(CELLS,), payload_length=len(payload), checksum=zlib.crc32(payload), value=1,
                flags=BY_INDEX,
            )  # fmt: skip
            link.send_block(header, payload)
        wait_until(lambda: intake.status()["quarantined"])
        assert intake.status()["quarantined"][0]["reason"] == "the blocks of step 0 overlap"
        assert intake.status()["error"] is None
        for link in links:
            link.close()


@pytest.mark.parametrize("helper", HELPERS)
def test_damage_to_one_of_many_costs_the_attempt_and_no_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helper: str
) -> None:
    """Eight blocks come at once, the fourth is damaged; the next attempt needs every slot there is."""
    if HELPERS[helper] is not None:
        monkeypatch.setattr(Helper, "offer", HELPERS[helper])
    layout = make_layout(shape=SHAPE, num_steps=STEPS, window=1)
    with running_intake(tmp_path, layout, slots=STEPS, transport="tcp") as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        links = [solver_link(intake, "1-0001", rank, 2) for rank in range(2)]
        for link in links:
            link.send(Kind.REQUEST, value=1)
        assert all(next_of(link, Kind.CREDIT) for link in links)
        with intake._lock:
            for step in range(4):
                for rank, link in enumerate(links):
                    send_half(link, step, rank, damaged=(step, rank) == (1, 1))
        wait_until(lambda: intake.status()["rejected"].get("checksum") == 1)
        assert intake.status()["queued"] == 1 and intake.status()["steps_accepted"] <= 1
        assert all(next_of(link, Kind.END) is None and link.lost for link in links), "both are told to join again"
        for link in links:
            link.close()
        solve_all(intake)


def send_all_cells(link: Link) -> None:
    """Name every cell as the rank's own."""
    numbers = np.arange(CELLS, dtype="<i8")
    for (piece,) in pieces(numbers.shape, numbers.itemsize):
        payload = numbers[piece].tobytes()
        header = Header(
            Kind.CELLS, dtype=DTYPE_CODES["int64"], global_shape=(CELLS,), offset=(piece.start,),
            block_shape=(len(payload) // 8,), payload_length=len(payload), checksum=zlib.crc32(payload),
            flags=PAYLOAD_SIGNED,
        )  # fmt: skip
        link.send_block(header, payload)


def send_half(link: Link, step: int, rank: int, *, damaged: bool) -> None:
    rows = step_of(step)[256 * rank : 256 * rank + 256]
    payload = rows.tobytes()
    header = Header(
        Kind.BLOCK, attempt=1, dtype=1, step=step, block=rank, num_blocks=2, global_shape=SHAPE,
        offset=(256 * rank, 0), block_shape=rows.shape, payload_length=len(payload),
        checksum=zlib.crc32(payload) ^ damaged, value=1,
    )  # fmt: skip
    link.send_block(header, payload)
