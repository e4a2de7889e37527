"""Ranks that own cells here and there and name them by number, once."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training.cell_list import CellList
from headrace.online_training.client import DTYPE_CODES, Connection, Header, Kind, WireError, connect
from headrace.online_training.ledger import read_records
from tests.mpi_run import run_mpi
from tests.online_training.intake_setup import MPI_PROGRAM, field_of, make_layout, plan, running_intake, wait_until

SHAPE = (9, 7)


def send_here(intake, monkeypatch: pytest.MonkeyPatch, cells: list[np.ndarray]) -> None:
    """Send one simulation of the test's steps as a job of one rank that names other cells at every step."""
    for name, value in intake.environment.items():
        monkeypatch.setenv(name, value)
    with connect({"u": SHAPE}) as stream:
        for step, own in enumerate(cells):
            values = field_of(stream.simulation, step, SHAPE).reshape(-1)[own % 63]
            stream.send(step=step, time=0.1 * step, values=values[None], where=own)


@pytest.mark.mpi
@pytest.mark.parametrize(("transport", "ranks"), [("shm", 3), ("tcp", 3), ("shm", 1)])
def test_every_cell_arrives_in_its_place(tmp_path: Path, transport: str, ranks: int) -> None:
    layout = make_layout(shape=SHAPE, fields=("u", "v"))
    settings = {"shape": SHAPE, "fields": ["u", "v"], "steps": 6, "cut": [ranks, 1], "cells": True}
    with running_intake(tmp_path, layout, transport=transport) as intake:
        plan(intake, 2)
        done = run_mpi(ranks, [MPI_PROGRAM, json.dumps(settings)], env=intake.environment)
        assert done.returncode == 0, done.stderr
        sent = sum(json.loads(line)["bytes"] for line in done.stdout.splitlines() if line.startswith("{"))
        slots, memory = intake.settings.buffer.slots, intake.settings.memory.array
        assert sorted(slots) == list(itertools.product(range(2), range(6)))
        assert sent == intake.status()["bytes_received"] == len(slots) * layout.step_bytes
        for (simulation, step), slot in slots.items():
            expected = [field_of(simulation, step, SHAPE, field) for field in range(2)]
            np.testing.assert_array_equal(memory[slot], expected)


@pytest.mark.mpi
def test_both_logs_tell_blocks_of_different_owners_apart(tmp_path: Path) -> None:
    settings = {"shape": SHAPE, "fields": ["u"], "steps": 6, "cut": [3, 1], "cells": True}
    with running_intake(tmp_path, make_layout(shape=SHAPE)) as intake:
        plan(intake, 1)
        assert run_mpi(3, [MPI_PROGRAM, json.dumps(settings)], env=intake.environment).returncode == 0
        wait_until(lambda: intake.status()["done"] == 1)
    records = {
        side: {
            (r["t"], tuple(r["o"]), r["r"]): r["c"]
            for path in (tmp_path / "ledger").glob(f"{side}-*.log")
            for r in read_records(path)
            if r["e"] == "block"
        }
        for side in ("solver", "intake")
    }
    assert len(records["solver"]) == 3 * 6 and records["solver"] == records["intake"]


def test_cells_may_change_from_step_to_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    with running_intake(tmp_path, make_layout(shape=SHAPE)) as intake:
        plan(intake, 1)
        send_here(intake, monkeypatch, [rng.permutation(63) for _ in range(6)])
        for (simulation, step), slot in intake.settings.buffer.slots.items():
            np.testing.assert_array_equal(intake.settings.memory.array[slot, 0], field_of(simulation, step, SHAPE))
        assert len(intake.settings.buffer.slots) == 6


def test_large_lists_and_blocks_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (1100, 1000)
    cells = np.arange(1_100_000)[::-1].copy()
    with running_intake(tmp_path, make_layout(shape=shape, num_steps=2), slots=2, transport="tcp") as intake:
        plan(intake, 1)
        for name, value in intake.environment.items():
            monkeypatch.setenv(name, value)
        with connect({"u": shape}) as stream:
            for step in range(2):
                values = field_of(0, step, shape).reshape(-1)[cells]
                stream.send(step=step, time=0.1 * step, values=values[None], where=cells)
        for (_, step), slot in intake.settings.buffer.slots.items():
            expected = field_of(0, step, shape).astype(np.float32)
            np.testing.assert_array_equal(intake.settings.memory.array[slot, 0], expected)


@pytest.mark.mpi
def test_a_cell_that_two_ranks_own_is_named(tmp_path: Path) -> None:
    program = tmp_path / "twice.py"
    program.write_text(
        "import numpy as np\nfrom mpi4py import MPI\nfrom headrace.online_training.client import connect\n"
        "cells = np.arange(32) if MPI.COMM_WORLD.rank == 0 else np.arange(31, 62)\n"
        "with connect({'u': (9, 7)}, MPI.COMM_WORLD) as stream:\n"
        "    for k in range(6):\n"
        "        stream.send(step=k, time=0.1 * k, values=np.ones((1, cells.size)), where=cells)\n"
    )
    with running_intake(tmp_path, make_layout(shape=SHAPE)) as intake:
        plan(intake, 1)
        done = run_mpi(2, [str(program)], env=intake.environment)
        assert done.returncode == 0, done.stderr
        (run,) = intake.status()["quarantined"]
    assert run["reason"] == "the blocks of step 0 overlap"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (np.arange(62), "has shape .* but where names 62 cells"),
        (np.arange(63.0), "must be slices or .* of int"),
        (np.arange(63).reshape(9, 7), "must be slices or .* of int"),
    ],
)
def test_wrong_cells_are_named(cells: np.ndarray, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_ADDRESS", raising=False)
    with connect({"u": SHAPE}) as stream, pytest.raises(ValueError, match=message):
        stream.send(step=0, time=0.0, values=np.zeros((1, 63)), where=cells)


@pytest.mark.parametrize(
    ("cells", "message"), [(np.arange(1, 64), "names cell 63, but"), (np.r_[np.arange(62), 0], "a cell twice")]
)
def test_cells_that_cannot_be_are_named(
    tmp_path: Path, cells: np.ndarray, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_intake(tmp_path, make_layout(shape=SHAPE)) as intake:
        plan(intake, 1)
        with pytest.raises(ValueError, match=message):
            send_here(intake, monkeypatch, [cells])


def test_fields_of_several_shapes_have_no_common_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HEADRACE_ADDRESS", raising=False)
    with Connection({"u": (4,), "v": (2, 2)}) as connection, connection.next() as stream:
        with pytest.raises(ValueError, match="fields of one shape"):
            stream.send(step=0, time=0.0, values={"u": np.ones(4), "v": np.ones(4)}, where=np.arange(4))


def part(size: int, offset: int, cells: list[int]) -> tuple[Header, bytes]:
    header = Header(
        Kind.CELLS, dtype=DTYPE_CODES["int64"], global_shape=(size,), offset=(offset,), block_shape=(len(cells),)
    )
    return header, np.array(cells, "<i8").tobytes()


def test_a_list_takes_its_parts_in_order_and_nothing_else() -> None:
    cells = CellList(0, 3, 10)
    cells.add(*part(3, 0, [9, 4]))
    assert not cells.complete
    for wrong in (part(3, 0, [1]), part(3, 2, [1, 2]), part(4, 2, [1]), part(3, 2, [4]), part(3, 2, [])):
        fresh = CellList(0, 3, 10)
        fresh.add(*part(3, 0, [9, 4]))
        with pytest.raises(WireError, match="cells"):
            fresh.add(*wrong)
    cells.add(*part(3, 2, [0]))
    assert cells.complete and list(cells.part(1, 2)) == [4, 0]
    for size in (0, 11):
        with pytest.raises(WireError, match="cells"):
            CellList(0, size, 10)
    for outside in (-1, 10):
        with pytest.raises(WireError, match="cells"):
            CellList(0, 1, 10).add(*part(1, 0, [outside]))
