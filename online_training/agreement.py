"""What the workers of one training agree on: sizes of batches, the end, reports, checkpoints, failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Agreed:
    """The same on all workers for one batch.

    windows : of the whole batch.
    ended : workers whose stream has ended; all or none, in a sound run.
    report, checkpoint : whether to do so after this batch; worker 0, which watches the clock, decides.
    """

    windows: int
    ended: int
    report: bool
    checkpoint: bool


class Workers:
    """The workers of a data-parallel training; one alone communicates nothing.

    Raises
    ------
    RuntimeError : several workers, and torch.distributed does not connect as many.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self._group: dist.ProcessGroup | None = None
        if count == 1:
            return
        connected = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 0
        if connected != count:
            raise RuntimeError(
                f"A training on {count} workers needs torch.distributed set up for as many; it connects {connected}."
            )
        # Decisions are taken on the CPU, so that they never wait for work that is queued on a GPU.
        self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    def agree(self, windows: int, *, ended: bool, report: bool, checkpoint: bool) -> Callable[[], Agreed]:
        """Start to agree on a batch; the function returned waits for the outcome. Collective.

        windows : of this worker's slice.
        """
        if self.count == 1:
            alone = Agreed(windows=windows, ended=int(ended), report=report, checkpoint=checkpoint)
            return lambda: alone
        mine = torch.tensor([windows, ended, report, checkpoint], dtype=torch.int64)
        work = dist.all_reduce(mine, group=self._group, async_op=True)

        def outcome() -> Agreed:
            work.wait()
            total, num_ended, wants_report, wants_checkpoint = mine.tolist()
            return Agreed(windows=total, ended=num_ended, report=bool(wants_report), checkpoint=bool(wants_checkpoint))

        return outcome

    def gather(self, row: np.ndarray) -> np.ndarray:
        """Return every worker's row, (workers, columns) float64, on every worker. Collective."""
        table = torch.zeros(self.count, len(row), dtype=torch.float64)
        table[self.rank] = torch.from_numpy(np.asarray(row, dtype=np.float64))
        if self.count > 1:
            dist.all_reduce(table, group=self._group)
        return table.numpy()

    def from_first(self, value: int) -> int:
        """Return worker 0's value on every worker. Collective."""
        number = torch.tensor([value], dtype=torch.int64)
        if self.count > 1:
            dist.broadcast(number, src=0, group=self._group)
        return int(number)

    def on_first(self, action: Callable[[], object], what: str) -> None:
        """Let worker 0 do something with files; a failure there is raised on every worker. Collective.

        Raises
        ------
        OSError : worker 0 failed; the others name what it could not do.
        """
        failure: OSError | None = None
        if self.rank == 0:
            try:
                action()
            except OSError as error:
                failure = error
        code = self.from_first((failure.errno or -1) if failure else 0)
        if failure is not None:
            raise failure
        if code:
            raise OSError(code, f"worker 0 could not {what}; its message says why")
