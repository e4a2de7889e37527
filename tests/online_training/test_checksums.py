"""Checksums of parts give the checksum of the whole."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.online_training.assembly import Box, StepAssembly, in_memory_order, overlap
from headrace.online_training.checksums import combine


@given(st.lists(st.binary(max_size=300), max_size=6))
@settings(deadline=None)
def test_combined_checksums_are_those_of_the_joined_bytes(parts: list[bytes]) -> None:
    assert combine((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(b"".join(parts))


@pytest.mark.parametrize("length", [1, 4096, 2**20 + 3, 5 * 2**20])
def test_long_parts_combine_too(length: int) -> None:
    data = np.random.default_rng(length).bytes(2 * length)
    parts = [data[:length], data[length:]]
    assert combine((zlib.crc32(part), len(part)) for part in parts) == zlib.crc32(data)


CUTS = {
    "rows": [(0, 2, (0, 0), (100, 300)), (0, 2, (100, 0), (150, 300)), (0, 2, (250, 0), (6, 300))],
    "fields": [(1, 1, (0, 0), (256, 300)), (0, 1, (0, 0), (256, 300))],
    "fields and rows": [(f, 1, (r, 0), (128, 300)) for r in (128, 0) for f in (0, 1)],
    "columns": [(0, 2, (0, c), (256, 100)) for c in (0, 100, 200)],
    "one": [(0, 2, (0, 0), (256, 300))],
    "single rows": [(f, 1, (r, 0), (1, 300)) for f in (0, 1) for r in range(256)],
}  # fmt: skip


@pytest.mark.parametrize("name", CUTS)
def test_a_step_has_the_checksum_of_its_memory_however_it_was_cut(name: str) -> None:
    step = np.random.default_rng(0).random((2, 256, 300), np.float32)
    assembly = StepAssembly(np.empty_like(step), step.size, 0.0)
    boxes = [Box(*cut) for cut in CUTS[name]]
    for box in boxes:
        field, count, (i, j), (rows, columns), _ = box
        values = np.ascontiguousarray(step[field : field + count, i : i + rows, j : j + columns])
        assert assembly.place(box, values, zlib.crc32(values))
        assert not assembly.place(box, values, zlib.crc32(values)), "a second copy changes nothing"
    assert assembly.missing == 0 and np.array_equal(assembly.target, step)
    assert not overlap(assembly.boxes, step.shape, {})
    order = in_memory_order(assembly.boxes, step.shape)
    # All fields of a few rows are not contiguous, neither are columns.
    assert (order is None) == (name in ("rows", "columns"))
    assert assembly.crc32(order) == zlib.crc32(step)


def test_boxes_that_share_a_cell_overlap() -> None:
    assert overlap([Box(0, 1, (0, 0), (2, 3)), Box(0, 2, (1, 2), (1, 1))], (2, 2, 3), {})
    assert not overlap([Box(0, 1, (0, 0), (2, 3)), Box(1, 1, (1, 2), (1, 1))], (2, 2, 3), {})
