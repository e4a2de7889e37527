"""What solvers ask of an intake: simulations, credit, and that their steps are taken and acknowledged."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .block_intake import Arrival, ChecksumError
from .cell_list import CellList
from .client import IN_RING, PAYLOAD_SIGNED, SKIP_NEXT, Header, Kind, WireError, Word
from .peers import Job, Peer, Peers, read_json, rejoin
from .placing import Helper
from .simulation_run import SimulationRun

if TYPE_CHECKING:
    from .intake_settings import IntakeSettings
    from .ledger import RecordWriter
    from .simulation_table import SimulationTable

_TOGETHER_BYTES = 64 * 1024
_HELPED_BYTES = 256 * 1024
_MOST_ARRIVING = 3
_IN_RING = frozenset((Kind.ACK, Kind.CREDIT))


class SolverDesk:
    """Takes the messages of solver ranks and answers them; used by the thread that serves.

    rejected : counts what was refused, by reason.
    tell : sends a message to a peer.
    send_away : tells a peer's identity why its session is over, so that it joins again.
    """

    def __init__(
        self, settings: IntakeSettings, table: SimulationTable, peers: Peers, ledger: RecordWriter,
        rejected: Counter[str], *, tell: Callable[..., None], send_away: Callable[[bytes, dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self._settings, self._table, self._peers, self._ledger = settings, table, peers, ledger
        self._rejected, self._tell, self._send_away = rejected, tell, send_away
        # Runs whose latest blocks are in their place, while their steps are not accepted yet; and these blocks' bytes.
        self._unsettled: dict[int, SimulationRun] = {}
        self._unsettled_bytes = 0
        # Blocks on the way to their places, in order, each with its sender.
        self._arriving: deque[tuple[Peer, Arrival]] = deque()
        self._helper = Helper()
        self.handlers: dict[int, Callable[[Peer, Header, Any], None]] = {
            Kind.DECLARE: self._on_declare, Kind.CELLS: self._on_cells, Kind.REQUEST: self._on_request,
            Kind.BLOCK: self._on_block, Kind.STEPS: self._on_block, Kind.SKIP: self._on_skip, Kind.END: self._on_end,
            Kind.BYE: self._on_bye,
        }  # fmt: skip

    def advance(self) -> None:
        """Give out simulations and credit as far as there is room now."""
        for job in list(self._peers.jobs.values()):
            if job.ready and job.simulation is None:
                self._assign(job)
        self._table.replay()
        for run in self._table.active:
            if self._table.grant(run):
                self._tell_job(run, Kind.CREDIT, value=run.granted)

    def drop_job(self, name: str, reason: str, *, notify: bool) -> list[int]:
        """Forget a job and its ranks; return the simulations that run again."""
        job = self._peers.jobs.get(name)
        numbers = [run.number for run in self._table.active if run.job == name]
        for peer in list(job.peers.values()) if job else []:
            if notify:
                self._send_away(peer.identity, rejoin(reason))
            self._peers.remove(peer)
        if job is not None:
            job.simulation = None
        return [number for number in numbers if self._table.lose(number, reason)]

    def _tell_job(self, run: SimulationRun, kind: Kind, **fields: Any) -> None:
        """Tell all ranks of a job; words continue and credit stand in the ring of those who look there."""
        job, in_ring = self._peers.jobs.get(run.job or ""), run.all_continue and kind in _IN_RING
        for peer in list(job.peers.values()) if job else []:
            if not (in_ring and peer.reads_ring and peer.ring.say(run.said, run.granted)):
                self._tell(peer, kind, simulation=run.number, attempt=run.attempt, **fields)

    def _on_declare(self, peer: Peer, header: Header, payload: Any) -> None:
        layout = self._settings.layout
        content = read_json(bytes(payload))
        declared = content.get("fields")
        expected = [{"name": name, "shape": list(layout.shape), "dtype": layout.dtype} for name in layout.fields]
        if declared != expected:
            self._refuse(peer, "declare", f"the solver declares the fields {declared}, but the study has {expected}")
            return
        peer.declared = True
        if peer.ring is not None:
            peer.ring.seal()
            peer.reads_ring = content.get("words") == "ring"
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
        # What is left out is said step by step.
        run.all_continue = self._settings.when_full != "skip"
        for peer in job.peers.values():
            if peer.reads_ring:
                peer.ring.say(0, run.granted)  # nothing of the simulation before
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
        if header.flags & IN_RING:
            if peer.ring is None:
                raise WireError("ring")
            payload = peer.ring.content(header.value // 2, header.payload_length)
        try:
            self._store(peer, header, payload)
        except WireError:
            self._finish()
            self._free(peer, header)
            raise

    def _free(self, peer: Peer, header: Header) -> None:
        """A block's content is no longer needed, nor what came before it."""
        if header.flags & IN_RING and peer.ring is not None:
            peer.ring.release(header.value // 2 + header.payload_length)

    def _store(self, peer: Peer, header: Header, payload: Any) -> None:
        _, run = self._running(peer, header)
        if self._settings.strict and not header.flags & PAYLOAD_SIGNED:
            raise WireError("strict")
        if (header.block, header.num_blocks) != (peer.hello.rank, peer.hello.ranks):
            raise WireError("rank")
        try:
            if header.kind == Kind.BLOCK:
                cells = peer.cells if peer.cells is not None and peer.cells.complete else None
                self._arrive(peer, header, self._table.begin_block(run, header, payload, cells))
                return
            self._finish()
            self._table.take_steps(run, header, payload)
        except ChecksumError:
            self._give_up(peer, header)
            raise
        except WireError as error:
            text = f"a block of field {header.field} at step {header.step} is wrong: {error}; see docs/wire.md"
            self._tell(peer, Kind.REFUSED, {"error": text})
            raise
        self._free(peer, header)
        self._note(run, header)

    def _arrive(self, peer: Peer, header: Header, arrival: Arrival | None) -> None:
        """Put a block in its place; a large one of several ranks waits for that as long as another may come at once."""
        if arrival is None:
            self._finish()
            self._free(peer, header)
            return
        waits = header.payload_length >= _HELPED_BYTES and (peer.hello.ranks > 1 or len(self._peers.jobs) > 1)
        if self._arriving and waits:
            self._helper.offer(self._arriving[-1][1].placement)
        self._arriving.append((peer, arrival))
        if not waits:
            self._finish()
        while self._arriving and (len(self._arriving) > _MOST_ARRIVING or self._arriving[0][1].placement.done):
            self._finish_first()

    def work(self) -> bool:
        """Put a block in its place, or wait until the first one is there; False where none is on its way."""
        if not self._arriving:
            return False
        first = self._arriving[0][1].placement
        # The last one first, which the helper has not been offered: it has the others.
        ran = not first.done and any(arrival.placement.run() for _, arrival in reversed(self._arriving))
        if first.done or not ran:
            self._finish_first()
        return True

    def _finish(self) -> None:
        """Put all blocks that are on their way in their places."""
        while self._arriving:
            self._finish_first()

    def _finish_first(self) -> None:
        peer, arrival = self._arriving.popleft()
        try:
            self._table.finish_block(arrival)
            self._note(arrival.run, arrival.header)
        except ChecksumError as error:
            self._rejected[str(error)] += 1
            self._give_up(peer, arrival.header)
        finally:
            self._free(peer, arrival.header)

    def _give_up(self, peer: Peer, header: Header) -> None:
        """A block was damaged, and may have changed at its sender's: the whole attempt is run again."""
        self._acknowledge_all()
        reason = f"a block of step {header.step} from rank {header.block} was damaged on its way"
        self.drop_job(peer.hello.job, reason, notify=True)

    def _note(self, run: SimulationRun, header: Header) -> None:
        """A block is in its place. Small ones come by many: what is said of their steps is said of all together."""
        self._unsettled[run.number] = run
        self._unsettled_bytes += header.payload_length
        if self._unsettled_bytes >= _TOGETHER_BYTES:
            self._acknowledge_all()

    def settle(self) -> None:
        """Accept and acknowledge the steps that the latest blocks complete."""
        self._finish()
        self._acknowledge_all()

    def close(self) -> None:
        """End the helper."""
        self._helper.close()

    def _acknowledge_all(self) -> None:
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
        # Credits travel with the acknowledgement; `advance` grants later what there is no room for now.
        granted = run.granted
        flags = SKIP_NEXT if self._table.decide(run) else 0
        words = self._table.words(run, time.monotonic())
        # Said once, with the acknowledgement, and so to all ranks alike: whoever goes on at this pace will wait.
        if words and words[-1] == (run.received - 1, Word.CONTINUE) and self._table.short_of_room(run):
            words[-1] = run.received - 1, Word.SLOW
        run.all_continue = run.all_continue and not flags and all(word == Word.CONTINUE for _, word in words)
        if not words and run.granted > granted:
            self._tell_job(run, Kind.CREDIT, value=run.granted)
        for step, word in words:
            last = step == run.received - 1
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

    def _on_bye(self, peer: Peer, header: Header, payload: Any) -> None:
        job = self._peers.jobs.get(peer.hello.job)
        self._peers.remove(peer)
        if job is not None and not job.peers and job.simulation is not None:
            self.drop_job(job.name, f"job {job.name} left before the end", notify=False)
