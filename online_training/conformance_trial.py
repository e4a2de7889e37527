"""A solver under test, with an intake of its own and a trainer that only collects: one trial of a conformance test."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from .client import Kind, Link
from .draws import batch_dtype
from .fifo import FIFO
from .intake import Intake
from .intake_settings import IntakeSettings
from .launcher import Job
from .layout import StreamLayout
from .local_launcher import LocalLauncher, is_alive, processes_of
from .simulation_run import Assignment
from .slot_memory import SlotMemory

STUDY = 0x6365727469667921
_TICK = 0.02
_MOST_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The solver under test.

    command : returns its command line for a number of ranks.
    own_mpirun : the command starts its ranks itself.
    any_ranks : whether the number of ranks can be chosen.
    layout : what it should stream, in windows of one step.
    times : of the snapshots; None where no case says so.
    """

    command: Callable[[int], Sequence[str]]
    own_mpirun: bool
    any_ranks: bool
    layout: StreamLayout
    times: Sequence[float] | None = None


class TrialEnded(RuntimeError):
    """The solver did not get where it should; the text says what was seen."""


_TELLING = re.compile(r"^(?!raise ).*(Error|Exception|refused|headrace:|Fault|fault)")
_LOG_BYTES = 64 * 1024


def last_words(log: Path) -> str:
    """Return what a job said last, as one line: what looks like an error, or else its last lines; mpirun says more.

    log : its stdout and stderr; there need not be one.
    """
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        lines = []
    telling = list(dict.fromkeys(line for line in lines if _TELLING.search(line)))
    return " | ".join(telling[-3:] or lines[-6:]) or "nothing"


class Trial:
    """An intake, jobs of the solver, and what arrived.

    simulations : parameters of each simulation to run.
    slots : steps for which there is room; None: for all.

    states, times : of each (simulation, step) that was collected, (fields, *grid) float32.
    jobs_started : number of jobs so far.
    last_code : exit code of the job that ended last; None where none has.
    """

    def __init__(
        self, subject: Subject, folder: Path, simulations: Sequence[Mapping[str, float]], *, ranks: int,
        slots: int | None, lease: float, token: bytes,
    ) -> None:  # fmt: skip
        self._subject, self._folder, self._ranks, self._lease, self._token = subject, folder, ranks, lease, token
        self._simulations = list(simulations)
        self._slots = slots or len(simulations) * subject.layout.num_steps
        (folder / "ledger").mkdir()
        self._token_file = folder / "token"
        self._token_file.touch(0o600)
        self._token_file.write_text(token.hex())
        self._launcher = LocalLauncher(grace=1.0)
        self._job: str | None = None
        self._pid = 0
        self._failures = 0
        self._session = 0
        self.states: dict[tuple[int, int], np.ndarray] = {}
        self.times: dict[tuple[int, int], float] = {}
        self.jobs_started = 0
        self.last_code: int | None = None
        self._begin_session(port=0)

    # -- the study's side --------------------------------------------------------------------------------------------

    def _begin_session(self, *, port: int) -> None:
        layout = self._subject.layout
        self._session += 1
        self._memory = SlotMemory.create(f"certify-{self._token.hex()[:8]}", layout, self._slots * layout.step_bytes)
        self._intake = Intake(
            IntakeSettings(
                layout=layout, buffer=FIFO(self._slots, 1), memory=self._memory, views=1.0, batch_size=1, study=STUDY,
                session=self._session, token=self._token, interface="127.0.0.1", port=port, run_dir=self._folder,
                max_running=1, lease=self._lease,
            )
        )  # fmt: skip
        self._intake.start()
        waiting = [
            Assignment(simulation=i, parameters=p, seed=7, attempt=self._session)
            for i, p in enumerate(self._simulations)
        ]
        self._intake.plan(waiting)
        self._intake.all_planned()
        self._port = int(self._intake.addresses.rsplit(":", 1)[1])
        self._trainer: Link | None = None
        self._asked = 0
        self._stream_over = False

    def restart_intake(self) -> None:
        """Close the intake without a word to the solver, and start another session at the same address."""
        self._close_trainer()
        self._intake.close()
        self._begin_session(port=self._port)

    def request_stop(self) -> None:
        """Say STOP to what runs."""
        self._intake.request_stop()

    def _collect(self) -> None:
        """Take what has arrived out of the reservoir, as a trainer would."""
        if self._stream_over:
            return
        if self._trainer is None:
            hello = {"role": "trainer", "job": "trainer", "rank": 0, "ranks": 1, "generation": 0}
            self._trainer = Link(self._intake.addresses, self._token, STUDY, hello=hello, lease=600.0)
            self._trainer.join()
            self._ask()
        names = self._subject.layout.parameters
        while (message := self._trainer.receive(_TICK)) is not None:
            header, payload = message
            if header.kind != Kind.BATCH:
                continue
            if not header.num_blocks:
                self._stream_over = True
                return
            records = np.frombuffer(payload, batch_dtype(1, len(names)))
            for record in records:
                key = int(record["simulation"]), int(record["start"])
                self.states[key] = self._memory.array[record["slots"][0]].copy()
                self.times[key] = float(record["times"][0])
            self._trainer.send(Kind.RELEASE, np.ascontiguousarray(records["ticket"]).tobytes())
            self._ask()

    def _ask(self) -> None:
        self._trainer.send(Kind.DRAW, {"batch": 1}, value=self._asked, block=0, num_blocks=1)
        self._asked += 1

    def _close_trainer(self) -> None:
        if self._trainer is not None:
            self._trainer.close()
            self._trainer = None

    # -- the solver's side -------------------------------------------------------------------------------------------

    def _start_job(self) -> None:
        self.jobs_started += 1
        name = f"{self._session}-{self.jobs_started:04d}"
        environment = {
            "HEADRACE_ADDRESS": self._intake.addresses, "HEADRACE_TOKEN_FILE": str(self._token_file),
            "HEADRACE_STUDY": f"{STUDY:016x}", "HEADRACE_JOB": name, "HEADRACE_LEASE": f"{self._lease:g}",
        }  # fmt: skip
        job = Job(
            name=name, command=self._subject.command(self._ranks), ranks=self._ranks, environment=environment,
            log=self._folder / f"job-{name}.log", own_mpirun=self._subject.own_mpirun,
        )  # fmt: skip
        try:
            self._pid = self._launcher.start(job)
        except OSError as error:
            raise TrialEnded(f"{job.command[0]} cannot be started: {error.strerror}.") from None
        self._job, self._log = name, job.log

    def _poll(self) -> None:
        """Note a job that ended, and tell the intake."""
        for name, code in self._launcher.poll().items():
            self.last_code = code
            self._job = None if name == self._job else self._job
            self._intake.job_ended(name, code)
            self._failures += code != 0

    def processes(self) -> list[psutil.Process]:
        """Return the live processes of the job."""
        return processes_of(self._launcher.tag(self._job), self._pid) if self._job else []

    def tail(self) -> str:
        """Return the last lines that the job wrote, as one."""
        return last_words(self._log)

    # -- what happens ------------------------------------------------------------------------------------------------

    def _advance(self, *, collect: bool) -> None:
        status = self._intake.status()
        if status["error"]:
            raise TrialEnded(f"The intake failed: {status['error']}")
        self._poll()
        if self._job is None and status["queued"] and not status["stopping"]:
            if self._failures >= _MOST_FAILURES:
                raise TrialEnded(f"The job ended with code {self.last_code}. It said: {self.tail()}")
            self._start_job()
        if collect:
            self._collect()
        else:
            time.sleep(_TICK)

    def wait_until(self, arrived: Callable[[], bool], seconds: float, what: str) -> None:
        """Keep a job alive until something is so, without making room.

        Raises
        ------
        TrialEnded : the job failed, or it does not happen in time.
        """
        deadline = time.monotonic() + seconds
        while not arrived():
            self._advance(collect=False)
            if self.last_code == 0 and not self._intake.status()["queued"] and self._job is None:
                raise TrialEnded(f"The job ended before {what} could be seen.")
            if time.monotonic() > deadline:
                raise TrialEnded(self._late(seconds, f"for {what}"))

    def finish(self, seconds: float) -> None:
        """Keep a job alive and make room until all simulations have come to an end.

        Raises
        ------
        TrialEnded : the job failed, or nothing ends in time.
        """
        deadline = time.monotonic() + seconds
        while not self._stream_over:
            before = len(self.states)
            self._advance(collect=True)
            if len(self.states) > before:
                deadline = time.monotonic() + seconds
            if time.monotonic() > deadline:
                raise TrialEnded(self._late(seconds, "for the next snapshot"))

    def _late(self, seconds: float, what: str) -> str:
        status = self._intake.status()
        came = status["peers"] - (self._trainer is not None)
        if not came and not status["bytes_received"]:
            seen = (
                "it never spoke to the study. Does it call connect (headrace_open, headrace_next), and does its mpirun"
                " pass HEADRACE_* on to the ranks?"
            )
        elif not status["bytes_received"]:
            seen = f"{came} of {self._ranks} ranks came, and none sent a block."
        else:
            seen = f"{status['steps_accepted']} snapshots had arrived."
        return f"Waited {seconds:g} s {what}; {seen} It said: {self.tail()}"

    def blocked(self) -> bool:
        """Whether the reservoir is full, so that the solver can do nothing but wait."""
        return self.steps_here() >= self._slots

    def steps_here(self) -> int:
        """Return how many steps have arrived."""
        return int(self._intake.status()["steps_accepted"])

    def rejected(self, reason: str) -> int:
        """Return how many messages the intake rejected for a reason of docs/wire.md."""
        return int(self._intake.status()["rejected"].get(reason, 0))

    def quarantined(self) -> list[str]:
        """Return why simulations were kept out."""
        return [one["reason"] for one in self._intake.status()["quarantined"]]

    def wait_for_end(self, seconds: float) -> bool:
        """Say whether the job and all of its processes end in a time."""
        processes, deadline = self.processes(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not any(is_alive(process) for process in processes):
                self._poll()
                if self._job is None:
                    self._failures = 0
                    return True
            time.sleep(_TICK)
        return False

    def trajectory(self, simulation: int) -> np.ndarray:
        """Return a simulation's snapshots, (steps, fields, *grid); no steps where none came."""
        steps = sorted(step for number, step in self.states if number == simulation)
        return np.array([self.states[simulation, step] for step in steps])

    def close(self) -> None:
        """End the job, the intake and the trainer."""
        self._launcher.stop_all()
        self._close_trainer()
        self._intake.close()
