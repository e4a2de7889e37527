"""The reservoir's memory: shared between processes, private to the user, refused early, and gone afterwards."""

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training import slot_memory
from headrace.online_training.layout import StreamLayout
from headrace.online_training.slot_memory import SHARED_MEMORY, SlotMemory

LAYOUT = StreamLayout(fields=("u", "v"), shape=(5, 7), num_steps=9, window=2, parameters=("nu",))


@pytest.fixture
def name(tmp_path: Path):
    yield f"test-{os.getpid()}-{tmp_path.name}"
    (SHARED_MEMORY / f"headrace-test-{os.getpid()}-{tmp_path.name}").unlink(missing_ok=True)


def test_another_process_reads_what_was_written_and_cannot_write(name) -> None:
    with SlotMemory.create(name, LAYOUT, 10 * LAYOUT.step_bytes + 17) as memory:
        assert memory.array.shape == (10, 2, 5, 7) and memory.array.dtype == np.float32
        assert stat.S_IMODE(memory.path.stat().st_mode) == 0o600
        memory.array[3] = np.arange(70).reshape(2, 5, 7)
        program = (
            "import sys, json\n"
            "from headrace.online_training.layout import StreamLayout\n"
            "from headrace.online_training.slot_memory import SlotMemory\n"
            "layout = StreamLayout.from_dict(json.loads(sys.argv[2]))\n"
            "with SlotMemory.attach(sys.argv[1], layout, 10) as memory:\n"
            "    print(memory.array[3].sum(), memory.array.flags.writeable)\n"
        )
        arguments = [sys.executable, "-c", program, str(memory.path), json.dumps(LAYOUT.to_dict())]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["2415.0", "False"]
        assert memory.path.exists(), "an attached process must not remove the file"
    assert not memory.path.exists()
    memory.close()


def test_what_a_killed_session_left_is_replaced(name) -> None:
    with SlotMemory.create(name, LAYOUT, 4 * LAYOUT.step_bytes) as old:
        old.array[:] = 1
        with SlotMemory.create(name, LAYOUT, 6 * LAYOUT.step_bytes) as new:
            assert new.path == old.path and len(new.array) == 6 and not new.array.any()
            new.array[:] = 2
            assert (old.array == 1).all()
            old.close()
            assert new.path.exists(), "the older session removed the younger one's file"


def test_files_of_killed_intakes_are_removed_and_those_of_living_ones_are_not(tmp_path, monkeypatch) -> None:
    layout = json.dumps(LAYOUT.to_dict())
    program = (
        "import sys, json, os, signal\n"
        "from headrace.online_training.layout import StreamLayout\n"
        "from headrace.online_training.slot_memory import SlotMemory\n"
        "from pathlib import Path\n"
        "layout = StreamLayout.from_dict(json.loads(sys.argv[1]))\n"
        "SlotMemory.create('killed', layout, 4 * layout.step_bytes, folder=Path(sys.argv[2]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, layout, str(tmp_path)], check=False)
    orphan = tmp_path / "headrace-killed"
    assert orphan.exists()
    with SlotMemory.create("alive", LAYOUT, 4 * LAYOUT.step_bytes, folder=tmp_path) as alive:
        with SlotMemory.create("third", LAYOUT, 4 * LAYOUT.step_bytes, folder=tmp_path):
            assert orphan.exists() and alive.path.exists()  # too young to be sure
        monkeypatch.setattr(slot_memory, "_SURELY_LOCKED", 0.0)
        with SlotMemory.create("third", LAYOUT, 4 * LAYOUT.step_bytes, folder=tmp_path):
            assert not orphan.exists() and alive.path.exists()


def test_views_that_are_still_held_do_not_hinder_the_end(name) -> None:
    memory = SlotMemory.create(name, LAYOUT, 4 * LAYOUT.step_bytes)
    view = memory.array[1]
    view[:] = 3
    memory.close()
    assert (view == 3).all() and not memory.path.exists() and len(memory.array) == 0


def test_a_lack_of_room_is_named_before_anything_is_made(name) -> None:
    size = 100 * 2**50
    with pytest.raises(OSError, match=r"needs .* MB but .* has only .* free\. Take a smaller buffer") as raised:
        SlotMemory.create(name, LAYOUT, size)
    assert raised.value.errno == errno.ENOSPC and not (SHARED_MEMORY / f"headrace-{name}").exists()


def test_a_folder_that_fills_up_meanwhile_is_an_error_and_leaves_nothing(tmp_path, monkeypatch) -> None:
    def fallocate(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(slot_memory.os, "posix_fallocate", fallocate)
    with pytest.raises(OSError, match="is full") as raised:
        SlotMemory.create("x", LAYOUT, 4 * LAYOUT.step_bytes, folder=tmp_path)
    assert raised.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())


def test_all_memory_is_taken_when_the_file_is_made(name) -> None:
    with SlotMemory.create(name, LAYOUT, 4_000_000) as memory:
        assert memory.path.stat().st_blocks * 512 >= len(memory.array) * LAYOUT.step_bytes


def test_the_fallback_is_used_where_there_is_no_room_and_says_so(tmp_path, caplog) -> None:
    with SlotMemory.create("x", LAYOUT, 4 * LAYOUT.step_bytes, folder=tmp_path / "none", fallback=tmp_path) as memory:
        assert memory.path.parent == tmp_path
        memory.array[:] = 1
    assert "goes to" in caplog.text and not list(tmp_path.iterdir())


def test_wrong_sizes_and_other_nodes_are_named(name, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"A buffer of 100 bytes holds no step of 280 bytes"):
        SlotMemory.create(name, LAYOUT, 100)
    with SlotMemory.create(name, LAYOUT, 4 * LAYOUT.step_bytes) as memory:
        with pytest.raises(ValueError, match=r"has 1120 bytes; 5 slots of 280 need 1400"):
            SlotMemory.attach(memory.path, LAYOUT, 5)
    with pytest.raises(FileNotFoundError, match="is not on this node"):
        SlotMemory.attach(memory.path, LAYOUT, 4)


def test_a_link_in_the_files_place_is_not_followed(tmp_path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"x" * 1120)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OSError) as raised:
        SlotMemory.attach(tmp_path / "link", LAYOUT, 4)
    assert raised.value.errno == errno.ELOOP
    (tmp_path / "headrace-x").symlink_to(target)
    with SlotMemory.create("x", LAYOUT, 1120, folder=tmp_path) as memory:
        memory.array[:] = 1
    assert target.read_bytes() == b"x" * 1120


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields": ()}, "at least one name"),
        ({"fields": ("u", "u")}, "each once"),
        ({"parameters": ("a", "a")}, "name of its own"),
        ({"shape": ()}, "one to four axes"),
        ({"shape": (4, 0)}, "at least one point"),
        ({"dtype": "float64"}, "carries float32"),
        ({"window": 10}, "No trajectory of 9 steps has a window of 10"),
        ({"window": 0}, "window must lie in 1..9"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        StreamLayout(**{"fields": ("u",), "shape": (4,), "num_steps": 9, "window": 2, **changes})


def test_a_layout_survives_json_and_counts_bytes() -> None:
    assert StreamLayout.from_dict(LAYOUT.to_dict()) == LAYOUT
    assert (LAYOUT.step_shape, LAYOUT.field_bytes, LAYOUT.step_bytes, LAYOUT.num_starts) == ((2, 5, 7), 140, 280, 8)
