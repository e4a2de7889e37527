"""What a person sees while simulations run: a bar on a terminal, plain lines in a batch log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_INTERVAL = 5.0
"""Seconds between two plain lines."""


class StepProgress:
    """Progress of one simulation, or of many; a context manager.

    unit : what is counted.
    """

    def __init__(self, title: str, num_steps: int, *, plain: bool, unit: str = "step") -> None:
        self._title = title
        self._unit = unit
        self._num_steps = num_steps
        self._console = Console(stderr=True, highlight=False)
        self._plain = plain or not self._console.is_terminal
        self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(f"{unit}s"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, disable=self._plain,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=num_steps)

    def __enter__(self) -> StepProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, step: int) -> None:
        """Show that a step is done."""
        self._bar.update(self._task, completed=step)
        if self._plain and time.monotonic() - self._said >= PLAIN_INTERVAL:
            self._said = time.monotonic()
            self._console.print(f"{self._title}: {self._unit} {step} of {self._num_steps}")
