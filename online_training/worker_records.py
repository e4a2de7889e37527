"""The files that a training worker appends to: its ledger of first uses, losses and, on worker 0, the metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .breed import LossLog
from .ledger import RecordWriter
from .metrics_log import MetricsLog

if TYPE_CHECKING:
    from .feed import Draw


class WorkerRecords:
    """The open files of one worker.

    worker : session, generation and rank, which name them. losses : whether losses are left for a sampler.
    """

    def __init__(self, run_dir: str | Path, worker: tuple[int, int, int], *, losses: bool = False) -> None:
        run_dir, name = Path(run_dir), "-".join(map(str, worker))
        self._ledger = RecordWriter(run_dir / "ledger" / f"trainer-{name}.log")
        self._metrics = MetricsLog(run_dir, "metrics") if worker[2] == 0 else None
        self._losses = LossLog(run_dir, name) if losses else None
        self._unwritten = False

    def first_uses(self, draw: Draw, batch: int) -> None:
        """Record the windows that were never used before, with the checksum of each step as it was trained on.

        `flush` is to be called before the intake may forget them.
        """
        table = draw.table
        rows = np.flatnonzero(table["first"])
        for row in rows:
            checksums = draw.checksums[row].tolist()
            self._ledger.append_text(
                f'{{"e":"used","s":{table["simulation"][row]},"t":{table["start"][row]},"k":{len(checksums)},'
                f'"h":[{",".join(map(str, checksums))}],"n":{batch}}}'
            )
            self._unwritten = True

    def flush(self) -> None:
        """Hand the records of first uses to the operating system, so that they outlive this process."""
        if self._unwritten:
            self._ledger.flush()
            self._unwritten = False

    def metrics(self, record: dict[str, Any]) -> None:
        """Append to metrics.jsonl, on worker 0."""
        if self._metrics is not None:
            self._metrics.append(record)

    def losses(self, history: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Leave the losses of batches, (simulations, losses) each, where a sampler wants them."""
        if self._losses is not None:
            self._losses.append(history)

    def __enter__(self) -> WorkerRecords:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ledger.close()
        self._unwritten = False
        if self._metrics is not None:
            self._metrics.close()
        if self._losses is not None:
            self._losses.close()
