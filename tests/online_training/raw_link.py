"""A solver rank without the client's upper half: the tests send what they want, message by message."""

import zlib

import numpy as np

from headrace.online_training.client import Header, Kind, Link
from tests.online_training.intake_setup import PATIENCE, STUDY, TOKEN


def solver_link(intake, job: str, rank: int = 0, ranks: int = 1) -> Link:
    """A solver rank without the client's upper half: sends what the test wants."""
    hello = {"role": "solver", "job": job, "rank": rank, "ranks": ranks, "generation": 0}
    link = Link(intake.addresses, TOKEN, STUDY, hello=hello, lease=30.0)
    link.join()
    declare(link, intake.settings.layout)
    header, _ = link.receive(PATIENCE)
    assert header.kind == Kind.DECLARED
    return link


def declare(link: Link, layout) -> None:
    link.send(Kind.DECLARE, {"fields": [{"name": n, "shape": layout.shape, "dtype": "float32"} for n in layout.fields]})


def request(link: Link, round_: int = 1, timeout: float = PATIENCE) -> Header | None:
    link.send(Kind.REQUEST, value=round_)
    message = link.receive(timeout)
    return message[0] if message else None


def block(values: np.ndarray, offset: tuple[int, ...] = (0, 0), shape: tuple[int, ...] = (7, 5), **fields) -> tuple:
    """Header and payload of one BLOCK."""
    payload = np.ascontiguousarray(values, np.float32).tobytes()
    header = Header(
        Kind.BLOCK, simulation=fields.pop("simulation", 0), attempt=fields.pop("attempt", 1), dtype=1, num_blocks=1,
        global_shape=shape, offset=offset, block_shape=values.shape, payload_length=len(payload),
        checksum=zlib.crc32(payload), **fields,
    )  # fmt: skip
    return header, payload


def next_of(link: Link, kind: Kind, timeout: float = PATIENCE) -> Header | None:
    while (message := link.receive(timeout)) is not None:
        if message[0].kind == kind:
            return message[0]
    return None
