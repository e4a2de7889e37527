"""What a run directory says, ready for people: the figures of a moment, and all records of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from headrace.online_training.ledger import Ledger
from headrace.online_training.metrics_log import last_record, read_metrics
from headrace.online_training.run_directory import RunDirectory, StudyRecord

if TYPE_CHECKING:
    from headrace.solvers import Case


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Where a study stands at one moment; None is "not known yet".

    elapsed : seconds since the session began.
    simulations_done, simulations_planned, steps : of this session, held-out simulations included.
    windows, total_windows : uses of training windows so far and in the end.
    blocked : part of the solvers' time spent waiting for the intake.
    starved : part of the trainer's time spent waiting for data.
    buffer_filled : part of the reservoir that holds windows.
    """

    elapsed: float
    simulations_done: int
    simulations_planned: int | None
    steps: int
    quarantined: int
    lost: int
    windows: int
    total_windows: int | None
    loss: float | None
    samples_per_second: float | None
    validation_nrmse: float | None
    blocked: float | None
    starved: float | None
    buffer_filled: float | None


def figures_of(state: Mapping[str, Any]) -> Figures:
    """Return the figures in what intake, trainer and validator last said (None where one has said nothing)."""
    intake, trainer = state.get("intake") or {}, state.get("trainer") or {}
    return Figures(
        elapsed=float(state.get("elapsed") or 0.0),
        simulations_done=int(intake.get("done", 0)),
        simulations_planned=intake.get("planned"),
        steps=int(intake.get("steps_accepted", 0)),
        quarantined=len(intake.get("quarantined", ())),
        lost=int(intake.get("lost", 0)),
        windows=int(trainer.get("windows", 0)),
        total_windows=trainer.get("total_windows"),
        loss=trainer.get("loss"),
        samples_per_second=trainer.get("samples_per_second"),
        validation_nrmse=(state.get("validation") or {}).get("nrmse"),
        blocked=_ratio(intake.get("blocked_seconds"), intake.get("solver_seconds")),
        starved=trainer.get("starved"),
        buffer_filled=_ratio(intake.get("population"), intake.get("capacity")),
    )


def latest_figures(directory: RunDirectory) -> Figures:
    """Return the figures of a run from the last lines of its logs; works while it runs."""
    intake = last_record(directory.path / "intake.jsonl")
    return figures_of(
        {
            "intake": intake,
            "trainer": last_record(directory.path / "metrics.jsonl"),
            "validation": last_record(directory.path / "validation.jsonl"),
            "elapsed": (intake or {}).get("elapsed"),
        }
    )


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All records of one run.

    record : what study.toml says.
    case : the case as it was.
    metrics, validation, intake : records of the trainer, the validator and the controller, oldest first.
    ledger : the history of every simulation.
    """

    directory: RunDirectory
    record: StudyRecord
    case: Case
    metrics: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    intake: list[dict[str, Any]]
    ledger: Ledger

    @classmethod
    def read(cls, run_dir: str | Path) -> RunData:
        """Read a run directory; works while the study runs.

        Raises
        ------
        StudyError, ValueError : no study there, or its files are damaged.
        """
        directory = RunDirectory(run_dir)
        record = directory.read()
        path = directory.path
        return cls(
            directory=directory, record=record, case=record.case.load(),
            metrics=read_metrics(path / "metrics.jsonl"), validation=read_metrics(path / "validation.jsonl"),
            intake=read_metrics(path / "intake.jsonl"), ledger=Ledger(directory.ledger),
        )  # fmt: skip

    @property
    def simulations_completed(self) -> int:
        """Simulations that ran to their end, in whatever session."""
        return sum(one.status == "completed" for one in self.ledger.simulations.values())

    @property
    def steps_accepted(self) -> int:
        """Different steps that an intake accepted, in whatever session."""
        return sum(len(one.accepted) for one in self.ledger.simulations.values())

    @property
    def samples_per_second(self) -> float | None:
        """Median over the trainer's reports; the last one, when all simulations are there, is unlike the others."""
        speeds = self.column(self.metrics, "samples_per_second")[1]
        return median(speeds) if speeds else None

    @property
    def starved(self) -> float | None:
        """Part of the trainer's time spent waiting for data, over the whole run."""
        parts = self.column(self.metrics, "starved")[1]
        return fmean(parts) if parts else None

    def column(self, records: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
        """Return (seconds since the run began, values) of the records that have a value of this name."""
        start = min((r["time"] for r in (*self.metrics[:1], *self.intake[:1], *self.validation[:1])), default=0.0)
        pairs = [(r["time"] - start, float(r[name])) for r in records if r.get(name) is not None]
        return [t for t, _ in pairs], [v for _, v in pairs]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
