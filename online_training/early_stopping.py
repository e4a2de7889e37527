"""When a training ends before its last planned window: validation no longer improves, or a callback says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .metrics_log import last_record, read_metrics


def exhausted_patience(errors: Iterable[float | None], patience: int, least: float = 0.0) -> bool:
    """Whether the last `patience` validations all failed to improve on the best before them.

    errors : one per validation, oldest first; None or NaN counts as no improvement.
    least : relative improvement below which one does not count.
    """
    best, since = float("inf"), 0
    for error in errors:
        if error is not None and error < best * (1 - least):
            best, since = error, 0
        else:
            since += 1
    return since >= patience


class StopRule:
    """Says why a run should end now, from its own logs.

    patience : validations without improvement; 0: never.
    least : relative improvement that counts.
    """

    def __init__(self, run_dir: str | Path, *, patience: int, least: float) -> None:
        self._run_dir, self._patience, self._least = Path(run_dir), patience, least
        self._seen = 0

    def reason(self) -> str | None:
        """Return why the training should end, None where it should go on."""
        trainer: Mapping[str, Any] = last_record(self._run_dir / "metrics.jsonl") or {}
        if trainer.get("stop"):
            return str(trainer["stop"])
        path = self._run_dir / "validation.jsonl"
        size = path.stat().st_size if self._patience and path.exists() else 0
        if size == self._seen:
            return None
        self._seen = size
        errors = [record.get("nrmse") for record in read_metrics(path)]
        if exhausted_patience(errors, self._patience, self._least):
            finite = [error for error in errors if error is not None]
            if not finite:
                return f"predictions are not finite in any of {len(errors)} validations"
            return f"validation did not improve on nRMSE {min(finite):.4g} in {self._patience} checkpoints"
        return None
