"""The ledger: records survive what they promise, damage is found, and a resume knows what is left to do."""

import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.online_training.ledger import Ledger, LedgerDamage, RecordWriter, read_records
from headrace.online_training.ledger_index import rebuild_index

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6,
)  # fmt: skip
records = st.lists(st.dictionaries(st.text(), values, max_size=4), min_size=1, max_size=8)


def write(path, content):
    path.unlink(missing_ok=True)
    with RecordWriter(path) as writer:
        for record in content:
            writer.append(record)
    return path.read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("ledger") / "a.log"


@settings(max_examples=40)
@given(content=records)
def test_what_was_written_is_read(scratch, content):
    write(scratch, content)
    assert list(read_records(scratch)) == content


@settings(max_examples=40)
@given(content=records, data=st.data())
def test_a_file_cut_anywhere_gives_a_prefix(scratch, content, data):
    whole = write(scratch, content)
    cut = data.draw(st.integers(0, len(whole)))
    scratch.write_bytes(whole[:cut])
    assert list(read_records(scratch)) == content[: whole[:cut].count(b"\n")]


@settings(max_examples=70)
@given(content=records, data=st.data())
def test_a_flipped_bit_is_found(scratch, content, data):
    whole = bytearray(write(scratch, content))
    # Without its last line feed a file looks torn: that bit alone cannot be told from a killed writer.
    position = data.draw(st.integers(0, len(whole) - 2))
    whole[position] ^= 1 << data.draw(st.integers(0, 7))
    scratch.write_bytes(whole)
    line = bytes(whole[:position]).count(b"\n") + 1
    if b"\0" in whole and line == len(content):
        assert list(read_records(scratch)) == content[:-1]
        return
    with pytest.raises(LedgerDamage, match=rf"a\.log, line {line}:"):
        list(read_records(scratch))


def test_checksum_is_the_crc_of_the_json(tmp_path):
    (tmp_path / "a.log").write_bytes(b'ab553f8f {"e":"finished"}\n')
    writer = RecordWriter(tmp_path / "b.log")
    writer.append({"e": "finished"})
    writer.close()
    assert (tmp_path / "b.log").read_bytes() == (tmp_path / "a.log").read_bytes()
    assert list(read_records(tmp_path / "a.log")) == [{"e": "finished"}]


def test_a_second_writer_is_refused(tmp_path):
    with RecordWriter(tmp_path / "intake-1.log") as first:
        first.append({"n": 1})
        with pytest.raises(FileExistsError, match=r"intake-1\.log exists.*new session"):
            RecordWriter(tmp_path / "intake-1.log")
    with pytest.raises(FileExistsError):
        RecordWriter(tmp_path / "intake-1.log")
    assert list(read_records(tmp_path / "intake-1.log")) == [{"n": 1}]


def test_flushed_records_survive_a_killed_writer(tmp_path):
    program = (
        "import os, signal, sys; from headrace.online_training.ledger import RecordWriter\n"
        "w = RecordWriter(sys.argv[1])\n"
        "for n in range(100): w.append({'n': n})\n"
        "w.flush(); w.append({'n': 100}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.log")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert list(read_records(tmp_path / "a.log")) == [{"n": n} for n in range(100)]


def test_a_reader_follows_a_live_writer(tmp_path):
    with RecordWriter(tmp_path / "a.log") as writer:
        writer.append({"n": 0})
        assert list(read_records(tmp_path / "a.log")) == []
        writer.flush()
        assert list(read_records(tmp_path / "a.log")) == [{"n": 0}]
        for n in range(1, 10_000):  # memory is bounded: most of them are in the file without a flush
            writer.append({"n": n})
        assert len(list(read_records(tmp_path / "a.log"))) > 3_000
    assert [record["n"] for record in read_records(tmp_path / "a.log")] == list(range(10_000))
    writer.close()
    with pytest.raises(ValueError, match="is closed"):
        writer.append({})


def test_threads_share_a_writer(tmp_path):
    with RecordWriter(tmp_path / "a.log") as writer:

        def work(thread):
            for n in range(500):
                writer.append({"thread": thread, "n": n})
                if n % 50 == 0:
                    writer.flush()

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = list(read_records(tmp_path / "a.log"))
    for k in range(4):
        assert [record["n"] for record in found if record["thread"] == k] == list(range(500))


def test_a_full_disk_is_named_and_nothing_is_lost_once_there_is_room(tmp_path, monkeypatch):
    room = 30
    real_write = os.write

    def write_while_there_is_room(descriptor, content):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real_write(descriptor, content[:room])
        room -= written
        return written

    writer = RecordWriter(tmp_path / "a.log")
    monkeypatch.setattr(os, "write", write_while_there_is_room)
    for n in range(5):
        writer.append({"n": n})
    with pytest.raises(OSError, match="make room and resume") as caught:
        writer.flush()
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "a.log")
    assert list(read_records(tmp_path / "a.log")) == [{"n": 0}]
    room = 10_000
    writer.close()
    assert list(read_records(tmp_path / "a.log")) == [{"n": n} for n in range(5)]


@pytest.mark.parametrize("record", [{"x": float("nan")}, {"x": b"bytes"}, {"x": {1, 2}}])
def test_what_json_cannot_say_is_refused_and_the_file_stays_sound(tmp_path, record):
    with RecordWriter(tmp_path / "a.log") as writer:
        with pytest.raises((TypeError, ValueError)):
            writer.append(record)
        writer.append({"n": 1})
    assert list(read_records(tmp_path / "a.log")) == [{"n": 1}]


# The history of a study.


class Logs:
    """Writes the logs of a study's sessions into `ledger/` of a run directory."""

    def __init__(self, run_dir):
        self.folder = run_dir / "ledger"
        self.folder.mkdir(parents=True)

    def add(self, name, *content):
        with RecordWriter(self.folder / f"{name}.log") as writer:
            for record in content:
                writer.append(record)


def planned(s, held_out=False):
    return {"e": "planned", "s": s, "held_out": held_out, "parameters": {"nu": s / 8}, "seed": 3}


def assigned(s, a=1):
    return {"e": "assigned", "s": s, "a": a, "job": f"1-{s:04d}"}


def steps(s, a, times):
    return [{"e": "step", "s": s, "a": a, "t": t, "h": 0} for t in times]


def ended(s, a, status=0, count=5):
    return {"e": "ended", "s": s, "a": a, "status": status, "steps": count}


def used(s, t, window=2):
    return {"e": "used", "s": s, "t": t, "k": window, "h": [0] * window, "n": 0}


@pytest.fixture
def study(tmp_path):
    """A killed study of seven simulations with five steps and windows of two, and a second session of it."""
    logs = Logs(tmp_path)
    logs.add("study-1", {"e": "session", "n": 1}, *[planned(s) for s in range(5)], planned(5, True), planned(6, True))
    logs.add(
        "intake-1",
        assigned(0), *steps(0, 1, range(5)), ended(0, 1),                    # complete, all windows used
        assigned(1), *steps(1, 1, range(5)), ended(1, 1),                    # complete, windows left
        assigned(2), *steps(2, 1, range(3)), {"e": "lost", "s": 2, "a": 1, "reason": "job died"},
        assigned(2, 2), *steps(2, 2, range(3, 4)),                           # running when the study was killed
        assigned(3), {"e": "quarantined", "s": 3, "a": 1, "t": 0, "reason": "NaN"}, ended(3, 1, 2, 0),
        assigned(5), *steps(5, 1, range(5)), ended(5, 1), assigned(6), *steps(6, 1, range(5)), ended(6, 1),
    )  # fmt: skip
    logs.add("trainer-1-1-0", *[used(0, t) for t in (0, 3)], used(1, 2), used(2, 0))
    logs.add("trainer-1-2-0", *[used(0, t) for t in (1, 2)], used(0, 3))
    logs.add("solver-1-0001-0", {"e": "block", "s": 0, "a": 1, "f": 0, "t": 0, "o": [0], "c": 1})
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "sim-000005.h5").touch()
    logs.add("study-2", {"e": "session", "n": 2})
    return logs


def test_history_of_every_simulation(study):
    ledger = Ledger(study.folder)
    assert ledger.next_session() == 3 and ledger.planned == 7 and not ledger.finished
    assert ledger.sessions == {1: "open", 2: "open"}
    status = {s: (one.status, one.attempts, sorted(one.accepted)) for s, one in ledger.simulations.items()}
    assert status == {
        0: ("completed", 1, [0, 1, 2, 3, 4]), 1: ("completed", 1, [0, 1, 2, 3, 4]), 2: ("lost", 2, [0, 1, 2, 3]),
        3: ("quarantined", 1, []), 4: ("planned", 0, []), 5: ("completed", 1, [0, 1, 2, 3, 4]),
        6: ("completed", 1, [0, 1, 2, 3, 4]),
    }  # fmt: skip
    assert ledger.simulations[3].quarantine == "NaN"
    assert [(a.status, a.steps, a.reason) for a in ledger.simulations[2].log.values()] == [
        ("lost", 3, "job died"), ("lost", 1, ""),
    ]  # fmt: skip


def test_a_resume_runs_what_is_missing_and_keeps_what_was_used(study):
    left = Ledger(study.folder).assignments()
    assert [(one.simulation, one.attempt, sorted(one.used), one.held_out) for one in left] == [
        (1, 2, [2], False), (2, 3, [0], False), (4, 1, [], False), (6, 2, [], True),
    ]  # fmt: skip
    assert left[0].parameters == {"nu": 1 / 8} and left[0].seed == 3


def test_windows_with_a_step_that_was_left_out_are_not_waited_for(tmp_path):
    logs = Logs(tmp_path)
    logs.add("study-1", {"e": "session", "n": 1}, planned(0), planned(1))
    logs.add("intake-1", *[r for s in (0, 1) for r in (assigned(s), *steps(s, 1, [0, 1, 3, 4]), ended(s, 1))])
    logs.add("trainer-1-1-0", used(0, 0), used(0, 3), used(1, 0))
    assert [one.simulation for one in Ledger(logs.folder).assignments()] == [1], "start 3 of 1 is still to be used"


def test_the_end_of_a_session_is_known(study):
    study.add("study-3", {"e": "session", "n": 3}, {"e": "stopped", "reason": "asked to stop"})
    assert Ledger(study.folder).sessions[3] == "stopped: asked to stop"
    assert not Ledger(study.folder).finished
    study.add("study-4", {"e": "session", "n": 4}, {"e": "finished"})
    assert Ledger(study.folder).finished and Ledger(study.folder).next_session() == 5


def test_a_new_folder_has_no_past(tmp_path):
    ledger = Ledger(tmp_path)
    assert (ledger.next_session(), ledger.planned, ledger.finished, ledger.assignments()) == (1, 0, False, [])


def test_a_session_number_is_taken_once(tmp_path):
    number = Ledger(tmp_path).next_session()
    RecordWriter(tmp_path / f"study-{number}.log").close()
    with pytest.raises(FileExistsError):
        RecordWriter(tmp_path / f"study-{number}.log")
    assert Ledger(tmp_path).next_session() == number + 1


@settings(max_examples=40)
@given(data=st.data())
def test_resumes_with_random_interruptions_use_every_window_once(tmp_path_factory, data):
    """Sessions that are cut anywhere end with every window of every simulation used exactly once."""
    num_steps, window, count = 4, 2, 3
    logs = Logs(tmp_path_factory.mktemp("run"))
    uses = []
    for session in range(1, 8):
        ledger = Ledger(logs.folder)
        assert ledger.next_session() == session
        plan = [] if ledger.planned else [planned(s) for s in range(count)]
        logs.add(f"study-{session}", {"e": "session", "n": session}, *plan)
        left = Ledger(logs.folder).assignments()
        if not left:
            break
        events = []  # (file, record): what would happen in an uninterrupted session
        for one in left:
            events.append(("intake", assigned(one.simulation, one.attempt)))
            for t in range(num_steps):
                events += [("intake", record) for record in steps(one.simulation, one.attempt, [t])]
                start = t - window + 1
                if start >= 0 and start not in one.used:
                    events.append(("trainer", used(one.simulation, start, window)))
            events.append(("intake", ended(one.simulation, one.attempt)))
        cut = data.draw(st.integers(0, len(events))) if session <= 5 else len(events)
        logs.add(f"intake-{session}", *[record for file, record in events[:cut] if file == "intake"])
        logs.add(f"trainer-{session}-1-0", *[record for file, record in events[:cut] if file == "trainer"])
        uses += [(record["s"], record["t"]) for file, record in events[:cut] if file == "trainer"]
    else:
        raise AssertionError("The study does not come to an end.")
    assert sorted(uses) == [(s, t) for s in range(count) for t in range(num_steps - window + 1)]
    attempts = [list(one.log) for one in Ledger(logs.folder).simulations.values()]
    assert all(numbers == sorted(set(numbers)) for numbers in attempts)


def test_the_index_says_what_the_logs_say(study):
    path = rebuild_index(study.folder)
    path.write_bytes(b"an old index, damaged")
    assert rebuild_index(study.folder) == path == study.folder / "index.sqlite"
    ledger = Ledger(study.folder)
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT * FROM simulations ORDER BY simulation").fetchall()
        attempts = connection.execute("SELECT * FROM attempts ORDER BY simulation, attempt").fetchall()
        sessions = dict(connection.execute("SELECT * FROM sessions"))
        (slow,) = connection.execute(
            "SELECT count(*) FROM simulations WHERE json_extract(parameters, '$.nu') < 0.25"
        ).fetchone()
    connection.close()
    assert [(r[0], bool(r[1]), r[2], json.loads(r[3]), *r[4:]) for r in rows] == [
        (n, one.held_out, one.status, one.parameters, 3, one.attempts, len(one.accepted), len(one.used), one.quarantine)
        for n, one in ledger.simulations.items()
    ]
    assert attempts == [
        (n, a.number, a.session, a.job, a.status, a.steps, a.reason)
        for n, one in ledger.simulations.items() for a in one.log.values()
    ]  # fmt: skip
    assert sessions == ledger.sessions and slow == 2
    assert [p.name for p in study.folder.glob("*sqlite*")] == ["index.sqlite"]


def test_a_damaged_log_leaves_the_old_index(study):
    before = rebuild_index(study.folder).read_bytes()
    log = study.folder / "intake-1.log"
    log.write_bytes(log.read_bytes().replace(b'"t":2', b'"t":3', 1))
    with pytest.raises(LedgerDamage, match=r"intake-1\.log, line 4"):
        rebuild_index(study.folder)
    assert (study.folder / "index.sqlite").read_bytes() == before
    assert not list(study.folder.glob("*.tmp"))
