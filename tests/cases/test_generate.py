"""Data sets: every simulation once, the same whoever runs it, and nothing lost by an interruption."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from headrace.cases.catalogue import find_case
from headrace.cases.command_line import build_app
from headrace.cases.generate_command import data_file
from headrace.online_training.design import draw_design
from headrace.solvers import MemorySink
from headrace.solvers.case_file import CaseReference
from headrace.solvers.hdf5 import read_trajectory
from headrace.solvers.simulate import simulate
from tests.mpi_run import run_mpi
from tests.online_training.intake_setup import PATIENCE, wait_until

FRAGILE = '''
from headrace.solvers import Case, Grid, Uniform


def grow(u, d, p, t):
    """du/dt = rate u²."""
    return p.rate * u * u


case = Case(name="fragile", fields=("u",), grid=Grid(shape=(4,), extent=(1.0,)), parameters={"rate": Uniform(0.0, 2.0)},
            initial=lambda x, p, rng: 1.0, rhs=grow, duration=1.0, num_snapshots=2, steps_per_snapshot=50)
'''


def generate(*arguments):
    return CliRunner().invoke(
        build_app(), ["generate", *map(str, arguments), "--plain"], env={"COLUMNS": "200", "TERM": "dumb"}
    )


def flags(folder, simulations, **more):
    pairs = [part for name, value in more.items() for part in (f"--{name}", value)]
    return ["burgers1d", "--shape", "128", "--simulations", simulations, "--output", folder, *pairs]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "data"
    result = generate(*flags(folder, 3, jobs=2))
    assert result.exit_code == 0, result.output
    return folder


def test_every_simulation_is_that_of_a_study_with_the_same_seed(data):
    case = find_case("burgers1d", (128,)).load()
    points = draw_design(1, 3, 0)
    for n in range(3):
        found, sink = read_trajectory(data_file(data, n)), MemorySink()
        simulate(case, case.draw(points[n]), sink, study_seed=0, simulation=n)
        np.testing.assert_array_equal(found.values, sink.values)
        assert found.parameters == dict(case.draw(points[n]))
    assert not list(data.glob("*.part"))
    assert CaseReference.of(data / "case.py").load().name == "burgers1d"


def test_a_larger_number_extends_and_what_is_there_is_kept(data):
    before = data_file(data, 1).stat().st_mtime_ns
    data_file(data, 0).unlink()
    result = generate(*flags(data, 4))
    assert result.exit_code == 0 and "4 of 4 simulations" in result.output and "2 were there already" in result.output
    assert data_file(data, 1).stat().st_mtime_ns == before and data_file(data, 3).exists()


def test_held_out_simulations_are_those_that_such_a_study_would_keep(tmp_path):
    folder = tmp_path / "data"
    result = generate(*flags(folder, 2, sampler="lhs"), "--held-out", "2")
    assert result.exit_code == 0 and "4 of 4 simulations" in result.output, result.output
    case = find_case("burgers1d", (128,)).load()
    points = draw_design(1, 2, 0, kind="lhs", held_out=True)
    for n in range(2):
        found = read_trajectory(data_file(folder / "held_out", 2 + n))
        assert found.parameters == dict(case.draw(points[n]))
    # Whichever of them an interruption left out is made by the same command.
    for n in range(2):
        missing = data_file(folder / "held_out", 2 + n)
        before = read_trajectory(missing).values
        missing.unlink()
        result = generate(*flags(folder, 2, sampler="lhs"), "--held-out", "2")
        assert result.exit_code == 0 and "3 were there already" in result.output, result.output
        np.testing.assert_array_equal(read_trajectory(missing).values, before)
    # A Latin hypercube of three points has other strata than one of two.
    result = generate(*flags(folder, 3, sampler="lhs"))
    assert result.exit_code == 2 and "another simulations: 2, not 3" in result.stderr


@pytest.mark.parametrize(("held_out", "files"), [(2, [2, 3]), (3, [2, 3, 5])])
def test_a_set_that_grows_by_less_than_it_holds_out_makes_none_of_them_twice(tmp_path, held_out, files):
    folder = tmp_path / "data"
    for simulations, count in ((2, 2), (3, held_out)):
        result = generate(*flags(folder, simulations), "--held-out", count)
        assert result.exit_code == 0, result.output
    found = sorted((folder / "held_out").glob("sim-*.h5"))
    assert found == [data_file(folder / "held_out", n) for n in files]
    case = find_case("burgers1d", (128,)).load()
    points = draw_design(1, held_out, 0, held_out=True)
    assert [read_trajectory(file).parameters for file in found] == [dict(case.draw(point)) for point in points]


@pytest.mark.mpi
def test_the_ranks_of_mpirun_share_the_simulations(data, tmp_path):
    done = run_mpi(2, ["-m", "headrace.cases", "generate", *map(str, flags(tmp_path / "data", 3)), "--plain"])
    assert done.returncode == 0, done.stderr
    assert "3 of 3 simulations" in done.stdout
    for n in range(3):
        first, second = (read_trajectory(data_file(folder, n)) for folder in (data, tmp_path / "data"))
        np.testing.assert_array_equal(first.values, second.values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"seed": 3}, "another seed: 0, not 3"), ({"sampler": "uniform"}, "another sampler"),
     ({"sampler": "dice"}, "--sampler 'dice'")],
)  # fmt: skip
def test_a_folder_holds_one_data_set(data, changes, message):
    result = generate(*flags(data, 3, **changes))
    assert result.exit_code == 2 and message in result.stderr


@pytest.mark.parametrize(
    ("folder", "message"),
    [("file", "it is no folder"), ("file/new", "Cannot make the folder"), ("link", "it is no folder")],
)
def test_a_folder_that_cannot_be_is_named(tmp_path, folder, message):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    result = generate(*flags(tmp_path / folder, 1))
    assert result.exit_code == 2 and message in result.stderr and "Errno" not in result.stderr


@pytest.mark.parametrize(("text", "message"), [("[]", "describes no data set"), ("{", "is damaged")])
def test_a_damaged_description_is_named(tmp_path, text, message):
    (tmp_path / "dataset.json").write_text(text)
    result = generate(*flags(tmp_path, 1))
    assert result.exit_code == 2 and f"dataset.json {message}" in result.stderr.replace("\n", " ")


def test_a_simulation_that_fails_is_named_and_the_others_are_kept(tmp_path):
    file = tmp_path / "fragile.py"
    file.write_text(FRAGILE)
    result = generate(file, "--simulations", 8, "--output", tmp_path / "data", "--jobs", 2)
    failed = [n for n in range(8) if not data_file(tmp_path / "data", n).exists()]
    # u = 1 / (1 - rate t) is infinite before t = 1 where rate > 1.
    rates = draw_design(1, 8, 0)[:, 0] * 2
    assert failed == [n for n in range(8) if rates[n] > 1.05] and 0 < len(failed) < 8
    assert result.exit_code == 1 and f"{8 - len(failed)} of 8 simulations" in result.output
    for n in failed:
        assert f"simulation {n} failed: " in result.stderr and "diverged" in result.stderr


def test_the_data_set_describes_itself(data):
    description = json.loads((data / "dataset.json").read_text())
    assert description["format"] == "headrace-dataset" and description["seed"] == 0 and description["shape"] == [128]
    assert CaseReference.of(data / "case.py").sha256 == description["sha256"]


ENDLESS = """
import os, pathlib, time
from headrace.solvers import Case, Grid, Periodic, Snapshot, Uniform


def wait(case, p, comm, rng):
    '''du/dt = 0, which takes for ever until somebody says end.'''
    folder = pathlib.Path(__file__).parent
    for step in range(3):
        yield Snapshot(step=step, time=step / 2, values=__import__("numpy").zeros((1, 4)), where=(slice(0, 4),))
        if not (folder / "end").exists():
            (folder / f"begun-{os.getpid()}").touch()
            time.sleep(3600)


case = Case(name="endless", fields=("u",), grid=Grid(shape=(4,), extent=(1.0,)), boundary=Periodic(),
            parameters={"rate": Uniform(0.0, 2.0)}, initial=lambda x, p, rng: 0 * x[0], solver=wait, duration=1.0,
            num_snapshots=2)
"""


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm", "sigkill"])
def test_an_interrupted_set_begins_no_other_simulation_and_leaves_nothing_behind(how, tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    begun = lambda: sorted(tmp_path.glob("**/begun-*"))  # noqa: E731
    command = ["-m", "headrace.cases", "generate", "endless.py", "--simulations", "6", "--jobs", "2", "--output", "set"]
    # A shell's background jobs, and all that they start, ignore SIGINT.
    process = subprocess.Popen([sys.executable, *command], cwd=tmp_path, start_new_session=True, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    try:
        wait_until(lambda: len(begun()) == 2)
        workers = [psutil.Process(int(path.name.partition("-")[2])) for path in begun()]
        if how == "ctrl-c":
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.send_signal(signal.SIGTERM if how == "sigterm" else signal.SIGKILL)
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()  # where it did not end, and with it its workers
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in workers))
    assert len(begun()) == 2
    if how != "sigkill":
        assert process.returncode == 130 and said.strip().splitlines()[-1] == "interrupted", said
        assert "Traceback" not in said and not list((tmp_path / "set").glob("sim-*")), said
        return
    # Nobody could remove these; the same command writes them anew, and takes none for a simulation.
    assert {path.suffix for path in (tmp_path / "set").glob("sim-*")} == {".part"}
    (tmp_path / "end").touch()
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, capture_output=True)
    files = {path.name for path in (tmp_path / "set").glob("sim-*")}
    assert files == {f"sim-{n:06d}.{suffix}" for n in range(6) for suffix in ("h5", "xdmf", "vtkhdf")}
