"""What an intake needs to know to serve one session of a study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .buffer import Buffer
from .held_out_writer import WriteHeldOut
from .layout import StreamLayout
from .slot_memory import SlotMemory
from .spool import Spool
from .stream_statistics import StreamStatistics


@dataclass(frozen=True, kw_only=True)
class IntakeSettings:
    """One session's stream, reservoir, identity, address and limits.

    layout, buffer, memory : the stream, the policy of the reservoir and its memory, which the intake closes.
    views : wanted number of uses of each window.
    batch_size : windows of one batch over all workers.
    study, session, token : identity of the study, number of this session of it, the run's 256-bit token.
    interface, port : where to listen; port 0 takes a free one, interface "inproc" serves this very process alone.
    run_dir : its ledger/ takes intake-SESSION.log.
    max_running : simulations at the same time.
    lease : seconds of silence after which the other side ends; peers silent for three are forgotten.
    start_limit : seconds after a job's first hello within which its last rank must have said it.
    strict : every payload byte is authenticated.
    encrypt : tcp connections use CURVE.
    max_failures : attempts of one simulation before it goes into quarantine.
    write_held_out : writes a finished held-out simulation; called in a thread of its own.
    when_full : what becomes of a step for which there is no room: "block" waits, "skip" leaves it out, "spool" puts it
        on disk until there is.
    spool : where, for "spool"; the intake closes it.
    durability : what an acknowledgement promises: that the step is in the intake's "memory"; that it outlives the
        intake's process ("node"); that it is on the "disk".
    nan_policy : what NaN or infinity from a solver does: "quarantine" drops the rest of the simulation, "stop" also
        asks for the end of the study (status "fatal"), "keep" stores it like any other value.
    statistics : takes every step of the training simulations; None: nobody does.
    ring_bytes, all_rings_bytes : of shared memory for each rank on this node, at most, and for all; 0: none.
    """

    layout: StreamLayout
    buffer: Buffer
    memory: SlotMemory
    views: float
    batch_size: int
    study: int
    session: int
    token: bytes
    interface: str
    port: int
    run_dir: Path
    max_running: int
    lease: float = 60.0
    start_limit: float = 300.0
    strict: bool = False
    encrypt: bool = False
    max_failures: int = 3
    write_held_out: WriteHeldOut | None = None
    when_full: str = "block"
    durability: str = "memory"
    spool: Spool | None = None
    nan_policy: str = "quarantine"
    statistics: StreamStatistics | None = None
    ring_bytes: int = 16 * 2**20
    all_rings_bytes: int = 2**30

    def __post_init__(self) -> None:
        if self.when_full not in ("block", "skip", "spool"):
            raise ValueError(f"when_full is {self.when_full!r}; it must be 'block', 'skip' or 'spool'.")
        if (self.when_full == "spool") != (self.spool is not None):
            raise ValueError(f"when_full is {self.when_full!r}, and spool {self.spool}: one needs the other.")
        if self.nan_policy not in ("quarantine", "stop", "keep"):
            raise ValueError(f"nan_policy is {self.nan_policy!r}; it must be 'quarantine', 'stop' or 'keep'.")
