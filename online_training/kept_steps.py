"""Steps that outlived their intake: found in the logs of earlier sessions, and checked against their checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .client import checksum_of
from .ledger import intake_records


class KeptStep(NamedTuple):
    """One step of a simulation in the slot where an earlier session stored it; content : its checksum."""

    simulation: int
    step: int
    attempt: int
    slot: int
    time: float
    content: int

    @property
    def record(self) -> dict[str, Any]:
        """What the ledger of the session that takes it up says."""
        return {"e": "kept", "s": self.simulation, "a": self.attempt, "t": self.step, "h": self.content,
                "l": self.slot, "x": self.time}  # fmt: skip


def kept_steps(ledger: Path, slots: np.ndarray) -> list[KeptStep]:
    """Return the steps that lie in slots (num_slots, fields, *grid) just as the logs in a folder say.

    Slots in which something else was written since, wholly or in part, do not match their checksum.

    Raises
    ------
    LedgerDamage : a log is damaged elsewhere than at its torn end.
    """
    newest: dict[int, KeptStep] = {}
    for record in intake_records(ledger):
        if record["e"] in ("step", "kept") and "l" in record:
            newest[record["l"]] = KeptStep(
                record["s"], record["t"], record["a"], record["l"], record["x"], record["h"]
            )  # fmt: skip
    # The same step may lie in two slots, of an attempt that was run again in vain: one of them will do.
    steps = {
        (one.simulation, one.step): one
        for one in newest.values()
        if one.slot < len(slots) and checksum_of(slots[one.slot], "xxh3") == one.content
    }
    return list(steps.values())
