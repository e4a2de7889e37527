"""What trainers ask of an intake: batches, statistics, bytes of slots, and words to running simulations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .client import Header, Kind, WireError, Word
from .draws import MAX_PENDING, Draws, batch_dtype
from .peers import Hello, Peer, Peers, Refusal, read_json
from .remote_slots import read_pieces

if TYPE_CHECKING:
    from .intake_settings import IntakeSettings
    from .ledger import RecordWriter
    from .simulation_table import SimulationTable


class TrainerDesk:
    """Takes the messages of trainer workers and answers them; used by the thread that serves.

    ledger : of the intake; its records of a batch's steps are handed to the operating system before the batch leaves.
    tell : sends a message to a peer.
    """

    def __init__(
        self, settings: IntakeSettings, table: SimulationTable, peers: Peers, ledger: RecordWriter,
        tell: Callable[..., None],
    ) -> None:  # fmt: skip
        self._memory, self._table, self._peers, self._ledger, self._tell = settings.memory, table, peers, ledger, tell
        self.draws = Draws(settings.buffer, table.tabulate, table.may_draw)
        layout = settings.layout
        self._record_bytes = batch_dtype(layout.window, len(layout.parameters)).itemsize
        self._asking_statistics: set[int] = set()
        self.wanted = False
        """Whether a worker has asked for a batch since the last `answer`."""
        self.handlers: dict[int, Callable[[Peer, Header, Any], None]] = {
            Kind.DRAW: self._on_draw, Kind.RELEASE: self._on_release, Kind.STATISTICS: self._on_statistics,
            Kind.STEER: self._on_steer, Kind.FETCH: self._on_fetch,
        }  # fmt: skip

    def welcome(self, hello: Hello) -> None:
        """Let a worker in; the first one of a younger generation ends the older ones.

        Raises
        ------
        Refusal : a younger generation works already.
        """
        if hello.generation < self.draws.generation:
            raise Refusal(f"Generation {self.draws.generation} of the trainer works already; this one is older.")
        if hello.generation > self.draws.generation:
            for trainer in list(self._peers.trainers.values()):
                self._peers.remove(trainer)
            self.draws.begin_generation(hello.generation, hello.ranks)

    def answer(self) -> None:
        """Answer what can be answered now."""
        self.wanted = False
        if self._table.frozen:
            self._answer_statistics()
        self._answer_draws()

    def _on_draw(self, peer: Peer, header: Header, payload: Any) -> None:
        wanted = read_json(bytes(payload))
        batch, count = wanted.get("batch"), wanted.get("count", 1)
        if type(batch) is not int or type(count) is not int or not 1 <= count <= MAX_PENDING:
            raise WireError("draw")
        if header.block != peer.hello.rank or peer.hello.generation != self.draws.generation:
            raise WireError("draw")
        self.draws.ask(header.value, count, header.block, header.num_blocks, batch, self._record_bytes)
        self.wanted = True

    def _on_release(self, peer: Peer, header: Header, payload: Any) -> None:
        if header.payload_length % 8:
            raise WireError("length")
        self._require_youngest(peer)
        self.draws.release(np.frombuffer(payload, "<u8"))

    def _on_statistics(self, peer: Peer, header: Header, payload: Any) -> None:
        self._asking_statistics.add(peer.session)

    def _on_steer(self, peer: Peer, header: Header, payload: Any) -> None:
        reason = read_json(bytes(payload)).get("reason")
        if type(reason) is not str or header.value not in iter(Word) or peer.hello.generation != self.draws.generation:
            raise WireError("steer")
        self._table.steer(header.simulation, Word(header.value), reason)

    def _on_fetch(self, peer: Peer, header: Header, payload: Any) -> None:
        """Send a worker on another node what lies in slots; it asks for those of windows that it has drawn."""
        self._require_youngest(peer)
        self._tell(peer, Kind.CONTENT, read_pieces(bytes(payload), self._memory.array), value=header.value)

    def _require_youngest(self, peer: Peer) -> None:
        if peer.hello.generation != self.draws.generation:
            raise WireError("generation")

    def _answer_statistics(self) -> None:
        for session in self._asking_statistics:
            peer = self._peers.find(session)
            if peer is not None:
                self._tell(peer, Kind.STATISTICS_ARE, self._table.statistics.to_dict())
        self._asking_statistics.clear()

    def _answer_draws(self) -> None:
        flushed = False
        for answer in self.draws.answers():
            peer = self._peers.trainers.get(answer.worker)
            if peer is None:
                continue
            if not answer.batches:
                self._tell(peer, Kind.BATCH, value=answer.index)
                continue
            if not flushed:
                self._ledger.flush()
                flushed = True
            self._tell(
                peer, Kind.BATCH, b"".join([records.tobytes() for records in answer.batches]), value=answer.index,
                step=len(answer.batches), block=answer.worker, num_blocks=peer.hello.ranks,
            )  # fmt: skip
