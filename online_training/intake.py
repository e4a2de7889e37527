"""The intake: receives the stream, owns the reservoir, deals batches to the trainer. Pure Python, without Ray."""

from __future__ import annotations

import logging
import socket as network
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .client import CHECKSUMS, MOST_GATHERED, Header, Kind, WireError
from .held_out_writer import HeldOutResult, HeldOutWriter
from .intake_settings import IntakeSettings
from .intake_socket import Content, IntakeSocket
from .kept_steps import KeptStep
from .ledger import RecordWriter
from .peers import MAX_PEERS, Hello, Peer, Peers, Refusal, rejoin
from .ring import Ring, ring_bytes
from .simulation_run import Assignment
from .simulation_table import SimulationTable
from .solver_desk import SolverDesk
from .spool import Spooled
from .step_limit import Place
from .stream_statistics import SAVE_SECONDS
from .trainer_desk import TrainerDesk

logger = logging.getLogger(__name__)

_BURST = 64
_TICK_MILLISECONDS = 100
_FLUSH_SECONDS = 0.2
_KINDS = frozenset(Kind)
_ROLES = {
    **dict.fromkeys((Kind.DECLARE, Kind.CELLS, Kind.REQUEST, Kind.BLOCK, Kind.STEPS, Kind.SKIP, Kind.END), "solver"),
    **dict.fromkeys((Kind.DRAW, Kind.RELEASE, Kind.STATISTICS, Kind.STEER, Kind.FETCH), "trainer"),
}


class Intake:
    """Runs the protocol of docs/wire.md in a thread; all public methods may be called from any thread.

    What a SIGKILL loses of the ledger is at most 0.2 s of records of steps that no trainer has seen: records are
    handed to the operating system before a batch that could contain their steps is answered. Those steps lie in
    memory only, die with the process, and are run again.
    """

    def __init__(self, settings: IntakeSettings) -> None:
        self._settings = settings
        layout = settings.layout
        self._lock = threading.RLock()
        self._ledger = RecordWriter(Path(settings.run_dir) / "ledger" / f"intake-{settings.session}.log")
        self._writer = None
        if settings.write_held_out is not None:
            self._writer = HeldOutWriter(settings.write_held_out, self._held_out_written)
        self._table = SimulationTable(
            layout, settings.buffer, settings.memory.array,
            ledger=self._ledger, limits=settings, drawn=lambda: self._trainers.draws.drawn, writer=self._writer,
        )  # fmt: skip
        self._peers = Peers(settings.session)
        self._rejected: Counter[str] = Counter()
        self._solvers = SolverDesk(
            settings, self._table, self._peers, self._ledger, self._rejected, tell=self._tell, send_away=self._refuse
        )
        self._trainers = TrainerDesk(settings, self._table, self._peers, self._ledger, self._tell)
        self._messages = 0
        self._error: str | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._flushed = self._swept = time.monotonic()
        self._socket: IntakeSocket | None = None
        self._handlers: dict[int, Callable[[Peer, Header, Any], None]] = {
            Kind.LEASE: self._on_lease, **self._solvers.handlers, **self._trainers.handlers,
        }  # fmt: skip

    # -- public --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind the sockets and begin to serve.

        Raises
        ------
        RuntimeError : the port is taken, or the interface is not one of this machine.
        """
        settings = self._settings
        self._socket = IntakeSocket(
            settings.interface, settings.port, study=settings.study, token=settings.token, encrypt=settings.encrypt
        )
        self._thread = threading.Thread(target=self._run, name="headrace-intake", daemon=True)
        self._thread.start()

    @property
    def addresses(self) -> str:
        """ZeroMQ addresses separated by commas, best first; what HEADRACE_ADDRESS should say."""
        return ",".join(self._socket.addresses) if self._socket is not None else ""

    def plan(self, assignments: Iterable[Assignment]) -> None:
        """Add simulations to run, in this order."""
        with self._lock:
            self._table.plan(assignments)
        self._wake()

    def recover(self, steps: Iterable[KeptStep]) -> None:
        """Take up what an earlier session left in the reservoir's slots; to be called once, after `plan`."""
        with self._lock:
            self._table.recover(steps)

    def recover_spool(self, entries: Iterable[Spooled]) -> None:
        """Take up what an earlier session left in the spool; to be called once, after `plan` and `recover`."""
        with self._lock:
            self._table.recover_spool(entries)
        self._wake()

    def all_planned(self) -> None:
        """Say that `plan` will not be called again."""
        with self._lock:
            self._table.all_planned = True
        self._wake()

    def job_ended(self, job: str, code: int) -> list[int]:
        """A job's processes are gone: return the simulations that will run again."""
        with self._lock:
            again = self._solvers.drop_job(job, f"job {job} ended with code {code}", notify=False)
        self._wake()
        return again

    def give_up(self, place: Place, reason: str) -> bool:
        """Give up a simulation that has come no further than a place; False where it has, or is over."""
        with self._lock:
            given_up = self._table.give_up(place, reason)
        self._wake()
        return given_up

    def limit_running(self, count: int) -> None:
        """Let no more than this many simulations run at the same time; those that run go on.

        Jobs beyond it wait for their next simulation in a socket poll.

        Raises
        ------
        ValueError : not within 1 and the settings' max_running, for which room in the buffer was checked.
        """
        most = self._settings.max_running
        if not 1 <= count <= most:
            raise ValueError(f"{count} simulations at a time cannot be set; this intake was made for 1 to {most}.")
        with self._lock:
            self._table.running_limit = count
        self._wake()

    def request_stop(self) -> None:
        """End early: running simulations get the word STOP, the stream of batches ends after those that are drawn."""
        with self._lock:
            self._table.request_stop()
            self._trainers.draws.stop()
        self._wake()

    def status(self) -> dict[str, Any]:
        """Return counters and states as plain JSON-able data; `error` is None while the intake works."""
        buffer = self._settings.buffer
        with self._lock:
            draws, table = self._trainers.draws, self._table
            return {
                **table.status(),
                "messages": self._messages,
                "rejected": dict(self._rejected),
                "peers": len(self._peers),
                "ranks": {job.name: (len(job.peers), job.ranks) for job in self._peers.jobs.values()},
                "population": buffer.population,
                "unseen": buffer.unseen,
                "capacity": buffer.capacity,
                "starts_used": draws.starts_used,
                "draws": draws.drawn,
                "unreleased": draws.unreleased,
                "generation": draws.generation,
                "views_achieved": draws.released / table.windows_accepted if table.windows_accepted else 0.0,
                "throttled": table.throttled,
                "stopping": table.stopping,
                "ended": table.finished and (draws.ended or table.stopping),
                "error": self._error,
            }

    def close(self) -> None:
        """Stop serving, finish the ledger and free sockets and memory; a second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake()
        if self._thread is not None:
            self._thread.join()
            self._solvers.close()
            self._socket.close()
        for peer in self._peers:
            self._peers.remove(peer)
        if self._writer is not None:
            self._writer.close()
        if self._settings.statistics is not None:
            self._settings.statistics.save()
        if self._error is None:
            self._ledger.sync()
        self._ledger.close()
        if self._settings.spool is not None:
            self._settings.spool.close()
        self._settings.memory.close()

    # -- the loop ------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._socket is not None:
            self._socket.wake()

    def _run(self) -> None:
        # In this thread: the check for NaN squares what it finds, also signalling NaN, and looks again.
        np.seterr(over="ignore", invalid="ignore")
        try:
            while not self._closing.is_set():
                self._socket.wait(_TICK_MILLISECONDS)
                with self._lock:
                    self._receive_burst()
                    self._advance()
        except Exception as error:
            logger.exception("The intake stopped.")
            self._error = f"{type(error).__name__}: {error}"

    def _receive_burst(self) -> None:
        """Take up to some messages that are there; a worker that wants a batch does not wait for many blocks."""
        for _ in range(_BURST):
            frames = None if self._trainers.wanted else self._socket.receive()
            if frames is None:
                # While a block is put in its place another message may come.
                if not self._solvers.work():
                    break
                continue
            self._messages += 1
            try:
                self._take(*self._socket.verify(frames))
            except WireError as error:
                self._rejected[str(error)] += 1
        self._solvers.settle()

    def _take(self, identity: bytes, header: Header, payload: Any) -> None:
        if header.kind not in _KINDS:
            raise WireError("kind")
        if header.kind != Kind.BLOCK and header.kind != Kind.STEPS:
            self._solvers.settle()
        if header.kind == Kind.HELLO:
            self._on_hello(identity, payload)
            return
        peer = self._peers.find(header.session)
        if peer is None:
            # It was authenticated: a rank of before a restart of the intake, or one that was forgotten.
            self._refuse(identity, rejoin("unknown session"))
            if header.kind == Kind.LEASE and self._peers.began(header.session):
                return  # a sign of life has a connection of its own, on which it comes later than its rank's farewell
            raise WireError("session")
        peer.check(header, identity)
        handler = self._handlers.get(header.kind)
        role = _ROLES.get(header.kind, peer.hello.role)
        if handler is None or role != peer.hello.role:
            raise WireError("kind")
        handler(peer, header, payload)

    def _tell(
        self, peer: Peer, kind: Kind, payload: Content | list[np.ndarray] = None, **fields: Any
    ) -> None:  # fmt: skip
        peer.sent += 1
        fields.update(session=peer.session, sequence=peer.sent)
        if isinstance(payload, list):
            self._socket.post_content(peer.identity, payload, signed=self._settings.strict, **fields)
        else:
            self._socket.post(peer.identity, kind, payload, **fields)

    def _refuse(self, identity: bytes, reason: dict[str, Any]) -> None:
        self._socket.post(identity, Kind.REFUSED, reason)

    def _advance(self) -> None:
        """Do everything that has become possible: assignments, credits, batches; keep time."""
        now = time.monotonic()
        self._solvers.advance()
        self._table.settle()
        self._trainers.answer()
        if now - self._flushed > _FLUSH_SECONDS:
            self._ledger.flush()
            self._flushed = now
        if now - self._swept > min(1.0, self._settings.lease / 4):
            self._swept = now
            self._sweep(now)
            if self._settings.statistics is not None:
                self._settings.statistics.save(at_most_every=SAVE_SECONDS)

    # -- peers ---------------------------------------------------------------------------------------------------

    def _on_hello(self, identity: bytes, payload: Any) -> None:
        hello = Hello.parse(bytes(payload))
        self._peers.remember(hello.nonce)
        try:
            if hello.ranks > MAX_PEERS:  # before anything of that size is made
                raise Refusal(f"{hello.ranks} ranks cannot connect; the limit of one intake is {MAX_PEERS}.")
            self._replace(hello)
            peer = self._peers.add(hello, identity)
        except Refusal as refusal:
            self._rejected["refused"] += 1
            self._refuse(identity, {"error": str(refusal)})
            return
        settings = self._settings
        welcome: dict[str, Any] = {"nonce": hello.nonce, "lease": settings.lease, "strict": settings.strict}
        if hello.role == "trainer":
            welcome.update(self._geometry(), here=self._is_here(hello))
        else:
            # A spool is the intake's own affair: its solvers do what they do where there is room.
            when_full = "skip" if settings.when_full == "skip" else "block"
            welcome.update(when_full=when_full, checksums=CHECKSUMS, gathered=MOST_GATHERED)
            self._offer_ring(peer, welcome)
        self._tell(peer, Kind.WELCOME, welcome)

    def _replace(self, hello: Hello) -> None:
        """Make room for a peer that comes again, and for a younger generation of the trainer."""
        if hello.role == "trainer":
            self._trainers.welcome(hello)
        before = self._peers.predecessor(hello)
        if before is None:
            return
        job = self._peers.jobs.get(hello.job)
        self._peers.remove(before)
        if job is not None and job.simulation is not None:
            self._solvers.drop_job(hello.job, f"rank {hello.rank} of job {hello.job} lost its connection", notify=True)

    def _offer_ring(self, peer: Peer, welcome: dict[str, Any]) -> None:
        """Offer shared memory to a rank of this node; in strict mode every byte is authenticated, so there is none."""
        settings = self._settings
        size = ring_bytes(settings.layout.step_bytes // peer.hello.ranks, settings.ring_bytes)
        room = settings.all_rings_bytes - sum(other.ring.size for other in self._peers if other.ring is not None)
        here = self._is_here(peer.hello) and not self._socket.in_process
        if not here or settings.strict or not 0 < size <= room:
            return
        try:
            peer.ring = Ring(size)
        except OSError as error:
            logger.warning("No shared memory for rank %s of job %s: %s", peer.hello.rank, peer.hello.job, error)
            return
        welcome["ring"] = peer.ring.offer()

    def _is_here(self, hello: Hello) -> bool:
        """Whether a peer says that it is on this node; its memory may still be another container's."""
        return hello.host == network.gethostname()

    def _geometry(self) -> dict[str, Any]:
        layout, memory = self._settings.layout, self._settings.memory
        fields = [
            {"name": name, "shape": layout.shape, "dtype": layout.dtype, "offset": i * layout.field_bytes}
            for i, name in enumerate(layout.fields)
        ]
        return {
            "path": str(memory.path), "num_slots": len(memory.array), "slot_bytes": layout.step_bytes,
            "fields": fields, "window": layout.window, "parameters": layout.parameters, "num_steps": layout.num_steps,
        }  # fmt: skip

    def _sweep(self, now: float) -> None:
        """Forget who is silent for three leases, and jobs whose ranks never came together."""
        patience, limit = 3 * self._settings.lease, self._settings.start_limit
        for peer in self._peers:
            if now - peer.last_heard > patience:
                self._rejected["silent"] += 1
                if peer.hello.role == "solver":
                    self._solvers.drop_job(peer.hello.job, f"a rank of job {peer.hello.job} fell silent", notify=True)
                else:
                    self._peers.remove(peer)
        for job in list(self._peers.jobs.values()):
            if len(job.peers) < job.ranks and job.requests and now - job.since > limit:
                error = f"Only {len(job.peers)} of {job.ranks} ranks of job {job.name} came within {limit:g} s."
                for peer in list(job.peers.values()):
                    self._tell(peer, Kind.REFUSED, {"error": error})
                self._solvers.drop_job(job.name, error, notify=False)

    def _on_lease(self, peer: Peer, header: Header, payload: Any) -> None:
        peer.lease_sent += 1
        self._socket.post(peer.lease_identity, Kind.LEASED, session=peer.session, sequence=peer.lease_sent)

    def _held_out_written(self, result: HeldOutResult) -> None:
        with self._lock:
            self._table.held_out_written(result)
        self._wake()
