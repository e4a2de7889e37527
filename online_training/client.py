"""The solver's side of the wire, in one file that needs only Python, numpy and pyzmq.

Copy it beside any solver, or import it from an installed Headrace. docs/wire.md is the specification.

    with connect(fields={"u": (256, 256)}, comm=comm) as stream:
        nu = stream.parameters.nu
        for step, time, block, where in my_time_loop(nu):
            if stream.send(step=step, time=time, values=block, where=where) == STOP:
                break
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import math
import mmap
import os
import secrets
import socket as network
import stat
import struct
import sys
import threading
import time as clock
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import zmq
from zmq.utils import z85

try:
    import xxhash
except ImportError:  # this file beside a solver's own Python: CRC-32 will do
    xxhash = None

HEADER_SIZE = 224
MAX_BLOCK = 4 * 2**20
MAX_FRAME = MAX_BLOCK + 64 * 1024
MAX_NDIM = 4
CURVE = "curve+"  # before an address: the connection is encrypted
IN_PROCESS = "inproc://"  # an intake in this very process, as in tests
PAYLOAD_SIGNED = 1
IN_RING = 2
SKIP_NEXT = 4
BY_INDEX = 8
XXH3 = 16
CHECKSUMS = ("crc32",) if xxhash is None else ("xxh3", "crc32")
"""Checksums of a block's content that this Python can take, fastest first."""
RING_HEAD, RING_SAID, RING_GRANTED, RING_ASKED = 64, 24, 32, 40
DEFAULT_LEASE = 60.0
EXIT_LEASE_EXPIRED = 75
COMPLETED, FAILED, STOPPED = 0, 1, 2
DTYPES = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4"), 4: np.dtype("<i8"), 5: np.dtype("u1")}
DTYPE_CODES = {dtype.name: code for code, dtype in DTYPES.items()}

_LAYOUT = struct.Struct("<4sHHQQQQIHBBQdII96sQIIQ")
_AXES = struct.Struct(f"<{3 * MAX_NDIM}Q")
_MAGIC = b"HDRC"
VERSION = 2
OLDEST_VERSION = 1
"""Its headers lie alike: it can be told that it is too old, and files of its blocks can be read."""
STEPS_SHIFT = 16
"""In STEPS, where in the flags the number of steps stands."""
MOST_TOGETHER, MOST_GATHERED = 64, 2**20 + 64 * 8
"""Steps in one message, and bytes of its payload."""
_LEAST_GATHERED = 256 * 1024 + 64 * 8  # what every intake of this version takes
_HELLO_PATIENCE = 2.0
_ZERO_COPY_FROM = 64 * 1024
_TOGETHER = 64 * 1024
CHUNK = 256 * 1024
_ALL_AT_ONCE = 2**20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02
_LOOK_AGAIN = 0.05
# Waits that are over soon end before a message would have been made: some looks at memory, a nap before each.
_NAP, _NAPS = 50e-6, 16
_QUICK_STEP = 0.5e-3
# A quarter of the most that an intake lets be on its way: while it works on these, the next travel and are computed.
_HELD_STEPS = 16
_RING_ALIGNMENT = 64
_MOST_ARRAYS = 1024
# Plain numbers: or-ing members of an enumeration takes longer than signing a header.
_AT_ONCE, _AT_ONCE_AND_MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK) | int(zmq.SNDMORE)


class Kind(IntEnum):
    """What a message is; the numbers are those of docs/wire.md."""

    HELLO = 1
    WELCOME = 2
    REFUSED = 3
    DECLARE = 4
    DECLARED = 5
    REQUEST = 6
    ASSIGN = 7
    FINISHED = 8
    CREDIT = 9
    BLOCK = 10
    ACK = 11
    END = 12
    ENDED = 13
    LEASE = 14
    LEASED = 15
    BYE = 16
    SKIP = 17
    CELLS = 18
    STEPS = 19
    DRAW = 20
    BATCH = 21
    RELEASE = 22
    STATISTICS = 23
    STATISTICS_ARE = 24
    STEER = 25
    FETCH = 26
    CONTENT = 27


class Word(IntEnum):
    """What the study tells a running simulation."""

    CONTINUE = 0
    STOP = 1
    SLOW = 2


_BLOCK = int(Kind.BLOCK)
CONTINUE, STOP, SLOW = Word.CONTINUE, Word.STOP, Word.SLOW


class WireError(ValueError):
    """A message that must be dropped; its text is the reason under which it is counted."""


class StreamLost(RuntimeError):
    """The intake did not keep this simulation (it was restarted or cut off); it will be run again."""


class StudyFinished(SystemExit):
    """The study has no simulation left; uncaught, it ends the process in order, with code 0."""

    def __init__(self) -> None:
        super().__init__(0)


class Header(NamedTuple):
    """The fixed header of every message; shapes and offsets have as many entries as the field has axes."""

    kind: int
    study: int = 0
    session: int = 0
    sequence: int = 0
    simulation: int = 0
    attempt: int = 0
    field: int = 0
    dtype: int = 0
    step: int = 0
    time: float = 0.0
    block: int = 0
    num_blocks: int = 0
    global_shape: tuple[int, ...] = ()
    offset: tuple[int, ...] = ()
    block_shape: tuple[int, ...] = ()
    payload_length: int = 0
    checksum: int = 0
    flags: int = 0
    value: int = 0

    def sign(self, token: bytes, payload: Any = b"", version: int = VERSION) -> bytes:
        """Return the 224 bytes of the header; the HMAC covers the payload where flag bit 0 is set."""
        (kind, study, session, sequence, simulation, attempt, field, dtype, step, time, block, num_blocks, shape,
         offset, block_shape, length, checksum, flags, value) = self  # fmt: skip
        packed = _LAYOUT.pack(
            _MAGIC, version, kind, study, session, sequence, simulation, attempt, field, dtype, len(shape), step, time,
            block, num_blocks, _packed_place(shape, offset, block_shape), length, checksum, flags, value,
        )  # fmt: skip
        return packed + _authenticate(token, packed, payload if flags & PAYLOAD_SIGNED else b"")

    def stamped(self, study: int, session: int, sequence: int) -> Header:
        """Return the header with its place in a session; `_replace` takes three times as long."""
        return tuple.__new__(Header, (self[0], study, session, sequence, *self[4:]))

    @classmethod
    def verify(
        cls, frame: bytes, token: bytes, study: int, payload: Any = b"", oldest: int = VERSION
    ) -> Header:  # fmt: skip
        """Read a header that the token's owner wrote for this study; anything else is a WireError.

        oldest : version that is still read.

        Raises
        ------
        WireError : "size", "magic", "version", "hmac", "study", "ndim" or "length", in this order.
        """
        if len(frame) != HEADER_SIZE:
            raise WireError("size")
        (magic, version, kind, its_study, session, sequence, simulation, attempt, field, dtype, ndim, step, time, block,
         num_blocks, place, length, crc, flags, value) = _LAYOUT.unpack_from(frame)  # fmt: skip
        if magic != _MAGIC:
            raise WireError("magic")
        if not oldest <= version <= VERSION:
            raise WireError("version")
        expected = _authenticate(token, frame[:-32], payload if flags & PAYLOAD_SIGNED else b"")
        if not hmac.compare_digest(expected, frame[-32:]):
            raise WireError("hmac")
        if its_study != study:
            raise WireError("study")
        if ndim > MAX_NDIM:
            raise WireError("ndim")
        if (0 if flags & IN_RING else length) != len(payload):
            raise WireError("length")
        return tuple.__new__(cls, (
            kind, its_study, session, sequence, simulation, attempt, field, dtype, step, time, block, num_blocks,
            *_read_place(place, ndim), length, crc, flags, value,
        ))  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _packed_place(*parts: tuple[int, ...]) -> bytes:
    """Return global shape, offset and block shape as they stand in a header; a peer sends the same ones every time."""
    return _AXES.pack(*(n for axes in parts for n in (*axes, *(0,) * (MAX_NDIM - len(axes)))))


@functools.lru_cache(maxsize=1024)
def _read_place(packed: bytes, ndim: int) -> tuple[tuple[int, ...], ...]:
    numbers = _AXES.unpack(packed)
    return tuple(numbers[first : first + ndim] for first in range(0, 3 * MAX_NDIM, MAX_NDIM))


@functools.lru_cache(maxsize=16)
def _keyed(token: bytes) -> tuple[Any, Any]:
    """Return the inner and outer hash of HMAC-SHA256 (RFC 2104) after the key: copies of them take half as long."""
    key = token.ljust(64, b"\0")
    return tuple(hashlib.sha256(bytes(byte ^ pad for byte in key)) for pad in (0x36, 0x5C))


def _authenticate(token: bytes, packed: bytes, payload: Any) -> bytes:
    inner, outer = _keyed(token)
    inner = inner.copy()
    inner.update(packed)
    if len(payload):
        inner.update(payload)
    outer = outer.copy()
    outer.update(inner.digest())
    return outer.digest()


def read_token(path: str | Path) -> bytes:
    """Return the run's 256-bit token from a file that nobody else can read.

    Raises
    ------
    PermissionError : the file belongs to another user, or others may read it.
    ValueError : its content is not 64 hexadecimal digits.
    """
    with open(path, encoding="ascii") as file:
        status = os.fstat(file.fileno())
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(
                f"Token file {path} has mode {stat.S_IMODE(status.st_mode):04o} and owner {status.st_uid}: only you"
                f" (user {os.geteuid()}) may own and read it. Run chmod 600 on it, or make a new one if others saw it."
            )
        text = file.read(128).strip()
    if len(text) != 64 or set(text) - set("0123456789abcdefABCDEF"):
        raise ValueError(f"Token file {path} must hold 64 hexadecimal digits and nothing else.")
    return bytes.fromhex(text)


def curve_keys(token: bytes, role: str) -> tuple[bytes, bytes]:
    """Return the (public, secret) CURVE keys of "intake" or "client" as ZeroMQ takes them (Z85).

    They follow from the token, so that an encrypted run needs no further secret: who knows the token knows the
    intake's public key, and nobody else can shake hands with it.

    Raises
    ------
    RuntimeError : this libzmq was built without CURVE.
    """
    if not zmq.has("curve"):
        raise RuntimeError("This pyzmq has no CURVE, so the run cannot be encrypted. Install pyzmq from its wheel.")
    secret = z85.encode(hmac.digest(token, f"headrace curve {role}".encode(), "sha256"))
    return zmq.curve_public(secret), secret


def pieces(shape: Sequence[int], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Cut a C-contiguous block along its first axes into contiguous sub-blocks of at most 4 MiB."""
    if not shape:
        yield ()
        return
    row = itemsize * math.prod(shape[1:])
    if row > MAX_BLOCK:
        for i in range(shape[0]):
            for rest in pieces(shape[1:], itemsize):
                yield (slice(i, i + 1), *rest)
        return
    whole = tuple(slice(0, n) for n in shape[1:])
    rows = max(1, MAX_BLOCK // max(1, row))
    for first in range(0, shape[0], rows):
        yield (slice(first, min(first + rows, shape[0])), *whole)


class Digest:
    """A checksum of 32 bits that grows with the data: CRC-32, or the lower half of XXH3-64, which is much faster.

    name : one of CHECKSUMS.
    """

    def __init__(self, name: str = "crc32") -> None:
        self._state = xxhash.xxh3_64() if name == "xxh3" else None
        self._crc = 0

    def update(self, data: Any) -> None:
        """Go on with contiguous data."""
        if self._state is None:
            self._crc = zlib.crc32(data, self._crc)
        else:
            self._state.update(data)

    @property
    def value(self) -> int:
        """The checksum of all data so far."""
        return self._crc if self._state is None else self._state.intdigest() & 0xFFFFFFFF


def checksum_of(data: Any, name: str) -> int:
    """Return what a `Digest` of this name says of contiguous data."""
    return xxhash.xxh3_64_intdigest(data) & 0xFFFFFFFF if name == "xxh3" else zlib.crc32(data)


class Placed(NamedTuple):
    """A block's content where the intake can get it.

    frame : the message's second frame; empty where the content lies in the ring.
    borrowed : the frame is memory that will be used again, and large: ZeroMQ reads it there.
    end : position in the ring behind the content.
    """

    checksum: int
    length: int
    flags: int = 0
    position: int = 0
    frame: Any = b""
    borrowed: bool = False
    end: int = 0


class Transport:
    """How the content of blocks gets to the intake: here, as frames of their messages.

    Headers and control words always go through ZeroMQ.

    checksum : of CHECKSUMS; the intake says which ones it knows.
    signed : whether the HMAC covers the content, too.
    """

    says_words = False
    """Whether words and credit stand in memory that both sides see; messages say them only to who asks."""
    gathered = MOST_GATHERED
    """Bytes of several steps that had better travel together."""

    def __init__(self, checksum: str = "crc32", *, signed: bool = False) -> None:
        self.checksum = checksum
        self.flags = (XXH3 if checksum == "xxh3" else 0) | (PAYLOAD_SIGNED if signed else 0)
        self._room = np.empty(0, np.uint8)
        self._lent: deque[tuple[np.ndarray, zmq.MessageTracker]] = deque()

    def place(self, parts: Sequence[np.ndarray], dtype: np.dtype) -> Placed | None:
        """Put parts one behind the other, as dtype, and take their checksum; None where there is no room now."""
        if len(parts) == 1:
            data = np.ascontiguousarray(parts[0], dtype=dtype)
            borrowed = data.nbytes >= _ZERO_COPY_FROM and np.may_share_memory(data, parts[0])
        else:
            data, borrowed = np.stack(parts).astype(dtype, copy=False), False
        frame = data.reshape(-1).view(np.uint8).data
        checksum = checksum_of(frame, self.checksum)
        return Placed(checksum, len(frame), self.flags, frame=frame, borrowed=borrowed)

    def room(self, length: int) -> np.ndarray:
        """Return memory for a content of at most so many bytes, (length,) of uint8, to be filled and placed by
        `place_filled` before anything else is placed."""
        if len(self._room) < length and self._lent and self._lent[0][1].done:
            self._room = self._lent.popleft()[0]  # memory that was used before costs the system no new pages
        if len(self._room) < length:
            self._room = np.empty(max(length, self.gathered), np.uint8)
        return self._room[:length]

    def place_filled(self, content: np.ndarray) -> Placed:
        """Place the beginning of what `room` returned last."""
        length = content.nbytes
        lent = length >= _ZERO_COPY_FROM
        return Placed(checksum_of(content, self.checksum), length, self.flags, frame=content.data, borrowed=lent)

    def lend(self, tracker: zmq.MessageTracker) -> None:
        """Say what tells when the memory that `room` returned last is free again; what was copied is free at once."""
        self._lent.append((self._room, tracker))
        self._room = self._room[:0]

    def fits(self, length: int) -> bool:
        """Whether so many bytes go this way at all."""
        return True

    def heard(self) -> tuple[int, int]:
        """Return to how many steps the word is continue, and how many may be sent, as far as it stands here."""
        return 0, 0

    def ask(self, wanted: bool) -> None:
        """Say whether this rank waits for a message with the next words and credit."""

    def sent(self, placed: Placed) -> None:
        """Say that the message about a placed content has left: its place is taken."""

    def rewind(self) -> None:
        """Take back what was placed and not sent."""

    def close(self) -> None:
        """Free what the transport holds."""


class RingTransport(Transport):
    """Content goes through memory that this rank shares with the intake; what does not fit goes as frames.

    offer : what WELCOME says: path, bytes and nonce.

    Raises
    ------
    OSError : there is no such memory here: the intake is on another node, or in another container.
    """

    says_words = True

    def __init__(self, offer: Mapping[str, Any], checksum: str = "crc32") -> None:
        super().__init__(checksum)
        self._size = int(offer["bytes"])
        descriptor = os.open(offer["path"], os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size != RING_HEAD + self._size:
                raise FileNotFoundError(f"{offer['path']} is not the ring that the intake offers.")
            self._mapping = mmap.mmap(descriptor, RING_HEAD + self._size)
        finally:
            os.close(descriptor)
        if self._mapping[8:24].hex() != offer["nonce"]:
            self._mapping.close()
            raise FileNotFoundError(f"{offer['path']} is another process's memory.")
        self._bytes = np.frombuffer(self._mapping, np.uint8)
        self.gathered = self._size // 3  # one is written, one read, and one on the way between
        self._head = self._sent = 0
        self._begun: int | None = None
        self._arrays: dict[tuple[int, tuple[int, ...], np.dtype], np.ndarray] = {}

    def place(self, parts: Sequence[np.ndarray], dtype: np.dtype) -> Placed | None:
        """Copy parts into the ring as dtype; None where what lies there is not read yet."""
        length = dtype.itemsize * (parts[0].size if len(parts) == 1 else sum(part.size for part in parts))
        if not self.fits(length):
            return super().place(parts, dtype)
        position = self._free(length)
        if position is None:
            return None
        start = RING_HEAD + position % self._size
        if length <= CHUNK and len(parts) == 1:
            target = self._array(start, parts[0].shape, dtype)
            target[...] = parts[0]
            checksum = checksum_of(target, self.checksum)
        else:
            digest = Digest(self.checksum)
            for part in parts:
                copy_checked(part, self._array(start, part.shape, dtype), digest)
                start += part.size * dtype.itemsize
            checksum = digest.value
        self._head = position + length
        return Placed(checksum, length, IN_RING | self.flags, position, end=self._head)

    def _array(self, start: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Return what lies in the ring from a byte on as an array; blocks of one size come to the same places again."""
        array = self._arrays.get((start, shape, dtype))
        if array is None:
            if len(self._arrays) >= _MOST_ARRAYS:
                self._arrays.clear()
            stop = start + math.prod(shape) * dtype.itemsize
            array = self._arrays[start, shape, dtype] = self._bytes[start:stop].view(dtype).reshape(shape)
        return array

    def fits(self, length: int) -> bool:
        """Whether so many bytes go through the ring at all."""
        return length <= self._size // 2

    def _free(self, length: int) -> int | None:
        """Return where the next so many bytes go; None where what lies there is not read yet."""
        position = -(-self._head // _RING_ALIGNMENT) * _RING_ALIGNMENT
        if position % self._size + length > self._size:
            position = -(-position // self._size) * self._size
        free_from = int.from_bytes(self._mapping[:8], "little")
        if position + length - free_from > self._size and free_from < self._head:
            return None
        return position

    def room(self, length: int) -> np.ndarray:
        """Return a piece of the ring, if there is one now; else memory of its own."""
        self._begun = self._free(length) if self.fits(length) else None
        if self._begun is None:
            return super().room(length)
        start = RING_HEAD + self._begun % self._size
        return self._bytes[start : start + length]

    def place_filled(self, content: np.ndarray) -> Placed:
        """Take the checksum of what lies in the ring already; it goes as a frame where `room` found none there."""
        if self._begun is None:
            return super().place_filled(content)
        position, self._head = self._begun, self._begun + content.nbytes
        checksum = checksum_of(content, self.checksum)
        return Placed(checksum, content.nbytes, IN_RING | self.flags, position, end=self._head)

    def heard(self) -> tuple[int, int]:
        """Read what the intake wrote into the ring's head: each number in one piece, and neither ever falls."""
        said, granted = self._mapping[RING_SAID:RING_GRANTED], self._mapping[RING_GRANTED:RING_ASKED]
        return int.from_bytes(said, "little"), int.from_bytes(granted, "little")

    def ask(self, wanted: bool) -> None:
        """Write into the ring's head whether this rank waits."""
        self._mapping[RING_ASKED] = wanted

    def sent(self, placed: Placed) -> None:
        """Say that the intake will read a content: only it can free its place now."""
        self._sent = max(self._sent, placed.end)

    def rewind(self) -> None:
        """Take back what was placed and not sent."""
        self._head = self._sent

    def close(self) -> None:
        """Unmap."""
        self._bytes = self._bytes[:0].copy()
        self._arrays.clear()
        try:
            self._mapping.close()
        except BufferError:
            pass  # an exception on its way still holds a view: the mapping goes with it


def copy_checked(source: np.ndarray, target: np.ndarray, digest: Digest) -> None:
    """Copy, and go on with the checksum of the target, in chunks that stay in the cache between the two."""
    if target.nbytes <= CHUNK:
        target[...] = source
        digest.update(target)
        return
    rows = max(1, CHUNK * len(target) // target.nbytes)
    for first in range(0, len(target), rows):
        chunk = target[first : first + rows]
        chunk[...] = source[first : first + rows]
        digest.update(chunk)


class Link:
    """One authenticated peer of the intake: a DEALER socket and a thread that keeps its lease.

    address : ZeroMQ addresses separated by commas, best first.
    hello : role, job, rank, ranks and generation, as HELLO carries them.
    lease : seconds without a word from the intake after which the process ends with code 75; None takes the intake's.
    while_waiting : called now and then, a millisecond to 20 apart, while `receive` waits.

    Not thread-safe. `lost` is None, or why the session is over; `join` begins a new one.
    """

    def __init__(
        self, address: str, token: bytes, study: int, *, hello: Mapping[str, Any], lease: float | None = None,
        while_waiting: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        self._addresses = [part.strip() for part in address.split(",") if part.strip()]
        if not self._addresses:
            raise ValueError("The intake's address is empty; it looks like tcp://host:port.")
        self._token, self._study, self._lease, self._while_waiting = token, study, lease, while_waiting
        self._hello = {**hello, "pid": os.getpid(), "host": network.gethostname()}
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket | None = None
        self._monitor: zmq.Socket | None = None
        self._poller = zmq.Poller()
        self._sequence = 0
        self._heard = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self.address = self._addresses[0]
        self.session = 0
        self.lost: str | None = "not connected yet"
        self.lease = DEFAULT_LEASE if lease is None else lease
        self.welcome: dict[str, Any] = {}
        self.transport = Transport()
        self.gathered = _LEAST_GATHERED

    def join(self) -> dict[str, Any]:
        """Say HELLO until an intake answers; return what its WELCOME says.

        Raises
        ------
        ConnectionError : no intake answered for as long as the lease.
        RuntimeError : the intake refused, with its reason.
        """
        deadline = clock.monotonic() + self.lease
        while True:
            for address in self._addresses:
                if address.startswith("ipc://") and not os.path.exists(address[6:]):
                    continue
                if self._greet(address, min(deadline, clock.monotonic() + _HELLO_PATIENCE)):
                    if self._thread is None:
                        self._thread = threading.Thread(target=self._keep_lease, name="headrace-lease", daemon=True)
                        self._thread.start()
                    return self.welcome
            if clock.monotonic() >= deadline:
                raise ConnectionError(
                    f"No intake answered at {', '.join(self._addresses)} within {self.lease:g} s. Is the study still"
                    " running, and does this job carry its token (HEADRACE_TOKEN_FILE) and study (HEADRACE_STUDY)?"
                )
            clock.sleep(0.05)

    def _open(self, address: str, *, watched: bool) -> zmq.Socket:
        # Peers of one process find each other in the context that they share.
        context = zmq.Context.instance() if address.startswith(IN_PROCESS) else self._context
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.ROUTING_ID, b"H" + secrets.token_bytes(15))
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        if watched:
            self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        if address.startswith(CURVE):
            socket.curve_serverkey, _ = curve_keys(self._token, "intake")
            socket.curve_publickey, socket.curve_secretkey = curve_keys(self._token, "client")
        socket.connect(address.removeprefix(CURVE))
        return socket

    def _shut(self, linger: int = 0) -> None:
        if self._socket is not None:
            self._poller = zmq.Poller()
            self._socket.disable_monitor()
            self._monitor.close(0)
            self._socket.close(linger)
            self._socket = self._monitor = None

    def _greet(self, address: str, deadline: float) -> bool:
        self._shut()
        self._socket = self._open(address, watched=True)
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self.session, self._sequence, self._heard, self.lost = 0, 0, 0, None
        nonce = secrets.token_hex(16)
        self.send(Kind.HELLO, payload={**self._hello, "nonce": nonce})
        while self.lost is None:
            message = self.receive(deadline - clock.monotonic())
            if message is None:
                break
            header, payload = message
            if header.kind == Kind.WELCOME:
                welcome = json.loads(payload)
                if welcome.get("nonce") == nonce:
                    self.address, self.welcome = address, welcome
                    if self._lease is None:
                        self.lease = float(welcome.get("lease", DEFAULT_LEASE))
                    self.session = header.session
                    self._choose_transport(welcome)
                    return True
        return False

    def _choose_transport(self, welcome: Mapping[str, Any]) -> None:
        offered = welcome.get("checksums", ())
        checksum = next((name for name in CHECKSUMS if name in offered), "crc32")
        self.transport.close()
        self.transport = Transport(checksum, signed=bool(welcome.get("strict")))
        if welcome.get("ring") is not None:
            try:
                self.transport = RingTransport(welcome["ring"], checksum)
            except OSError:
                pass  # a host of the same name whose memory is not ours: blocks travel as frames
        told = min(MOST_GATHERED, int(welcome.get("gathered", _LEAST_GATHERED)))
        self.gathered = min(told, self.transport.gathered)

    def send(self, kind: Kind, payload: Mapping[str, Any] | bytes | None = None, **fields: Any) -> None:
        """Send a message whose payload, if any, is authenticated; mappings travel as JSON."""
        body = b"" if payload is None else payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        if body:
            fields.update(payload_length=len(body), checksum=zlib.crc32(body), flags=PAYLOAD_SIGNED)
        self.send_block(Header(kind, **fields), body)

    def send_block(self, header: Header, payload: Any, *, track: bool = False) -> zmq.MessageTracker | None:
        """Number, sign and send one message; with track, return what tells when the payload's memory is free again."""
        self._sequence += 1
        frame = header.stamped(self._study, self.session, self._sequence).sign(self._token, payload)
        more = len(payload) > 0
        while self.lost is None:
            try:
                self._socket.send(frame, _AT_ONCE_AND_MORE if more else _AT_ONCE)
            except zmq.Again:
                self._poller.modify(self._socket, zmq.POLLOUT)
                self.watch(1.0)
                self._poller.modify(self._socket, zmq.POLLIN)
                continue
            if more:
                copy = header.payload_length < _ZERO_COPY_FROM
                tracker = self._socket.send(payload, copy=copy, track=track and not copy)
                return tracker if track and not copy else None
            return None
        return None

    def watch(self, timeout: float = 0.0) -> bool:
        """Wait for the sockets; notice a broken connection; return whether a message can be received."""
        events = dict(self._poller.poll(max(0, int(1000 * timeout + 0.999))))
        if self._monitor in events:
            # Messages in flight are gone with the connection and ZeroMQ does not say which: the session is over.
            self._monitor.recv_multipart()
            self.lost = f"the connection to the intake at {self.address} broke"
        return bool(events.get(self._socket, 0) & zmq.POLLIN)

    def receive(self, timeout: float) -> tuple[Header, bytes] | None:
        """Return the intake's next message, or None after the timeout in seconds or when the session is lost.

        Raises
        ------
        RuntimeError : the intake refused what this peer asked, with its reason.
        """
        deadline, pause = clock.monotonic() + timeout, _FIRST_PAUSE
        while self.lost is None:
            try:
                message = self._accept(self._socket.recv_multipart(_AT_ONCE))
            except zmq.Again:
                remaining = deadline - clock.monotonic()
                if self.watch(remaining if self._while_waiting is None else min(remaining, pause)):
                    continue
                if remaining <= 0:
                    return None
                if self._while_waiting is not None:
                    self._while_waiting()
                    pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            if message is not None:
                return message
        return None

    def _accept(self, frames: list[bytes]) -> tuple[Header, bytes] | None:
        message = self._open_message(frames)
        if message is None:
            return None
        header, payload = message
        if header.kind == Kind.REFUSED:
            refusal = json.loads(payload)
            if not refusal.get("rejoin"):
                raise RuntimeError(f"The intake at {self.address} refused: {refusal.get('error')}")
            if self.session:
                self.lost = f"the intake at {self.address} says: {refusal.get('error')}"
            return None
        if header.kind != Kind.WELCOME and (header.session != self.session or header.sequence <= self._heard):
            return None
        self._heard = header.sequence
        return header, payload

    def _open_message(self, frames: list[bytes]) -> tuple[Header, bytes] | None:
        payload = frames[1] if len(frames) == 2 else b""
        try:
            header = Header.verify(frames[0], self._token, self._study, payload)
        except WireError:
            return None
        # Content of steps, which has the faster checksum, is checked by who takes it: its loss must not go unnoticed.
        sound = header.flags & XXH3 or zlib.crc32(payload) == header.checksum
        return (header, payload) if sound else None

    def _keep_lease(self) -> None:
        socket, session, sequence, silent = None, 0, 0, 0.0
        interval = min(1.0, self.lease / 4)
        while not self._closing.is_set():
            current = self.session  # 0 while the rank says HELLO again, which it may do before this thread has begun
            if current not in (0, session):
                if socket is not None:
                    socket.close(0)
                session, sequence = current, 0
                socket = self._open(self.address, watched=False)
            if socket is None:
                self._closing.wait(interval / 10)
                continue
            began = clock.monotonic()
            sequence += 1
            header = Header(Kind.LEASE, study=self._study, session=session, sequence=sequence)
            heard = False
            try:
                socket.send(header.sign(self._token), _AT_ONCE)
            except zmq.Again:
                pass  # the queue is full because nobody listens; the silence below counts
            while not self._closing.is_set() and clock.monotonic() < began + interval:
                if socket.poll(int(100 * interval) + 1):
                    heard |= self._open_message(socket.recv_multipart()) is not None
                if heard:
                    self._closing.wait(max(0.0, began + interval - clock.monotonic()))
            # A process that was suspended, or held by a long call into C, must not blame the intake for that time.
            silent = 0.0 if heard else silent + min(clock.monotonic() - began, 2 * interval)
            if silent > self.lease and not self._closing.is_set():
                self._expire()
        if socket is not None:
            socket.close(0)

    def _expire(self) -> None:
        who = f"rank {self._hello.get('rank')} of job {self._hello.get('job')}"
        sys.stderr.write(
            f"headrace: {who} heard nothing from the intake at {self.address} for {self.lease:g} s;"
            f" the process ends with code {EXIT_LEASE_EXPIRED}.\n"
        )
        sys.stderr.flush()
        os._exit(EXIT_LEASE_EXPIRED)

    def close(self) -> None:
        """Say BYE and free the sockets."""
        if self._socket is not None and self.session and self.lost is None:
            self.send(Kind.BYE)
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._shut(linger=1000)
        self._context.term()
        self.transport.close()


class Parameters(dict):
    """Values of the simulation's parameters by name, also as attributes: p["nu"] is p.nu."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"No parameter {name!r}; the study has {', '.join(self) or 'none'}.") from None


class _SentLog:
    """The solver's own record of what it sent: one checksummed line per sub-block, written before it is sent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, records: list[str]) -> None:
        data = _line(records[0]) if len(records) == 1 else b"".join(map(_line, records))
        try:
            written = os.write(self._file, data)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}, while logging what was sent", str(self._path)) from None
        if written != len(data):
            raise OSError(f"{self._path}: only {written} of {len(data)} bytes could be written; is the disk full?")

    def close(self) -> None:
        os.close(self._file)


def _line(record: str) -> bytes:
    text = record.encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


class BlockFile:
    """Without a study: the blocks of one rank in FOLDER/blocks-RANK.hdrc, for `headrace convert`.

    The content is that of the wire, message behind message, signed with a token of zeros: HELLO, DECLARE, CELLS, BLOCK,
    END. The file has its name once it is complete, and `.part` behind it before.

    Raises
    ------
    OSError : no such folder, or blocks of another run in it.
    """

    TOKEN = bytes(32)

    def __init__(self, folder: Path, rank: int, ranks: int, declaration: Mapping[str, Any]) -> None:
        self._path = folder / f"blocks-{rank:06d}.hdrc"
        self._part = self._path.with_name(self._path.name + ".part")
        self._sequence = 0
        try:
            if self._path.exists():
                raise FileExistsError(17, "File exists")
            self._file = open(self._part, "xb")
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}: choose a folder for HEADRACE_OUTPUT that exists and holds no blocks of"
                " another run", str(self._part),
            ) from None  # fmt: skip
        hello = {"format": "headrace-blocks", "version": 1, "rank": rank, "ranks": ranks}
        for kind, content in ((Kind.HELLO, hello), (Kind.DECLARE, declaration)):
            self.write(Header(kind, flags=PAYLOAD_SIGNED), json.dumps(content).encode())

    def write(self, header: Header, payload: Any) -> None:
        """Append one message."""
        self._sequence += 1
        length, crc = len(payload), zlib.crc32(payload)
        header = header._replace(session=1, sequence=self._sequence, payload_length=length, checksum=crc)
        self._file.write(header.sign(self.TOKEN, payload))
        self._file.write(payload)

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def finish(self) -> None:
        """Bring everything to the disk and give the file its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._part, self._path)


class Stream:
    """One simulation: its parameters, and the way of its snapshots to the study.

    A context manager: leaving it ends the simulation, as failed where an exception passes through.
    """

    def __init__(self, connection: Connection, assigned: Header | None, payload: bytes, owner: bool = False) -> None:
        content = json.loads(payload) if payload else {}
        self._connection, self._owner = connection, owner
        self.active = assigned is not None
        self.parameters = Parameters(content.get("parameters", {}))
        self.seed = int(content.get("seed", 0))
        self.simulation = assigned.simulation if assigned else 0
        self.attempt = assigned.attempt if assigned else 1
        self.num_steps: int | None = assigned.value if assigned else None
        self.blocked_seconds = 0.0
        self.bytes_sent = 0
        self.steps_skipped = 0
        self.lost: str | None = None
        self._credit = 0
        self._words: dict[int, Word] = {}
        self._said = -1  # the words to all steps up to this one are known; continue, where `_words` has none
        self._repeated: _RepeatedStep | None = None  # what the last step had that left alone
        self._naps = 0  # since this rank began to wait
        self._all_come_as_messages = False  # since one word was another than continue
        self._to_skip: set[int] = set()
        self._word = CONTINUE
        self._next = 0
        self._ended = False
        self._began = self._latest = clock.monotonic()
        self._held: _HeldSteps | None = None
        self._pattern: _HeldSteps | None = None  # what the last steps that left together had in common
        self._file: BlockFile | None = None
        if connection.link is None and os.environ.get("HEADRACE_OUTPUT"):
            folder = Path(os.environ["HEADRACE_OUTPUT"])
            self._file = BlockFile(folder, connection.rank, connection.ranks, connection.declaration())

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.end(failure=None if error is None else f"{kind.__name__}: {error}")
            if self._owner and self.lost and error is None:
                raise StreamLost(f"Simulation {self.simulation} was not kept: {self.lost}. It will be run again.")
        finally:
            if self._owner:
                self._connection.close()

    def send(
        self,
        *,
        step: int,
        time: float,
        values: np.ndarray | Mapping[str, np.ndarray],
        where: Sequence[slice] | np.ndarray | None = None,
    ) -> Word:
        """Send this rank's block of one snapshot; return what the study said to the snapshot before. Collective.

        Waits, in a socket poll, while the study has no room for the step; or leaves the step out, on all ranks alike,
        where the study says when_full = "skip". All ranks get the same word.
        After STOP nothing more is sent. Small steps that follow one another within half a millisecond leave together,
        as long as nothing need be waited for: at the latest with the next call that finds more time gone, and in `end`.

        Parameters
        ----------
        step : index of the snapshot: 0, 1, 2, ...
        time : its time.
        values : (fields, *block), or a block for each field's name; free to change once send has returned.
        where : the block's place in the global grid, a slice for each axis; None: the whole field. Or the cells that
            this rank owns, (cells,) of int: their numbers in the global field in C order, for values of shape
            (fields, cells). They travel once, and again only where they change.

        Raises
        ------
        ValueError : a step out of order, a time that is not finite, or a block that does not fit its field or place.
        """
        if not math.isfinite(time):  # the intake would take none of the step, and the rank wait for ever
            raise ValueError(f"Step {step} has time {time}, which is not finite.")
        if self._keep_like_before(step, time, values, where) or self._send_like_before(step, time, values, where):
            return self._word
        if self._ended:
            raise RuntimeError(f"Simulation {self.simulation} has ended; step {step} cannot be sent.")
        if step != self._next or (self.num_steps is not None and step >= self.num_steps):
            raise ValueError(
                f"Step {step} cannot be sent now: the next step is {self._next}"
                + (f", and the last one of this study is {self.num_steps - 1}." if self.num_steps else ".")
            )
        waiting = deque(self._connection.blocks(values, where))
        now = clock.monotonic()
        quick, self._latest = now - self._latest < _QUICK_STEP, now
        self._next += 1
        if self._file is not None:
            self._keep(step, time, waiting, where)
        if self._stopped_or_lost:
            return self._word
        skips = self._connection.link.welcome.get("when_full") == "skip"
        if not skips and self._hold(step, time, waiting, values, where, quick=quick):
            self._hear(step)
            return self._word
        self._release()
        if isinstance(where, np.ndarray):
            for header, payload in self._connection.new_cells(where, self._connection.link.session):
                self._connection.link.send_block(header, payload)
        if skips and self._leaves_out(step, time):
            return self._word
        # What has credit leaves piece by piece. Else it is copied and its checksums are taken in the meantime.
        ready = []
        while self._credit <= step and (placed := self._place(step, time, waiting)) is not None:
            ready.append(placed)
        self._wait(step, credit=True)
        if self._stopped_or_lost:
            self._connection.link.transport.rewind()
            return self._word
        trackers = self._transmit(step, time, ready, waiting)
        self._wait(step, credit=False)
        if trackers:
            self._wait_until_free(trackers)
        self._repeated = None if skips else self._connection.repeated(values, where)
        self._latest = clock.monotonic()  # what sending took does not make the solver a slow one
        return self._word

    def _keep_like_before(self, step: int, time: float, values: Any, where: Any) -> bool:
        """Take a step into the next message without another look, if it is like the last one that was taken; say so.

        It must come soon after the one before, with its word known to be continue and with credit for the one behind.
        """
        held = self._pattern
        if held is None or step != self._next or self.lost is not None or not held.repeats(values, where):
            return False
        now = clock.monotonic()
        if self._words or not self._may_keep(step) or now - self._latest >= _QUICK_STEP:
            return False
        if self._held is None:
            self._held = held
            held.begin(step, min(_HELD_STEPS, self._credit - step), self._connection.link)
        self._latest, self._next, self._word = now, step + 1, CONTINUE
        held.add(values, time)
        if held.full:
            self._release()
        return True

    def _send_like_before(self, step: int, time: float, values: Any, where: Any) -> bool:
        """Send a step without another look, if it is like the last one; say so.

        This rank must hold credit for it, no word other than continue may be known, and there must be room for it.
        """
        like = self._repeated
        if like is None or step != self._next or self._held is not None or self.lost is not None or self._words:
            return False
        if self._ended or self._word == STOP or not like.repeats(values, where):
            return False
        if like.may_be_held and clock.monotonic() - self._latest < _QUICK_STEP:
            return False
        if self._credit <= step:
            self._look()
            if self._credit <= step:
                return False
        transport, ready, length = self._connection.link.transport, [], 0
        for block, part in like.parts:
            placed = transport.place([values[part]], self._connection.dtype)
            if placed is None:
                transport.rewind()
                return False
            last = len(ready) == len(like.parts) - 1
            ready.append((self._header(step, time, block, placed, last=last), placed))
            length += placed.length
        self.bytes_sent += length
        self._next = step + 1
        trackers = self._dispatch(ready)
        self._wait(step, credit=False)
        if trackers:
            self._wait_until_free(trackers)
        self._latest = clock.monotonic()
        return True

    def _may_keep(self, step: int) -> bool:
        """Whether nobody waits for a step that is not sent yet, and this rank will not wait before it has sent it."""
        return step <= self._said and step + 1 < self._credit

    def _keep(self, step: int, time: float, blocks: deque[_Block], where: Any) -> None:
        """Write a step into this rank's file."""
        messages = []
        if isinstance(where, np.ndarray):
            messages += self._connection.new_cells(where, session=1)
        while blocks:
            block = blocks.popleft()
            placed = Transport().place(block.parts, self._connection.dtype)
            messages.append((self._header(step, time, block, placed, last=not blocks), placed.frame))
            self.bytes_sent += placed.length
        for header, payload in messages:
            self._file.write(header, payload)
        self._file.flush()

    def _hold(
        self, step: int, time: float, waiting: deque[_Block], values: Any, where: Any, *, quick: bool
    ) -> bool:  # fmt: skip
        """Take a step into the next message; say whether it was taken.

        The message leaves at once, unless steps are quick and nobody waits for this one. Nobody does while its word is
        known and this rank holds credit for the step behind it: all ranks have been told the same, so that none of
        them waits for this one, and this one will not wait before it has sent what it keeps.
        """
        if len(waiting) != 1 or self._words.get(step - 1) == STOP:
            return False
        block = waiting[0]
        if self._held is not None and not self._held.takes(block):
            self._release()
        if self._held is None:
            size = self._connection.dtype.itemsize
            if not quick or not _HeldSteps.can_take(block, size, self._connection.link.gathered):
                return False
            self._wait(step, credit=True)
            if self._stopped_or_lost:
                return True
        keep = quick and self._may_keep(step)
        if self._held is None:
            if not keep:
                return False
            self._held = self._pattern = _HeldSteps(block, self._connection.dtype, values, where)
            self._held.begin(step, min(_HELD_STEPS, self._credit - step), self._connection.link)
        self._held.add_block(block, time)
        if self._held.full or not keep:
            self._release()
        return True

    def _release(self) -> None:
        """Send the steps that were kept, and hear what the study has said meanwhile."""
        held, self._held = self._held, None
        if held is None:
            return
        link = self._connection.link
        # No further than the next steps need it: to look costs as much as to send.
        ahead = held.first + len(held.times) + _HELD_STEPS
        self._look()
        if not link.transport.says_words or self._all_come_as_messages:
            while link.lost is None and not self._may_keep(ahead) and (message := link.receive(0.0)) is not None:
                self._take(message[0])
        if link.lost is not None:
            self.lost = link.lost
            return
        placed = link.transport.place_filled(held.content)
        header = self._header(held.first, held.times[0], held.block, placed, last=True)
        if len(held.times) > 1:
            header = header._replace(kind=Kind.STEPS, flags=header.flags | len(held.times) << STEPS_SHIFT)
        for tracker in self._dispatch([(header, placed)]):
            link.transport.lend(tracker)
        self.bytes_sent += held.length
        self._latest = clock.monotonic()

    def _dispatch(self, ready: list[tuple[Header, Placed]]) -> list[zmq.MessageTracker]:
        """Log and send blocks that are placed; return what says when borrowed memory is free."""
        link, trackers = self._connection.link, []
        self._connection.log([_describe(header, placed) for header, placed in ready])
        for header, placed in ready:
            tracker = link.send_block(header, placed.frame, track=placed.borrowed)
            link.transport.sent(placed)
            if tracker is not None:
                trackers.append(tracker)
        return trackers

    def _hear(self, step: int) -> None:
        """Note the word to the step before, if it is known."""
        if 0 <= step - 1 <= self._said:
            self._word = self._words.get(step - 1, CONTINUE)
            self._words.pop(step - 2, None)

    def _leaves_out(self, step: int, time: float) -> bool:
        """Wait for what the study says to the step before; say whether this one is not to be sent. Collective.

        Each rank that looked for credit by itself would see it at another time, and some would send what others
        leave out. So the intake decides, and says it to all in one acknowledgement.
        """
        if step == 0:
            return False
        self._wait(step, credit=False)
        if self._stopped_or_lost:
            return True
        if step not in self._to_skip:
            return False
        self._to_skip.discard(step)
        self.steps_skipped += 1
        connection = self._connection
        connection.link.send(
            Kind.SKIP, simulation=self.simulation, attempt=self.attempt, step=step, time=time, block=connection.rank,
            num_blocks=connection.ranks,
        )  # fmt: skip
        return True

    @property
    def _stopped_or_lost(self) -> bool:
        # A rank whose session is lost computes on to the end and sends nothing: leaving the time loop alone
        # would leave the other ranks waiting inside MPI.
        return not self.active or self.lost is not None or self._word == STOP

    def _wait(self, step: int, *, credit: bool) -> None:
        """Wait for credit for a step, or else for the word to the step before; note this word where it is known."""
        if self._lacks(step, credit):
            self._look()
        if self._lacks(step, credit):
            link, began, self._naps = self._connection.link, clock.monotonic(), 0
            while self._lacks(step, credit):
                if link.lost is not None:
                    self.lost = link.lost
                    break
                self._receive(1.0)
                if self._words.get(step - 1) == STOP:
                    break
            self._latest = clock.monotonic()
            self.blocked_seconds += self._latest - began
        self._hear(step)

    def _lacks(self, step: int, credit: bool) -> bool:
        return self._credit <= step if credit else self._said < step - 1

    def _look(self) -> None:
        """Note the words and the credit that stand in memory: of words continue alone, others come as messages."""
        said, granted = self._connection.link.transport.heard()
        self._said, self._credit = max(self._said, said - 1), max(self._credit, granted)

    def _receive(self, timeout: float) -> None:
        """Wait for what the intake says next, and note it."""
        link = self._connection.link
        if not link.transport.says_words:
            if (message := link.receive(timeout)) is not None:
                self._take(message[0])
            return
        if self._naps < _NAPS and not self._all_come_as_messages:
            self._naps += 1
            clock.sleep(_NAP)
            self._look()
            return
        # Whoever asks looks once more, and the intake writes before it looks who asks: one of the two sees the other,
        # or, where a processor had its own order, this rank looks again soon.
        before = self._said, self._credit
        link.transport.ask(True)
        self._look()
        if (self._said, self._credit) == before:
            message = link.receive(min(timeout, _LOOK_AGAIN))
            while message is not None:  # all of them: what memory said first nobody would fetch
                self._take(message[0])
                message = link.receive(0.0)
        link.transport.ask(False)
        self._look()

    def _take(self, header: Header) -> None:
        if (header.simulation, header.attempt) != (self.simulation, self.attempt):
            return
        if header.kind == Kind.CREDIT:
            self._credit = max(self._credit, header.value)
        elif header.kind == Kind.ACK:
            word = Word(header.value & 0xFF)
            if word != CONTINUE:
                self._words[header.step] = word
                self._all_come_as_messages = True
            self._said = max(self._said, header.step)
            self._credit = max(self._credit, header.value >> 8)
            if header.flags & SKIP_NEXT:
                self._to_skip.add(header.step + 1)
        elif header.kind == Kind.ENDED:
            self._ended = True

    def _place(self, step: int, time: float, waiting: deque[_Block]) -> tuple[Header, Placed] | None:
        """Place the next of the waiting blocks and make its header; None where there is no room for it, or no block."""
        if not waiting:
            return None
        placed = self._connection.link.transport.place(waiting[0].parts, self._connection.dtype)
        if placed is None:
            return None
        block = waiting.popleft()
        return self._header(step, time, block, placed, last=not waiting), placed

    def _header(self, step: int, time: float, block: _Block, placed: Placed, *, last: bool) -> Header:
        connection = self._connection
        # In the order of a header; by name it takes three times as long.
        return tuple.__new__(Header, (
            _BLOCK, 0, 0, 0, self.simulation, self.attempt, block.field, connection.dtype_code, step, time,
            connection.rank, connection.ranks, block.global_shape, block.offset, block.shape, placed.length,
            placed.checksum, placed.flags | (BY_INDEX if block.by_index else 0), 2 * placed.position + last,
        ))  # fmt: skip

    def _transmit(
        self, step: int, time: float, ready: list[tuple[Header, Placed]], waiting: deque[_Block]
    ) -> list[zmq.MessageTracker]:
        """Send what is ready, then place and send the rest as room comes; return what says when memory is free."""
        link, trackers = self._connection.link, []
        while link.lost is None and (ready or waiting):
            if not ready and (one := self._place(step, time, waiting)) is not None:
                ready, self._naps = [one], 0
            if not ready:
                began = clock.monotonic()
                self._receive(0.001)
                self.blocked_seconds += clock.monotonic() - began
                continue
            trackers += self._dispatch(ready)
            self.bytes_sent += sum(placed.length for _, placed in ready)
            ready = []
        return trackers

    def _wait_until_free(self, trackers: list[zmq.MessageTracker]) -> None:
        """ZeroMQ reads the caller's own arrays: they must not change before the last byte has left."""
        link, began = self._connection.link, clock.monotonic()
        for tracker in trackers:
            while link.lost is None and not tracker.done:
                try:
                    tracker.wait(1.0)
                except zmq.NotDone:
                    link.watch()
        self.blocked_seconds += clock.monotonic() - began

    def end(self, *, failure: str | None = None) -> None:
        """End the simulation: as failed with a reason, else as stopped or completed; a second call does nothing.

        Collective where it did not fail.
        """
        self._pattern = None
        if self._file is not None and not self._ended:
            self._ended = True
            report = json.dumps({"reason": (failure or "")[:2000], "bytes": self.bytes_sent}).encode()
            self._file.write(Header(Kind.END, value=FAILED if failure else COMPLETED, flags=PAYLOAD_SIGNED), report)
            self._file.finish()
        if self._ended or not self.active:
            return
        self._release()
        link = self._connection.link
        # To whom has sent all steps ENDED says as much as the word to the last one would.
        if failure is None and 0 < self._next < self.num_steps and not self._stopped_or_lost:
            self._wait(self._next, credit=False)
        self.lost = self.lost or link.lost
        status = FAILED if failure is not None else STOPPED if self._word == STOP else COMPLETED
        self._connection.log([f'{{"e": "end", "s": {self.simulation}, "a": {self.attempt}, "status": {status}}}'])
        if self.lost is None:
            report = {
                "reason": (failure or "")[:2000],
                "blocked": self.blocked_seconds,
                "elapsed": clock.monotonic() - self._began,
                "bytes": self.bytes_sent,
            }
            link.send(Kind.END, report, simulation=self.simulation, attempt=self.attempt, value=status)
            # After a failure the other ranks may never come to their end: do not wait for them.
            began = clock.monotonic()
            while not self._ended and link.lost is None and (failure is None or clock.monotonic() < began + 2.0):
                message = link.receive(0.5)
                if message is not None:
                    self._take(message[0])
            self.blocked_seconds += clock.monotonic() - began
            self.lost = link.lost
        self._ended = True


class _Block(NamedTuple):
    """What one message carries: parts of one or more fields, which lie one behind the other, at the same place.

    by_index : the place is one in the list of this rank's cells.
    """

    field: int
    parts: list[np.ndarray]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    by_index: bool = False


class _HeldSteps:
    """Consecutive steps of one block that leave in one message: their values one behind the other, then their times.

    block : one of them; all have the same place.
    values, where : as they were given to `send` for this block.
    """

    def __init__(self, block: _Block, dtype: np.dtype, values: Any, where: Any) -> None:
        self.block, self._where, self._dtype = block._replace(parts=[]), where, dtype
        self._shape = (_fields_of(block), *block.shape)
        self._step_bytes = dtype.itemsize * math.prod(self._shape)
        # A mapping's parts are looked at one by one.
        self._asked = self._shape if isinstance(values, np.ndarray) else None

    def begin(self, first: int, most: int, link: Link) -> None:
        """Begin a message with a step, of at most so many, in the memory of a link's transport if it has some now."""
        self.first, self.times = first, []
        self._most = min(most, link.gathered // (self._step_bytes + 8))
        self._bytes = link.transport.room(self._most * (self._step_bytes + 8))
        values = self._bytes[: self._most * self._step_bytes].view(self._dtype)
        self._values = values.reshape(self._most, *self._shape)

    @staticmethod
    def can_take(block: _Block, itemsize: int, gathered: int) -> bool:
        """Whether some such blocks fit into a message of so many bytes. Blocks by number may come with new cells."""
        size = itemsize * _fields_of(block) * math.prod(block.shape)
        return not block.by_index and 0 < 4 * (size + 8) <= gathered

    def takes(self, block: _Block) -> bool:
        """Whether a block has the place of the first one."""
        mine = self.block
        return (block.field, block.offset, block.shape, block.by_index) == (mine.field, mine.offset, mine.shape, False)

    def repeats(self, values: Any, where: Any) -> bool:
        """Whether an array and its place, as given to `send`, are like those of the block."""
        return _alike(values, where, self._asked, self._where)

    def add(self, values: np.ndarray, time: float) -> None:
        """Copy the values of a step that repeats the block."""
        self._values[len(self.times)] = values
        self.times.append(time)

    def add_block(self, block: _Block, time: float) -> None:
        """Copy a block."""
        place = self._values[len(self.times)]
        if len(block.parts) == 1:
            place[...] = block.parts[0]
        else:
            for field, part in enumerate(block.parts):
                place[field] = part
        self.times.append(time)

    @property
    def full(self) -> bool:
        """Whether no further step is taken."""
        return len(self.times) == self._most

    @property
    def length(self) -> int:
        """Bytes of the values."""
        return len(self.times) * self._step_bytes

    @property
    def content(self) -> np.ndarray:
        """The payload, (bytes,); a step alone travels without its time, which stands in the header."""
        if len(self.times) == 1:
            return self._bytes[: self.length]
        end = self.length + 8 * len(self.times)
        self._bytes[self.length : end] = np.array(self.times, "<f8").view(np.uint8)
        return self._bytes[:end]


def _alike(values: Any, where: Any, shape: tuple[int, ...] | None, place: Any) -> bool:
    """Whether what was given to `send` is an array of a shape for a place."""
    return (
        type(values) is np.ndarray
        and values.shape == shape
        and (where is None or type(where) is tuple)  # a list may be the same one with other slices in it
        and where == place
    )


def _fields_of(block: _Block) -> int:
    """Return how many fields a block carries: several as one array with an axis more, or as several."""
    parts = block.parts
    return len(parts) if len(parts) > 1 else len(parts[0]) if parts[0].ndim > len(block.shape) else 1


class _RepeatedStep(NamedTuple):
    """What steps have in common whose values are an array of one shape, for one place.

    parts : for each message its block, without values, and which part of the array they are.
    may_be_held : whether such steps may travel together.
    """

    shape: tuple[int, ...]
    where: tuple[slice, ...] | None
    parts: list[tuple[_Block, Any]]
    may_be_held: bool

    def repeats(self, values: Any, where: Any) -> bool:
        """Whether an array and its place, as given to `send`, are like those of the step."""
        return _alike(values, where, self.shape, self.where)


class _Cut(NamedTuple):
    """What of a rank's arrays travels together: fields first..last-1, or a piece of a single one, and its place."""

    first: int
    last: int
    piece: tuple[slice, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    global_shape: tuple[int, ...]


def _describe(header: Header, placed: Placed) -> str:
    """Return the log's record of a block, as JSON."""
    steps = header.flags >> STEPS_SHIFT
    length = placed.length // steps - 8 if steps else placed.length
    offset, count = _described(header.offset, header.block_shape, header.dtype, length)
    several = (f', "n": {count}' if count > 1 else "") + (f', "m": {steps}' if steps else "")
    owner = f', "r": {header.block}' if header.flags & BY_INDEX else ""
    return (
        f'{{"e": "block", "s": {header.simulation}, "a": {header.attempt}, "f": {header.field}, "t": {header.step},'
        f' "o": {offset}, "c": {placed.checksum}{several}{owner}}}'
    )


@functools.lru_cache(maxsize=1024)
def _described(offset: tuple[int, ...], shape: tuple[int, ...], dtype: int, length: int) -> tuple[str, int]:
    """Return an offset as JSON, and how many fields of a block's shape make so many bytes."""
    return str(list(offset)), length // (math.prod(shape) * DTYPES[dtype].itemsize)


class Connection:
    """A persistent solver job: `for stream in connection.simulations(): with stream: ...`.

    fields : global shape of each field.
    comm : the job's communicator (anything with rank and size, or Get_rank and Get_size); None: a single process. With
        one of mpi4py's, MPI goes on while a rank waits for the study: another may need a message of this one's.
    dtype : of the values on the wire.
    steps : number of snapshots the solver will send; checked against the study's where given.

    Without HEADRACE_ADDRESS in the environment there is no study: one stream without parameters, whose blocks go to
    files in the folder HEADRACE_OUTPUT, for `headrace convert`, or nowhere.
    """

    def __init__(
        self,
        fields: Mapping[str, Sequence[int]],
        comm: Any = None,
        *,
        dtype: str = "float32",
        steps: int | None = None,
    ) -> None:
        if dtype not in DTYPE_CODES:
            raise ValueError(f"dtype {dtype!r} cannot be sent; allowed are {', '.join(DTYPE_CODES)}.")
        self.fields = {name: tuple(int(n) for n in shape) for name, shape in fields.items()}
        for name, shape in self.fields.items():
            if not 1 <= len(shape) <= MAX_NDIM or min(shape) < 1:
                raise ValueError(f"Field {name!r} has shape {shape}; it needs 1 to {MAX_NDIM} axes of positive length.")
        self.rank, self.ranks = _place(comm)
        self._progress = _progress_of(comm, self.rank)
        self.dtype, self.dtype_code, self._steps = DTYPES[DTYPE_CODES[dtype]], DTYPE_CODES[dtype], steps
        self._round = 0
        self._last_asked: Any = None
        self._last_cuts: list[_Cut] = []
        self._cells = np.empty(0, np.int64)
        self._cells_session = 0
        self._sent: _SentLog | None = None
        self.link: Link | None = None
        if os.environ.get("HEADRACE_ADDRESS"):
            self._begin(os.environ)

    def _begin(self, environment: Mapping[str, str]) -> None:
        missing = [name for name in ("HEADRACE_TOKEN_FILE", "HEADRACE_STUDY") if not environment.get(name)]
        job = environment.get("HEADRACE_JOB") or (f"{network.gethostname()}-{os.getpid()}" if self.ranks == 1 else "")
        if missing or not job:
            raise RuntimeError(
                f"HEADRACE_ADDRESS is set but {', '.join(missing or ['HEADRACE_JOB'])} is not. Start the solver through"
                " its study, or unset HEADRACE_ADDRESS to run without one."
            )
        lease = environment.get("HEADRACE_LEASE")
        self.link = Link(
            environment["HEADRACE_ADDRESS"],
            read_token(environment["HEADRACE_TOKEN_FILE"]),
            int(environment["HEADRACE_STUDY"], 16),
            hello={"role": "solver", "job": job, "rank": self.rank, "ranks": self.ranks, "generation": 0},
            lease=float(lease) if lease else None, while_waiting=self._progress,
        )  # fmt: skip
        if environment.get("HEADRACE_LOG_DIR"):
            self._sent = _SentLog(Path(environment["HEADRACE_LOG_DIR"]) / f"solver-{job}-{self.rank}.log")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def simulations(self) -> Iterator[Stream]:
        """Yield one stream for each simulation that the study gives this job, until none is left. Collective.

        A simulation that the intake did not keep (`stream.lost`) is given out again, to this job or to another.
        """
        if self.link is None:
            yield Stream(self, None, b"")
            return
        while (stream := self.next()) is not None:
            yield stream
            stream.end()

    def next(self, *, owner: bool = False) -> Stream | None:
        """Ask for the next simulation; None where none is left. Collective.

        Raises
        ------
        RuntimeError : the intake refused, e.g. because the study has other fields.
        """
        if self.link is None:
            return Stream(self, None, b"", owner)
        self._round += 1
        while True:
            if self.link.lost is not None:
                self.link.join()
                hears = {"words": "ring"} if self.link.transport.says_words else {}
                if self._ask(Kind.DECLARE, {Kind.DECLARED}, payload={**self.declaration(), **hears}) is None:
                    continue
            answer = self._ask(Kind.REQUEST, {Kind.ASSIGN, Kind.FINISHED}, value=self._round)
            if answer is not None:
                break
        header, payload = answer
        if header.kind == Kind.FINISHED:
            return None
        if self._steps is not None and self._steps != header.value:
            raise ValueError(f"The solver will send {self._steps} steps but the study expects {header.value}.")
        return Stream(self, header, payload, owner)

    def declaration(self) -> dict[str, Any]:
        """Return what DECLARE says."""
        fields = [{"name": name, "shape": shape, "dtype": self.dtype.name} for name, shape in self.fields.items()]
        return {"fields": fields}

    def _ask(self, kind: Kind, answers: set[Kind], **content: Any) -> tuple[Header, bytes] | None:
        self.link.send(kind, **content)
        while self.link.lost is None:
            message = self.link.receive(1.0)
            if message is not None and message[0].kind in answers:
                return message
        return None

    def blocks(
        self, values: np.ndarray | Mapping[str, np.ndarray], where: Sequence[slice] | np.ndarray | None
    ) -> list[_Block]:
        """Check this rank's values against the declared fields and cut them as they travel: 64 KiB to 4 MiB each."""
        # A solver sends the same box at every step.
        by_number = isinstance(where, np.ndarray)
        box = None if where is None or by_number else tuple(where)
        if not by_number and isinstance(values, np.ndarray) and (values.shape, box) == self._last_asked:
            return self._cut(values, values, self._last_cuts)
        names = list(self.fields)
        given = list(values) if isinstance(values, Mapping) else names[: len(values)]
        if set(given) != set(names) or len(values) != len(names):
            got = ", ".join(given) if isinstance(values, Mapping) else f"an array of shape {np.shape(values)}"
            raise ValueError(f"values must hold one block for each of the fields {', '.join(names)}; got {got}.")
        arrays = [np.asarray(part) for part in (map(values.get, names) if isinstance(values, Mapping) else values)]
        if by_number:
            self._check_cells(where, dict(zip(names, arrays, strict=True)))
            cuts = self._cuts(arrays, [((0,), where.shape)] * len(arrays))
            return [block._replace(by_index=True) for block in self._cut(values, arrays, cuts)]
        asked = values.shape if isinstance(values, np.ndarray) else [array.shape for array in arrays], box
        if asked != self._last_asked:
            known: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]] = {}
            places = []
            for name, array in zip(names, arrays, strict=True):
                key = self.fields[name], array.shape
                if key not in known:
                    known[key] = self._place(name, array.shape, where)
                places.append(known[key])
            self._last_asked, self._last_cuts = asked, self._cuts(arrays, places)
        return self._cut(values, arrays, self._last_cuts)

    def _check_cells(self, cells: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        shapes = set(self.fields.values())
        if len(shapes) > 1:
            raise ValueError(f"Cells by number need fields of one shape; these have {sorted(shapes)}.")
        if cells.ndim != 1 or cells.dtype.kind not in "iu":
            raise ValueError(f"where must be slices or (cells,) of int; got shape {cells.shape} of {cells.dtype}.")
        for name, array in arrays.items():
            if array.shape != cells.shape:
                raise ValueError(
                    f"The block of field {name!r} has shape {array.shape} but where names {cells.size} cells."
                )

    def new_cells(self, cells: np.ndarray, session: int) -> Iterator[tuple[Header, bytes]]:
        """Return the messages that name the cells which this rank owns; none where the session knows them.

        Raises
        ------
        ValueError : a cell that does not exist or is named twice.
        """
        if session == self._cells_session and np.array_equal(cells, self._cells):
            return
        table = np.array(cells, "<i8")
        total = math.prod(next(iter(self.fields.values())))
        if table.size and not 0 <= table.min() <= table.max() < total:
            wrong = table.min() if table.min() < 0 else table.max()
            raise ValueError(f"where names cell {wrong}, but the field's cells are 0 to {total - 1}.")
        if np.unique(table).size < table.size:
            raise ValueError("where names a cell twice; each cell is sent by the one rank that owns it.")
        self._cells, self._cells_session = table, session
        for (piece,) in pieces(table.shape, table.itemsize):
            part = table[piece].tobytes()
            yield Header(
                Kind.CELLS, dtype=DTYPE_CODES["int64"], global_shape=table.shape, offset=(piece.start,),
                block_shape=(len(part) // 8,), payload_length=len(part), checksum=zlib.crc32(part),
                flags=PAYLOAD_SIGNED,
            ), part  # fmt: skip

    def _cuts(
        self, arrays: list[np.ndarray], places: list[tuple[tuple[int, ...], tuple[int, ...]]]
    ) -> list[_Cut]:  # fmt: skip
        """Decide how arrays travel; places : (offset, global shape) of each."""
        cuts, field = [], 0
        while field < len(arrays):
            (offset, shape), size = places[field], arrays[field].size * self.dtype.itemsize
            alike = field + 1
            while alike < len(arrays) and places[alike] == places[field] and (alike - field + 1) * size <= _TOGETHER:
                alike += 1
            if size and alike > field + 1:
                cuts.append(_Cut(field, alike, (), offset, arrays[field].shape, shape))
            elif size:
                for piece in pieces(arrays[field].shape, self.dtype.itemsize):
                    corner = tuple(o + cut.start for o, cut in zip(offset, piece, strict=True))
                    extent = tuple(cut.stop - cut.start for cut in piece)
                    cuts.append(_Cut(field, alike, piece, corner, extent, shape))
            field = alike
        return cuts

    def repeated(self, values: Any, where: Any) -> _RepeatedStep | None:
        """Return what a step that was sent has in common with more of its like; None where each must be looked at."""
        transport = self.link.transport
        if not isinstance(values, np.ndarray) or not (where is None or isinstance(where, tuple)):
            return None
        parts, size = [], self.dtype.itemsize
        # Several large pieces had better leave one by one, while the next is copied.
        if len(self._last_cuts) > 1 and size * values.size > _ALL_AT_ONCE:
            return None
        for first, last, piece, offset, shape, global_shape in self._last_cuts:
            if not transport.fits(size * (last - first) * math.prod(shape)):
                return None
            part = (first, *piece) if last == first + 1 else slice(first, last)
            parts.append((_Block(first, [], offset, shape, global_shape), part))
        held = len(parts) == 1 and _HeldSteps.can_take(
            parts[0][0]._replace(parts=[values[parts[0][1]]]), size, self.link.gathered
        )
        return _RepeatedStep(values.shape, where, parts, held)

    @staticmethod
    def _cut(values: Any, arrays: list[np.ndarray], cuts: list[_Cut]) -> list[_Block]:
        blocks = []
        for first, last, piece, offset, shape, global_shape in cuts:
            if last == first + 1:
                parts = [arrays[first][piece]]
            else:
                parts = [values[first:last]] if isinstance(values, np.ndarray) else arrays[first:last]
            blocks.append(_Block(first, parts, offset, shape, global_shape))
        return blocks

    def _place(
        self, name: str, found: tuple[int, ...], where: Sequence[slice] | None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the offset of a block and the global shape of its field."""
        shape = self.fields[name]
        slices = tuple(slice(0, n) for n in shape) if where is None else tuple(where)
        if len(slices) != len(shape):
            raise ValueError(f"where has {len(slices)} slices but field {name!r} has {len(shape)} axes: {shape}.")
        offset = tuple(cut.start or 0 for cut in slices)
        stop = tuple(n if cut.stop is None else cut.stop for cut, n in zip(slices, shape, strict=True))
        if any(cut.step not in (None, 1) for cut in slices) or any(
            not 0 <= o <= e <= n for o, e, n in zip(offset, stop, shape, strict=True)
        ):
            raise ValueError(f"where {slices} does not lie in field {name!r} of shape {shape} with steps of one.")
        expected = tuple(e - o for o, e in zip(offset, stop, strict=True))
        if found != expected:
            raise ValueError(f"The block of field {name!r} has shape {found} but where says {expected}.")
        return offset, shape

    def log(self, records: list[str]) -> None:
        """Append to this rank's log of what it sent, where HEADRACE_LOG_DIR asks for one."""
        if self._sent is not None and records:
            self._sent.write(records)

    def close(self) -> None:
        """Leave the study in order; a second call does nothing."""
        if self.link is not None:
            self.link.close()
            self.link = None
        if self._sent is not None:
            self._sent.close()
            self._sent = None


def connect(
    fields: Mapping[str, Sequence[int]], comm: Any = None, *, dtype: str = "float32", steps: int | None = None
) -> Stream:
    """Take one simulation from the study and return its stream, a context manager. Collective.

    The arguments are those of `Connection`. Without HEADRACE_ADDRESS the stream has no parameters; its blocks
    go to files in the folder HEADRACE_OUTPUT, or nowhere.

    Raises
    ------
    ConnectionError : the study does not answer.
    RuntimeError : it refuses, e.g. because it has other fields; both declarations are named.
    StudyFinished : no simulation is left.
    """
    connection = Connection(fields, comm, dtype=dtype, steps=steps)
    try:
        stream = connection.next(owner=True)
    except BaseException:
        connection.close()
        raise
    if stream is None:
        connection.close()
        raise StudyFinished
    return stream


def _place(comm: Any) -> tuple[int, int]:
    if comm is None:
        return 0, 1
    if hasattr(comm, "Get_rank"):
        return int(comm.Get_rank()), int(comm.Get_size())
    return int(comm.rank), int(comm.size)


def _progress_of(comm: Any, rank: int) -> Callable[[], object] | None:
    """Return what lets MPI work on messages that have left this rank's hands but not its memory; None: no MPI is known.

    MPI may move them only while their sender is inside MPI, as MPICH does over a network. A rank that waits for the
    study is not, and another one that waits for its message would never come to send its own block.
    """
    probe = getattr(comm, "Iprobe", None)
    # Of messages from this rank to itself, of which there are hardly any: one that is found would be all it looks at.
    return None if probe is None else functools.partial(probe, source=rank)
