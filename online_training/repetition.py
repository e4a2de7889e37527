"""What a resumed session repeats in a study whose draws have a fixed order: everything before its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .buffer_kinds import make_buffer
from .checkpoint import latest_batch
from .fixed_order import FixedOrder

if TYPE_CHECKING:
    from .layout import StreamLayout
    from .ledger import Ledger
    from .run_directory import StudyRecord
    from .session_plan import SessionPlan
    from .simulation_run import Assignment


def repeat_session(
    record: StudyRecord, layout: StreamLayout, plan: SessionPlan, ledger: Ledger, checkpoints: Path, trained: int
) -> tuple[FixedOrder, list[Assignment]]:
    """Return the buffer as it was after the newest checkpoint's batch, without its data, and what brings that back.

    The draws are repeated from the ledger. Simulations of which a window may still be drawn are run again, and
    of these only the steps of such windows are stored. Where a finished study has a checkpoint of its last batch,
    nothing is drawn any more, though the buffer still holds the latest draws: only held-out files may be lacking.

    trained : batches that the study was trained on, by its metrics.

    Raises
    ------
    ValueError : ledger and checkpoint are of different times.
    """
    settings = record.settings
    inner = make_buffer(
        settings.buffer_kind, plan.slots, record.window, watermark=plan.watermark, seed=settings.seed,
        shards=min(settings.shards, plan.slots),
    )  # fmt: skip
    everything = ledger.whole_plan()
    numbers = [one.simulation for one in everything if not one.held_out]
    buffer = FixedOrder(
        inner, numbers, group=settings.jobs, num_steps=layout.num_steps, window=record.window, views=plan.views
    )
    arrived, ended = ledger.extents()
    batches = latest_batch(checkpoints)
    needed = buffer.repeat(batches, settings.batch_size, arrived, ended)
    over = ledger.finished and batches == trained
    training = [
        replace(one, used=needed[one.simulation])
        for one in everything
        if not one.held_out and one.simulation in needed and not over
    ]  # fmt: skip
    return buffer, [*training, *(one for one in ledger.assignments() if one.held_out)]
