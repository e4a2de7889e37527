"""The intake: receives the stream, owns the reservoir, deals batches to the trainer. Pure Python, without Ray."""

from __future__ import annotations

import logging
import math
import socket as network
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .block_intake import ChecksumError
from .cell_list import CellList
from .client import CHECKSUMS, IN_RING, PAYLOAD_SIGNED, SKIP_NEXT, Header, Kind, WireError, Word
from .held_out_writer import HeldOutResult, HeldOutWriter
from .intake_settings import IntakeSettings
from .intake_socket import Content, IntakeSocket
from .kept_steps import KeptStep
from .ledger import RecordWriter
from .peers import Hello, Job, Peer, Peers, Refusal, read_json, rejoin
from .ring import Ring, ring_bytes
from .simulation_run import Assignment, SimulationRun
from .simulation_table import SimulationTable
from .spool import Spooled
from .stream_statistics import SAVE_SECONDS
from .trainer_desk import TrainerDesk

logger = logging.getLogger(__name__)

_BURST = 64
_TOGETHER_BYTES = 64 * 1024
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
        self._trainers = TrainerDesk(settings, self._table, self._peers, self._ledger, self._tell)
        self._rejected: Counter[str] = Counter()
        self._messages = 0
        # Runs whose latest blocks are in their place, while their steps are not accepted yet; and these blocks' bytes.
        self._unsettled: dict[int, SimulationRun] = {}
        self._unsettled_bytes = 0
        self._error: str | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._flushed = self._swept = time.monotonic()
        self._socket: IntakeSocket | None = None
        self._handlers: dict[int, Callable[[Peer, Header, Any], None]] = {
            Kind.DECLARE: self._on_declare, Kind.REQUEST: self._on_request, Kind.BLOCK: self._on_block,
            Kind.STEPS: self._on_block,
            Kind.END: self._on_end, Kind.LEASE: self._on_lease, Kind.BYE: self._on_bye, Kind.SKIP: self._on_skip,
            Kind.CELLS: self._on_cells, **self._trainers.handlers,
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
            again = self._drop_job(job, f"job {job} ended with code {code}", notify=False)
        self._wake()
        return again

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
        """End early: running simulations get the word STOP, the stream of batches ends after the current one."""
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
        np.seterr(over="ignore")  # in this thread; squares overflow in the check for NaN, which then looks again
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
                break
            self._messages += 1
            try:
                self._take(*self._socket.verify(frames))
            except WireError as error:
                self._rejected[str(error)] += 1
        self._settle()

    def _take(self, identity: bytes, header: Header, payload: Any) -> None:
        if header.kind not in _KINDS:
            raise WireError("kind")
        if header.kind != Kind.BLOCK and header.kind != Kind.STEPS:
            self._settle()
        if header.kind == Kind.HELLO:
            self._on_hello(identity, payload)
            return
        peer = self._peers.find(header.session)
        if peer is None:
            # It was authenticated: a rank of before a restart of the intake, or one that was forgotten.
            self._socket.post(identity, Kind.REFUSED, rejoin("unknown session"))
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

    def _tell_job(self, run: SimulationRun, kind: Kind, **fields: Any) -> None:
        job = self._peers.jobs.get(run.job or "")
        for peer in list(job.peers.values()) if job else []:
            self._tell(peer, kind, simulation=run.number, attempt=run.attempt, **fields)

    def _advance(self) -> None:
        """Do everything that has become possible: assignments, credits, batches; keep time."""
        table, now = self._table, time.monotonic()
        for job in list(self._peers.jobs.values()):
            if job.ready and job.simulation is None:
                self._assign(job)
        table.replay()
        for run in table.active:
            if table.grant(run):
                self._tell_job(run, Kind.CREDIT, value=run.granted)
        table.settle()
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
            self._replace(hello)
            peer = self._peers.add(hello, identity)
        except Refusal as refusal:
            self._rejected["refused"] += 1
            self._socket.post(identity, Kind.REFUSED, {"error": str(refusal)})
            return
        settings = self._settings
        welcome: dict[str, Any] = {"nonce": hello.nonce, "lease": settings.lease, "strict": settings.strict}
        if hello.role == "trainer":
            welcome.update(self._geometry(), here=self._is_here(hello))
        else:
            # A spool is the intake's own affair: its solvers do what they do where there is room.
            when_full = "skip" if settings.when_full == "skip" else "block"
            welcome.update(when_full=when_full, checksums=CHECKSUMS)
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
            self._drop_job(hello.job, f"rank {hello.rank} of job {hello.job} lost its connection", notify=True)

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

    def _drop_job(self, name: str, reason: str, *, notify: bool) -> list[int]:
        """Forget a job and its ranks; return the simulations that run again."""
        job = self._peers.jobs.get(name)
        numbers = [run.number for run in self._table.active if run.job == name]
        for peer in list(job.peers.values()) if job else []:
            if notify:
                self._socket.post(peer.identity, Kind.REFUSED, rejoin(reason))
            self._peers.remove(peer)
        if job is not None:
            job.simulation = None
        return [number for number in numbers if self._table.lose(number, reason)]

    def _on_bye(self, peer: Peer, header: Header, payload: Any) -> None:
        job = self._peers.jobs.get(peer.hello.job)
        self._peers.remove(peer)
        if job is not None and not job.peers and job.simulation is not None:
            self._drop_job(job.name, f"job {job.name} left before the end", notify=False)

    def _sweep(self, now: float) -> None:
        """Forget who is silent for three leases, and jobs whose ranks never came together."""
        patience, limit = 3 * self._settings.lease, self._settings.start_limit
        for peer in self._peers:
            if now - peer.last_heard > patience:
                self._rejected["silent"] += 1
                if peer.hello.role == "solver":
                    self._drop_job(peer.hello.job, f"a rank of job {peer.hello.job} fell silent", notify=True)
                else:
                    self._peers.remove(peer)
        for job in list(self._peers.jobs.values()):
            if len(job.peers) < job.ranks and job.requests and now - job.since > limit:
                error = f"Only {len(job.peers)} of {job.ranks} ranks of job {job.name} came within {limit:g} s."
                for peer in list(job.peers.values()):
                    self._tell(peer, Kind.REFUSED, {"error": error})
                self._drop_job(job.name, error, notify=False)

    def _on_lease(self, peer: Peer, header: Header, payload: Any) -> None:
        peer.lease_sent += 1
        self._socket.post(peer.lease_identity, Kind.LEASED, session=peer.session, sequence=peer.lease_sent)

    # -- solvers -------------------------------------------------------------------------------------------------

    def _on_declare(self, peer: Peer, header: Header, payload: Any) -> None:
        layout = self._settings.layout
        declared = read_json(bytes(payload)).get("fields")
        expected = [{"name": name, "shape": list(layout.shape), "dtype": layout.dtype} for name in layout.fields]
        if declared != expected:
            self._refuse(peer, "declare", f"the solver declares the fields {declared}, but the study has {expected}")
            return
        peer.declared = True
        if peer.ring is not None:
            peer.ring.seal()
        self._tell(peer, Kind.DECLARED)

    def _on_cells(self, peer: Peer, header: Header, payload: Any) -> None:
        """A rank names the cells that it owns; the blocks that follow refer to this list."""
        total = math.prod(self._settings.layout.shape)
        job = self._peers.jobs[peer.hello.job]
        try:
            if not peer.declared or len(header.global_shape) != 1:
                raise WireError("cells")
            if header.offset == (0,):
                # Ranks change their lists one after the other: for a moment two partitions may stand side by side.
                known = sum(other.cells.shape[0] for other in job.peers.values() if other.cells is not None)
                if known + header.global_shape[0] > 2 * total:
                    raise WireError("cells")
                peer.cells = CellList(peer.cells.number + 1 if peer.cells else 0, header.global_shape[0], total)
            if peer.cells is None:
                raise WireError("cells")
            peer.cells.add(header, bytes(payload))
        except WireError:
            peer.cells = None
            text = f"rank {peer.hello.rank} must name its cells as docs/wire.md says: 0 to {total - 1}, each once"
            self._tell(peer, Kind.REFUSED, {"error": text})
            raise

    def _refuse(self, peer: Peer, reason: str, error: str) -> None:
        self._rejected[reason] += 1
        self._tell(peer, Kind.REFUSED, {"error": error})

    def _on_request(self, peer: Peer, header: Header, payload: Any) -> None:
        job = self._peers.jobs[peer.hello.job]
        if not peer.declared or job.simulation is not None:
            raise WireError("request")
        job.requests[peer.hello.rank] = header.value

    def _assign(self, job: Job) -> None:
        if self._table.exhausted:
            job.requests.clear()
            for peer in job.peers.values():
                self._tell(peer, Kind.FINISHED)
            return
        run = self._table.admit(job.name)
        if run is None:
            return
        job.requests.clear()
        job.simulation = run.number
        assignment = run.assignment
        # The attempt's number must outlive this process before a rank can use it: the next session takes a larger one.
        self._ledger.flush()
        content = {"parameters": dict(assignment.parameters), "seed": assignment.seed}
        self._tell_job(run, Kind.ASSIGN, payload=content, value=self._settings.layout.num_steps)
        self._tell_job(run, Kind.CREDIT, value=run.granted)

    def _running(self, peer: Peer, header: Header) -> tuple[Job, SimulationRun]:
        job = self._peers.jobs.get(peer.hello.job)
        run = self._table.runs.get(header.simulation)
        if job is None or run is None or job.simulation != run.number or header.attempt != run.attempt:
            raise WireError("attempt")
        return job, run

    def _on_block(self, peer: Peer, header: Header, payload: Any) -> None:
        if not header.flags & IN_RING:
            self._store(peer, header, payload)
            return
        if peer.ring is None:
            raise WireError("ring")
        position = header.value // 2
        content = peer.ring.content(position, header.payload_length)
        try:
            self._store(peer, header, content)
        finally:
            if peer.ring is not None:
                peer.ring.release(position + header.payload_length)

    def _store(self, peer: Peer, header: Header, payload: Any) -> None:
        _, run = self._running(peer, header)
        if self._settings.strict and not header.flags & PAYLOAD_SIGNED:
            raise WireError("strict")
        if (header.block, header.num_blocks) != (peer.hello.rank, peer.hello.ranks):
            raise WireError("rank")
        try:
            cells = peer.cells if peer.cells is not None and peer.cells.complete else None
            take = self._table.take_block if header.kind == Kind.BLOCK else self._table.take_steps
            take(run, header, payload, cells)
        except ChecksumError:
            # The sender cannot send it again: its memory may have changed. The whole attempt is run again.
            self._settle()
            reason = f"a block of step {header.step} from rank {header.block} was damaged on its way"
            self._drop_job(peer.hello.job, reason, notify=True)
            raise
        except WireError as error:
            text = f"a block of field {header.field} at step {header.step} is wrong: {error}; see docs/wire.md"
            self._tell(peer, Kind.REFUSED, {"error": text})
            raise
        # Small blocks come by many; what is said of their steps, credits and words, is said of all together.
        self._unsettled[run.number] = run
        self._unsettled_bytes += header.payload_length
        if self._unsettled_bytes >= _TOGETHER_BYTES:
            self._settle()

    def _settle(self) -> None:
        """Accept and acknowledge the steps that the latest blocks have completed."""
        if self._unsettled:
            runs, self._unsettled, self._unsettled_bytes = self._unsettled, {}, 0
            for run in runs.values():
                self._acknowledge(run)

    def _acknowledge(self, run: SimulationRun) -> None:
        """Tell all ranks of a job which steps are complete, with their words, and what to do with the next one."""
        self._table.advance(run)
        if not run.done:
            return
        if self._settings.durability != "memory":
            self._make_durable()
        # Credits travel with the acknowledgement; `_advance` grants later what there is no room for now.
        granted = run.granted
        flags = SKIP_NEXT if self._table.decide(run) else 0
        words = self._table.words(run, time.monotonic())
        if not words and run.granted > granted:
            self._tell_job(run, Kind.CREDIT, value=run.granted)
        for step, word in words:
            last = step == run.received - 1
            # Said once, with the acknowledgement, and so to all ranks alike: whoever goes on at this pace will wait.
            if last and word == Word.CONTINUE and self._table.short_of_room(run):
                word = Word.SLOW
            self._tell_job(run, Kind.ACK, step=step, value=run.granted << 8 | int(word), flags=flags if last else 0)

    def _make_durable(self) -> None:
        """Return when what is acknowledged next would outlive what it is promised to outlive."""
        if self._settings.durability == "disk":
            self._settings.memory.sync()
            if self._settings.spool is not None:
                self._settings.spool.sync()
            self._ledger.sync()
        else:
            self._ledger.flush()

    def _on_skip(self, peer: Peer, header: Header, payload: Any) -> None:
        _, run = self._running(peer, header)
        if (header.block, header.num_blocks) != (peer.hello.rank, peer.hello.ranks):
            raise WireError("rank")
        self._table.skip_step(run, header)
        self._acknowledge(run)

    def _on_end(self, peer: Peer, header: Header, payload: Any) -> None:
        job, run = self._running(peer, header)
        report = read_json(bytes(payload))
        seconds = [report.get(key, 0.0) for key in ("blocked", "elapsed")]
        if header.value > 2 or not all(type(s) in (int, float) and 0 <= s < 1e12 for s in seconds):
            raise WireError("json")
        if self._table.end_rank(run, peer.hello.rank, job.ranks, header.value, report):
            job.simulation = None
            for other in job.peers.values():
                self._tell(other, Kind.ENDED, simulation=run.number, attempt=run.attempt)

    def _held_out_written(self, result: HeldOutResult) -> None:
        with self._lock:
            self._table.held_out_written(result)
        self._wake()
