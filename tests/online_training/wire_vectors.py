"""Test vectors of the wire: `python -m tests.online_training.wire_vectors` writes wire_vectors.json beside this file.

Each vector has the token, the fields by their names in docs/wire.md, the payload and the signed header: a client
in another language can check its own packing with them.
"""

import json
import struct
from pathlib import Path

from headrace.online_training.client import XXH3, Header, Kind, checksum_of

PATH = Path(__file__).with_name("wire_vectors.json")
TOKEN = bytes((7 * i + 1) % 256 for i in range(32))
STUDY = 0x0123456789ABCDEF


def make_vectors() -> list[dict]:
    """One header of each form: bare, JSON, a 1-D and a 4-D block, in a ring, a table, strict mode, cells by number,
    largest numbers."""
    hello = b'{"role": "solver", "job": "1-0001", "rank": 2, "ranks": 4}'
    cells = bytes(range(48))
    largest = 2**64 - 1
    cases = {
        "request": (Header(Kind.REQUEST, STUDY, 2**32 + 1, 3, value=5), b""),
        "hello": (Header(Kind.HELLO, STUDY, 0, 1, flags=1), hello),
        "block of one axis": (
            Header(Kind.BLOCK, STUDY, 2**32 + 1, 4, simulation=17, attempt=2, field=1, dtype=1, step=99, time=0.25,
                   block=3, num_blocks=4, global_shape=(100,), offset=(76,), block_shape=(12,), value=1),
            cells,
        ),
        "block of four axes, strict": (
            Header(Kind.BLOCK, STUDY, 2**32 + 1, 5, simulation=17, attempt=1, field=0, dtype=2, step=0, time=-1.5e-3,
                   block=0, num_blocks=1, global_shape=(2, 3, 4, 5), offset=(0, 1, 2, 3), block_shape=(1, 2, 3, 1),
                   flags=1),
            cells,
        ),
        "two fields of one axis, in the ring at position 4096": (
            Header(Kind.BLOCK, STUDY, 2**32 + 1, 6, simulation=17, attempt=1, field=0, dtype=1, step=7, time=0.5,
                   block=1, num_blocks=2, global_shape=(12,), offset=(6,), block_shape=(6,), flags=2,
                   value=2 * 4096 + 1),
            cells,
        ),
        "block with XXH3": (
            Header(Kind.BLOCK, STUDY, 2**32 + 1, 7, simulation=17, attempt=1, field=0, dtype=1, step=8, time=0.75,
                   block=0, num_blocks=1, global_shape=(12,), offset=(0,), block_shape=(12,), flags=XXH3, value=1),
            cells,
        ),
        "the last two of five cells": (
            Header(Kind.CELLS, STUDY, 2**32 + 1, 7, dtype=4, global_shape=(5,), offset=(3,), block_shape=(2,), flags=1),
            (41).to_bytes(8, "little") + (7).to_bytes(8, "little"),
        ),
        "values of the first three cells of a rank's list": (
            Header(Kind.BLOCK, STUDY, 2**32 + 1, 8, simulation=17, attempt=1, field=0, dtype=2, step=1, time=0.5,
                   block=1, num_blocks=2, global_shape=(5,), offset=(0,), block_shape=(3,), flags=8),
            cells[:24],
        ),
        "two steps of one field, in one message": (
            Header(Kind.STEPS, STUDY, 2**32 + 1, 9, simulation=17, attempt=1, field=0, dtype=1, step=9, time=1.0,
                   block=0, num_blocks=1, global_shape=(4,), offset=(0,), block_shape=(4,), flags=2 << 16 | XXH3,
                   value=1),
            cells[:32] + struct.pack("<2d", 1.0, 1.25),
        ),
        "release": (Header(Kind.RELEASE, STUDY, 2**32 + 9, 12, flags=1), (77).to_bytes(8, "little")),
        "acknowledgement with the largest numbers": (
            Header(Kind.ACK, STUDY, largest, largest, simulation=largest, attempt=2**32 - 1, step=largest, value=1),
            b"",
        ),
    }  # fmt: skip
    vectors = []
    for name, (header, payload) in cases.items():
        header = header._replace(payload_length=len(payload), checksum=_checksum(header, payload))
        frame = header.sign(TOKEN, payload)
        fields = {**header._asdict(), "kind": int(header.kind), "ndim": len(header.global_shape)}
        vectors.append(
            {"name": name, "token": TOKEN.hex(), "fields": fields, "payload": payload.hex(),
             "header": frame.hex(), "hmac": frame[-32:].hex()}
        )  # fmt: skip
    return vectors


def _checksum(header: Header, payload: bytes) -> int:
    return checksum_of(payload, "xxh3" if header.flags & XXH3 else "crc32") if payload else 0


if __name__ == "__main__":
    PATH.write_text(json.dumps(make_vectors(), indent=1) + "\n")
