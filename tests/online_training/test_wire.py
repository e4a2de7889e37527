"""The wire: headers survive the way there and back, strangers are never heard, nothing crashes the intake."""

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.online_training import client
from headrace.online_training.client import Connection, Header, Kind, Link, WireError
from tests.online_training import wire_vectors
from tests.online_training.intake_setup import (
    PATIENCE,
    STUDY,
    TOKEN,
    TrainerDouble,
    field_of,
    make_layout,
    plan,
    running_intake,
    wait_until,
)  # fmt: skip

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
DOCUMENT = Path(__file__).parents[2] / "docs" / "wire.md"


@st.composite
def headers(draw: st.DrawFn) -> Header:
    ndim = draw(st.integers(0, 4))
    axes = st.tuples(*[u64] * ndim)
    return Header(
        kind=draw(st.sampled_from(list(Kind))), study=draw(u64), session=draw(u64), sequence=draw(u64),
        simulation=draw(u64), attempt=draw(u32), field=draw(u16), dtype=draw(st.integers(0, 255)), step=draw(u64),
        time=draw(st.floats(allow_nan=False)), block=draw(u32), num_blocks=draw(u32), global_shape=draw(axes),
        offset=draw(axes), block_shape=draw(axes), checksum=draw(u32), flags=draw(st.integers(0, 1)),
        value=draw(u64),
    )  # fmt: skip


@given(headers(), st.binary(max_size=64))
@settings(max_examples=200)
def test_a_header_is_read_as_it_was_written(header: Header, payload: bytes) -> None:
    header = header._replace(payload_length=len(payload))
    frame = header.sign(TOKEN, payload)
    assert len(frame) == 224
    assert Header.verify(frame, TOKEN, header.study, payload) == header


@given(headers(), st.binary(min_size=1, max_size=64), st.integers(0, 8 * 224 - 1))
@settings(max_examples=200)
def test_any_flipped_bit_of_a_header_is_noticed(header: Header, payload: bytes, bit: int) -> None:
    header = header._replace(payload_length=len(payload))
    frame = bytearray(header.sign(TOKEN, payload))
    frame[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError):
        Header.verify(bytes(frame), TOKEN, header.study, payload)


@given(headers(), st.binary(min_size=1, max_size=64), st.data())
@settings(max_examples=100)
def test_a_signed_payload_cannot_be_changed(header: Header, payload: bytes, data: st.DataObject) -> None:
    header = header._replace(payload_length=len(payload), flags=1)
    changed = bytearray(payload)
    changed[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WireError, match="hmac"):
        Header.verify(header.sign(TOKEN, payload), TOKEN, header.study, bytes(changed))


def test_the_reasons_come_in_the_order_of_the_document() -> None:
    good = Header(Kind.REQUEST, STUDY).sign(TOKEN)
    cases = {
        "size": good[:-1],
        "magic": b"XXXX" + good[4:],
        "version": good[:4] + b"\3\0" + good[6:],
        "hmac": good[:-1] + bytes([good[-1] ^ 1]),
        "study": Header(Kind.REQUEST, STUDY + 1).sign(TOKEN),
        "length": Header(Kind.REQUEST, STUDY, payload_length=1).sign(TOKEN),
    }
    for reason, frame in cases.items():
        with pytest.raises(WireError, match=f"^{reason}$"):
            Header.verify(frame, TOKEN, STUDY)


def test_vectors_are_those_of_the_code() -> None:
    stored = json.loads(wire_vectors.PATH.read_text())
    assert stored == json.loads(json.dumps(wire_vectors.make_vectors()))


def documented_fields() -> list[tuple[int, str, str]]:
    """(offset, type, name) of the rows of the header's table in docs/wire.md."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+?) \| (\w+) \|", DOCUMENT.read_text(), re.MULTILINE)
    table = [(int(offset), kind, name) for offset, kind, name in rows if kind in TYPES]
    assert table[-1] == (192, "32 bytes", "hmac") and len(table) == 23
    return table


TYPES = {"4 bytes": "4s", "u8": "B", "u16": "H", "u32": "I", "u64": "Q", "f64": "d", "4 × u64": "4Q", "32 bytes": "32s"}


def test_vectors_are_packed_as_the_document_says() -> None:
    """The document's table alone, without our packing, finds every field of every vector in its place."""
    for vector in json.loads(wire_vectors.PATH.read_text()):
        frame, end = bytes.fromhex(vector["header"]), 0
        code = bytes.fromhex(vector["hmac"])
        expected = {"magic": b"HDRC", "version": client.VERSION, "hmac": code, **vector["fields"]}
        for offset, kind, name in documented_fields():
            found = struct.unpack_from("<" + TYPES[kind], frame, offset)
            if kind == "4 × u64":
                assert found == tuple(expected[name] + [0] * (4 - len(expected[name]))), (vector["name"], name)
            else:
                assert found == (expected[name],), (vector["name"], name)
            assert offset == end
            end += struct.calcsize("<" + TYPES[kind])
        assert end == 224


def test_the_document_lists_every_kind() -> None:
    rows = dict(re.findall(r"^\| +(\d+) \| ([A-Z_]+) \|", DOCUMENT.read_text(), re.MULTILINE))
    assert {int(number): name for number, name in rows.items()} == {int(kind): kind.name for kind in Kind}


def stranger(address: str) -> zmq.Socket:
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(address)
    return socket


def hello_of(token: bytes, version: int = client.VERSION, **changes: object) -> list[bytes]:
    content = {"role": "solver", "job": "x", "rank": 0, "ranks": 1, "pid": 1, "host": "h", "nonce": "n",
               "generation": 0, **changes}  # fmt: skip
    body = json.dumps(content).encode()
    header = Header(Kind.HELLO, STUDY, flags=1, sequence=1, payload_length=len(body), checksum=zlib.crc32(body))
    return [header.sign(token, body, version), body]


def test_a_wrong_token_is_never_answered(tmp_path: Path) -> None:
    with running_intake(tmp_path, make_layout()) as intake:
        socket = stranger(intake.addresses.split(",")[-1])
        socket.send_multipart(hello_of(b"\1" * 32))
        wait_until(lambda: intake.status()["rejected"].get("hmac") == 1)
        assert not socket.poll(200)
        socket.send_multipart(hello_of(TOKEN))
        assert socket.poll(1000 * PATIENCE), "the right token is answered on the same socket"
        socket.close()


def test_an_older_client_is_told_so_in_its_own_version(tmp_path: Path) -> None:
    """It would wait for words that an ACK of today no longer has for each step."""
    with running_intake(tmp_path, make_layout()) as intake:
        socket = stranger(intake.addresses.split(",")[-1])
        for token in (b"\1" * 32, TOKEN):  # whose token is another one learns nothing
            socket.send_multipart(hello_of(token, version=1))
        assert socket.poll(1000 * PATIENCE)
        frame, body = socket.recv_multipart()
        with pytest.raises(WireError, match="version"):
            Header.verify(frame, TOKEN, STUDY, body)
        header = Header.verify(frame, TOKEN, STUDY, body, oldest=1)
        assert frame[4:6] == b"\1\0" and header.kind == Kind.REFUSED and zlib.crc32(body) == header.checksum
        refusal = json.loads(body)
        assert "rejoin" not in refusal and "version 1 of the wire and the study version 2" in refusal["error"]
        assert not socket.poll(100) and intake.status()["rejected"] == {"version": 2}
        socket.close()


def test_a_replayed_hello_is_not_answered(tmp_path: Path) -> None:
    with running_intake(tmp_path, make_layout()) as intake:
        first, second = stranger(intake.addresses.split(",")[-1]), stranger(intake.addresses.split(",")[-1])
        first.send_multipart(hello_of(TOKEN))
        assert first.poll(1000 * PATIENCE)
        second.send_multipart(hello_of(TOKEN))
        wait_until(lambda: intake.status()["rejected"].get("replayed") == 1)
        assert not second.poll(100)
        assert intake.status()["peers"] == 1
        first.close()
        second.close()


def mutations(rng: np.random.Generator, count: int) -> list[list[bytes]]:
    """Frames like those of a client, each broken somewhere; none is authentic and complete."""
    bodies = [b"", b'{"batch": 4}', bytes(140)]
    broken = []
    for _ in range(count):
        kind, body = rng.choice(list(Kind)), bodies[rng.integers(len(bodies))]
        header = Header(int(kind), STUDY, int(rng.integers(2**40)), 1, dtype=1, flags=1 if body else 0,
                        payload_length=len(body), checksum=zlib.crc32(body))  # fmt: skip
        frame = bytearray(header.sign(TOKEN, body))
        match rng.integers(5):
            case 0:
                frame[rng.integers(224)] ^= 1 << rng.integers(8)
                frames = [bytes(frame), body]
            case 1:
                frames = [bytes(frame[: rng.integers(224)]), body]
            case 2:
                frames = [rng.bytes(224), rng.bytes(int(rng.integers(1, 5000)))]
            case 3:
                frames = [bytes(frame), body + b"x"]
            case _:
                frames = [bytes(frame)] * int(rng.integers(3, 6))
        broken.append(frames)
    return broken


def test_broken_frames_are_counted_and_harm_nobody(tmp_path: Path) -> None:
    layout, count = make_layout(), 600
    with running_intake(tmp_path, layout) as intake:
        socket = stranger(intake.addresses.split(",")[-1])
        for frames in mutations(np.random.default_rng(1), count):
            socket.send_multipart(frames)
        status = wait_until(lambda: (s := intake.status())["messages"] == count and s)
        assert sum(status["rejected"].values()) == count
        assert status["error"] is None and status["peers"] == 0
        assert not socket.poll(50), "nothing is answered"
        socket.close()
        simulate_one(intake, layout)


def simulate_one(intake, layout) -> None:
    plan(intake, 1)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in intake.environment.items():
            patch.setenv(name, value)
        with Connection({"u": layout.shape}) as connection:
            for stream in connection.simulations():
                with stream:
                    for step in range(layout.num_steps):
                        stream.send(step=step, time=step, values=field_of(0, step, layout.shape)[None])
    assert intake.status()["done"] == 1


@pytest.mark.parametrize("role", ["solver", "trainer"])
def test_authentic_nonsense_from_a_peer_never_stops_the_loop(tmp_path: Path, role: str) -> None:
    """A program with the token and a session may be wrong in every field of every message."""
    rng = np.random.default_rng(2)
    numbers = [0, 1, 2, 5, 7, 2**31, 2**32 - 1]
    bodies = [b"", b"{}", b"[1]", b'{"batch": -1}', b'{"batch": 9}', b'{"fields": 3}', b'{"elapsed": 1e999}',
              b'{"reason": [], "blocked": "x"}', bytes(8), bytes(7), bytes(140), b"\xff" * 140]  # fmt: skip
    layout = make_layout()
    with running_intake(tmp_path, layout) as intake:
        hello = {"role": role, "job": "odd", "rank": 0, "ranks": 1, "generation": 0}
        link = Link(intake.addresses, TOKEN, STUDY, hello=hello, lease=30.0)
        link.join()
        for _ in range(500):
            body = bodies[rng.integers(len(bodies))]
            ndim = int(rng.integers(5))
            axes = [tuple(int(n) for n in rng.choice(numbers, ndim)) for _ in range(3)]
            pick = [int(n) for n in rng.choice(numbers, 8)]
            kind = int(rng.choice([kind for kind in Kind if kind not in (Kind.HELLO, Kind.BYE)]))
            header = Header(
                kind, simulation=pick[0], attempt=pick[1], field=pick[2] % 2**16, dtype=pick[3] % 8, step=pick[4],
                time=float(rng.choice([0.0, np.nan, np.inf])), block=pick[5], num_blocks=pick[6], value=pick[7],
                global_shape=axes[0], offset=axes[1], block_shape=axes[2], payload_length=len(body),
                checksum=zlib.crc32(body), flags=int(rng.integers(2)),
            )  # fmt: skip
            link.send_block(header, body)
        status = wait_until(lambda: (s := intake.status())["messages"] >= 500 and s)
        assert status["error"] is None, status["error"]
        assert sum(status["rejected"].values()) > 400
        link.close()
        simulate_one(intake, layout)


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{", b"[" * 60000, b'{"role": 3}', b"{}", b'"' + b"x" * 70000 + b'"', b'{"role": "solver", "rank": true}'],
)
def test_authentic_nonsense_in_hello_is_counted(tmp_path: Path, body: bytes) -> None:
    with running_intake(tmp_path, make_layout()) as intake:
        socket = stranger(intake.addresses.split(",")[-1])
        header = Header(Kind.HELLO, STUDY, flags=1, sequence=1, payload_length=len(body))
        socket.send_multipart([header.sign(TOKEN, body), body])
        wait_until(lambda: intake.status()["rejected"] == {"json": 1})
        assert intake.status()["error"] is None
        socket.close()


def test_numbers_of_a_trainer_that_nobody_could_answer_are_refused(tmp_path: Path) -> None:
    """Room for four billion workers would be all memory, and the batch after the last number has none."""
    with running_intake(tmp_path, make_layout()) as intake:
        hello = {"role": "trainer", "job": "trainer", "rank": 0, "ranks": 2**32 - 1, "generation": 0}
        link = Link(intake.addresses, TOKEN, STUDY, hello=hello, lease=30.0)
        with pytest.raises(RuntimeError, match="4294967295 ranks cannot connect; the limit of one intake is 16384"):
            link.join()
        link.close()
        trainer = TrainerDouble(intake)
        trainer.link.send(Kind.DRAW, {"batch": 1, "count": 2}, value=2**64 - 1, block=0, num_blocks=1)
        wait_until(lambda: intake.status()["rejected"].get("draw"))
        intake.request_stop()
        assert trainer.draw(0) is None and intake.status()["error"] is None
        trainer.close()


def test_a_frame_larger_than_allowed_never_reaches_the_loop(tmp_path: Path) -> None:
    with running_intake(tmp_path, make_layout()) as intake:
        socket = stranger(intake.addresses.split(",")[-1])
        monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.send_multipart([bytes(224), bytes(client.MAX_FRAME + 1)])
        assert monitor.poll(1000 * PATIENCE), "the peer is cut off"
        assert intake.status()["messages"] == 0
        socket.disable_monitor()
        monitor.close()
        socket.close()
