"""Text files of runs and of reduced models are whole or not there, on a full disk and with two writers too."""

import multiprocessing
import os
import re
import subprocess
import sys

import pytest

from headrace.online_training import run_directory
from headrace.rom import atomic

WRITERS = pytest.mark.parametrize("module", [run_directory, atomic], ids=["run", "rom"])
TEXTS = [letter * 200_000 for letter in "ab"]


def write_often(module, path, text):
    for _ in range(50):
        module.write_text(path, text)


@WRITERS
def test_a_full_disk_names_the_file_and_leaves_the_older_one_alone(module, tmp_path):
    """The limit on file size stands in for the full disk."""
    script = (
        f"import pathlib, resource, sys; from {module.__name__} import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_text(pathlib.Path(sys.argv[1]), 'x' * 2000)\n"
        "except OSError as error: print(error)\n"
    )
    path = tmp_path / "one.json"
    module.write_text(path, "older")
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"cannot write \(File too large\); make room: '{re.escape(str(path))}'", done.stdout), done.stdout
    assert os.listdir(tmp_path) == ["one.json"] and path.read_text() == "older"


@WRITERS
def test_two_processes_may_write_one_file(module, tmp_path):
    path = tmp_path / "one.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(module, path, text)) for text in TEXTS]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == ["one.json"] and path.read_text() in TEXTS
