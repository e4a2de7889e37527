"""Callbacks: functions of the case's file that are told of a training's progress and may end it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .client import Word
from .run_directory import RunDirectory

if TYPE_CHECKING:
    from headrace.surrogates import Surrogate


logger = logging.getLogger(__name__)

EventKind = Literal["report", "checkpoint", "end"]


@dataclass(frozen=True, kw_only=True)
class TrainingEvent:
    """What a callback is told, on worker 0, after a report (about once a second), a checkpoint and the end.

    metrics : the record that was just written to metrics.jsonl.
    surrogate : the model as it is; to look at, not to change. Put it back into training mode after predictions.
    losses : mean loss of each simulation's windows since the last report, of those that worker 0 saw; for "report".
    steer : how `stop`, `slow` and `go_on` reach the intake.
    """

    kind: EventKind
    batch: int
    windows: int
    metrics: Mapping[str, Any]
    surrogate: Surrogate
    run_dir: Path
    losses: Mapping[int, float] = field(default_factory=dict)
    steer: Callable[[int, Word, str], None] = lambda simulation, word, reason: None

    def stop(self, simulation: int, reason: str = "") -> None:
        """End one running simulation early: all of its ranks are told so with the acknowledgement of their next step.

        What it has sent stays in the study; one that does not run is left alone.
        """
        self.steer(simulation, Word.STOP, reason)

    def slow(self, simulation: int, reason: str = "") -> None:
        """Say SLOW to one running simulation with every step from now on; what follows is up to its solver."""
        self.steer(simulation, Word.SLOW, reason)

    def go_on(self, simulation: int, reason: str = "") -> None:
        """Take `slow` back."""
        self.steer(simulation, Word.CONTINUE, reason)


Callback = Callable[[TrainingEvent], str | None]
"""Returns why the training should end now, or None."""


def find_callbacks(names: str, module: object) -> list[Callback]:
    """Return the functions of these names, separated by commas, in the module of a case.

    Raises
    ------
    ValueError : the module has no such function.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    missing = [name for name in wanted if not callable(getattr(module, name, None))]
    if missing:
        raise ValueError(f"callbacks {missing[0]!r}: the file of the case has no function {missing[0]}(event).")
    return [getattr(module, name) for name in wanted]


class Callbacks:
    """The callbacks of a run; one that fails is named, with its traceback, and not called again.

    names : functions in the case's file, separated by commas; none: nothing is loaded.
    """

    def __init__(self, run_dir: Path, names: str) -> None:
        self._callbacks = find_callbacks(names, RunDirectory(run_dir).read().case.load_module()) if names else []
        self.verdict: dict[str, str] = {}
        """{"stop": why}, once a callback has said so; part of every further record of metrics.jsonl."""

    def tell(self, event: TrainingEvent) -> None:
        """Call all of them."""
        for callback in list(self._callbacks):
            try:
                reason = callback(event)
            except Exception:
                logger.exception("Callback %s failed and is not called any more.", callback.__name__)
                self._callbacks.remove(callback)
                continue
            if reason:
                self.verdict = {"stop": f"{callback.__name__}: {reason}"}
