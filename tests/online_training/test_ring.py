"""The ring: what a rank puts into shared memory is what the intake reads, and nobody can harm the intake with it."""

import gc
import itertools
import os
import zlib
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.online_training.client import (
    CONTINUE,
    IN_RING,
    STOP,
    Connection,
    Header,
    Kind,
    Link,
    RingTransport,
    Transport,
    WireError,
)  # fmt: skip
from headrace.online_training.ring import SMALLEST, Ring, ring_bytes
from tests.online_training.intake_setup import (
    PATIENCE,
    STUDY,
    TOKEN,
    field_of,
    make_layout,
    plan,
    running_intake,
    use_environment,
    wait_until,
)  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(0, 3), st.booleans()), min_size=1, max_size=60),
    st.sampled_from(["<f4", "<f8"]),
)
@settings(max_examples=100)
def test_what_was_not_read_is_never_overwritten(actions: list, dtype: str) -> None:
    """Blocks of any length, read late, in a ring of 4 KiB that is full most of the time; some are taken back."""
    ring = Ring(4096)
    writer = RingTransport(ring.offer())
    unread: deque = deque()

    def read() -> None:
        placed, expected = unread.popleft()
        content = ring.content(placed.position, placed.length)
        assert bytes(content) == expected and zlib.crc32(content) == placed.checksum
        ring.release(placed.position + placed.length)

    for number, (length, reads, keep) in enumerate(actions):
        values = (np.arange(length) + 1000.0 * number).reshape(-1, 1)
        while (placed := writer.place([values], np.dtype(dtype))) is None:
            assert unread, "an empty ring takes everything"
            read()
        if placed.flags != IN_RING:
            assert placed.length > 2048, "only what is large goes as a frame"
            continue
        if keep:
            writer.sent(placed)
            unread.append((placed, values.astype(dtype).tobytes()))
        else:
            writer.rewind()
        for _ in range(min(reads, len(unread))):
            read()
    while unread:
        read()
    writer.close()
    ring.close()


@pytest.mark.parametrize("shape", [(3, 100, 70), (1000, 300), (1, 200_000), (200_000,)])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int16"])
def test_both_transports_place_the_same_bytes(shape: tuple[int, ...], dtype: str) -> None:
    ring = Ring(2**23)
    writer = RingTransport(ring.offer())
    values = np.asfortranarray(np.random.default_rng(0).random(shape) * 100).astype(dtype)
    parts = [values, values[::-1]]
    for several in (parts[:1], parts):
        frame, inside = (transport.place(several, np.dtype("<f4")) for transport in (Transport(), writer))
        assert bytes(frame.frame) == bytes(ring.content(inside.position, inside.length))
        expected = zlib.crc32(frame.frame), len(frame.frame)
        assert (frame.checksum, frame.length) == (inside.checksum, inside.length) == expected
        assert bytes(frame.frame) == np.stack(several).astype("<f4").tobytes()
    writer.close()
    ring.close()


@pytest.mark.parametrize(("position", "length"), [(0, 4097), (4000, 97), (2**63 - 1, 2), (0, 0), (2**62 + 4095, 2)])
def test_nothing_outside_the_ring_can_be_named(position: int, length: int) -> None:
    ring = Ring(4096)
    with pytest.raises(WireError, match=r"^ring$"):
        ring.content(position, length)
    ring.close()


def test_a_rank_cannot_cut_the_ring() -> None:
    """Reading beyond the end of a file that was cut would kill the intake with SIGBUS."""
    ring = Ring(4096)
    descriptor = os.open(ring.offer()["path"], os.O_RDWR)
    for size in (0, 2**20):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size)
    assert os.fstat(descriptor).st_mode & 0o777 == 0o600
    os.close(descriptor)
    ring.close()


def test_another_process_memory_is_not_taken_for_the_ring(tmp_path: Path) -> None:
    ring = Ring(4096)
    offer = ring.offer()
    for wrong in ({"nonce": "00" * 16}, {"bytes": 8192}, {"path": str(tmp_path / "nothing")}):
        with pytest.raises(FileNotFoundError):
            RingTransport({**offer, **wrong})
    ring.seal()
    assert not os.path.exists(offer["path"])
    ring.close()


def test_a_ring_is_some_steps_long_and_bounded() -> None:
    assert ring_bytes(100, 2**24) == ring_bytes(2**14, 2**24) == SMALLEST
    assert ring_bytes(2**15, 2**24) == 2**21
    assert ring_bytes(2**17, 2**24) == 2**22
    assert ring_bytes(2**20, 2**24) == 2**22
    assert ring_bytes(2**30, 2**24) == 2**24
    assert ring_bytes(2**20, 0) == 0


def test_the_head_says_words_and_credit_and_who_waits_for_a_message() -> None:
    ring = Ring(4096)
    rank = RingTransport(ring.offer())
    assert rank.heard() == (0, 0) and Transport().heard() == (0, 0)
    assert ring.say(3, 2**40), "nobody waits"
    assert rank.heard() == (3, 2**40)
    rank.ask(True)
    assert not ring.say(4, 5) and rank.heard() == (4, 5)
    rank.ask(False)
    assert ring.say(5, 6)
    rank.close()
    ring.close()


@pytest.mark.parametrize(("transport", "messages"), [("shm", 0), ("ipc", 6)])
def test_a_rank_that_need_not_wait_gets_no_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str, messages: int
) -> None:
    """Every step is complete, with its word and the next one's credit said, before the next is sent."""
    monkeypatch.setattr("headrace.online_training.step_credits._QUICK_SECONDS", 0.0)
    posted: list[Kind] = []
    with running_intake(tmp_path, make_layout(), transport=transport) as intake:
        post = intake._socket.post

        def note(identity: bytes, kind: Kind, *rest, **more) -> None:
            posted.append(kind)
            post(identity, kind, *rest, **more)

        monkeypatch.setattr(intake._socket, "post", note)
        stream_in_turn(intake, monkeypatch)
        assert posted.count(Kind.ACK) == messages
        assert intake.status()["rejected"] == {}


def stream_in_turn(intake, monkeypatch: pytest.MonkeyPatch) -> None:
    use_environment(intake, monkeypatch)
    plan(intake, 1)
    with Connection({"u": (7, 5)}) as connection, connection.next() as stream:
        for step in range(6):
            assert stream.send(step=step, time=0.0, values=field_of(0, step, (7, 5))[None]) == CONTINUE
            wait_until(lambda: intake.status()["steps_accepted"] > step)  # noqa: B023
        assert stream.blocked_seconds == 0.0 or intake.settings.ring_bytes == 0
    buffer, array = intake.settings.buffer, intake.settings.memory.array
    for step in range(6):
        assert np.array_equal(array[buffer.slots[0, step], 0], field_of(0, step, (7, 5)).astype(np.float32))


def test_only_steps_like_the_one_before_go_without_another_look(tmp_path: Path, monkeypatch) -> None:
    """Two fields that are messages of their own, one way or the other of giving them, and never the same values."""
    shape, looked, blocks = (300, 310), [], Connection.blocks
    monkeypatch.setattr("headrace.online_training.client._QUICK_STEP", 0.0)
    monkeypatch.setattr(Connection, "blocks", lambda *given: looked.append(step) or blocks(*given))
    with running_intake(tmp_path, make_layout(fields=("u", "v"), shape=shape, num_steps=12)) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        with Connection({"u": shape, "v": shape}) as connection, connection.next() as stream:
            for step in range(12):
                values = np.stack([field_of(0, step, shape, field) for field in range(2)])
                given = {5: dict(u=values[0], v=values[1]), 6: np.asfortranarray(values)}.get(step, values)
                where = (slice(0, 300), slice(0, 310)) if step == 8 else None
                assert stream.send(step=step, time=0.0, values=given, where=where) == CONTINUE
                values[...] = -1.0  # it is free to change
                wait_until(lambda: intake.status()["steps_accepted"] > step)  # noqa: B023
        assert looked == [0, 5, 6, 8, 9]
        buffer, array = intake.settings.buffer, intake.settings.memory.array
        for step, field in itertools.product(range(12), range(2)):
            expected = field_of(0, step, shape, field).astype(np.float32)
            assert np.array_equal(array[buffer.slots[0, step], field], expected)


def test_a_rank_that_does_not_look_there_gets_messages(tmp_path: Path) -> None:
    """As clients of before, and those in C and Fortran."""
    with running_intake(tmp_path, make_layout()) as intake:
        plan(intake, 1)
        link, header = solver_with_a_block(intake)
        assert link.receive(PATIENCE)[0].kind == Kind.CREDIT
        link.send_block(header, b"")
        wait_until(lambda: link.receive(PATIENCE)[0].kind == Kind.ACK)
        assert link.transport.heard() == (0, 0)
        link.close()


def solver(intake, job: str = "1-0001") -> Link:
    link = Link(intake.addresses, TOKEN, STUDY, lease=30.0,
                hello={"role": "solver", "job": job, "rank": 0, "ranks": 1, "generation": 0})  # fmt: skip
    link.join()
    return link


def declare(link: Link) -> None:
    link.send(Kind.DECLARE, {"fields": [{"name": "u", "shape": [7, 5], "dtype": "float32"}]})
    assert link.receive(PATIENCE)[0].kind == Kind.DECLARED


def solver_with_a_block(intake) -> tuple[Link, Header]:
    """A rank that has got its simulation and placed a step in its ring, and the header that would say so."""
    link = solver(intake)
    declare(link)
    link.send(Kind.REQUEST, value=1)
    assert link.receive(PATIENCE)[0].kind == Kind.ASSIGN
    placed = link.transport.place([np.ones((7, 5))], np.dtype("<f4"))
    return link, Header(
        Kind.BLOCK, simulation=0, attempt=1, dtype=1, num_blocks=1, global_shape=(7, 5), offset=(0, 0),
        block_shape=(7, 5), payload_length=placed.length, checksum=placed.checksum, flags=placed.flags,
        value=2 * placed.position + 1,
    )  # fmt: skip


def rings_mapped() -> int:
    return Path("/proc/self/maps").read_text().count("headrace-ring")


def can_be_entered(offer: dict) -> bool:
    """Whether an offer is still good; what it names may be another file of the process by now, which opens no ring."""
    try:
        RingTransport(offer).close()
    except OSError:
        return False
    return True


def test_rings_come_and_go_with_their_sessions(tmp_path: Path) -> None:
    gc.collect()  # those of other tests
    before = rings_mapped()
    with running_intake(tmp_path, make_layout(), all_rings_bytes=2 * SMALLEST) as intake:
        links = [solver(intake, f"1-{i}") for i in range(3)]
        assert [type(link.transport) for link in links] == [RingTransport, RingTransport, Transport]
        assert rings_mapped() == before + 4, "ours and the intake's, in one process here"
        for link in links:
            assert "ring" not in link.welcome or can_be_entered(link.welcome["ring"])
            declare(link)
            assert "ring" not in link.welcome or not can_be_entered(link.welcome["ring"])
            link.close()
        wait_until(lambda: rings_mapped() == before)
        last = solver(intake)
        assert isinstance(last.transport, RingTransport)
    assert rings_mapped() == before + 1, "the intake's side is gone"
    last.close()
    assert rings_mapped() == before


def test_strict_mode_and_hosts_elsewhere_get_frames(tmp_path: Path) -> None:
    with running_intake(tmp_path, make_layout(), strict=True) as intake:
        link = solver(intake)
        assert "ring" not in link.welcome
        link.close()
    hello = {"role": "solver", "job": "1-0001", "rank": 0, "ranks": 1, "generation": 0}
    with running_intake(tmp_path, make_layout(), session=2) as intake:
        link = Link(intake.addresses, TOKEN, STUDY, lease=30.0, hello=hello)
        link._hello["host"] = "elsewhere"
        assert "ring" not in link.join()
        link.close()


@pytest.mark.parametrize(
    ("flags", "value", "length", "reason"),
    [(IN_RING, 2 * (SMALLEST - 100), 140, "ring"), (IN_RING, 0, 2**40, "ring"), (0, 0, 140, "length")],
)
def test_a_hostile_header_harms_nobody_else(
    tmp_path: Path, flags: int, value: int, length: int, reason: str
) -> None:
    with running_intake(tmp_path, make_layout()) as intake:
        plan(intake, 2)
        bad = solver(intake, "1-bad")
        declare(bad)
        bad.send(Kind.REQUEST, value=1)
        assert bad.receive(PATIENCE)[0].simulation == 0
        bad.send_block(
            Header(Kind.BLOCK, simulation=0, attempt=1, dtype=1, num_blocks=1, global_shape=(7, 5), offset=(0, 0),
                   block_shape=(7, 5), payload_length=length, flags=flags, value=value), b"",
        )  # fmt: skip
        assert wait_until(lambda: intake.status()["rejected"]) == {reason: 1}
        stream_all(intake, 1)
        status = intake.status()
        assert status["done"] == 1 and status["error"] is None
        bad.close()


def stream_all(intake, simulation: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, text in intake.environment.items():
            patch.setenv(name, text)
        with Connection({"u": (7, 5)}) as connection:
            stream = connection.next()
            assert stream.simulation == simulation
            with stream:
                for step in range(6):
                    stream.send(step=step, time=0.0, values=field_of(simulation, step, (7, 5))[None])
    buffer, array = intake.settings.buffer, intake.settings.memory.array
    for step in range(6):
        expected = field_of(simulation, step, (7, 5)).astype(np.float32)
        assert np.array_equal(array[buffer.slots[simulation, step], 0], expected)


def test_a_ring_whose_content_changes_costs_its_own_attempt_only(tmp_path: Path) -> None:
    with running_intake(tmp_path, make_layout()) as intake:
        plan(intake, 1)
        link, header = solver_with_a_block(intake)
        link.send_block(header._replace(checksum=header.checksum ^ 1), b"")
        wait_until(lambda: link.receive(0.1) is None and link.lost)
        assert "was damaged on its way" in link.lost
        status = intake.status()
        assert status["rejected"] == {"checksum": 1} and status["queued"] == 1 and status["error"] is None
        link.close()


def test_what_was_placed_for_a_step_that_is_not_sent_leaves_no_hole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full reservoir holds a step back, the study stops: its place in the ring is free for the next simulation."""
    layout = make_layout(window=1)
    with running_intake(tmp_path, layout, slots=2) as intake:
        use_environment(intake, monkeypatch)
        plan(intake, 1)
        with Connection({"u": (7, 5)}) as connection:
            with connection.next() as stream:
                for step in range(2):
                    stream.send(step=step, time=0.0, values=np.zeros((1, 7, 5)))
                transport = connection.link.transport
                sent = transport._sent
                intake.request_stop()
                words = [stream.send(step=step, time=0.0, values=np.zeros((1, 7, 5))) for step in (2, 3, 4)]
            assert words[-1] == STOP
            assert transport._head == transport._sent <= sent + 2 * 192
