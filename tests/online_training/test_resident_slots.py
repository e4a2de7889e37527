"""A GPU's copy of the reservoir: what is drawn is there, and no step is sent again as long as it lies in its slot."""

import numpy as np

from headrace.online_training.buffer import window_dtype
from headrace.online_training.client import checksum_of
from headrace.online_training.resident_slots import ResidentSlots

SLOTS, WINDOW = 30, 3


def test_what_is_drawn_is_in_the_copy_and_was_sent_once() -> None:
    random, resident = np.random.default_rng(0), ResidentSlots(SLOTS)
    reservoir, copy = np.zeros((SLOTS, 2)), np.full((SLOTS, 2), np.nan)
    # Ten trajectories of three steps, each in slots that are anywhere; some are replaced, or come by a second attempt.
    slots = random.permutation(SLOTS).reshape(10, WINDOW)
    owners = [(number, 1) for number in range(10)]
    unsent, following = set(range(SLOTS)), 10
    for turn in range(200):
        for place in np.flatnonzero(random.random(10) < (turn > 0) * 0.2):
            number, attempt = owners[place]
            owners[place] = (number, attempt + 1) if random.random() < 0.3 else (following, 1)
            following += 1
            if random.random() < 0.5:
                slots[place] = slots[place][::-1]
            unsent |= set(slots[place].tolist())
        for row in slots:
            if set(row.tolist()) <= unsent:
                reservoir[row] = random.random() + np.arange(2 * WINDOW).reshape(WINDOW, 2)
        drawn = random.integers(0, 10, 4)
        table = np.zeros(4, window_dtype(WINDOW))
        table["simulation"], table["attempt"] = np.array([owners[place] for place in drawn]).T
        table["slots"] = slots[drawn]
        sent = resident.missing(table)
        assert sorted(sent.tolist()) == sorted(unsent & set(slots[drawn].ravel().tolist()))
        unsent -= set(sent.tolist())
        copy[sent] = reservoir[sent]
        resident.note(sent, reservoir[sent])
        np.testing.assert_array_equal(copy[slots[drawn]], reservoir[slots[drawn]])
        expected = [[checksum_of(reservoir[slot], "xxh3") for slot in row] for row in slots[drawn]]
        assert resident.checksums(table["slots"]).tolist() == expected
    assert turn and not np.isnan(copy).any()
