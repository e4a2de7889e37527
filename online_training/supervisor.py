"""The supervisor: a process of its own that keeps the wanted number of solver jobs alive.

Run as `python -m headrace.online_training.supervisor SETTINGS.json`. It reads JSON lines on stdin:
`{"jobs": N}` how many are wanted, `{"progress": true}` the solvers get somewhere, `{"end": JOB, "reason", "failed"}` a
running job is to be replaced, because it has failed or its simulation alone has, `{"stop": true}`.
It writes JSON lines on stdout: `{"event": "started", "job", "pid", "waits"}`, `{"event": "begun", "job"}` where it
waited in a queue, `{"event": "exited", "job", "code", "stopped", "tail"}`, `{"event": "gave_up", "failures", "tail"}`.
The end of stdin means that the driver died: all jobs are stopped. Whatever kills the supervisor itself takes the jobs
with it.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .batch_launcher import BatchLauncher
from .launcher import Job, Launcher
from .local_launcher import LocalLauncher
from .scheduler import STEPS
from .step_launcher import StepLauncher

_TICK_SECONDS = 0.1
_TAIL_LINES, _TAIL_BYTES = 20, 4096
_NAMES_ERROR = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt): .")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
_HEALTHY_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class SupervisorSettings:
    """What all jobs of one session have in common.

    command : of one rank.
    ranks : MPI ranks of one job.
    environment : variables for all ranks; HEADRACE_JOB is added.
    log_dir : folder for one log per job.
    session : first part of the jobs' names, "2-0003".
    max_failures : failures in a row, per wanted job, that are tolerated; one more and the supervisor gives up.
    scheduler : "local" for mpirun on this node, else the name or the TOML file of a batch scheduler.
    scheduler_options : further directives of every job's script.
    scheduler_launch : what starts the ranks in it; "" for mpirun.
    own_mpirun : command starts all ranks of a job by itself.
    bind : cores of its own for each rank of a local job; 0: none are bound.
    """

    command: Sequence[str]
    ranks: int
    environment: Mapping[str, str]
    log_dir: str
    session: int
    max_failures: int = 3
    scheduler: str = "local"
    scheduler_options: Sequence[str] = ()
    scheduler_launch: str = ""
    own_mpirun: bool = False
    bind: int = 0


class Supervisor:
    """Starts, replaces and stops jobs; decides, and leaves processes to the launcher.

    A job that ends with code 0 found the stream finished and is not replaced. Any other code is a failure:
    the job is replaced after a pause that doubles with every failure in a row. A job that lived 30 s, or
    word of progress, ends the row.

    Parameters
    ----------
    report : takes the events.
    clock : seconds, monotonic.
    """

    def __init__(
        self, settings: SupervisorSettings, launcher: Launcher, report: Callable[[dict[str, Any]], None],
        *, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings, self._launcher, self._report, self._clock = settings, launcher, report, clock
        self._wanted = 0
        self._finished = 0
        self._failures = 0
        self._number = 0
        self._not_before = 0.0
        self._gave_up = False
        self._started: dict[str, float] = {}
        self._asked_to_stop: set[str] = set()
        self._waiting: set[str] = set()
        self._told_to_end: dict[str, tuple[str, bool]] = {}

    def set_jobs(self, count: int) -> None:
        """Want this many jobs from now on, those that found the stream finished not counted; the newest go first."""
        self._wanted, self._finished = count, 0
        for name in list(self._started)[count:]:
            self._asked_to_stop.add(name)
            self._launcher.stop(name)

    def note_progress(self) -> None:
        """A simulation was completed: failures so far were not in a row."""
        self._failures = 0

    def end_job(self, name: str, reason: str, *, failed: bool) -> None:
        """End a running job; it is replaced. One that is gone by now is left alone.

        failed : the job has failed although it runs, else its simulation alone has, which says nothing of the next job.
        """
        if name in self._started:
            self._told_to_end[name] = reason, failed
            self._launcher.stop(name)

    def tick(self) -> None:
        """Look at what ended, and start what is missing."""
        for name, code in self._launcher.poll().items():
            self._note_end(name, code)
        for name in [name for name in self._waiting if not self._launcher.waits(name)]:
            self._waiting.remove(name)
            self._report({"event": "begun", "job": name})
        missing = self._wanted - len(self._started) - self._finished
        if missing > 0 and not self._gave_up and self._clock() >= self._not_before:
            self._start(missing)

    def stop(self) -> None:
        """Stop all jobs and start no more."""
        self._wanted = 0
        self._asked_to_stop.update(self._started)
        self._launcher.stop_all()
        self.tick()

    def _start(self, count: int) -> None:
        jobs = []
        for _ in range(count):
            self._number += 1
            name = f"{self._settings.session}-{self._number:04d}"
            environment = {**self._settings.environment, "HEADRACE_JOB": name}
            jobs.append(
                Job(
                    name=name, command=self._settings.command, ranks=self._settings.ranks, environment=environment,
                    log=self._log(name), own_mpirun=self._settings.own_mpirun,
                )
            )  # fmt: skip
        try:
            numbers = self._launcher.start_many(jobs)
        except (OSError, RuntimeError) as error:
            self._give_up(str(error))
            return
        for job, number in zip(jobs, numbers, strict=True):
            self._started[job.name] = self._clock()
            waits = self._launcher.waits(job.name)
            if waits:
                self._waiting.add(job.name)
            self._report({"event": "started", "job": job.name, "pid": number, "waits": waits})

    def _note_end(self, name: str, code: int) -> None:
        if name not in self._started:
            return  # of a start that failed for another job, and was given up
        lived = self._clock() - self._started.pop(name)
        stopped = name in self._asked_to_stop
        self._asked_to_stop.discard(name)
        self._waiting.discard(name)
        reason, failed = self._told_to_end.pop(name, ("", True))
        tail = "\n".join(filter(None, [reason, tail_of(self._log(name))]))
        if reason:
            code = code or 1
        self._report({"event": "exited", "job": name, "code": code, "stopped": stopped, "tail": tail})
        if stopped or not failed:
            return
        if code == 0:
            self._finished += 1
            return
        healthy = lived >= _HEALTHY_SECONDS and not reason
        self._failures = 1 if healthy else self._failures + 1
        self._not_before = self._clock() + min(_FIRST_PAUSE * 2 ** (self._failures - 1), _LONGEST_PAUSE)
        if self._failures > self._settings.max_failures * max(1, self._wanted):
            self._give_up(tail)

    def _give_up(self, tail: str) -> None:
        if not self._gave_up:
            self._gave_up = True
            self._report({"event": "gave_up", "failures": self._failures, "tail": tail})

    def _log(self, name: str) -> Path:
        return Path(self._settings.log_dir) / f"job-{name}.log"


def tail_of(path: Path) -> str:
    """Return the last lines of a log, at most 20 and 4 KiB; "" where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])


def cause_in(tail: str) -> str:
    """Return the last line of a log's end in which Python names an error, or ""; launchers say much after it."""
    named = [line for line in tail.splitlines() if _NAMES_ERROR.match(line)]
    return named[-1] if named else ""


def _make_launcher(settings: SupervisorSettings) -> Launcher:
    """Return what starts the jobs of these settings.

    Raises
    ------
    RuntimeError : there is no mpirun, or no allocation for steps.
    ValueError : no such scheduler.
    """
    if settings.scheduler == "local":
        return LocalLauncher(bind=settings.bind)
    if settings.scheduler == STEPS:
        return StepLauncher(settings.scheduler_options)
    launch = settings.scheduler_launch or None
    return BatchLauncher(settings.scheduler, options=settings.scheduler_options, launch=launch)


def run_supervisor(settings: SupervisorSettings) -> None:
    """Serve the driver on stdin and stdout until it says stop, closes stdin, or dies."""
    ending = False

    def on_signal(number: int, frame: Any) -> None:
        nonlocal ending
        ending = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    driver = os.getppid()
    supervisor = Supervisor(settings, _make_launcher(settings), _write_event)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    pending = b""
    try:
        while not ending and os.getppid() == driver:
            if selector.select(_TICK_SECONDS):
                received = os.read(0, 1 << 16)
                *lines, pending = (pending + received).split(b"\n")
                orders = [_obey(supervisor, line) for line in lines]
                ending = not received or any(orders)
            if not ending:
                supervisor.tick()
    except BrokenPipeError:
        pass  # nobody listens any more: the driver died
    finally:
        _stop_in_silence(supervisor)


def _stop_in_silence(supervisor: Supervisor) -> None:
    try:
        supervisor.stop()
    except BrokenPipeError:
        pass  # the jobs are stopped before their ends are reported


def _obey(supervisor: Supervisor, line: bytes) -> bool:
    """Carry out one order; return whether it was the last."""
    order = json.loads(line)
    if order.get("stop"):
        return True
    if "jobs" in order:
        supervisor.set_jobs(int(order["jobs"]))
    if "end" in order:
        supervisor.end_job(order["end"], order["reason"], failed=order["failed"])
    if order.get("progress"):
        supervisor.note_progress()
    return False


def _write_event(event: Mapping[str, Any]) -> None:
    # Not through sys.stdout: what it could not flush to a dead driver would be an error again at exit.
    line = json.dumps(event).encode() + b"\n"
    while line:
        line = line[os.write(1, line) :]


def main() -> None:
    """Entry point of the process."""
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = SupervisorSettings(**json.load(file))
    try:
        run_supervisor(settings)
    except (RuntimeError, ValueError) as error:
        _write_event({"event": "gave_up", "failures": 0, "tail": str(error)})
        sys.exit(1)


class SupervisorProcess:
    """The driver's handle on a supervisor process. Not thread-safe.

    The keyword arguments are the fields of `SupervisorSettings`. The supervisor has a session of its own, so that
    Ctrl-C on the terminal reaches the driver only, which then stops in order.
    """

    def __init__(self, **settings: Any) -> None:
        self._settings = SupervisorSettings(**settings)
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._open = False
        self._stopping = False

    @property
    def pid(self) -> int:
        """Process id of the supervisor."""
        return self._require_started().pid

    def start(self) -> None:
        """Write the settings beside the logs and start the process; no job runs yet."""
        folder = Path(self._settings.log_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"supervisor-{self._settings.session}.json"
        path.write_text(json.dumps(asdict(self._settings), indent=1), encoding="utf-8")
        with open(path.with_suffix(".log"), "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "headrace.online_training.supervisor", str(path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0, start_new_session=True,
            )  # fmt: skip
        os.set_blocking(self._process.stdout.fileno(), False)
        self._open = True

    def set_jobs(self, count: int) -> None:
        """Want this many jobs from now on; jobs that already found the stream finished are no longer counted."""
        self._order({"jobs": count})

    def note_progress(self) -> None:
        """Say that a simulation was completed: failures of jobs before and after it are not in a row."""
        self._order({"progress": True})

    def end_job(self, job: str, reason: str, *, failed: bool) -> None:
        """Have a running job ended and replaced; failed : it counts as failed, else its simulation alone has."""
        self._order({"end": job, "reason": reason, "failed": failed})

    def events(self) -> list[dict[str, Any]]:
        """Return the events since the last call, without waiting; a supervisor that died is a "gave_up"."""
        process = self._require_started()
        while self._open:
            try:
                received = process.stdout.read(1 << 16)
            except OSError as error:
                raise RuntimeError(f"The events of supervisor {process.pid} cannot be read: {error}") from error
            if received is None:
                break
            self._unread += received
            self._open = bool(received)
        *lines, self._unread = self._unread.split(b"\n")
        events = [json.loads(line) for line in lines]
        if not self._open and not self._stopping:
            self._stopping = True
            tail = tail_of(Path(self._settings.log_dir) / f"supervisor-{self._settings.session}.log")
            tail = f"The supervisor of the solver jobs ended with code {process.wait()}.\n{tail}"
            if not any(event["event"] == "gave_up" for event in events):
                events.append({"event": "gave_up", "failures": 0, "tail": tail})
        return events

    def stop(self, timeout: float = 20.0) -> None:
        """Stop all jobs and the supervisor, whatever it takes; a second call does nothing."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._stopping = True
        self._order({"stop": True})
        process.stdin.close()
        try:
            # Its last events must not fill the pipe while it stops.
            deadline = time.monotonic() + timeout
            while process.poll() is None and time.monotonic() < deadline:
                self.events()
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                process.kill()  # the kernel takes mpirun and ranks with it
                process.wait()
            process.stdout.close()
            self._open = False

    def _order(self, order: Mapping[str, Any]) -> None:
        try:
            self._require_started().stdin.write(json.dumps(order).encode() + b"\n")
        except (BrokenPipeError, ValueError):
            return  # it has died, or was stopped: `events` says so

    def _require_started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("The supervisor was not started; call start() first.")
        return self._process


if __name__ == "__main__":
    main()
