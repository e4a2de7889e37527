"""Blocks that a solver wrote without a study become trajectories: every cell, every step, nothing damaged."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.cases.catalogue import find_case
from headrace.cases.convert_command import convert
from headrace.online_training.block_files import BlockFileError, BlockFiles
from headrace.online_training.client import (
    DTYPE_CODES,
    MAX_BLOCK,
    PAYLOAD_SIGNED,
    BlockFile,
    Connection,
    Header,
    Kind,
    connect,
)
from headrace.solvers.hdf5 import read_trajectory
from tests.mpi_run import run_mpi
from tests.online_training.intake_setup import MPI_PROGRAM, field_of


class Ranks:
    """Stands for the communicator of one rank among several."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "blocks"
    folder.mkdir()
    monkeypatch.delenv("HEADRACE_ADDRESS", raising=False)
    monkeypatch.setenv("HEADRACE_OUTPUT", str(folder))
    return folder


def write(steps: int = 3, shape: tuple[int, ...] = (6, 5), *, ranks: int = 2, killed: int | None = None) -> None:
    """Write u and v of some ranks, slabs of rows; a killed rank leaves its file after two steps."""
    for rank in range(ranks):
        rows = slice(shape[0] * rank // ranks, shape[0] * (rank + 1) // ranks)
        stream = connect({"u": shape, "v": shape}, Ranks(rank, ranks), dtype="float64")
        for step in range(2 if rank == killed else steps):
            values = {name: field_of(0, step, shape, i)[rows] + 1e-9 for i, name in enumerate("uv")}
            stream.send(step=step, time=0.5 * step, values=values, where=(rows, slice(0, shape[1])))
        if rank == killed:
            (Path(stream._file._part)).open("ab").write(b"HDRC torn")
        else:
            stream.end()


@pytest.mark.mpi
@pytest.mark.parametrize("cells", [False, True])
def test_a_run_on_three_ranks_becomes_one_file(folder: Path, cells: bool) -> None:
    shape = [8, 6]
    settings = {"shape": shape, "fields": ["u", "v"], "steps": 4, "cut": [3, 1], "mode": "one", "cells": cells}
    program = folder.parent / "run.py"
    text = Path(MPI_PROGRAM).read_text()
    # Without a study there are no parameters, and nothing to report of them.
    program.write_text(text.replace('stream.parameters["nu"]', "None"))
    done = run_mpi(3, [str(program), json.dumps(settings)])
    assert done.returncode == 0, done.stderr
    (file,) = convert(folder, settings=["nu=0.5"])
    run = read_trajectory(file)
    assert file == folder.with_suffix(".h5") and run.fields == ("u", "v") and run.parameters == {"nu": 0.5}
    np.testing.assert_allclose(run.times, [0.0, 0.1, 0.2, 0.3])
    expected = [[field_of(0, step, (8, 6), i) for i in range(2)] for step in range(4)]
    np.testing.assert_array_equal(run.values, expected)


@pytest.mark.mpi
def test_the_program_of_the_page_goes_once_around_its_ring(folder: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "foreign_solvers.md").read_text(encoding="utf-8")
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "mpi4py" in block]
    (folder.parent / "ring.py").write_text(program, encoding="utf-8")
    done = run_mpi(2, [str(folder.parent / "ring.py"), "64", "10"])
    assert done.returncode == 0, done.stderr
    (file,) = convert(folder)
    u = read_trajectory(file).values[:, 0]
    assert u.shape == (11, 64) and abs(int(u[5].argmax()) - 63.5) % 63 < 2 and abs(int(u[-1].argmax()) - 31.5) < 2
    np.testing.assert_allclose(u.sum(axis=1), u[0].sum(), rtol=1e-6)  # float32 on the wire


def test_all_digits_are_kept_and_the_case_gives_the_grid(folder: Path, tmp_path: Path) -> None:
    with connect({"u": (16, 16)}, dtype="float64") as stream:
        stream.send(step=0, time=0.0, values=np.full((1, 16, 16), np.pi))
    case = find_case("fisher_kpp", (16, 16))
    (file,) = convert(folder, case=case, output=tmp_path / "one.h5")
    run = read_trajectory(file)
    assert run.case == "fisher_kpp" and run.extent == case.load().grid.extent and (run.values == np.pi).all()
    with pytest.raises(BlockFileError, match=r"but case fisher_kpp has .*--shape"):
        convert(folder, case=find_case("fisher_kpp", (8, 8)))


def test_folders_that_differ_behind_a_point_become_two_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nu0.1", "nu0.2"):
        (folder / name).mkdir()
        monkeypatch.setenv("HEADRACE_OUTPUT", str(folder / name))
        write()
        assert convert(folder / name) == [folder / f"{name}.h5"]


def test_a_run_that_was_killed_before_its_first_word_is_named(folder: Path) -> None:
    (folder / "blocks-000000.hdrc.part").touch()
    with pytest.raises(BlockFileError, match="none of the files"):
        convert(folder)


def test_fields_of_two_shapes_become_two_files(folder: Path) -> None:
    with connect({"u": (4, 5), "w": (3,)}, dtype="int32") as stream:
        stream.send(step=0, time=0.0, values={"u": np.arange(20).reshape(4, 5), "w": np.arange(3)})
    one, other = convert(folder)
    assert (one.name, other.name) == ("blocks-u.h5", "blocks-w.h5")
    np.testing.assert_array_equal(read_trajectory(one).values[0, 0], np.arange(20).reshape(4, 5))
    np.testing.assert_array_equal(read_trajectory(other).values[0, 0], np.arange(3))


def test_blocks_larger_than_a_message(folder: Path) -> None:
    n = MAX_BLOCK // 8 // 100 + 3
    with connect({"u": (n, 150)}, dtype="float64") as stream:
        stream.send(step=0, time=0.0, values=np.arange(n * 150.0).reshape(1, n, 150))
    np.testing.assert_array_equal(BlockFiles(folder).step(0)["u"], np.arange(n * 150.0).reshape(n, 150))


def test_of_a_killed_run_the_complete_steps_remain(folder: Path, capsys: pytest.CaptureFixture) -> None:
    write(killed=1)
    (file,) = convert(folder)
    assert "first 2 steps" in capsys.readouterr().err
    np.testing.assert_array_equal(read_trajectory(file).values[1, 1], field_of(0, 1, (6, 5), 1) + 1e-9)


def timed(times: dict[int, list[float]]) -> None:
    """Write u of some ranks, a row each, every step with the time that its rank gives it."""
    for rank, own in times.items():
        with connect({"u": (len(times), 3)}, Ranks(rank, len(times))) as stream:
            for step, time in enumerate(own):
                stream.send(step=step, time=time, values=np.ones((1, 1, 3)), where=(slice(rank, rank + 1), slice(0, 3)))


def test_ranks_that_differ_in_their_times_are_told(folder: Path, capsys: pytest.CaptureFixture) -> None:
    timed({0: [0.0, 0.1, 0.2], 1: [0.0, 0.3, 0.2]})
    (file,) = convert(folder)
    assert "differ in the time of step 1, 0.1 to 0.3; that of the first rank" in capsys.readouterr().err
    assert read_trajectory(file).times.tolist() == [0.0, 0.1, 0.2]


def test_ranks_that_round_their_times_differently_are_not_told(folder: Path, capsys: pytest.CaptureFixture) -> None:
    timed({0: [0.0, 0.1 + 0.2], 1: [1e-17, 0.3]})
    convert(folder)
    assert not capsys.readouterr().err


def test_a_time_that_is_no_number_is_refused(folder: Path) -> None:
    """No client of ours sends one."""
    file, box = BlockFile(folder, 0, 1, u_of([3])), {"global_shape": (3,), "offset": (0,), "block_shape": (3,)}
    block = Header(Kind.BLOCK, dtype=DTYPE_CODES["float64"], time=math.nan, num_blocks=1, **box)
    file.write(block, np.ones(3).tobytes())
    file.write(Header(Kind.END, flags=PAYLOAD_SIGNED), b"{}")
    file.finish()
    with pytest.raises(BlockFileError, match="step 0 a time that is no finite number"):
        convert(folder)


def test_damage_is_named(folder: Path) -> None:
    write()
    path = folder / "blocks-000001.hdrc"
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(BlockFileError):
            blocks = BlockFiles(folder)
            for step in range(len(blocks.times)):
                blocks.step(step)
    for size in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BlockFileError):
            BlockFiles(folder)


def u_of(shape: list[int], dtype: str = "float64") -> dict[str, Any]:
    return {"fields": [{"name": "u", "shape": shape, "dtype": dtype}]}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        *((Kind.HELLO, said) for said in ({"rank": "x"}, {"rank": math.nan}, {"ranks": math.inf}, {"ranks": 10**15})),
        *((Kind.DECLARE, u_of(shape)) for shape in ([-4], [0], [], [2**40], [1] * 9)),
        *((Kind.DECLARE, said) for said in (u_of([4], "object"), {"fields": 0}, {"fields": []}, {"fields": [7]})),
        *((kind, said) for kind in (Kind.HELLO, Kind.DECLARE) for said in ([], None, 7)),
    ],
)  # fmt: skip
def test_what_no_run_says_is_named_before_memory_is_taken(folder: Path, kind: Kind, said: Any) -> None:
    words: dict[Kind, Any] = {
        Kind.HELLO: {"format": "headrace-blocks", "version": 1, "rank": 0, "ranks": 1}, Kind.DECLARE: u_of([4]),
    }  # fmt: skip
    words[kind] = words[kind] | said if isinstance(said, dict) else said
    with open(folder / "blocks-000000.hdrc", "wb") as file:
        for each, content in words.items():
            payload = json.dumps(content).encode()
            header = Header(each, session=1, payload_length=len(payload), flags=PAYLOAD_SIGNED)
            file.write(header.sign(BlockFile.TOKEN, payload) + payload)
    with pytest.raises(BlockFileError):
        BlockFiles(folder)


def test_a_rank_that_is_missing_is_named(folder: Path) -> None:
    write()
    (folder / "blocks-000000.hdrc").unlink()
    with pytest.raises(BlockFileError, match=r"ranks \[1\], but the run had 2"):
        BlockFiles(folder)
    with pytest.raises(BlockFileError, match="HEADRACE_OUTPUT="):
        BlockFiles(folder.parent)


def test_cells_that_nobody_or_two_ranks_sent_are_named(folder: Path) -> None:
    for rank, rows in enumerate((slice(0, 3), slice(2, 5))):
        with connect({"u": (6, 5)}, Ranks(rank, 2)) as stream:
            stream.send(step=0, time=0.0, values=np.ones((1, 3, 5)), where=(rows, slice(0, 5)))
    with pytest.raises(BlockFileError, match="Step 0 of field u has cells that were sent twice"):
        BlockFiles(folder).step(0)
    for path in folder.iterdir():
        path.unlink()
    with connect({"u": (6, 5)}) as stream:
        stream.send(step=0, time=0.0, values=np.ones((1, 3, 5)), where=(slice(0, 3), slice(0, 5)))
    with pytest.raises(BlockFileError, match="leave 15 of 30 values of step 0 out"):
        BlockFiles(folder)


def test_blocks_of_another_run_are_not_overwritten(folder: Path) -> None:
    write()
    with pytest.raises(OSError, match="holds no blocks of another run"):
        Connection({"u": (4,)}).next()
