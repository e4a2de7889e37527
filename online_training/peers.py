"""Who is connected to the intake: sessions of solver ranks and trainer workers, and the jobs the ranks belong to."""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from .cell_list import CellList
from .client import Header, Kind, WireError
from .ring import Ring

MAX_PEERS = 16384
MAX_JSON = 64 * 1024
_REMEMBERED_NONCES = 4 * MAX_PEERS
_HELLO_TYPES = {
    "role": str, "job": str, "rank": int, "ranks": int, "pid": int, "host": str, "nonce": str, "generation": int
}  # fmt: skip


class Refusal(Exception):
    """A request that is answered with REFUSED; the text is for people."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """How a peer introduced itself."""

    role: str
    job: str
    rank: int
    ranks: int
    pid: int
    host: str
    nonce: str
    generation: int

    @classmethod
    def parse(cls, payload: bytes) -> Hello:
        """Read HELLO's JSON; anything unexpected is a WireError."""
        content = read_json(payload)
        for name, kind in _HELLO_TYPES.items():
            if type(content.get(name)) is not kind:
                raise WireError("json")
        hello = cls(**{name: content[name] for name in _HELLO_TYPES})
        if hello.role not in ("solver", "trainer") or not 0 <= hello.rank < hello.ranks:
            raise WireError("json")
        if max(len(hello.job), len(hello.host), len(hello.nonce)) > 200 or hello.generation < 0:
            raise WireError("json")
        return hello


def rejoin(reason: str) -> dict[str, Any]:
    """Return the JSON of a REFUSED after which a client begins a new session."""
    return {"error": reason, "rejoin": True}


def read_json(payload: bytes) -> dict[str, Any]:
    """Read a JSON object of bounded size; anything else is a WireError."""
    if not 0 < len(payload) <= MAX_JSON:
        raise WireError("json")
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        raise WireError("json") from None
    if not isinstance(content, dict):
        raise WireError("json")
    return content


@dataclass
class Peer:
    """One session: a solver rank or a trainer worker; its lease thread counts a sequence of its own."""

    hello: Hello
    identity: bytes
    session: int
    sequence: int = 0
    sent: int = 0
    lease_identity: bytes = b""
    lease_sequence: int = 0
    lease_sent: int = 0
    last_heard: float = field(default_factory=time.monotonic)
    declared: bool = False
    ring: Ring | None = None
    reads_ring: bool = False
    cells: CellList | None = None

    def check(self, header: Header, identity: bytes) -> None:
        """Admit a message only from this peer's own sockets and in growing sequence, else WireError."""
        if header.kind == Kind.LEASE:
            if self.lease_identity not in (b"", identity):
                raise WireError("session")
            if header.sequence <= self.lease_sequence:
                raise WireError("sequence")
            self.lease_identity, self.lease_sequence = identity, header.sequence
        else:
            if identity != self.identity:
                raise WireError("session")
            if header.sequence <= self.sequence:
                raise WireError("sequence")
            self.sequence = header.sequence
        self.last_heard = time.monotonic()


@dataclass
class Job:
    """The ranks of one mpirun.

    requests : round that each waiting rank asked for.
    simulation : number of the simulation that the job runs; None while it runs none.
    """

    name: str
    ranks: int
    peers: dict[int, Peer] = field(default_factory=dict)
    requests: dict[int, int] = field(default_factory=dict)
    simulation: int | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def ready(self) -> bool:
        """Whether all ranks wait for the same round."""
        return len(self.requests) == self.ranks and len(set(self.requests.values())) == 1


class Peers:
    """The sessions of one intake; session numbers tell intakes of the same study apart."""

    def __init__(self, session: int) -> None:
        self._first = self._next = (session << 32) + 1
        self._by_session: dict[int, Peer] = {}
        self._nonces: OrderedDict[str, None] = OrderedDict()
        self.jobs: dict[str, Job] = {}
        self.trainers: dict[int, Peer] = {}

    def __len__(self) -> int:
        return len(self._by_session)

    def __iter__(self) -> Any:
        return iter(list(self._by_session.values()))

    def find(self, session: int) -> Peer | None:
        """Return the peer of a session, if it is one of this intake."""
        return self._by_session.get(session)

    def began(self, session: int) -> bool:
        """Return whether a session is or was one of this intake."""
        return self._first <= session < self._next

    def remember(self, nonce: str) -> None:
        """Refuse a HELLO that was seen before: it was recorded and is replayed."""
        if nonce in self._nonces:
            raise WireError("replayed")
        self._nonces[nonce] = None
        if len(self._nonces) > _REMEMBERED_NONCES:
            self._nonces.popitem(last=False)

    def add(self, hello: Hello, identity: bytes) -> Peer:
        """Begin a session.

        Raises
        ------
        Refusal : the place is taken by another process, or there are too many peers.
        """
        if len(self) >= MAX_PEERS:
            raise Refusal(f"{MAX_PEERS} ranks and trainers are connected already; that is the limit of one intake.")
        peer = Peer(hello, identity, self._next)
        if hello.role == "trainer":
            self.trainers[hello.rank] = peer
        else:
            job = self.jobs.setdefault(hello.job, Job(hello.job, hello.ranks))
            if hello.ranks != job.ranks:
                raise Refusal(f"Job {hello.job} has {job.ranks} ranks, but this one says {hello.ranks}.")
            job.peers[hello.rank] = peer
        self._by_session[peer.session] = peer
        self._next += 1
        return peer

    def predecessor(self, hello: Hello) -> Peer | None:
        """Return the session that a HELLO would replace.

        Raises
        ------
        Refusal : another living process has this place.
        """
        if hello.role == "trainer":
            return self.trainers.get(hello.rank)
        job = self.jobs.get(hello.job)
        peer = job.peers.get(hello.rank) if job else None
        if peer is not None and (peer.hello.pid, peer.hello.host) != (hello.pid, hello.host):
            raise Refusal(
                f"Rank {hello.rank} of job {hello.job} is connected already, as process {peer.hello.pid} on"
                f" {peer.hello.host}. Pass comm= to connect(), so that every rank says which one it is."
            )
        return peer

    def remove(self, peer: Peer) -> None:
        """Forget a session; its later messages are strangers'."""
        self._by_session.pop(peer.session, None)
        if peer.ring is not None:
            peer.ring.close()
            peer.ring = None
        if peer.hello.role == "trainer":
            if self.trainers.get(peer.hello.rank) is peer:
                del self.trainers[peer.hello.rank]
            return
        job = self.jobs.get(peer.hello.job)
        if job is not None and job.peers.get(peer.hello.rank) is peer:
            del job.peers[peer.hello.rank]
            job.requests.pop(peer.hello.rank, None)
            if not job.peers:
                del self.jobs[job.name]
