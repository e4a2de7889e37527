"""Draws: batches that are asked for together are those asked for one by one; members are drawn as ever."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.online_training.client import WireError
from headrace.online_training.draws import Draws, batch_dtype
from headrace.online_training.reservoir import Reservoir
from headrace.online_training.slot_set import SlotSet
from headrace.online_training.tickets import Tickets

BATCH, RECORDS = 6, batch_dtype(2, 0)


def tabulate(draws: np.ndarray) -> np.ndarray:
    records = np.zeros(len(draws), RECORDS)
    for name in draws.dtype.names:
        records[name] = draws[name]
    return records


def filled(simulations: int = 4, num_workers: int = 1, may_draw=lambda: True) -> Draws:
    """Draws from a reservoir with some simulations of 20 steps, in two shards."""
    buffer = Reservoir(400, 2, seed=4, shards=2)
    for simulation in range(simulations):
        for step in range(20):
            buffer.put(simulation, 1, step, buffer.reserve(simulation))
    draws = Draws(buffer, tabulate, may_draw)
    draws.begin_generation(1, num_workers)
    return draws


def slices(draws: Draws) -> dict[tuple[int, int], list]:
    """All that can be answered now: the records of each (worker, index)."""
    return {
        (answer.worker, answer.index + number): records.tobytes()
        for answer in draws.answers()
        for number, records in enumerate(answer.batches)
    }


@pytest.mark.parametrize("num_workers", [1, 3])
def test_batches_of_one_request_are_those_of_many_and_come_together(num_workers: int) -> None:
    one_by_one, together = filled(num_workers=num_workers), filled(num_workers=num_workers)
    expected = {}
    for index in range(12):
        for worker in range(num_workers):
            one_by_one.ask(index, 1, worker, num_workers, BATCH, RECORDS.itemsize)
        expected |= slices(one_by_one)
    for first in (0, 8):
        for worker in range(num_workers):
            together.ask(first, 8 if first == 0 else 4, worker, num_workers, BATCH, RECORDS.itemsize)
    answers = list(together.answers())
    assert [(answer.worker, answer.index, len(answer.batches)) for answer in answers if answer.worker == 0] == [
        (0, 0, 8), (0, 8, 4)
    ]  # fmt: skip
    found = {
        (answer.worker, answer.index + number): records.tobytes()
        for answer in answers
        for number, records in enumerate(answer.batches)
    }
    assert found == expected and len(found) == 12 * num_workers
    assert together.drawn == together.unreleased == 12 * BATCH


def test_what_must_wait_is_answered_later_and_a_release_counts_once() -> None:
    room = [2 * BATCH]
    draws = filled(may_draw=lambda: draws.drawn < room[0])
    draws.ask(0, 5, 0, 1, BATCH, RECORDS.itemsize)
    (answer,) = draws.answers()
    assert len(answer.batches) == 2 and not list(draws.answers())
    tickets = np.concatenate([records["ticket"] for records in answer.batches])
    firsts = sum(int(records["first"].sum()) for records in answer.batches)
    draws.release(np.concatenate([tickets, tickets, [10**6]]))
    assert (draws.released, draws.unreleased, draws.starts_used) == (2 * BATCH, 0, firsts)
    room[0] = 10**6
    draws.stop()
    assert [(end.index, end.batches) for end in draws.answers()] == [(2, []), (3, []), (4, [])]


def test_batches_of_other_lengths_come_by_themselves() -> None:
    draws = filled(simulations=1)
    draws._buffer.end(0)
    draws._buffer.close()
    draws.ask(0, 6, 0, 1, 5, RECORDS.itemsize)
    # 19 windows, each once: batches of 5, 5, 5 and 4.
    assert [(answer.index, [len(one) for one in answer.batches]) for answer in draws.answers()] == [
        (0, [5, 5, 5]), (3, [4])
    ]  # fmt: skip
    with pytest.raises(WireError, match="draw"):
        draws.ask(2, 4, 0, 1, 5, RECORDS.itemsize)
    draws.ask(5, 60, 0, 1, 5, RECORDS.itemsize)
    with pytest.raises(WireError, match="draw"):
        draws.ask(65, 4, 0, 1, 5, RECORDS.itemsize)


@pytest.mark.parametrize("size", [1, 5, 64, 90, 500, 4096, 5000])
def test_members_are_those_that_the_library_would_draw(size: int) -> None:
    mine, library = random.Random(7), random.Random(7)
    members = SlotSet(range(10, 10 + size), mine)
    for member in range(size):
        members.add(10 + member)
    for counts in ([1], [5], [min(size, 32)], [3, 1, 17, 4], [7] * 9):
        counts = [min(count, size) for count in counts]
        expected = [10 + place for count in counts for place in library.sample(range(size), count)]
        assert members.sample(counts).tolist() == expected
    assert mine.getstate() == library.getstate()


@settings(max_examples=100, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from("adsc"), st.sets(st.integers(5, 24))), max_size=30))
def test_a_set_of_slots_holds_what_a_set_would(changes) -> None:
    mine, there = SlotSet(range(5, 25), random.Random(0)), set()
    for kind, slots in changes:
        if kind == "a":
            for slot in slots:
                mine.add(slot)
            there |= slots
        elif kind == "d":
            mine.discard(slots)
            there -= slots
        elif kind == "s":
            wanted = np.array([slot % 3 > 0 for slot in sorted(slots)], bool)
            mine.settle(np.array(sorted(slots), np.int64), wanted)
            there = (there - slots) | {slot for slot in slots if slot % 3}
        assert len(mine) == len(there) and all((slot in mine) == (slot in there) for slot in range(5, 25))
        if there:
            assert sorted(mine.sample([len(there)]).tolist()) == sorted(there) and mine.choose() in there


def test_tickets_are_out_once_until_they_are_removed_however_many_come() -> None:
    tickets, out, next_ticket, random_numbers = Tickets(), {}, 1, np.random.default_rng(0)
    for turn in range(300):
        new = next_ticket + random_numbers.permutation(int(random_numbers.integers(1, 60)))
        next_ticket += len(new)
        tickets.put(new, new % 7)
        out |= {int(one): int(one) % 7 for one in new}
        here = np.array(sorted(out))
        # Some are asked for twice, some were never out; ticket 1 stays out for a long time.
        asked = random_numbers.choice(np.concatenate([here, here, [0, next_ticket, 10**12, -3]]), 50)
        codes, seen = tickets.look(asked), set()
        for ticket, code in zip(asked.tolist(), codes.tolist(), strict=True):
            assert code == (-1 if ticket in seen else out.get(ticket, -1))
            seen.add(ticket)
        gone = [ticket for ticket in out if ticket in seen and (ticket > 1 or turn > 200)]
        tickets.remove(np.array(gone, np.int64))
        for ticket in gone:
            del out[ticket]
        assert len(tickets) == len(out) and tickets.out().tolist() == sorted(out)
    tickets.clear()
    assert len(tickets) == 0 and not len(tickets.out())
