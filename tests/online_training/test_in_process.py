"""The transport within one process: the whole protocol without a socket, a file or a second process."""

from pathlib import Path

import numpy as np
import pytest

from headrace.online_training.client import StudyFinished, connect
from tests.online_training.intake_setup import (
    TrainerDouble,
    make_layout,
    plan,
    running_intake,
    use_environment,
    wait_until,
)  # fmt: skip


@pytest.fixture
def intake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    layout = make_layout(shape=(300, 200), fields=("u", "v"))
    with running_intake(tmp_path, layout, interface="inproc") as running:
        use_environment(running, monkeypatch)
        yield running


def test_blocks_pass_as_references_and_are_free_once_sent(intake) -> None:
    """Large blocks: zero-copy, then overwritten by the sender."""
    assert intake.addresses.startswith("inproc://") and "," not in intake.addresses
    plan(intake, 2)
    trainer = TrainerDouble(intake)
    values = np.empty((2, 300, 200), np.float32)
    for simulation in range(2):
        with connect({"u": (300, 200), "v": (300, 200)}) as stream:
            for step in range(6):
                values[...] = 100 * simulation + step
                stream.send(step=step, time=0.1 * step, values=values)
                values[...] = -1
    with pytest.raises(StudyFinished):
        connect({"u": (300, 200), "v": (300, 200)})
    seen = 0
    for records in trainer.drain():
        for record in records:
            for place, slot in enumerate(record["slots"]):
                expected = 100 * record["simulation"] + record["start"] + place
                assert np.all(intake.settings.memory.array[slot] == expected)
            seen += 1
    assert seen == 10
    status = wait_until(lambda: (s := intake.status())["ended"] and s)
    assert status["bytes_received"] == 12 * values.nbytes and status["rejected"] == {}
    trainer.close()


def test_two_intakes_of_one_process_do_not_meet(intake, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with running_intake(tmp_path / "other", make_layout(), interface="inproc") as other:
        assert other.addresses != intake.addresses


def test_an_address_of_another_process_is_answered_by_nobody(intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_LEASE", "0.2")
    monkeypatch.setenv("HEADRACE_ADDRESS", "inproc://headrace-of-another-process")
    with pytest.raises(ConnectionError, match="No intake answered at inproc:"):
        connect({"u": (3, 3)})
