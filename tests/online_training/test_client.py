"""The client alone: what it loads, what it refuses, what it does without a study and when the study is gone."""

import json
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training.client import (
    CONTINUE,
    MAX_BLOCK,
    STOP,
    Connection,
    Link,
    Stream,
    StudyFinished,
    checksum_of,
    connect,
    pieces,
    read_token,
)  # fmt: skip
from headrace.online_training.ledger import read_records
from tests.mpi_run import OVER_THE_NETWORK, run_mpi
from tests.online_training.intake_setup import (
    PATIENCE,
    STUDY,
    TOKEN,
    field_of,
    make_layout,
    plan,
    running_intake,
    solver_environment,
    wait_until,
)  # fmt: skip


def test_it_loads_numpy_zmq_and_the_standard_library_only() -> None:
    code = "import sys, headrace.online_training.client; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "ray", "h5py", "scipy", "pandas", "pydantic", "mpi4py"} & set(loaded)


def test_it_works_as_a_copied_file(tmp_path: Path) -> None:
    """Without an installed Headrace, beside someone else's solver."""
    source = Path(sys.modules[Connection.__module__].__file__)
    (tmp_path / "headrace_client.py").write_text(source.read_text())
    code = "import headrace_client as c; s = c.connect({'u': (4,)}); print(s.parameters, int(c.CONTINUE))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADRACE")}
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert out.stdout.strip() == "{} 0", out.stderr


@pytest.fixture
def no_study(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("HEADRACE_"):
            monkeypatch.delenv(name)


def test_without_a_study_everything_continues(no_study: None) -> None:
    with connect({"u": (4, 3)}) as stream:
        assert not stream.active and dict(stream.parameters) == {}
        assert stream.send(step=0, time=0.0, values=np.zeros((1, 4, 3))) == CONTINUE
    with Connection({"u": (4,)}) as connection:
        assert len(list(connection.simulations())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 1}, "Step 1 cannot be sent now: the next step is 0"),
        ({"time": math.nan}, "Step 0 has time nan, which is not finite"),
        ({"values": np.zeros((2, 4, 3))}, r"one block for each of the fields u; got an array of shape \(2, 4, 3\)"),
        ({"values": {"v": np.zeros((4, 3))}}, "fields u; got v"),
        ({"values": np.zeros((1, 4, 2))}, r"has shape \(4, 2\) but where says \(4, 3\)"),
        ({"where": (slice(0, 4),)}, "1 slices but field 'u' has 2 axes"),
        ({"where": (slice(0, 5), slice(0, 3))}, "does not lie in field 'u'"),
        ({"where": (slice(0, 4, 2), slice(0, 3))}, "with steps of one"),
    ],
)
def test_wrong_use_is_named_with_or_without_a_study(no_study: None, arguments: dict, message: str) -> None:
    with connect({"u": (4, 3)}) as stream, pytest.raises(ValueError, match=message):
        stream.send(**{"step": 0, "time": 0.0, "values": np.zeros((1, 4, 3)), **arguments})


def test_a_step_that_is_sent_twice_is_named(no_study: None) -> None:
    with connect({"u": (4, 3)}) as stream:
        stream.send(step=0, time=0.0, values=np.zeros((1, 4, 3)))
        with pytest.raises(ValueError, match="Step 0 cannot be sent now: the next step is 1"):
            stream.send(step=0, time=0.0, values=np.zeros((1, 4, 3)))


def test_steps_out_of_order_are_named(no_study: None) -> None:
    with connect({"u": (4, 3)}) as stream:
        stream.send(step=0, time=0.0, values=np.zeros((1, 4, 3)))
        with pytest.raises(ValueError, match="Step 2 cannot be sent now: the next step is 1"):
            stream.send(step=2, time=0.2, values=np.zeros((1, 4, 3)))


def test_a_field_needs_axes_and_a_known_type(no_study: None) -> None:
    with pytest.raises(ValueError, match="1 to 4 axes"):
        Connection({"u": (1, 2, 3, 4, 5)})
    with pytest.raises(ValueError, match="'float16' cannot be sent"):
        Connection({"u": (4,)}, dtype="float16")


def test_a_study_without_its_token_is_named(no_study: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_ADDRESS", "tcp://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="HEADRACE_TOKEN_FILE, HEADRACE_STUDY"):
        connect({"u": (4,)})


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_token_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN.hex())
    path.chmod(mode)
    with pytest.raises(PermissionError, match=f"mode {mode:04o}"):
        read_token(path)
    path.chmod(0o600)
    assert read_token(path) == TOKEN


@pytest.mark.parametrize("text", ["", "ab" * 31, "zz" * 32, "ab" * 33])
def test_a_token_is_64_hexadecimal_digits(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        read_token(path)


@pytest.mark.parametrize("shape", [(5,), (3 * 2**20,), (3, 2**21), (2, 3, 2**20 + 1), (1, 1, 1, 7), (1000, 1500)])
def test_pieces_tile_a_block_and_are_contiguous(shape: tuple[int, ...]) -> None:
    block = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    cut = list(pieces(shape, 4))
    assert all(block[piece].nbytes <= MAX_BLOCK and block[piece].flags.c_contiguous for piece in cut)
    assert np.array_equal(np.concatenate([block[piece].ravel() for piece in cut]), block.ravel())


@pytest.fixture(params=["shm", "tcp"])
def study(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An intake of one field on 7x5 points whose environment is this process's."""
    with running_intake(tmp_path, make_layout(), transport=request.param) as intake:
        for name, value in intake.environment.items():
            monkeypatch.setenv(name, value)
        yield intake


def test_fields_that_differ_are_refused_with_both_named(study) -> None:
    with pytest.raises(RuntimeError, match=r"'p'.*\[7, 6\].*but the study has.*'u'.*\[7, 5\]"):
        connect({"p": (7, 6)})


def test_a_dtype_that_differs_is_refused_with_both_named(study) -> None:
    with pytest.raises(RuntimeError, match=r"'dtype': 'float64'.*but the study has.*'dtype': 'float32'"):
        connect({"u": (7, 5)}, dtype="float64")


def test_the_number_of_steps_is_compared(study) -> None:
    plan(study, 1)
    with pytest.raises(ValueError, match="will send 9 steps but the study expects 6"):
        connect({"u": (7, 5)}, steps=9)


def test_parameters_seed_and_types(study) -> None:
    plan(study, 3)
    with Connection({"u": (7, 5)}) as connection:
        seen = []
        for stream in connection.simulations():
            with stream, pytest.raises(AttributeError, match="No parameter 'mu'; the study has nu"):
                seen.append((stream.simulation, stream.parameters.nu, stream.parameters["nu"], stream.seed))
                _ = stream.parameters.mu
    assert seen == [(i, i + 0.5, i + 0.5, i) for i in range(3)]


def test_a_finished_study_ends_a_single_job_in_order(study) -> None:
    study.all_planned()
    with pytest.raises(StudyFinished) as caught:
        connect({"u": (7, 5)})
    assert caught.value.code == 0 and isinstance(caught.value, SystemExit)


def test_an_exception_ends_the_simulation_as_failed(study) -> None:
    plan(study, 1)
    with pytest.raises(ZeroDivisionError), connect({"u": (7, 5)}) as stream:
        stream.send(step=0, time=0.0, values=np.zeros((1, 7, 5)))
        _ = 1 / 0
    (entry,) = study.status()["quarantined"]
    assert entry == {"simulation": 0, "parameters": {"nu": 0.5}, "reason": "ZeroDivisionError: division by zero"}


def test_the_last_word_is_waited_for_where_steps_are_missing_only(study, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(study, 2)
    waits, wait = [], Stream._wait

    def noted(stream: Stream, step: int, *, credit: bool) -> None:
        waits.append((step, credit))
        wait(stream, step, credit=credit)

    monkeypatch.setattr(Stream, "_wait", noted)
    with Connection({"u": (7, 5)}) as connection:
        for stream in connection.simulations():
            with stream:
                for step in range(6 - stream.simulation):
                    stream.send(step=step, time=0.0, values=field_of(stream.simulation, step, (7, 5))[None])
                waits.clear()
            assert waits == [[], [(5, False)]][stream.simulation] and stream.lost is None
    assert study.status()["done"] == 2 and study.status()["steps_accepted"] == 11


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32"])
@pytest.mark.parametrize("contiguous", [True, False])
def test_what_arrives_is_what_was_sent(study, dtype: str, contiguous: bool) -> None:
    plan(study, 1)
    buffer, memory = study.settings.buffer, study.settings.memory
    with connect({"u": (7, 5)}) as stream:
        for step in range(6):
            values = field_of(0, step, (7, 5)).astype(dtype)
            values = values if contiguous else np.asfortranarray(values)
            stream.send(step=step, time=0.0, values={"u": values})
            values[...] = -1  # send has returned: the array is the solver's again
    for step in range(6):
        assert np.array_equal(memory.array[buffer.slots[0, step], 0], field_of(0, step, (7, 5)).astype(np.float32))


@pytest.mark.parametrize(("transport", "ring"), [("tcp", 0), ("ipc", 0), ("shm", 16 * 2**20), ("shm", 9 * 2**20)])
def test_a_large_array_may_change_once_send_has_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str, ring: int
) -> None:
    """Sent without a copy, or through a ring that is smaller than a step: 3 x 3.2 MB, overwritten at once."""
    layout = make_layout(shape=(800, 3000), num_steps=4)
    with running_intake(tmp_path, layout, slots=4, transport=transport, ring_bytes=ring) as intake:
        for name, value in intake.environment.items():
            monkeypatch.setenv(name, value)
        plan(intake, 1)
        buffer, memory = intake.settings.buffer, intake.settings.memory
        values = np.empty((1, 800, 3000), np.float32)
        with connect({"u": (800, 3000)}) as stream:
            for step in range(4):
                values[...] = step + 1
                stream.send(step=step, time=0.0, values=values)
                values[...] = -1
        assert stream.bytes_sent == 4 * values.nbytes == intake.status()["bytes_received"]
        assert intake.status()["quarantined"] == [] and intake.status()["rejected"] == {}
        for step in range(4):
            assert np.all(memory.array[buffer.slots[0, step]] == step + 1)


@pytest.mark.parametrize("checksums", [("xxh3", "crc32"), ("crc32",)])
def test_the_sent_log_names_every_block(study, tmp_path: Path, monkeypatch, checksums: tuple[str, ...]) -> None:
    """Also where the solver's Python has no xxhash."""
    monkeypatch.setattr("headrace.online_training.client.CHECKSUMS", checksums)
    plan(study, 1)
    with connect({"u": (7, 5)}) as stream:
        for step in range(6):
            stream.send(step=step, time=0.0, values=field_of(0, step, (7, 5))[None])
    records = list(read_records(tmp_path / "ledger" / "solver-1-0001-0.log"))
    assert records[-1] == {"e": "end", "s": 0, "a": 1, "status": 0}
    for step, record in enumerate(records[:-1]):
        crc = checksum_of(field_of(0, step, (7, 5)).astype("<f4"), checksums[0])
        assert record == {"e": "block", "s": 0, "a": 1, "f": 0, "t": step, "o": [0, 0], "c": crc}


def test_blocks_that_do_not_cover_the_field_are_named_instead_of_waited_for(study) -> None:
    plan(study, 1)
    with connect({"u": (7, 5)}) as stream:
        where = (slice(1, 7), slice(0, 5))
        words = [stream.send(step=step, time=0.0, values=np.zeros((1, 6, 5)), where=where) for step in range(2)]
    assert words == [CONTINUE, STOP]
    (entry,) = study.status()["quarantined"]
    assert entry["reason"] == "the blocks of all ranks leave 5 of 35 cells of step 0 uncovered"


def test_nothing_is_sent_after_stop(study) -> None:
    plan(study, 1)
    with connect({"u": (7, 5)}) as stream:
        assert stream.send(step=0, time=0.0, values=np.zeros((1, 7, 5))) == CONTINUE
        study.request_stop()
        words = [stream.send(step=step, time=0.0, values=np.zeros((1, 7, 5))) for step in range(1, 6)]
    first = words.index(STOP)
    assert first <= 2 and words[first:] == [STOP] * (5 - first)
    assert wait_until(lambda: study.status()["ended"])


def test_a_study_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_intake(tmp_path, make_layout()) as intake:
        environment = intake.environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEADRACE_LEASE", "0.6")
    with pytest.raises(ConnectionError, match=r"No intake answered at .* within 0.6 s"):
        connect({"u": (7, 5)})


def test_an_orphan_ends_itself_when_its_lease_expires(tmp_path: Path) -> None:
    """The solver computes and never looks at the stream: its library's thread ends it."""
    program = textwrap.dedent("""
        import sys, time
        from headrace.online_training.client import connect
        stream = connect({"u": (7, 5)})
        print("connected", flush=True)
        time.sleep(60)
    """)
    with running_intake(tmp_path, make_layout()) as intake:
        plan(intake, 1)
        process = subprocess.Popen(
            [sys.executable, "-c", program], env=solver_environment(intake, HEADRACE_LEASE="3"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "connected\n"
        time.sleep(4)
        assert process.poll() is None, "while the intake answers, it lives longer than its lease"
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert "rank 0 of job 1-0001 heard nothing from the intake" in errors and errors.count("\n") == 1


def test_a_lease_is_kept_by_a_thread_that_begins_while_the_rank_says_hello_again(study) -> None:
    """Started with the first session, it may get a processor only when that one is lost already."""
    hello = {"role": "solver", "job": "1-0001", "rank": 0, "ranks": 1, "generation": 0}
    link = Link(study.addresses, TOKEN, STUDY, hello=hello, lease=30.0)
    link._thread = threading.Thread(target=link._keep_lease, daemon=True)
    try:
        link._thread.start()
        link._thread.join(0.05)
        link.join()
        wait_until(lambda: all(peer.lease_sent for peer in study._peers), what="a sign of life")
    finally:
        link.close()


def test_a_rank_that_forgot_comm_is_told(study) -> None:
    program = "from headrace.online_training.client import connect; connect({'u': (7, 5)})"
    with Connection({"u": (7, 5)}) as connection:
        plan(study, 1)
        with connection.next():
            other = subprocess.run(
                [sys.executable, "-c", program], env=solver_environment(study), capture_output=True, text=True
            )
    assert other.returncode == 1 and "Pass comm= to connect()" in other.stderr


def test_the_report_of_a_simulation_reaches_the_status(study) -> None:
    plan(study, 1)
    with connect({"u": (7, 5)}) as stream:
        for step in range(6):
            stream.send(step=step, time=0.0, values=np.zeros((1, 7, 5)))
        time.sleep(0.05)
    status = study.status()
    assert status["solver_seconds"] >= 0.05 > status["blocked_seconds"] - stream.blocked_seconds
    assert json.dumps(status)


@pytest.mark.mpi
def test_mpi_goes_on_while_a_rank_waits_for_the_study(tmp_path: Path) -> None:
    """Else both wait for ever: one for the study, which waits for the other, which waits for a message of the first."""
    program = str(Path(__file__).parent / "foreign" / "late_message.py")
    with running_intake(tmp_path, make_layout(shape=(2,), num_steps=2)) as intake:
        plan(intake, 1)
        done = run_mpi(2, [program], env={**intake.environment, **OVER_THE_NETWORK})
        assert done.returncode == 0 and intake.status()["done"] == 1, done.stderr
