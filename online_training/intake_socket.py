"""The intake's socket: bound to tcp on one interface and to ipc on the node; every message goes out signed."""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket as network
import stat
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from .client import (
    CURVE,
    IN_PROCESS,
    IN_RING,
    MAX_FRAME,
    OLDEST_VERSION,
    PAYLOAD_SIGNED,
    VERSION,
    XXH3,
    Header,
    Kind,
    WireError,
    checksum_of,
    curve_keys,
)

Content = Mapping[str, Any] | bytes | None
"""The payload of a message: a mapping travels as JSON."""

_MAX_UNIX_PATH = 100
_QUEUED_MESSAGES = 64
_CONTENT = frozenset((int(Kind.BLOCK), int(Kind.STEPS)))
_MORE, _AT_ONCE = int(zmq.SNDMORE), int(zmq.NOBLOCK)  # numbers: members of an enumeration are slow
_numbers = itertools.count()


class IntakeSocket:
    """A ROUTER socket for one study. Only the thread that serves may receive and post; any may wake it.

    interface : address of one, or "inproc": for clients of this very process alone.
    encrypt : whether connections use CURVE, with keys that follow from the token; on tcp alone.

    Raises
    ------
    RuntimeError : the port is taken, or the interface is not one of this machine.
    """

    def __init__(self, interface: str, port: int, *, study: int, token: bytes, encrypt: bool = False) -> None:
        self._study, self._token = study, token
        self.in_process = interface == "inproc"
        # Two threads: the connections of two ranks are read side by side.
        self._context = zmq.Context.instance() if self.in_process else zmq.Context(io_threads=2)
        self._router = self._context.socket(zmq.ROUTER)
        # The queue of one peer bounds what it can make us hold; honest peers have a few steps in flight at most.
        for option, value in (
            (zmq.MAXMSGSIZE, MAX_FRAME), (zmq.RCVHWM, _QUEUED_MESSAGES), (zmq.ROUTER_HANDOVER, 1),
            (zmq.LINGER, 500), (zmq.HANDSHAKE_IVL, 10000), (zmq.TCP_KEEPALIVE, 1),
        ):  # fmt: skip
            self._router.setsockopt(option, value)
        self._ipc_path: Path | None = None
        self._encrypt = encrypt
        if encrypt:
            self._router.curve_publickey, self._router.curve_secretkey = curve_keys(token, "intake")
            self._router.curve_server = True
        try:
            self.addresses = self._bind(interface, port)
        except zmq.ZMQError as error:
            self._router.close(0)
            if not self.in_process:
                self._context.term()
            if error.errno == errno.EADDRINUSE:
                problem = f"Port {port} on {interface} is in use. Choose another port, or 0 for one that is free."
            else:
                problem = f"The intake cannot listen on {interface}:{port}: {error.strerror}. Name one of this machine."
            raise RuntimeError(problem) from error
        self._wake_out, self._wake_in = network.socketpair()
        self._wake_out.setblocking(False)
        self._wake_in.setblocking(False)
        self._poller = zmq.Poller()
        self._poller.register(self._router, zmq.POLLIN)
        self._poller.register(self._wake_out.fileno(), zmq.POLLIN)

    def _bind(self, interface: str, port: int) -> list[str]:
        if self.in_process:
            address = f"{IN_PROCESS}headrace-{self._study:016x}-{next(_numbers)}"
            self._router.bind(address)
            return [address]
        self._router.bind(f"tcp://{interface}:{port or '*'}")
        port = int(self._router.getsockopt_string(zmq.LAST_ENDPOINT).rsplit(":", 1)[1])
        host = network.gethostname() if interface in ("*", "0.0.0.0") else interface
        if self._encrypt:
            # All of a socket's endpoints are encrypted or none, and ipc has nothing to hide from.
            return [f"{CURVE}tcp://{host}:{port}"]
        addresses = [f"tcp://{host}:{port}"]
        folder = Path(tempfile.gettempdir()) / f"headrace-{os.geteuid()}-{self._study:016x}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        # A folder that somebody else made beforehand, or a path too long for a UNIX socket: tcp alone will do.
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
        if ours and len(str(folder / str(port))) < _MAX_UNIX_PATH:
            self._ipc_path = folder / str(port)
            self._router.bind(f"ipc://{self._ipc_path}")
            addresses.insert(0, f"ipc://{self._ipc_path}")
        return addresses

    def wake(self) -> None:
        """Make `wait` return; may be called from any thread."""
        try:
            self._wake_in.send(b"w")
        except OSError:
            pass  # it has been woken already, or is being closed

    def wait(self, milliseconds: int) -> None:
        """Wait until a message is there, somebody wakes us, or the time is over."""
        events = dict(self._poller.poll(milliseconds))
        if self._wake_out.fileno() in events:
            self._wake_out.recv(4096)

    def receive(self) -> list[Any] | None:
        """Return the frames of the next message, the identity of its sender first; None where there is none."""
        try:
            frames = [self._router.recv(_AT_ONCE)]
        except zmq.Again:
            return None
        # Whole messages come: what follows the identity is there.
        frames.append(self._router.recv(_AT_ONCE, copy=False))
        while frames[-1].more:
            frames.append(self._router.recv(_AT_ONCE, copy=False))
        return frames

    def verify(self, frames: list[Any]) -> tuple[bytes, Header, Any]:
        """Return identity, header and payload of a message that the token's owner wrote.

        Raises
        ------
        WireError : it is not one; the text is the reason.
        """
        if len(frames) not in (2, 3):
            raise WireError("frames")
        payload = frames[2].buffer if len(frames) == 3 else b""
        try:
            header = Header.verify(frames[1].bytes, self._token, self._study, payload)
        except WireError as error:
            if str(error) == "version":
                self._refuse_older(frames[0], frames[1].bytes, payload)
            raise
        if header.kind not in _CONTENT:
            if header.payload_length and not header.flags & PAYLOAD_SIGNED:
                raise WireError("unsigned")
            if header.flags & IN_RING:
                raise WireError("ring")
        return frames[0], header, payload

    def _refuse_older(self, identity: bytes, frame: bytes, payload: Any) -> None:
        """Answer the HELLO of an older client in its own version, so that it does not wait for what never comes."""
        try:
            header = Header.verify(frame, self._token, self._study, payload, oldest=OLDEST_VERSION)
        except WireError:
            return
        if header.kind == Kind.HELLO:
            version = int.from_bytes(frame[4:6], "little")
            text = (
                f"this client speaks version {version} of the wire and the study version {VERSION}: copy client.py, or "
                "build clients/headrace.c, from the Headrace that runs the study"
            )
            body = json.dumps({"error": text}).encode()
            answer = Header(
                Kind.REFUSED, self._study, payload_length=len(body), checksum=zlib.crc32(body), flags=PAYLOAD_SIGNED
            )  # fmt: skip
            self._router.send_multipart([identity, answer.sign(self._token, body, version), body])

    def post(self, identity: bytes, kind: Kind, payload: Content = None, **fields: Any) -> None:
        """Sign and send one message."""
        body = b"" if payload is None else payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        if body:
            fields.update(payload_length=len(body), checksum=zlib.crc32(body), flags=PAYLOAD_SIGNED)
        frame = Header(kind, self._study, **fields).sign(self._token, body)
        self._router.send(identity, _MORE)
        self._router.send(frame, _MORE if body else 0)
        if body:
            self._router.send(body)

    def post_content(self, identity: bytes, parts: Sequence[np.ndarray], *, signed: bool, **fields: Any) -> None:
        """Send bytes of steps, one behind the other, as CONTENT; a single part is not copied: it must stay as it is.

        signed : the HMAC covers the bytes too; else the checksum in the header does.
        """
        body = parts[0].data if len(parts) == 1 else b"".join(parts)
        flags = XXH3 | (PAYLOAD_SIGNED if signed else 0)
        fields.update(payload_length=len(body), checksum=checksum_of(body, "xxh3"), flags=flags)
        frame = Header(Kind.CONTENT, self._study, **fields).sign(self._token, body)
        self._router.send_multipart([identity, frame, body], copy=False)

    def close(self) -> None:
        """Send what is waiting, free the sockets and remove the ipc file."""
        self._router.close()
        if not self.in_process:
            self._context.term()
        self._wake_in.close()
        self._wake_out.close()
        if self._ipc_path is not None:
            self._ipc_path.unlink(missing_ok=True)
            try:
                self._ipc_path.parent.rmdir()
            except OSError:
                pass  # another intake of this study still has its file there
