"""A study that runs while a test acts on it: in a process of its own, or in this one on the Ray of all tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from headrace.online_training.study import Study, StudyResult
from headrace.solvers.case_file import CaseReference

from .intake_setup import environment_without_ray
from .study_driver import HOLD, SETTINGS

DRIVER = Path(__file__).with_name("study_driver.py")


def reference() -> CaseReference:
    return CaseReference.of(DRIVER, "case")


class Driver:
    """A study in a process of its own; if held, its trainer takes its time."""

    def __init__(self, run_dir: Path, how: str, *, held: bool = False, **settings: object) -> None:
        self.run_dir, self._hold = run_dir, run_dir.with_name(f"{run_dir.name}.hold")
        if held:
            self._hold.touch()
        self.output = open(run_dir.parent / f"driver-{time.monotonic_ns()}.log", "w+")
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(run_dir), how, json.dumps(settings)],
            stdout=self.output, stderr=subprocess.STDOUT, start_new_session=True,
            env={**environment_without_ray(), HOLD: str(self._hold)},
        )  # fmt: skip

    def wait_until(self, condition, seconds=300.0):
        """Wait for a condition while the driver lives."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, f"the driver ended early:\n{self.text()}"
            assert time.monotonic() < deadline, f"not in time; the driver said:\n{self.text()}"
            time.sleep(0.3)  # some conditions look at every process
        return value

    def text(self) -> str:
        self.output.flush()
        return Path(self.output.name).read_text()

    def stop(self, number: int, seconds=500.0) -> None:
        """Send a signal to all of the driver's process group, as a batch system does; it ends the study in order."""
        os.killpg(self.process.pid, number)
        self.process.wait(seconds)
        assert self.process.returncode == 0 and "status stopped" in self.text(), self.text()
        require_no_process(self.run_dir)

    def sigkill(self) -> None:
        """Kill the driver alone, and see that all the others end by themselves."""
        self.process.kill()
        self.process.wait()
        require_no_process(self.run_dir)

    def processes(self, word: str) -> list[psutil.Process]:
        """Processes of this run, apart from the driver, with a word in their command line."""
        return [process for process in left_over(self.run_dir, self.process.pid) if word in command_of(process)]

    def kill(self, word: str) -> None:
        """SIGKILL one process."""
        self.wait_until(lambda: self.processes(word))[0].kill()


class Meanwhile:
    """What happens in another thread while a study runs in this process, on the Ray that the tests share."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def wait_until(self, condition, seconds=300.0):
        """Wait for a condition while the study runs."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert not self._over.is_set(), "the study ended early"
            assert time.monotonic() < deadline, "not in time"
            time.sleep(0.1)
        return value

    def kill(self, word: str) -> None:
        """SIGKILL one of this process's with a word in its command line."""
        own = psutil.Process()
        self.wait_until(lambda: [one for one in own.children(recursive=True) if word in command_of(one)])[0].kill()

    def run(self, study: Study, act: Callable[["Meanwhile"], None], **how: bool) -> StudyResult:
        """Run the study, and something beside it; where that fails, the study is stopped in order."""

        def acting() -> None:
            try:
                act(self)
            except BaseException:
                if not self._over.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)
                raise

        with ThreadPoolExecutor(1) as pool:
            acted = pool.submit(acting)
            try:
                result = study.run(**how)
            finally:
                self._over.set()
            acted.result()
        return result


def study_here(run_dir: Path, **settings: object) -> Study:
    """The driver's study for this process; HEADRACE_TEST_HOLD names the file that holds its trainer."""
    return Study(reference(), reference().load_module().OwnMLP(), run_dir=run_dir, **{**SETTINGS, **settings})


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def left_over(run_dir: Path, driver: int = -1) -> list[psutil.Process]:
    """Processes that carry the run directory in their environment: everything that a study starts inherits it."""
    found = []
    for process in psutil.process_iter():
        try:
            named = any(str(run_dir) in value for value in process.environ().values())
            if named and process.pid not in (driver, os.getpid()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def require_no_process(run_dir: Path, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while remaining := left_over(run_dir):
        assert time.monotonic() < deadline, [command_of(process) for process in remaining]
        time.sleep(0.5)
