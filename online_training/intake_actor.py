"""The intake of a run directory, as a named Ray actor that outlives the trainers and ends with the driver."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from headrace.solvers import Case, Parameters, Snapshot
from headrace.solvers.hdf5 import HDF5Sink

from .adaptive_plan import unplanned
from .buffer_kinds import make_buffer
from .client import read_token
from .intake import Intake, IntakeSettings
from .interface import address_of
from .kept_steps import kept_steps
from .layout import StreamLayout
from .ledger import Ledger
from .metrics_log import last_record
from .repetition import repeat_session
from .run_directory import RunDirectory
from .session_plan import LEASE_SECONDS, SessionPlan, interleaved
from .simulation_run import Assignment
from .slot_memory import SlotMemory, kept_path
from .spool import Spool, unreplayed
from .step_limit import Place
from .stream_statistics import StreamStatistics


@ray.remote(num_cpus=0, max_restarts=0)
class IntakeActor:
    """Holds one `Intake`, whose loop runs in a thread of its own: calls of the actor never delay the stream."""

    def __init__(self, run_dir: str, session: int) -> None:
        self._intake = build_intake(RunDirectory(run_dir), session)

    def start(self) -> str:
        """Bind the sockets and return the addresses, best first, separated by commas."""
        self._intake.start()
        return self._intake.addresses

    def status(self) -> dict[str, Any]:
        """Return the intake's status as plain data."""
        return self._intake.status()

    def plan(self, assignments: list[Assignment]) -> None:
        """Add simulations to run."""
        self._intake.plan(assignments)

    def all_planned(self) -> None:
        """Say that `plan` will not be called again."""
        self._intake.all_planned()

    def job_ended(self, job: str, code: int) -> list[int]:
        """Tell the intake that a solver job is gone; return the simulations that run again."""
        return self._intake.job_ended(job, code)

    def give_up(self, place: Place, reason: str) -> bool:
        """Give up a simulation that has come no further than a place; say whether it has."""
        return self._intake.give_up(place, reason)

    def limit_running(self, count: int) -> None:
        """Let no more than this many simulations begin to run at the same time."""
        self._intake.limit_running(count)

    def request_stop(self) -> None:
        """End the stream early, in order."""
        self._intake.request_stop()

    def close(self) -> None:
        """Unlink the shared memory and close sockets and logs."""
        self._intake.close()


def build_intake(directory: RunDirectory, session: int) -> Intake:
    """Return the intake of a session: what is still to be run, from the ledger, and an empty reservoir.

    Raises
    ------
    OSError : shared memory is full, or the ledger cannot be written.
    """
    record = directory.read()
    settings, case = record.settings, record.case.load()
    ledger = Ledger(directory.ledger)
    assignments, to_come = ledger.assignments(), unplanned(settings, ledger)
    layout = StreamLayout.of(case, record.window)
    trained = last_record(directory.path / "metrics.jsonl") or {}
    if settings.deterministic:
        plan = SessionPlan.of(record, layout, ledger.whole_plan())
        buffer, assignments = repeat_session(
            record, layout, plan, ledger, directory.checkpoints, trained.get("batch", 0)
        )
    else:
        plan = SessionPlan.of(record, layout, assignments, uses_done=trained.get("windows", 0), unplanned=to_come)
        buffer = make_buffer(
            settings.buffer_kind, plan.slots, record.window, watermark=plan.watermark, seed=settings.seed + session,
            shards=min(settings.shards, plan.slots),
        )  # fmt: skip
    num_slots = plan.slots + plan.spare
    if settings.durability == "memory":
        memory = SlotMemory.create(f"{record.study:016x}", layout, num_slots * layout.step_bytes)
    else:
        memory = SlotMemory.keep(kept_path(record.study, directory.path, settings.durability), layout, num_slots)
    statistics = None
    if settings.statistics:
        statistics = StreamStatistics(directory.path / "statistics.h5", layout, case.parameters)
    spool, left = None, []
    if settings.when_full == "spool":
        folder = Path(settings.spool_folder) if settings.spool_folder else directory.path / "spool"
        path = folder / f"{record.study:016x}.spool"
        left = unreplayed(directory.ledger, path, layout)
        spool = Spool(path, layout, settings.spool_bytes)
    intake = Intake(
        IntakeSettings(
            layout=layout, buffer=buffer, memory=memory, views=plan.views, batch_size=settings.batch_size,
            study=record.study, session=session, token=read_token(directory.token_file),
            interface=address_of(settings.interface), port=settings.port, run_dir=directory.path,
            max_running=settings.max_running, max_failures=settings.max_failures, lease=LEASE_SECONDS,
            start_limit=settings.start_limit, strict=settings.strict, encrypt=settings.encrypt,
            when_full=settings.when_full, spool=spool,
            durability=settings.durability, nan_policy=settings.nan_policy, statistics=statistics,
            write_held_out=partial(write_held_out, directory.held_out, case),
        )
    )  # fmt: skip
    intake.plan(interleaved(assignments))
    if memory.reopened:
        intake.recover(kept_steps(directory.ledger, memory.array))
    if left:
        intake.recover_spool(left)
    if not to_come:
        intake.all_planned()
    return intake


def write_held_out(
    folder: Path, case: Case, simulation: int, parameters: Mapping[str, float], times: np.ndarray, states: np.ndarray
) -> None:
    """Write one held-out simulation, states (steps, fields, *grid), as a file of the solvers' own schema."""
    sink = HDF5Sink(folder / f"sim-{simulation:06d}.h5")
    sink.open(case, Parameters(parameters), None)
    everywhere = tuple(slice(0, n) for n in case.grid.shape)
    for step, (time, values) in enumerate(zip(times, states, strict=True)):
        sink.write(Snapshot(step=step, time=float(time), values=values.astype(np.float64), where=everywhere))
    sink.close()
