"""The conformance test of a solver: runs it against a real intake, disturbs it, and says what is wrong with it."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from .conformance_trial import Subject, Trial, TrialEnded

ENOUGH_SECONDS = 120.0
CERTIFY_LEASE = 5.0
STOP_SECONDS = 30.0
_SAME = 1e-5

_ADVICE = {
    "overlap": "Each cell is sent by exactly one rank: leave ghost cells out, and check offsets.",
    "uncovered": "Some cells are never sent: the blocks of all ranks together must make up the whole field.",
    "NaN": "The solver diverged, or sent memory that was never set.",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check.

    verdict : "ok", "note" for what works but is worth knowing, "wrong", or "not run".
    said : one sentence for the solver's author.
    """

    check: str
    verdict: str
    said: str


class _Wrong(Exception):
    """A check failed; the text says how."""


class Conformance:
    """Runs the checks one after another; those that need what failed are not run.

    low, high : parameters of two simulations that should differ.
    ranks : numbers of ranks to compare, the first one for all other checks.
    """

    def __init__(
        self, subject: Subject, low: Mapping[str, float], high: Mapping[str, float], *, ranks: Sequence[int] = (2, 1, 4)
    ) -> None:
        self._subject, self._low, self._high, self._ranks = subject, dict(low), dict(high), list(ranks)
        self._reference = np.empty(0)

    def run(self, report: Callable[[Finding], None] = lambda finding: None) -> list[Finding]:
        """Return one finding for each check, reported as they come."""
        findings: list[Finding] = []
        checks: dict[str, Callable[[], str | tuple[str, str]]] = {
            "stream": self._stream, "times": self._times, "parameters": self._parameters,
            "repeatable": self._repeatable, "ranks": self._compare_ranks,
            "back-pressure and kill": self._back_pressure_and_kill, "stop": self._stop,
            "restart of the study": self._restart,
        }  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="headrace-certify-") as folder:
            self._folder = Path(folder)
            for name, check in checks.items():
                if findings and findings[0].verdict == "wrong":
                    finding = Finding(check=name, verdict="not run", said="The stream itself does not work yet.")
                else:
                    finding = _made(name, check)
                findings.append(finding)
                report(finding)
        return findings

    @contextmanager
    def _trial(
        self, *simulations: Mapping[str, float], ranks: int | None = None, slots: int | None = None
    ) -> Iterator[Trial]:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        trial = Trial(
            self._subject, folder, simulations, ranks=ranks or self._ranks[0], slots=slots, lease=CERTIFY_LEASE,
            token=secrets.token_bytes(32),
        )  # fmt: skip
        try:
            yield trial
        except TrialEnded as ended:
            raise _Wrong(str(ended)) from None
        finally:
            trial.close()

    def _stream(self) -> str:
        """Three simulations arrive whole: the first and the last are the same."""
        with self._trial(self._low, self._high, self._low) as trial:
            trial.finish(ENOUGH_SECONDS)
            for reason in trial.quarantined():
                advice = next((advice for word, advice in _ADVICE.items() if word in reason), "")
                raise _Wrong(f"{reason}. {advice}".strip())
            steps = self._subject.layout.num_steps
            for simulation in range(3):
                came = sum(key[0] == simulation for key in trial.states)
                if came < steps:
                    raise _Wrong(
                        f"A simulation ended after {came} of {steps} snapshots. Send the initial state and one snapshot"
                        f" for each of the {steps - 1} intervals, unless the study says STOP."
                    )
            self._first, self._second, self._third = (trial.trajectory(simulation) for simulation in range(3))
            self._first_times = [trial.times[0, step] for step in range(steps)]
            jobs = trial.jobs_started
        how = "one job runs them all" if jobs == 1 else "a job for each simulation"
        return f"3 simulations of {steps} snapshots arrived whole; {how}."

    def _times(self) -> str | tuple[str, str]:
        expected = self._subject.times
        if expected is None:
            if np.any(np.diff(self._first_times) <= 0):
                raise _Wrong(f"Times do not increase: {self._first_times}.")
            return "Times increase; no case says what they should be."
        for step, (time_, wanted) in enumerate(zip(self._first_times, expected, strict=True)):
            if abs(time_ - wanted) > 1e-6 * max(expected[-1], 1e-300):
                raise _Wrong(f"Snapshot {step} has time {time_:g}; the case says {wanted:g}, k·duration/num_snapshots.")
        return "Every snapshot has the time that the case says."

    def _parameters(self) -> str | tuple[str, str]:
        if not self._low:
            return "note", "There are no parameters: all simulations are alike."
        if np.array_equal(self._first, self._second):
            raise _Wrong(
                f"{self._low} and {self._high} give the same samples: the solver does not use what the stream says."
                " Read stream.parameters, or headrace_parameter, after each simulation was given out."
            )
        return "Other parameters give other samples."

    def _repeatable(self) -> str | tuple[str, str]:
        if np.array_equal(self._first, self._third):
            return "The same parameters and seed give the same bits."
        apart = _difference(self._first, self._third)
        if apart > _SAME:
            raise _Wrong(
                f"The same parameters and seed give other samples, {apart:.1e} apart: what is lost and run again would"
                " differ. Take random numbers from the stream's seed only, and set all memory at the start."
            )
        return "note", f"The same parameters and seed give samples {apart:.1e} apart, as sums in another order do."

    def _compare_ranks(self) -> str | tuple[str, str]:
        others = [count for count in self._ranks[1:] if self._subject.any_ranks]
        if not others:
            return "note", "The command has no {ranks}: other numbers of ranks are not tried."
        worst = 0.0
        for count in others:
            with self._trial(self._low, ranks=count) as trial:
                trial.finish(ENOUGH_SECONDS)
                for reason in trial.quarantined():
                    raise _Wrong(f"On {count} ranks: {reason}.")
                apart = _difference(self._first, trial.trajectory(0))
            if apart > _SAME:
                raise _Wrong(f"{count} and {self._ranks[0]} ranks give samples {apart:.1e} apart: look at the halos.")
            worst = max(worst, apart)
        tried = ", ".join(str(count) for count in sorted(self._ranks))
        return f"{tried} ranks give the same samples" + (f", to {worst:.1e}." if worst else " to the bit.")

    def _few_slots(self) -> int:
        return max(1, min(3, self._subject.layout.num_steps - 2))

    def _back_pressure_and_kill(self) -> str | tuple[str, str]:
        """The solver waits where there is no room, dies with one of its ranks, and computes the same again."""
        with self._trial(self._low, slots=self._few_slots()) as trial:
            trial.wait_until(trial.blocked, ENOUGH_SECONDS, "the solver to wait for room")
            processes = trial.processes()
            busy = _cpu_share(processes, 1.0)
            if trial.rejected("credit"):
                raise _Wrong("The solver sent steps without credit: a client of its own must wait for CREDIT.")
            victim = _leaf(processes)
            victim.kill()
            began = time.monotonic()
            patience = 3 * CERTIFY_LEASE + 10
            gone = trial.wait_for_end(patience)
            if not gone:
                raise _Wrong(
                    f"One rank was killed and others were alive {patience:g} s later: does mpirun end a job whose rank"
                    " dies? (And is the library's lease thread allowed to end the process?)"
                )
            seconds = time.monotonic() - began
            trial.finish(ENOUGH_SECONDS)
            if _difference(trial.trajectory(0), self._first) > _SAME:
                raise _Wrong("After a kill the same simulation gives other samples: its state outlived the process.")
        said = f"It waits for room; a rank killed, all were gone after {seconds:.1f} s, and the repeat is the same."
        if busy > 0.5:
            return "note", f"{said} While it waits it takes {busy:.1f} cores: ranks poll inside MPI instead of in send."
        return said

    def _stop(self) -> str:
        with self._trial(self._low, slots=self._few_slots()) as trial:
            trial.wait_until(trial.blocked, ENOUGH_SECONDS, "the solver to wait for room")
            trial.request_stop()
            if not trial.wait_for_end(STOP_SECONDS):
                raise _Wrong(f"{STOP_SECONDS:g} s after the word STOP the job still runs: leave the time loop at STOP.")
            code = trial.last_code
            if code:
                raise _Wrong(f"After STOP the job ended with code {code} instead of 0. It said: {trial.tail()}")
        return "After the word STOP the job ends in order."

    def _restart(self) -> str:
        """The intake goes away in the middle of a simulation, and another takes its place."""
        with self._trial(self._low, slots=self._few_slots()) as trial:
            trial.wait_until(trial.blocked, ENOUGH_SECONDS, "the solver to wait for room")
            trial.restart_intake()
            trial.finish(ENOUGH_SECONDS)
            if _difference(trial.trajectory(0), self._first) > _SAME:
                raise _Wrong("After a restart of the study the same simulation gives other samples.")
        return "When the study starts again, the simulation is run again, with the same samples."


def _made(name: str, check: Callable[[], str | tuple[str, str]]) -> Finding:
    try:
        outcome = check()
    except _Wrong as wrong:
        return Finding(check=name, verdict="wrong", said=str(wrong))
    verdict, said = ("ok", outcome) if isinstance(outcome, str) else outcome
    return Finding(check=name, verdict=verdict, said=said)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference of two trajectories over the largest magnitude; infinite for other lengths."""
    if one.shape != other.shape:
        return np.inf
    return float(np.abs(one - other).max() / max(float(np.abs(one).max()), 1e-30))


def _cpu_share(processes: list[psutil.Process], seconds: float) -> float:
    """Return how many cores some processes take together over a time."""

    def total() -> float:
        spent = 0.0
        for process in processes:
            try:
                spent += sum(process.cpu_times()[:2])
            except psutil.Error:
                continue
        return spent

    before = total()
    time.sleep(seconds)
    return (total() - before) / seconds


def _leaf(processes: list[psutil.Process]) -> psutil.Process:
    """Return a process without children: a rank, and not its mpirun."""
    parents = {process.ppid() for process in processes}
    leaves = [process for process in processes if process.pid not in parents and process.pid != os.getpid()]
    return leaves[-1]
