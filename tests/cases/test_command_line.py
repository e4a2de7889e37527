"""The command line as a person meets it: help, flags, errors, and one simulation serial and on two ranks."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cases.catalogue import BUILT_IN, REDUCED, find_case, parse_shape
from headrace.cases.command_line import build_app
from headrace.cases.models import make_model
from headrace.cases.study_flags import check_settings, flag
from headrace.online_training.settings import StudySettings
from headrace.solvers.hdf5 import read_trajectory
from tests.mpi_run import run_mpi

MODULE = ["-m", "headrace.cases"]

OWN_CASE = '''
"""Advection of a bump."""
import numpy as np
from headrace.cases import run
from headrace.solvers import Case, Grid, Periodic, Uniform

def bump(x, p, rng):
    return np.exp(-((x[0] - 0.5) ** 2) / 0.01)

def decay(u, d, p, t):
    """∂u/∂t = ν ∇²u."""
    return p.nu * d.laplacian(u)

case = Case(name="own", fields=("u",), grid=Grid(shape=(16, 16), extent=(1.0, 1.0)), boundary=Periodic(),
            parameters={"nu": Uniform(1e-3, 1e-2)}, initial=bump, rhs=decay, duration=0.1, num_snapshots=4)
if __name__ == "__main__":
    run(case)
'''


def invoke(*arguments):
    return CliRunner().invoke(build_app(), list(arguments), env={"COLUMNS": "200", "TERM": "dumb"})


def python(*arguments, cwd=None):
    """Run a fresh interpreter, as a person would."""
    environment = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=cwd, check=False, env=environment
    )


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


INTERRUPTED_RANK = """
import sys
from mpi4py import MPI
from headrace.cases import command_line, solve_command

def solve_case(*arguments, **flags):
    if MPI.COMM_WORLD.rank == 1:
        raise KeyboardInterrupt
    MPI.COMM_WORLD.Barrier()  # where a rank waits for another, Python handles no signal

solve_command.solve_case = solve_case
command_line.main(["solve", "heat2d"])
"""


def test_an_interrupt_ends_ranks_that_wait_for_one_another_at_once():
    done = run_mpi(2, ["-c", INTERRUPTED_RANK])
    assert done.returncode == 130 and "error on rank 1 alone: interrupted" in done.stderr


def test_help_lists_every_verb():
    text = plain(invoke("--help").output)
    for verb in ("doctor", "cases", "solve", "train", "evaluate", "report", "status", "audit"):
        assert re.search(rf"\b{verb}\b", text), verb


def test_train_has_a_flag_for_every_setting_with_its_description_and_default():
    text = plain(invoke("train", "--help").output)
    words = "".join(text.split())  # a line may end within a word that has a hyphen
    for name, field in StudySettings.model_fields.items():
        assert f"{flag(name)} " in text, name
        default = "no" if field.default is False else "none" if field.default == "" else str(field.default)
        assert "".join(f"{field.description} Default: {default}.".split()) in words, name


@pytest.mark.parametrize("verb", [[], ["train"], ["rom"]])
def test_help_cuts_nothing_off_on_a_terminal_of_80_columns(verb):
    lines = plain(
        CliRunner().invoke(build_app(), [*verb, "--help"], env={"COLUMNS": "80", "TERM": "dumb"}).output
    ).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert not [line for line in lines if "…" in line or (line.endswith("...") and not line.startswith("Usage"))]
    # What a flag or a verb is for has half of the line at least.
    assert max(len(line) - len(line.lstrip()) for line in lines) <= 40


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"simulations": 0}, "--simulations 0"),
        ({"buffer": "much"}, "--buffer 'much'"),
        ({"buffer": "9" * 400 + "GB"}, "--buffer '999"),
        ({"views": float("inf")}, "--views inf"),
        ({"schedule": "step"}, "What these flags say together is not allowed: halve_every is 0"),
        ({"sampler": "dice"}, "--sampler 'dice'"),
        ({"watermark": 1.5}, "--watermark 1.5"),
        ({"port": 70000}, "--port 70000"),
    ],
)
def test_a_setting_out_of_range_is_named_by_its_flag(given, named):
    with pytest.raises(ValueError, match="is not allowed") as error:
        check_settings(given)
    assert str(error.value).startswith(named)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["solve", "hea2d"], ["hea2d", "Did you mean heat2d?"]),
        (["solve", "nowhere.py"], ["nowhere.py", "no case file"]),
        (["solve", "heat2d", "--set", "t00=300"], ["'t00'", "Did you mean t0?", "beta"]),
        (["solve", "heat2d", "--set", "t0=3000"], ["t0 = 3000", "[100, 500]"]),
        (["solve", "heat2d", "--set", "t0=warm"], ["'warm'", "not a number"]),
        (["solve", "heat2d", "--set", "t0"], ["NAME=VALUE"]),
        (["solve", "heat2d", "--shape", "8by8"], ["'8by8'", "32x32"]),
        (["solve", "heat2d", "--output", "/no/such/folder/one.h5"], ["/no/such/folder"]),
        (["solve", "heat2d", "--shape", "32"], ["Shape 32", "one number per axis, as 64x64"]),
        (["solve", "heat2d", "--plot", "one.pdf"], ["one.pdf", "one.png"]),
        (["solve", "heat2d", "--output", "/dev/null"], ["/dev/null", "a device"]),
        (["train", "heat2d", "--model", "fnoo"], ["'fnoo'", "Did you mean fno?", "mlp"]),
        (["train", "heat2d", "--architecture", "widht=3"], ["'widht'", "hidden"]),
        (["train", "heat2d", "--simulations", "0"], ["--simulations 0", "greater than or equal to 1"]),
        (["evaluate", "no/such/run"], ["no/such/run"]),
        (["report", "no/such/run"], ["no/such/run"]),
        (["status", "no/such/run"], ["no/such/run"]),
        (["audit", "no/such/run"], ["no/such/run"]),
    ],
    ids=lambda value: " ".join(value[:4]) if value[0] in ("solve", "train") else None,
)
def test_wrong_input_is_one_line_on_stderr_and_exit_code_2(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    lines = plain(result.stderr).strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0]
    assert list(tmp_path.iterdir()) == [], "something half-written was left"


def test_a_folder_that_takes_no_files_is_named_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # as for everybody but root
    result = invoke("solve", "heat2d", "--output", str(tmp_path / "one.h5"))
    assert result.exit_code == 2 and f"{tmp_path} takes no files" in result.stderr, result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"\xff\xfe", b"format = 1", b"format = 'one'", b"[", None])
def test_a_damaged_study_is_named_with_its_folder(content, tmp_path):
    if content is not None:
        (tmp_path / "study.toml").write_bytes(content)
    result = invoke("status", str(tmp_path))
    assert result.exit_code == 2 and str(tmp_path) in result.stderr, result.output


def test_debug_shows_the_traceback():
    result = invoke("solve", "hea2d", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr and "find_case" in result.stderr


def test_a_wrong_flag_is_refused():
    result = invoke("solve", "heat2d", "--sede", "1")
    assert result.exit_code == 2
    assert "--sede" in plain(result.stderr)


def test_cases_lists_every_built_in_case_with_its_equation():
    text = invoke("cases").output
    for name in (*BUILT_IN, *REDUCED):
        assert name in text
    assert "∂T/∂t" in text and "beta in [0, 2]" in text


def test_shapes_and_cases_are_found_by_name_and_by_path(tmp_path):
    assert parse_shape("8x4x2") == (8, 4, 2)
    assert find_case("heat2d", (8, 6)).load().grid.shape == (8, 6)
    file = tmp_path / "own.py"
    file.write_text(OWN_CASE)
    assert find_case(str(file)).load().name == "own"
    assert find_case(f"{file}:case").load().name == "own"
    with pytest.raises(ValueError, match="no Case named 'other'"):
        find_case(f"{file}:other").load()


def test_the_architecture_is_read_as_numbers_and_tuples():
    model = make_model("mlp", ["hidden=16,8"])
    assert list(model.architecture()["hidden"]) == [16, 8]
    assert list(make_model("mlp", ["hidden=16"]).architecture()["hidden"]) == [16]
    assert make_model("FNO", ["modes=3", "width=8"]).architecture()["modes"] in (3, [3], (3,))


def test_two_ranks_write_what_one_writes(tmp_path):
    arguments = [*MODULE, "solve", "heat2d", "--shape", "12x10", "--set", "t0=250", "--set", "beta=1.5"]
    serial = python(*arguments, "--output", str(tmp_path / "one.h5"), "--plot", str(tmp_path / "one.png"))
    assert serial.returncode == 0, serial.stderr
    parallel = run_mpi(2, [*arguments, "--output", str(tmp_path / "two.h5")])
    assert parallel.returncode == 0, parallel.stderr
    assert parallel.stdout.count("wrote") == 1 and "2 ranks" in parallel.stdout
    assert "nothing changes" not in parallel.stdout + serial.stdout
    one, two = read_trajectory(tmp_path / "one.h5"), read_trajectory(tmp_path / "two.h5")
    assert one.parameters == two.parameters and one.parameters["t0"] == 250
    assert one.values.shape == (101, 1, 12, 10)
    assert abs(one.values - two.values).max() < 1e-4
    assert (tmp_path / "one.xdmf").exists()
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_plate_whose_walls_are_as_warm_as_it_is_said_to_change_nothing(tmp_path):
    done = invoke("solve", "heat2d", "--shape", "8x8", "--output", str(tmp_path / "one.h5"))
    assert done.exit_code == 0 and "nothing changes in this simulation" in done.output and "--set" in done.output


def test_a_solver_that_ends_after_its_first_snapshot_is_no_defect(tmp_path):
    early = "from headrace.solvers.sink import Snapshot\n\ndef early(case, p, comm, rng):\n" + (
        "    yield Snapshot(step=0, time=0.0, values=np.ones((1, 16, 16)), where=(slice(0, 16),) * 2)\n\ncase = Case("
    )
    text = OWN_CASE.replace("case = Case(", early).replace("rhs=decay", "solver=early")
    (tmp_path / "early.py").write_text(text, encoding="utf-8")
    done = invoke("solve", str(tmp_path / "early.py"), "--output", str(tmp_path / "one.h5"))
    assert done.exit_code == 0 and "nothing changes" not in done.output
    assert read_trajectory(tmp_path / "one.h5").values.shape == (1, 1, 16, 16)


def test_a_point_in_the_name_of_a_plot_names_no_kind_of_file(tmp_path):
    names = ["--output", str(tmp_path / "one.h5"), "--plot", str(tmp_path / "run-0.5")]
    assert invoke("solve", "heat2d", "--shape", "8x8", *names).exit_code == 0
    assert (tmp_path / "run-0.5").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("ranks", "arguments", "word"),
    [(4, ["--shape", "3x3"], "cannot be split"), (2, ["--set", "t0=3"], "must lie in"), (2, ["--non"], "--non")],
)
def test_on_several_ranks_an_error_comes_once_and_ends_all(ranks, arguments, word, tmp_path):
    done = run_mpi(ranks, [*MODULE, "solve", "heat2d", *arguments], cwd=tmp_path)
    assert done.returncode == 2
    assert (done.stdout + done.stderr).count(word) == 1, done.stderr
    assert not list(tmp_path.glob("*.h5*"))


def test_solving_loads_neither_torch_nor_ray(tmp_path):
    program = (
        "import sys; sys.argv = ['headrace', 'solve', 'heat2d', '--shape', '8x8', '--output', 'a.h5']\n"
        "from headrace.cases.command_line import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print({'torch', 'ray', 'matplotlib', 'pandas'} & set(sys.modules))"
    )
    done = python("-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout.splitlines()[-1].replace("set()", "[]")) == []


def test_a_script_has_the_same_verbs_on_its_own_case(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN_CASE)
    done = python(str(file), "solve", "--set", "nu=0.005", "--output", "own.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_trajectory(tmp_path / "own.h5").parameters == {"nu": 0.005}
    listed = plain(python(str(file), "solve", "--help").stdout)
    assert "CASE.h5" in listed and "{CASE}" not in listed


def test_a_script_finds_no_module_beside_it_that_its_run_directory_would_lack(tmp_path, monkeypatch):
    (tmp_path / "ramps.py").write_text("slope = 1.0")
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "__init__.py").write_text("")
    file = tmp_path / "own.py"
    for line, name in (("from ramps import slope", "ramps"), ("import shapes", "shapes")):
        file.write_text(OWN_CASE.replace("import numpy", f"{line}\nimport numpy"))
        done = python(str(file), "solve", cwd=tmp_path)
        assert done.returncode == 2 and f"No module named '{name}'" in done.stderr, done.stderr
        assert "what lies beside it" in done.stderr
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # every process of a study finds it there
    done = python(str(file), "solve", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_case_that_is_no_variable_of_a_script_is_refused():
    from headrace.cases import run

    with pytest.raises(ValueError, match="module-level variable"):
        run(find_case("heat2d").load(), ["solve"])


def test_two_libraries_of_mpi_are_noticed(tmp_path):
    """A launcher that started four ranks, of which each sees only itself, must not write four times the same file."""
    environment = {**os.environ, "PMI_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "4"}
    code = (
        "import sys, types\n"
        "fake = types.SimpleNamespace(COMM_WORLD=types.SimpleNamespace(size=1, rank=0), "
        "Get_library_version=lambda: 'Other MPI 1.0\\0')\n"
        "import mpi4py; mpi4py.MPI = fake; sys.modules['mpi4py.MPI'] = fake\n"
        "from headrace.cases.command_line import main\n"
        "main(['solve', 'heat2d', '--shape', '8x8'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 2
    assert "another MPI" in done.stderr and "Other MPI 1.0. Use" in done.stderr
    assert not list(Path(tmp_path).iterdir())
