"""Which steps of the reservoir a GPU has in its copy, slot by slot, and their checksums; arrays, no GPU in sight."""

from __future__ import annotations

import numpy as np

from .client import checksum_of
from .slot_set import named_last

_NONE = np.iinfo(np.int64).max


class ResidentSlots:
    """Says which steps of drawn windows have yet to be sent, each once as long as its slot is not used again.

    What lies in a slot is known by simulation, attempt and step; a drawn window's slots keep it until its release.
    """

    def __init__(self, num_slots: int) -> None:
        self._steps = np.full(num_slots, _NONE)
        self._simulations = np.zeros(num_slots, np.uint64)
        self._attempts = np.zeros(num_slots, np.uint32)
        self._checksums = np.zeros(num_slots, np.uint32)
        self._places = np.zeros(num_slots, np.int64)

    def missing(self, table: np.ndarray) -> np.ndarray:
        """Return the slots, each once, whose steps are to be sent before these windows; from now on they count as sent.

        table : (records,), of batches in the order in which they are trained on.
        """
        slots = table["slots"]
        shape = slots.shape
        steps = table["start"][:, None] + np.arange(shape[1])
        simulations = np.broadcast_to(table["simulation"][:, None], shape)
        attempts = np.broadcast_to(table["attempt"][:, None], shape)
        new = (self._steps[slots] != steps) | (self._simulations[slots] != simulations)
        new |= self._attempts[slots] != attempts
        found = slots[new]
        # Where a slot is named again the same is written once more.
        self._steps[found], self._simulations[found] = steps[new], simulations[new]
        self._attempts[found] = attempts[new]
        return found[named_last(found, self._places)]

    def note(self, slots: np.ndarray, steps: np.ndarray) -> None:
        """Keep the checksums of steps, (slots, fields, *grid), that are being sent."""
        self._checksums[slots] = [checksum_of(step, "xxh3") for step in steps]

    def checksums(self, slots: np.ndarray) -> np.ndarray:
        """Return those of the steps in slots, of any shape."""
        return self._checksums[slots]
