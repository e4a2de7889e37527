"""How many simulations run at the same time: as many as keep the trainer busy, and no more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_STARVED = 0.1
_MARGIN = 0.2


class Concurrency:
    """Follows two fractions: of the trainer's time spent waiting for batches, and of the solvers' waiting for room.

    More than a tenth of starved time asks for as many more simulations as would end it, at most twice as many.
    One less is taken where the solvers, blocked as they are, would do the same work in fewer places and leave a
    fifth of one to spare; so a number that was lowered does not starve the trainer and is not raised again.

    least, most : limits of the number; it begins at `least`.
    period : seconds between changes.
    """

    def __init__(self, least: int, most: int, period: float = 10.0) -> None:
        if not 1 <= least <= most:
            raise ValueError(f"Between {least} and {most} simulations at a time cannot be: 1 <= least <= most.")
        self.least, self.most, self.period = least, most, period
        self.limit = least
        self._since: float | None = None
        self._starved: list[float] = []
        self._batch: int | None = None
        self._before = (0.0, 0.0)

    def follow(self, status: Mapping[str, Any], trainer: Mapping[str, Any] | None, now: float) -> bool:
        """Take in what was measured since the last call; say whether `limit` has changed.

        status : of the intake: blocked_seconds, solver_seconds, watermark_reached, queued.
        trainer : the last record of metrics.jsonl.
        now : seconds, monotonic.
        """
        if self._since is None:
            self._begin(status, now)
        if not status["watermark_reached"]:
            self._starved.append(1.0)  # the trainer has not begun: nothing is more urgent than its first samples
        elif trainer is not None and trainer["batch"] != self._batch:
            self._batch = trainer["batch"]
            self._starved.append(float(trainer["starved"]))
        if now - self._since < self.period or not status["queued"]:
            return False
        wanted = self._wanted(status)
        changed, self.limit = wanted != self.limit, wanted
        self._begin(status, now)
        return changed

    def _begin(self, status: Mapping[str, Any], now: float) -> None:
        self._since, self._starved = now, []
        self._before = (status["blocked_seconds"], status["solver_seconds"])

    def _wanted(self, status: Mapping[str, Any]) -> int:
        starved = sum(self._starved) / len(self._starved) if self._starved else 0.0
        if starved > _STARVED:
            enough = math.ceil(self.limit / max(1 - starved, 0.01))
            return min(self.most, 2 * self.limit, enough)
        blocked = status["blocked_seconds"] - self._before[0]
        seconds = status["solver_seconds"] - self._before[1]
        if seconds > 0 and self.limit * (1 - blocked / seconds) <= self.limit - 1 - _MARGIN:
            return max(self.least, self.limit - 1)
        return self.limit
