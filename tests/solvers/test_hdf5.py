"""Files hold what the solver gave, on any number of ranks, and failures leave nothing half-written."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest

from headrace.cases.heat2d import case as heat
from headrace.solvers import Grid
from headrace.solvers.hdf5 import HDF5Sink, read_trajectory
from headrace.solvers.newton import DivergenceError
from headrace.solvers.simulate import simulate
from tests.mpi_run import run_mpi

from .problems import gray_scott, make_case, run, two_bumps

SMALL = heat.resized((12, 10))


def write(path, case=SMALL, parameters=None):
    simulate(case, case.accept(parameters or {}), HDF5Sink(path))
    return path


@pytest.mark.parametrize("shape", [(11,), (7, 9), (5, 6, 4)])
def test_what_was_solved_is_what_is_read(shape, tmp_path):
    ndim = len(shape)
    case = make_case(fields=("a", "b"), initial=two_bumps, rhs=gray_scott,
                     grid=Grid(shape=shape, extent=(1.0, 0.7, 0.4)[:ndim], origin=(1.0, 2.0, 3.0)[:ndim]))  # fmt: skip
    found = read_trajectory(write(tmp_path / "one.h5", case, {"nu": 0.02}))
    expected = run(case, {"nu": 0.02})
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.times, case.times)
    assert found.values.dtype == np.float64 and list(found.parameters.items()) == [("nu", 0.02), ("r", 3.0)]
    assert (found.case, found.fields, found.shape, found.extent) == ("fisher", ("a", "b"), shape, case.grid.extent)
    assert found.origin == case.grid.origin and found.periodic == (True,) * ndim and found.equation.startswith("∂a/∂t")
    assert sorted(os.listdir(tmp_path)) == ["one.h5", "one.vtkhdf", "one.xdmf"]


@pytest.mark.mpi
def test_ranks_write_the_file_of_one(tmp_path):
    script = (
        "import sys; from mpi4py import MPI; from headrace.solvers.hdf5 import HDF5Sink\n"
        "from headrace.solvers.simulate import simulate; from headrace.cases.heat2d import case\n"
        "case = case.resized((11, 9)); p = case.accept({'t0': 150}); comm = MPI.COMM_WORLD\n"
        "simulate(case, p, HDF5Sink(sys.argv[1]), comm=comm)\n"
        "try: simulate(case, p, HDF5Sink('/nowhere/one.h5'), comm=comm)\n"
        "except FileNotFoundError as error: assert comm.allreduce('make the folder' in str(error)) == comm.size\n"
        "else: raise AssertionError('no error')\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
    )
    done = run_mpi(3, ["-c", script, str(tmp_path / "ranks.h5")])
    assert done.returncode == 0, done.stderr
    serial = read_trajectory(write(tmp_path / "one.h5", heat.resized((11, 9)), {"t0": 150}))
    found = read_trajectory(tmp_path / "ranks.h5")
    np.testing.assert_allclose(found.values, serial.values, rtol=1e-9)
    assert found.parameters == serial.parameters


def test_the_companion_points_at_the_data_with_x_along_x(tmp_path):
    """Every HDF5 address in the XDMF text exists, with as many numbers as it says; point (i, j) lies at (x_i, y_j)."""
    write(tmp_path / "one.h5")
    steps = ElementTree.parse(tmp_path / "one.xdmf").findall("./Domain/Grid/Grid")
    assert len(steps) == 101 and float(steps[40].find("Time").get("Value")) == pytest.approx(heat.times[40])
    assert steps[40].find("Topology").get("Dimensions") == "12 10"
    with h5py.File(tmp_path / "one.h5") as file:
        for item in steps[40].iter("DataItem"):
            if item.get("Format") == "HDF":
                name, address = item.text.split(":")
                assert name == "one.h5" and " ".join(map(str, file[address].shape)) == item.get("Dimensions")
        slab = steps[40].find("./Attribute/DataItem/DataItem[@Format='XML']").text.split()
        assert slab == "40 0 0 1 1 1 1 12 10".split()
        points = file["viewer/points"][...]
        np.testing.assert_array_equal(points[:, 3, 0], file["grid/x"])
        np.testing.assert_array_equal(points[5, :, 1], file["grid/y"])


def test_companions_of_files_with_other_endings_have_names_of_their_own(tmp_path):
    for name in ("nu0.1", "nu0.2", "one.xdmf"):
        write(tmp_path / name)
        assert read_trajectory(tmp_path / name).times[-1] == heat.duration
    names = ["nu0.1", "nu0.1.vtkhdf", "nu0.1.xdmf", "nu0.2", "nu0.2.vtkhdf", "nu0.2.xdmf"]
    assert sorted(path.name for path in tmp_path.iterdir())[:6] == names


def test_a_companion_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "one.xdmf").mkdir()
    with pytest.raises(OSError, match="Cannot write"):
        write(tmp_path / "one.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["one.xdmf"]


def test_a_failed_simulation_leaves_no_file_and_an_older_one_in_place(tmp_path):
    path = write(tmp_path / "one.h5")
    before = path.read_bytes()
    blow_up = make_case(rhs=lambda u, d, p, t: 50 * u * u, duration=1.0, steps_per_snapshot=20)
    for target, left in ((path, before), (tmp_path / "two.h5", None)):
        with pytest.raises(DivergenceError):
            write(target, blow_up)
        assert (target.read_bytes() if target.exists() else None) == left
    assert sorted(os.listdir(tmp_path)) == ["one.h5", "one.vtkhdf", "one.xdmf"]


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    """The limit on file size stands in for the full disk: the write fails in the middle of the run."""
    script = (
        "import resource, sys; from headrace.solvers.hdf5 import HDF5Sink\n"
        "from headrace.solvers.simulate import simulate\n"
        "from headrace.cases.heat2d import case; case = case.resized((20, 20))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: simulate(case, case.accept({}), HDF5Sink(sys.argv[1]))\n"
        "except OSError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "one.h5")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"Cannot write {tmp_path}/one.h5: File too large; " in done.stdout and "was removed" in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("full", [".xdmf", ".vtkhdf"])
def test_a_disk_that_is_full_for_the_viewers_files_leaves_nothing_new(full, tmp_path, monkeypatch):
    path = write(tmp_path / "one.h5")
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    plain = Path.open

    def opened(file, *arguments, **options):
        if full in file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(file, *arguments, **options)

    other = make_case(duration=0.5)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        for target in (path, tmp_path / "two.h5"):
            with pytest.raises(OSError, match=f"Cannot write {target}: No space left.*was removed"):
                write(target, other)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


@pytest.mark.parametrize("taken", ["one.xdmf", "one.vtkhdf", "one.h5"])
def test_a_name_that_a_folder_has_leaves_nothing_of_the_others(taken, tmp_path):
    (tmp_path / taken).mkdir()
    with pytest.raises(OSError, match=r"Cannot write .*one\.h5: Is a directory"):
        write(tmp_path / "one.h5")
    assert os.listdir(tmp_path) == [taken]


def test_a_killed_solver_leaves_no_file_that_looks_complete(tmp_path):
    script = (
        "import sys, time; from headrace.solvers.hdf5 import HDF5Sink; from headrace.solvers.simulate import simulate\n"
        "from headrace.cases.heat2d import case; case = case.resized((12, 10))\n"
        "class Held(HDF5Sink):\n"
        "    def write(self, snapshot):\n"
        "        if snapshot.step == 50: print('half', flush=True); time.sleep(3600)\n"
        "        return super().write(snapshot)\n"
        "simulate(case, case.accept({}), Held(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "one.h5")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        process.kill()
    assert said == "half\n" and (tmp_path / "one.h5.part").stat().st_size > 0
    assert os.listdir(tmp_path) == ["one.h5.part"]
    assert read_trajectory(write(tmp_path / "one.h5")).values.shape == (101, 1, 12, 10)
    assert sorted(os.listdir(tmp_path)) == ["one.h5", "one.vtkhdf", "one.xdmf"]


def test_a_file_that_another_process_writes_is_refused_and_left_to_it(tmp_path):
    script = (
        "import sys; from headrace.solvers.hdf5 import HDF5Sink; from headrace.solvers.simulate import simulate\n"
        "from headrace.cases.heat2d import case; case = case.resized((12, 10))\n"
        "class Waiting(HDF5Sink):\n"
        "    def open(self, *args):\n"
        "        super().open(*args); print('open', flush=True); sys.stdin.readline()\n"
        "simulate(case, case.accept({}), Waiting(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "one.h5")]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "open\n"
    with pytest.raises(OSError, match=r"Cannot write .*one\.h5: .*another process is writing it"):
        write(tmp_path / "one.h5")
    first.communicate("go on\n")
    assert first.returncode == 0
    assert read_trajectory(tmp_path / "one.h5").values.shape == (101, 1, 12, 10)
    assert sorted(os.listdir(tmp_path)) == ["one.h5", "one.vtkhdf", "one.xdmf"]


def test_what_a_killed_process_left_of_the_files_for_viewers_is_overwritten(tmp_path):
    """The last moment of a killed process: both are written under their first names, and none has its own."""
    for name in ("one.h5.xdmf.part", "one.h5.vtkhdf.part"):
        (tmp_path / name).write_text("half")
    write(tmp_path / "one.h5")
    assert sorted(os.listdir(tmp_path)) == ["one.h5", "one.vtkhdf", "one.xdmf"]


def test_a_child_that_a_writer_forked_does_not_keep_its_lock(tmp_path):
    script = (
        "import os, signal, sys; from headrace.solvers.hdf5 import HDF5Sink\n"
        "from headrace.cases.heat2d import case; case = case.resized((12, 10))\n"
        "sink = HDF5Sink(sys.argv[1]); sink.open(case, case.accept({}), None)\n"
        "if os.fork():\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.close(1)\n"
        "sys.stdin.read(); os.write(2, b'lived'); os._exit(0)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "one.h5")]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes) as writer:
        writer.stdout.read()  # ends when the writer is gone and the child is there
        assert writer.wait() == -signal.SIGKILL
        assert read_trajectory(write(tmp_path / "one.h5")).values.shape == (101, 1, 12, 10)
        writer.stdin.close()
        assert writer.stderr.read().endswith(b"lived")


def test_a_fork_without_open_files_needs_no_descriptor():
    script = (
        "import os, resource; import headrace.solvers.hdf5\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "try:\n"
        "    while True: os.dup(0)\n"
        "except OSError: child = os.fork()\n"
        "os.waitpid(child, 0) if child else os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_no_trajectory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_trajectory(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(OSError, match="not a readable trajectory"):
        read_trajectory(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = "something else"
    with pytest.raises(OSError, match="format 'something else'"):
        read_trajectory(tmp_path / "other.h5")


def test_damaged_bytes_are_an_error_and_not_wrong_numbers(tmp_path):
    path = write(tmp_path / "one.h5")
    run, content = read_trajectory(path), path.read_bytes()
    place = content.index(run.values[50, 0].tobytes())
    # Before the first values there are HDF5's own structures only, and unused bytes among them.
    first = content.index(run.values[0, 0].tobytes())
    refused = 0
    for position in (place + 100, *range(0, first, 13)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            found = read_trajectory(path)
        except OSError as error:
            refused += 1
            assert "not a readable trajectory" in str(error)
        else:
            assert position != place + 100
            for name in vars(run).keys() - {"case", "equation"}:  # words lie in a heap without a checksum
                np.testing.assert_array_equal(getattr(found, name), getattr(run, name))
    assert refused > 50


@pytest.mark.parametrize(
    ("name", "value"),
    [("fields/T", None), ("fields/T", np.zeros((101, 9))), ("times", None), ("times", 0.5), ("times", np.zeros(4)),
     ("grid", None)],
)  # fmt: skip
def test_a_file_that_only_says_that_it_is_a_trajectory_is_refused(tmp_path, name, value):
    path = write(tmp_path / "one.h5")
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value
    with pytest.raises(OSError, match="not a readable trajectory"):
        read_trajectory(path)
