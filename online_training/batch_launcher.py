"""Solver jobs through a batch scheduler: submitted, polled seldom, believed by their exit files, and cancelled."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .launcher import Job, Launcher
from .local_launcher import find_mpirun
from .scheduler import Scheduler, SchedulerError
from .step_launcher import short_addresses

LOST = 250
"""Exit code of a job that left the scheduler without an exit file: killed with its node, cancelled, forgotten."""

_POLL_SECONDS = 5.0
_LOOK_SECONDS = 1.0  # between two looks at the exit files, which lie on a shared file system
_GRACE_SECONDS = 10.0  # a shared file system may show a file this late

# The solver runs in the background: a shell passes signals on only while it waits.
_BODY = """
umask 077
{exports}
: > "${{exit_file%.exit}}.begun"
solver=
finish() {{
    echo "$1" > "$exit_file.$$" && mv -f "$exit_file.$$" "$exit_file"
    exit "$1"
}}
trap '[ -n "$solver" ] && kill -TERM "$solver" 2> /dev/null' TERM INT
{launch} {command} &
solver=$!
wait "$solver"
code=$?
while kill -0 "$solver" 2> /dev/null; do wait "$solver"; code=$?; done
finish "$code"
"""


@dataclass
class _Submitted:
    identity: str
    exit_file: Path
    begun: bool = False
    gone_since: float | None = None


class BatchLauncher(Launcher):
    """Submits jobs to a scheduler, one by one or as an array. Not thread-safe.

    A job has ended when its script wrote an exit file. The scheduler's word counts only where that file does not
    come: a job that it lists as ended, or no longer lists, is lost after a grace period. A scheduler that does not
    answer says nothing about jobs. The scheduler never requeues a job: a new attempt is a new job with a new name, and
    the intake refuses what the old one may still send.

    Parameters
    ----------
    scheduler : name of a built-in one, or path of a TOML file.
    options : further directives of every script, e.g. "--partition=short".
    launch : what starts the ranks, with {ranks} in it; None: the mpirun beside this Python.
    poll_seconds : time between two looks at the scheduler.
    clock : seconds, monotonic.

    Raises
    ------
    ValueError : no such scheduler.
    """

    def __init__(
        self,
        scheduler: str,
        *,
        options: Sequence[str] = (),
        launch: str | None = None,
        poll_seconds: float = _POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler, self._options = Scheduler.load(scheduler), list(options)
        self._launch = launch if launch is not None else f"{shlex.quote(str(find_mpirun()))} -n {{ranks}}"
        self._poll_seconds, self._clock = poll_seconds, clock
        self._running: dict[str, _Submitted] = {}
        self._ended: dict[str, int] = {}
        self._asked = self._looked = float("-inf")

    def script_of(self, *jobs: Job) -> str:
        """Return the script that `start` submits for a job, or `start_many` for an array of jobs."""
        first, array = jobs[0], self._scheduler.array
        launch = "" if first.own_mpirun else self._launch.format(ranks=first.ranks)
        environment = {**short_addresses(launch.split(), os.environ), **first.environment}
        exports = [_export(name, value) for name, value in environment.items()]
        options = list(self._options)
        if len(jobs) == 1:
            exports.append(f"exit_file={shlex.quote(str(_exit_file(first)))}")
        else:
            options.append(array["option"].format(last=len(jobs) - 1))
            exports.append(f'case "${array["index"]}" in')
            for index, job in enumerate(jobs):
                own = [_export(*item) for item in job.environment.items() if item not in first.environment.items()]
                log, exit_file = (shlex.quote(str(path)) for path in (job.log.absolute(), _exit_file(job)))
                exports.append(f"{index}) {'; '.join([*own, f'exit_file={exit_file}', f'exec >> {log} 2>&1'])} ;;")
            exports.append("esac")
        body = _BODY.format(
            exports="\n".join(exports), launch=launch, command=shlex.join(first.command)
        )
        values = {"name": first.name, "ranks": first.ranks, "log": first.log.absolute(), "options": options}
        return self._scheduler.render({**values, "body": body.strip()})

    def start(self, job: Job) -> int:
        """Submit a job and return at once, with the scheduler's number for it.

        Raises
        ------
        SchedulerError : the scheduler refuses or does not answer.
        """
        return self._submit([job])[0]

    def start_many(self, jobs: Sequence[Job]) -> list[int]:
        """Submit jobs as one array where the scheduler has arrays, else one by one.

        Raises
        ------
        SchedulerError : the scheduler refuses or does not answer.
        """
        if self._scheduler.array and len(jobs) > 1:
            return self._submit(jobs)
        return [self.start(job) for job in jobs]

    def _submit(self, jobs: Sequence[Job]) -> list[int]:
        for job in jobs:
            if job.name in self._running:
                raise ValueError(f"Job {job.name} is running already; every job needs a name of its own.")
            job.log.parent.mkdir(parents=True, exist_ok=True)
            for path in (_exit_file(job), _begun_file(_exit_file(job))):
                path.unlink(missing_ok=True)
        script = _exit_file(jobs[0]).with_suffix(".sh")
        script.touch(0o700)
        script.write_text(self.script_of(*jobs), encoding="utf-8")
        identity = self._scheduler.submit_script(script)
        numbers = []
        for index, job in enumerate(jobs):
            own = identity if len(jobs) == 1 else self._scheduler.element_of(identity, index)
            self._running[job.name] = _Submitted(own, _exit_file(job))
            numbers.append(int(re.sub(r"\D", "", own) or 0))
        return numbers

    def poll(self) -> dict[str, int]:
        """Return the exit codes of the jobs that ended since the last call; LOST where there is no exit file."""
        if self._clock() - self._looked >= min(_LOOK_SECONDS, self._poll_seconds):
            self._looked = self._clock()
            for name, job in list(self._running.items()):
                job.begun = job.begun or _begun_file(job.exit_file).exists()
                code = _read_exit(job.exit_file)
                if code is not None:
                    self._end(name, code)
        if self._running and self._clock() - self._asked >= self._poll_seconds:
            self._asked = self._clock()
            self._ask_scheduler()
        ended, self._ended = self._ended, {}
        return ended

    def waits(self, name: str) -> bool:
        """Say whether a job's script has not begun, as far as `poll` has seen."""
        return name in self._running and not self._running[name].begun

    def _ask_scheduler(self) -> None:
        try:
            states = self._scheduler.list_states()
        except SchedulerError:
            return  # its silence says nothing about the jobs
        for name, job in list(self._running.items()):
            state = states.get(job.identity)
            if state is not None and state not in self._scheduler.ended:
                job.gone_since = None
            elif job.gone_since is None:
                job.gone_since = self._clock()
            elif self._clock() - job.gone_since >= _GRACE_SECONDS:
                self._end(name, LOST)

    def _end(self, name: str, code: int) -> None:
        del self._running[name]
        self._ended[name] = code

    def stop(self, name: str) -> None:
        """Cancel a job; the scheduler sends SIGTERM, then SIGKILL. Unknown names are ignored.

        Raises
        ------
        SchedulerError : the scheduler does not answer; the job's ranks end when their lease does.
        """
        if name in self._running:
            self._scheduler.cancel_job(self._running[name].identity)
            code = _read_exit(self._running[name].exit_file)
            self._end(name, LOST if code is None else code)

    def stop_all(self) -> None:
        """Cancel every job that this launcher submitted; all are tried before an error is raised."""
        errors = []
        for name in list(self._running):
            try:
                self.stop(name)
            except SchedulerError as error:
                self._end(name, LOST)
                errors.append(f"job {name}: {error}")
        if errors:
            raise SchedulerError("Jobs could not be cancelled: " + "; ".join(errors))


def _export(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"


def _exit_file(job: Job) -> Path:
    return job.log.absolute().with_suffix(".exit")


def _begun_file(exit_file: Path) -> Path:
    return exit_file.with_suffix(".begun")


def _read_exit(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
