"""Learning rates as functions of the samples used, so that batch size, workers and speed do not change them."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("cosine", "linear", "constant", "step")

WARM_UP = 0.02
"""Fraction of all uses over which the learning rate rises: Adam's moments need some steps to mean anything."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate after a number of uses of windows.

    kind : after a linear warm-up "cosine" and "linear" fall to zero at the last planned use, "constant" stays,
        "step" is halved after every `halve_every` uses (counted from the beginning).
    peak : highest rate.
    total : uses that are planned.
    warm_up : fraction of them over which the rate rises from zero.
    """

    kind: str = "cosine"
    peak: float = 1e-3
    total: int = 1
    warm_up: float = WARM_UP
    halve_every: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"schedule {self.kind!r} is unknown; take {', '.join(KINDS)}.")
        if (self.kind == "step") != (self.halve_every > 0):
            raise ValueError(
                f"halve_every is {self.halve_every} with schedule {self.kind!r}; schedule 'step' needs a number of "
                "samples after which the rate is halved, the others have none."
            )
        if not 0 <= self.warm_up < 1:
            raise ValueError(f"warm_up {self.warm_up} must lie in [0, 1).")

    def rate(self, windows: float) -> float:
        """Return the learning rate after a number of uses."""
        position = windows / self.total
        if position < self.warm_up:
            return self.peak * position / self.warm_up
        if self.kind == "constant":
            return self.peak
        if self.kind == "step":
            return self.peak * 0.5 ** (windows // self.halve_every)
        left = 1 - min(1.0, (position - self.warm_up) / (1 - self.warm_up))
        return self.peak * (left if self.kind == "linear" else 0.5 * (1 - math.cos(math.pi * left)))
