"""The client library in C and its Fortran module: the same wire, and MPI solvers that stream into a real intake."""

import json
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from headrace.cases.convert_command import convert
from headrace.online_training import Study
from headrace.online_training.audit import audit
from headrace.online_training.block_files import BlockFiles
from headrace.online_training.intake import Assignment
from headrace.solvers.case_file import CaseReference
from headrace.solvers.hdf5 import read_trajectory
from headrace.surrogates import MLP
from tests.mpi_run import OVER_THE_NETWORK, mpirun, open_mpi_flags
from tests.online_training.intake_setup import (
    PATIENCE,
    make_layout,
    plan,
    records_of,
    running_intake,
    solver_environment,
    wait_until,
)  # fmt: skip

HERE = Path(__file__).parent
SOURCES = HERE / "foreign"
CLIENTS = HERE.parents[1] / "online_training" / "clients"
_BESIDE = Path(np.__file__).resolve().parents[4] / "bin" / "mpicc"  # an MPI wheel's lies beside the packages
MPICC = _BESIDE if _BESIDE.exists() else Path(mpirun()).with_name("mpicc")
N, STEPS = 13, 6


def _libraries() -> list[str]:
    found = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libzmq", "libsodium"], capture_output=True, text=True, check=False
    )
    return [*found.stdout.split(), "-lm", "-pthread"] if found.returncode == 0 else []


_MISSING = [tool for tool in ("cc", "gfortran", "pkg-config") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(
    bool(_MISSING) or not _libraries() or not MPICC.exists(),
    reason="needs apt-get install -y gcc gfortran pkg-config libzmq3-dev libsodium-dev, and mpicc beside mpirun",
)


def compile_all(folder: Path) -> None:
    warnings = ["-O2", "-Wall", "-Wextra", "-Werror"]
    c99, include = ["-std=c99", "-Wpedantic"], ["-I", str(CLIENTS)]
    # What C leaves undefined ends the program; as a trap, so that nothing more has to be linked.
    defined = ["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"]
    fortran = ["checking.o", "module.o", "headrace.o"]
    commands = [
        ["cc", *c99, *warnings, *defined, *include, "-c", str(CLIENTS / "headrace.c"), "-o", "headrace.o"],
        ["cc", "-O2", *include, str(SOURCES / "wire.c"), "headrace.o", *_libraries(), "-o", "wire"],
        [str(MPICC), "-O2", *include, str(SOURCES / "heat.c"), "headrace.o", *_libraries(), "-o", "heat_c"],
        [str(MPICC), *include, str(SOURCES / "late_message.c"), "headrace.o", *_libraries(), "-o", "late_message"],
        ["gfortran", "-std=f2008", *warnings, "-c", str(CLIENTS / "headrace.f90"), "-o", "module.o"],
        ["gfortran", "-std=f2008", *warnings, "-c", str(SOURCES / "checking.f90"), "-o", "checking.o"],
        ["gfortran", "-std=f2008", "-O2", "-c", str(SOURCES / "heat.f90"), "-o", "heat_f90.o"],
        ["cc", *include, str(SOURCES / "latin1.c"), "headrace.o", *_libraries(), "-o", "latin1"],
        ["cc", "-O2", *include, str(SOURCES / "kinds.c"), "headrace.o", *_libraries(), "-o", "kinds_c"],
        ["gfortran", "-std=f2008", "-O2", str(SOURCES / "kinds.f90"), *fortran, *_libraries(), "-o", "kinds_f90"],
        [str(MPICC), "-O2", "-c", str(SOURCES / "mpi_for_fortran.c"), "-o", "mpi.o"],
        [str(MPICC), "heat_f90.o", "mpi.o", *fortran, *_libraries(), "-lgfortran", "-o", "heat_f90"],
    ]
    for command in commands:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiled programs: wire, heat_c, heat_f90."""
    folder = tmp_path_factory.mktemp("programs")
    compile_all(folder)
    return folder


def start_python(ranks: int, environment: dict[str, str], folder: str) -> subprocess.Popen:
    return start(Path(sys.executable), ranks, environment, str(SOURCES / "heat.py"), str(N), str(STEPS), folder, n=None)


def start(
    program: Path, ranks: int, environment: dict[str, str], *arguments: str, n: int | None = N, steps: int = STEPS
) -> subprocess.Popen:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return subprocess.Popen(
        [mpirun(), *open_mpi_flags(), "-n", str(ranks), str(program), *([str(n), str(steps)] if n else []), *arguments],
        env={**clean, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> dict:
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, output + errors
    return json.loads(output)


def heat(nu: float, n: int = N) -> list[np.ndarray]:
    """The states of the same scheme in numpy, of steps 0 to STEPS."""
    x, y = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    states = [np.sin(2 * np.pi * x / n) * np.cos(4 * np.pi * y / n) + 0.01 * x * y / n]
    for _ in range(STEPS):
        u = states[-1]
        around = np.roll(u, -1, 0) + np.roll(u, 1, 0) + np.roll(u, -1, 1) + np.roll(u, 1, 1)
        states.append(u + 0.2 * nu * (around - 4 * u))
    return states


def final_state(folder: Path, simulation: int, ranks: int) -> np.ndarray:
    return np.concatenate([np.fromfile(folder / f"{simulation}-{r}.bin").reshape(-1, N) for r in range(ranks)])


def test_headers_are_those_of_the_wire_s_vectors(programs: Path) -> None:
    vectors = json.loads((HERE / "wire_vectors.json").read_text())
    lines = "".join(f"{v['token']} {v['header']} {v['payload'] or '-'}\n" for v in vectors)
    done = subprocess.run([str(programs / "wire")], input=lines, capture_output=True, text=True, check=True)
    expected = [f"{v['hmac']} {zlib.crc32(bytes.fromhex(v['payload']))}" for v in vectors]
    assert done.stdout.splitlines() == expected


@pytest.mark.mpi
@pytest.mark.parametrize("program", ["heat_c", "heat_f90"])
@pytest.mark.parametrize(("transport", "cells"), [("tcp", []), ("ipc", ["cells"]), ("shm", []), ("shm", ["cells"])])
def test_four_ranks_stream_what_numpy_computes(
    programs: Path, tmp_path: Path, program: str, transport: str, cells: list[str]
) -> None:
    layout = make_layout(shape=(N, N), num_steps=STEPS)
    with running_intake(tmp_path, layout, slots=32, transport=transport) as intake:
        plan(intake, 3)
        report = finish(start(programs / program, 4, intake.environment, str(tmp_path), *cells))
        assert intake.status()["bytes_received"] == report["bytes"] and not intake.status()["rejected"]
        slots, memory = intake.settings.buffer.slots, intake.settings.memory.array
        assert sorted(slots) == [(s, t) for s in range(3) for t in range(STEPS)]
        received = len(slots) * layout.step_bytes
        assert report == {"simulations": 3, "bytes": received}
        for simulation in range(3):
            states = heat(simulation + 0.5)
            np.testing.assert_allclose(final_state(tmp_path, simulation, 4), states[-1], rtol=0, atol=1e-10)
            for step in range(STEPS):
                np.testing.assert_allclose(memory[slots[simulation, step], 0], states[step], rtol=0, atol=2e-7)


@pytest.mark.mpi
def test_mpi_goes_on_while_a_rank_in_c_waits_for_the_study(programs: Path, tmp_path: Path) -> None:
    with running_intake(tmp_path, make_layout(shape=(2,), num_steps=2)) as intake:
        plan(intake, 1)
        process = start(programs / "late_message", 2, {**intake.environment, **OVER_THE_NETWORK}, n=None)
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
        assert process.returncode == 0 and intake.status()["done"] == 1, output + errors


@pytest.mark.mpi
def test_c_fortran_and_python_solvers_share_a_study(programs: Path, tmp_path: Path) -> None:
    """Whoever solves a simulation, its samples are the same; the study does not know who it was."""
    nus = [0.1 * (1 + i) for i in range(9)]  # the explicit scheme is stable up to 1.25
    layout = make_layout(shape=(N, N), num_steps=STEPS)
    with running_intake(tmp_path, layout, slots=60) as intake:
        intake.plan([Assignment(simulation=i, parameters={"nu": nu}) for i, nu in enumerate(nus)])
        intake.all_planned()
        jobs = {name: {**intake.environment, "HEADRACE_JOB": name} for name in ("heat_c", "heat_f90", "heat_python")}
        processes = [start(programs / name, 4, jobs[name], str(tmp_path)) for name in ("heat_c", "heat_f90")]
        processes.append(start_python(2, jobs["heat_python"], str(tmp_path)))
        reports = [finish(process) for process in processes]
        wait_until(lambda: intake.status()["done"] == 9)
        slots, memory = intake.settings.buffer.slots, intake.settings.memory.array
        assert sum(report["simulations"] for report in reports) == 9
        assert sum(report["bytes"] for report in reports) == intake.status()["bytes_received"]
        assert len(slots) == 9 * STEPS
        for (simulation, step), slot in slots.items():
            np.testing.assert_allclose(memory[slot, 0], heat(nus[simulation])[step], rtol=0, atol=2e-7)
        for simulation in range(9):
            ranks = len(list(tmp_path.glob(f"{simulation}-*.bin")))
            found = final_state(tmp_path, simulation, ranks)
            np.testing.assert_allclose(found, heat(nus[simulation])[-1], rtol=0, atol=1e-10)


@pytest.mark.mpi
@pytest.mark.parametrize("program", ["heat_c", "heat_f90"])
@pytest.mark.parametrize("cells", [[], ["cells"]])
def test_without_a_study_blocks_go_to_files(programs: Path, tmp_path: Path, program: str, cells: list[str]) -> None:
    blocks = tmp_path / "blocks"
    blocks.mkdir()
    environment = {"HEADRACE_OUTPUT": str(blocks)}
    report = finish(start(programs / program, 4, environment, str(tmp_path), *cells))
    assert report == {"simulations": 1, "bytes": 4 * N * N * STEPS}
    found = BlockFiles(blocks)
    assert found.finished and found.fields == {"u": (N, N)}
    np.testing.assert_allclose(found.times, 0.1 * np.arange(STEPS))
    for step in range(STEPS):
        np.testing.assert_allclose(found.step(step)["u"], heat(0.25)[step], rtol=0, atol=2e-7)
    again = start(programs / program, 4, environment, str(tmp_path))
    output, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode != 0 and "holds no blocks of another run" in output + errors


@pytest.mark.parametrize(
    ("command", "dtype"),
    [(["kinds_c", "1"], "f4"), (["kinds_c", "3"], "i4"), (["kinds_c", "4"], "i8"), (["kinds_f90"], "f8")],
)
def test_fields_of_any_shape_and_type(programs: Path, tmp_path: Path, command: list[str], dtype: str) -> None:
    """One to four axes, integers and reals, also with gaps in memory; every value is its place in C order."""
    environment = {**os.environ, "HEADRACE_OUTPUT": str(tmp_path)}
    done = subprocess.run([str(programs / command[0]), *command[1:]], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = BlockFiles(tmp_path)
    assert found.fields == {"a": (2, 3, 2, 4), "b": (3,), "c": (4, 5)} and found.dtype == np.dtype(dtype)
    assert found.times == [0.0, 0.5]
    for values in found.step(1).values():
        np.testing.assert_array_equal(values.ravel(), np.arange(values.size))


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["tcp", "shm"])
def test_blocks_of_many_mebibytes_are_cut(programs: Path, tmp_path: Path, transport: str) -> None:
    n, steps = 1500, 2
    layout = make_layout(shape=(n, n), num_steps=steps)
    with running_intake(tmp_path, layout, slots=2, transport=transport) as intake:
        plan(intake, 1)
        report = finish(start(programs / "heat_c", 1, intake.environment, n=n, steps=steps))
        assert report == {"simulations": 1, "bytes": steps * layout.step_bytes}
        slots, memory = intake.settings.buffer.slots, intake.settings.memory.array
        for step in range(steps):
            np.testing.assert_allclose(memory[slots[0, step], 0], heat(0.5, n)[step], rtol=1e-6, atol=2e-6)


@pytest.mark.mpi
@pytest.mark.parametrize("program", ["heat_c", "heat_f90"])
def test_without_a_study_the_same_program_computes_and_sends_nothing(
    programs: Path, tmp_path: Path, program: str
) -> None:
    assert finish(start(programs / program, 3, {}, str(tmp_path))) == {"simulations": 1, "bytes": 0}
    np.testing.assert_allclose(final_state(tmp_path, 0, 3), heat(0.25)[-1], rtol=0, atol=1e-10)


@pytest.mark.mpi
def test_other_fields_are_refused_with_both_named(programs: Path, tmp_path: Path) -> None:
    with running_intake(tmp_path, make_layout(shape=(N, N + 1), num_steps=STEPS)) as intake:
        plan(intake, 1)
        process = start(programs / "heat_c", 1, intake.environment)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "refused" in output + errors and f"{N + 1}" in output + errors


@pytest.mark.mpi
def test_a_stopped_simulation_ends_on_all_ranks(programs: Path, tmp_path: Path) -> None:
    layout = make_layout(shape=(N, N), num_steps=STEPS)
    with running_intake(tmp_path, layout, slots=3) as intake:
        intake.plan([Assignment(simulation=0, parameters={"nu": 0.5}, seed=0)])
        intake.all_planned()
        process = start(programs / "heat_c", 2, intake.environment)
        wait_until(lambda: len(intake.settings.buffer.slots) == 3)
        intake.request_stop()
        report = finish(process)
    assert report["simulations"] == 1 and report["bytes"] < STEPS * layout.step_bytes


def test_a_reason_need_not_be_utf8(programs: Path, tmp_path: Path) -> None:
    """Fortran and C say it in whatever the source is written in; dropped, nobody would know why it failed."""
    with running_intake(tmp_path, make_layout(shape=(2,), num_steps=2)) as intake:
        plan(intake, 1)
        environment = solver_environment(intake)
        done = subprocess.run(
            [str(programs / "latin1")], env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
    (record,) = records_of(tmp_path, "quarantined")
    assert record["reason"] == "?berlauf: grüße für €, 🌊, ???, ??"


@pytest.mark.mpi
def test_ranks_do_not_outlive_their_study(programs: Path, tmp_path: Path) -> None:
    with running_intake(tmp_path, make_layout(shape=(N, N), num_steps=STEPS), slots=3, transport="tcp") as intake:
        plan(intake, 2)
        process = start(programs / "heat_c", 2, {**intake.environment, "HEADRACE_LEASE": "5"})
        wait_until(lambda: len(intake.settings.buffer.slots) == 3)
        assert process.poll() is None
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "heard nothing from the intake" in errors or "No intake answered within 5 s" in errors


@pytest.mark.mpi
def test_an_encrypted_study(programs: Path, tmp_path: Path) -> None:
    layout = make_layout(shape=(N, N), num_steps=STEPS)
    with running_intake(tmp_path, layout, transport="tcp", encrypt=True) as intake:
        assert "curve+" in intake.environment["HEADRACE_ADDRESS"]
        plan(intake, 1)
        report = finish(start(programs / "heat_c", 2, intake.environment))
        assert report == {"simulations": 1, "bytes": STEPS * layout.step_bytes}


def test_a_token_that_others_can_read_is_an_error_and_no_abort(programs: Path, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("00" * 32)
    token.chmod(0o644)
    environment = {"HEADRACE_ADDRESS": "tcp://127.0.0.1:1", "HEADRACE_TOKEN_FILE": str(token), "HEADRACE_STUDY": "1"}
    process = start(programs / "heat_c", 1, environment)
    _, errors = process.communicate(timeout=PATIENCE)
    assert "mode 0600" in errors and process.returncode > 0


@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs apt-get install -y cmake")
def test_cmake_builds_installs_and_pkg_config_finds_it(tmp_path: Path) -> None:
    build, prefix = tmp_path / "build", tmp_path / "prefix"
    settings = ["-DHEADRACE_FORTRAN=ON", f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DCMAKE_INSTALL_LIBDIR=lib"]
    for command in (
        ["cmake", "-S", str(CLIENTS), "-B", str(build), *settings],
        ["cmake", "--build", str(build)],
        ["cmake", "--install", str(build)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    search = f"{prefix}/lib/pkgconfig:{os.environ.get('PKG_CONFIG_PATH', '')}"
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "headrace"], env={**os.environ, "PKG_CONFIG_PATH": search},
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    subprocess.run(["cc", str(SOURCES / "wire.c"), *flags, "-o", str(tmp_path / "wire")], check=True)
    assert (prefix / "include" / "headrace.mod").exists()


def test_the_fortran_program_of_the_page_runs_alone(tmp_path: Path, programs: Path) -> None:
    page = (CLIENTS.parents[1] / "docs" / "clients.md").read_text(encoding="utf-8")
    (tmp_path / "decay.f90").write_text(page.partition("```fortran\n")[2].partition("```")[0], encoding="utf-8")
    objects = [str(programs / name) for name in ("module.o", "headrace.o")]
    subprocess.run(
        ["gfortran", "-I", str(programs), "decay.f90", *objects, *_libraries(), "-o", "decay"], cwd=tmp_path, check=True
    )
    (tmp_path / "blocks").mkdir()
    environment = {**os.environ, "HEADRACE_OUTPUT": str(tmp_path / "blocks")}
    subprocess.run([str(tmp_path / "decay")], env=environment, check=True)
    run = read_trajectory(convert(tmp_path / "blocks")[0])
    expected = np.exp(-0.1 * np.arange(11))[:, None, None] * np.arange(1.0, 33.0)
    np.testing.assert_allclose(run.values, expected, rtol=1e-6)


@pytest.mark.mpi
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_study_trains_on_a_program_that_takes_one_simulation_at_a_time(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: object
) -> None:
    """The whole of it: the program is started again for each simulation, and nothing is lost or counted twice."""
    folder = tmp_path / "states"
    folder.mkdir()
    for name, value in (
        ("TEST_MPIRUN", mpirun()), ("TEST_MPI_FLAGS", " ".join(open_mpi_flags())),
        ("TEST_HEAT", str(programs / "heat_c")), ("TEST_FOLDER", str(folder)),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    study = Study(
        CaseReference.of(SOURCES / "streaming_case.py"), MLP(), run_dir=tmp_path / "run", simulations=7, held_out=0,
        ranks=3, views=2, batch_size=8,
    )  # fmt: skip
    assert study.run().status == "finished"
    report = audit(tmp_path / "run")
    assert report.ok and report.counts["steps accepted"] == 7 * STEPS, report.lines
    jobs = list((tmp_path / "run" / "logs").glob("job-*.log"))
    assert len(jobs) >= 7
    assert len(list(folder.glob("*-2.bin"))) == 7
