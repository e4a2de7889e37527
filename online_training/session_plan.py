"""What a session has to do, in numbers: slots of the reservoir, watermark, uses of each window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .fixed_order import spare_slots

if TYPE_CHECKING:
    from .layout import StreamLayout
    from .run_directory import StudyRecord
    from .simulation_run import Assignment

LEASE_SECONDS = 60.0
"""Silence after which a solver rank gives up on its study, and the intake on a peer."""

NAMESPACE = "headrace"
"""Of the intakes' actors in Ray."""

_MOST_VIEWS = 3.0
"""A resumed session may use its windows this many times as often as planned, to make up for lost ones."""


def intake_name(study: int, session: int) -> str:
    """Return the name of a session's intake among Ray's actors."""
    return f"intake-{study:016x}-{session}"


def interleaved(assignments: Sequence[Assignment]) -> list[Assignment]:
    """Spread the held-out simulations evenly among the others, so that validation can begin early."""
    training = [one for one in assignments if not one.held_out]
    held_out = [one for one in assignments if one.held_out]
    # The i-th of n simulations of a kind stands at (i + 1/2) / n of the whole; ties keep the training one first.
    places = [((i + 0.5) / len(kind), one) for kind in (training, held_out) for i, one in enumerate(kind)]
    return [one for _, one in sorted(places, key=lambda place: place[0])]


@dataclass(frozen=True, kw_only=True)
class SessionPlan:
    """Sizes of one session.

    slots : steps that the reservoir holds; never more than the session can bring.
    spare : slots beside them, for steps that wait for their turn in a fixed order.
    watermark : windows that must be there before training starts.
    views : uses of each window. In a first session the study's; in a resumed one as many as bring the study
        to the uses it planned, within a factor of three: what was in the lost reservoir cannot be used again.
        Buffers that use each window once keep to 1.
    """

    slots: int
    spare: int
    watermark: int
    views: float

    @classmethod
    def of(
        cls, record: StudyRecord, layout: StreamLayout, assignments: Sequence[Assignment], *, uses_done: int = 0,
        unplanned: int = 0,
    ) -> SessionPlan:  # fmt: skip
        """Return the plan for what is left to be run.

        uses_done : window uses that are behind us. unplanned : simulations that will come beside the assignments.
        """
        settings = record.settings
        spare = spare_slots(settings.jobs, record.window) if settings.deterministic else 0
        training = [one for one in assignments if not one.held_out]
        windows = sum(layout.num_starts - len(one.used) for one in training) + unplanned * layout.num_starts
        # A file that is kept must have the same size in every session.
        simulations = len(training) + unplanned if settings.durability == "memory" else settings.simulations
        steps = simulations * layout.num_steps
        slots = max(1, min(settings.buffer_bytes // layout.step_bytes - spare, steps))
        left = record.total_uses(layout.num_steps) - uses_done
        views = settings.views
        if windows and settings.buffer_kind == "reservoir":
            views = min(max(views, left / windows), _MOST_VIEWS * views)
        # Steps that running simulations have begun are not windows yet, so the whole reservoir is never reached.
        reachable = max(1, min(windows, slots - settings.max_running * record.window))
        watermark = min(reachable, max(settings.batch_size, round(settings.watermark * min(windows, slots))))
        return cls(slots=slots, spare=spare, watermark=watermark, views=views)
