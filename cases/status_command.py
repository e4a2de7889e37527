"""`headrace status` and `headrace audit`: how far a study is, and whether its books balance."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.online_training.audit import audit

from .run_data import RunData, latest_figures

QUIET_SECONDS = 15.0
"""A running study writes its status every second; after this long without a word nobody is running it."""


def show_status(run_dir: Path) -> None:
    """Print the state of a study from its logs.

    Raises
    ------
    StudyError : there is no study in this folder.
    """
    data = RunData.read(run_dir)
    figures = latest_figures(data.directory)
    if data.ledger.finished:  # how the run was, not how its last second was
        figures = replace(figures, samples_per_second=data.samples_per_second, starved=data.starved)
    settings = data.record.settings
    planned, steps = settings.simulations + settings.held_out, data.case.num_snapshots + 1
    # A reservoir draws with replacement until each window was used: that may take more draws than were aimed at.
    aim = f", {figures.total_windows:,} aimed at" if figures.total_windows else ""
    live = not settings.offline
    rows = [
        ("study", f"{data.record.model} on {data.case.name}, {_condition(data)}"),
        *(
            [("data set", f"{settings.simulations} simulations of {settings.offline}")]
            if not live
            else [
                (
                    "simulations",
                    f"{data.simulations_completed} of {planned} completed ({settings.held_out} are held out)",
                ),
                ("steps", f"{data.steps_accepted:,} of {planned * steps:,} accepted"),
            ]
        ),
        ("training", f"{figures.windows:,} windows used{aim}"),
        ("loss", _number(figures.loss, "{:.4g}")),
        ("validation nRMSE", _number(figures.validation_nrmse, "{:#.4g}")),
        ("samples/s", _number(figures.samples_per_second, "{:,.0f}")),
        *([("solvers blocked", _number(figures.blocked, "{:.0%}"))] if live else []),
        ("trainer starved", _number(figures.starved, "{:.0%}")),
        *([("quarantined", str(figures.quarantined)), ("lost and run again", str(figures.lost))] if live else []),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows:
        table.add_row(Text(name, style="dim"), value)
    Console(highlight=False).print(table)


def show_audit(run_dir: Path) -> int:
    """Print the audit of a run and return the exit code: 1 where its books do not balance.

    Raises
    ------
    StudyError, LedgerDamage : there is no study, or a log is damaged; names file and line.
    """
    found = audit(run_dir)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for line in found.lines[:-1]:
        console.print(line)
    console.print(found.lines[-1], style="green" if found.ok else "bold red")
    return 0 if found.ok else 1


def _condition(data: RunData) -> str:
    ends = data.ledger.sessions.values()
    if data.ledger.finished:
        return next(end for end in ends if end.startswith("finished"))
    resume = "`headrace train ... --resume` goes on with it"
    sessions = data.ledger.sessions
    last = sessions[max(sessions)] if sessions else "open"
    if last != "open":
        return f"{last}; {resume}"
    age = time.time() - data.intake[-1]["time"] if data.intake else None
    if age is None:
        return "not started yet, or starting"
    return "running" if age < QUIET_SECONDS else f"not running, last heard of {age:.0f} s ago; {resume}"


def _number(value: float | None, form: str) -> str:
    return "not known yet" if value is None else form.format(value)
