"""What a person sees while a study runs: a live display on a terminal, plain lines in a batch log."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .progress import PLAIN_INTERVAL
from .run_data import Figures, figures_of

if TYPE_CHECKING:
    from headrace.online_training.settings import StudySettings
    from headrace.solvers import Case


class StudyProgress:
    """Progress of a study; a context manager.

    The bars count accepted steps and used training windows; below them stand loss, speed, validation error
    and where the time goes.
    """

    def __init__(self, case: Case, settings: StudySettings, console: Console, *, plain: bool) -> None:
        self._num_steps = case.num_snapshots + 1
        self._simulations = settings.simulations + settings.held_out
        self._console = console
        self._plain = plain or not console.is_terminal
        self._said = -PLAIN_INTERVAL
        self._bars = Progress(
            TextColumn("{task.description:11}"), BarColumn(bar_width=40), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console, auto_refresh=False,
        )  # fmt: skip
        self._simulated = self._bars.add_task("simulations", total=self._simulations)
        self._steps = self._bars.add_task("steps", total=self._simulations * self._num_steps)
        self._trained = self._bars.add_task("training", total=None)
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> StudyProgress:
        if not self._plain:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(text, soft_wrap=True)

    def show(self, state: Mapping[str, Any]) -> None:
        """Show the state of a study, as `Study.run` reports it about once a second."""
        figures = figures_of(state)
        if not self._plain:
            planned = figures.simulations_planned or self._simulations
            self._bars.update(self._simulated, completed=figures.simulations_done, total=planned)
            self._bars.update(self._steps, completed=figures.steps, total=planned * self._num_steps)
            self._bars.update(self._trained, completed=figures.windows, total=figures.total_windows)
            self._live.update(Group(self._bars.get_renderable(), _figures_table(figures)))
        elif figures.elapsed - self._said >= PLAIN_INTERVAL:
            self._said = figures.elapsed
            self.say(f"{figures.elapsed:6.0f} s  {plain_line(figures)}")


def plain_line(figures: Figures) -> str:
    """Return the state of a study in one line for a batch log."""
    windows = f"{figures.windows}" + (f"/{figures.total_windows}" if figures.total_windows else "")
    parts = [f"windows {windows}"]
    if figures.simulations_planned:  # none where a data set is trained on
        parts.insert(0, f"simulations {figures.simulations_done}/{figures.simulations_planned}")
    return ", ".join([*parts, *(f"{name} {value}" for name, value in _shown(figures))])


def _figures_table(figures: Figures) -> Table:
    table = Table.grid(padding=(0, 2))
    shown = _shown(figures)
    for start in range(0, len(shown), 4):
        table.add_row(*(Text.assemble((name + " ", "dim"), value) for name, value in shown[start : start + 4]))
    return table


def _shown(figures: Figures) -> list[tuple[str, str]]:
    """Return what is known, by name, as text."""
    candidates = (
        ("loss", figures.loss, "{:.3g}"),
        ("samples/s", figures.samples_per_second, "{:,.0f}"),
        ("validation nRMSE", figures.validation_nrmse, "{:#.4g}"),
        ("solver blocked", figures.blocked, "{:.0%}"),
        ("trainer starved", figures.starved, "{:.0%}"),
        ("buffer", figures.buffer_filled, "{:.0%}"),
        ("quarantined", figures.quarantined or None, "{}"),
        ("lost and run again", figures.lost or None, "{}"),
    )
    return [(name, form.format(value)) for name, value, form in candidates if value is not None]
