"""The checksum of a step is that of its memory, however its blocks were cut and whatever checksums they brought."""

import zlib

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from headrace.online_training.assembly import Box, StepAssembly, overlap
from headrace.online_training.client import Digest, checksum_of


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_a_digest_of_parts_is_that_of_the_whole(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    for name, expected in (("crc32", zlib.crc32(whole)), ("xxh3", xxhash.xxh3_64_intdigest(whole) % 2**32)):
        digest = Digest(name)
        for part in parts:
            digest.update(part)
        assert digest.value == checksum_of(whole, name) == expected


CUTS = {
    "rows": [(0, 2, (0, 0), (100, 300)), (0, 2, (100, 0), (150, 300)), (0, 2, (250, 0), (6, 300))],
    "fields": [(1, 1, (0, 0), (256, 300)), (0, 1, (0, 0), (256, 300))],
    "fields and rows": [(f, 1, (r, 0), (128, 300)) for r in (128, 0) for f in (0, 1)],
    "columns": [(0, 2, (0, c), (256, 100)) for c in (0, 100, 200)],
    "one": [(0, 2, (0, 0), (256, 300))],
    "single rows": [(f, 1, (r, 0), (1, 300)) for f in (0, 1) for r in range(256)],
}  # fmt: skip


@pytest.mark.parametrize("checksum", ["xxh3", "crc32"])
@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("kept", [True, False])
def test_a_step_has_the_checksum_of_its_memory_however_it_was_cut(name: str, checksum: str, kept: bool) -> None:
    step = np.random.default_rng(0).random((2, 256, 300), np.float32)
    assembly = StepAssembly(np.empty_like(step) if kept else None, step.size, 0.0)
    for cut in CUTS[name]:
        field, count, (i, j), (rows, columns) = cut
        box = Box(*cut)
        values = np.ascontiguousarray(step[field : field + count, i : i + rows, j : j + columns]).reshape(-1)
        assert assembly.place(box, values, checksum) == (checksum_of(values, checksum), True)
    assert not overlap([Box(*cut) for cut in CUTS[name]], step.shape, {})
    if kept:
        assert np.array_equal(assembly.target, step)
        assert assembly.checksum() == checksum_of(step, "xxh3")


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70_000, 131_071])
def test_one_number_that_is_not_finite_is_found(bad: float, place: int) -> None:
    values = np.full(131_072, 3e30, np.float32)  # whose squares overflow
    box = Box(0, 1, (0, 0), (256, 512))
    for target in (np.empty((1, 256, 512), np.float32), None):
        assert StepAssembly(target, values.size, 0.0).place(box, values, "xxh3")[1]
    values[place] = bad
    for target in (np.empty((1, 256, 512), np.float32), None):
        assert not StepAssembly(target, values.size, 0.0).place(box, values, "xxh3")[1]


def test_boxes_that_share_a_cell_overlap() -> None:
    assert overlap([Box(0, 1, (0, 0), (2, 3)), Box(0, 2, (1, 2), (1, 1))], (2, 2, 3), {})
    assert not overlap([Box(0, 1, (0, 0), (2, 3)), Box(1, 1, (1, 2), (1, 1))], (2, 2, 3), {})
