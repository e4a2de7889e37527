"""The kinds of buffers that a study can choose from, by name."""

from __future__ import annotations

from .buffer import Buffer
from .fifo import FIFO, FIRO
from .reservoir import Reservoir

KINDS: dict[str, type[FIFO] | type[FIRO] | type[Reservoir]] = {"reservoir": Reservoir, "fifo": FIFO, "firo": FIRO}


def make_buffer(kind: str, capacity: int, window: int, *, watermark: int, seed: int, shards: int = 1) -> Buffer:
    """Return an empty buffer of a kind: "reservoir", "fifo" or "firo".

    Raises
    ------
    ValueError : no such kind, no window fits into the capacity, or fewer slots than shards.
    """
    if kind not in KINDS:
        raise ValueError(f"There is no buffer of kind {kind!r}; choose one of {', '.join(KINDS)}.")
    return KINDS[kind](capacity, window, watermark=watermark, seed=seed, shards=shards)
