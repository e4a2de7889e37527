"""One session of a study: intake, solver jobs, trainer and validator started, watched and stopped together."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from headrace.solvers.streaming import StreamingProgram

from .concurrency import Concurrency
from .early_stopping import StopRule
from .greetings import Greetings
from .intake_actor import IntakeActor
from .interface import AUTO, address_of, is_local
from .local_launcher import cores_for, kind_to_neighbours, thread_variables
from .metrics_log import MetricsLog, last_record
from .placement import choose_place
from .run_directory import RunDirectory, StudyError, StudyRecord
from .session_plan import LEASE_SECONDS, NAMESPACE, intake_name
from .solver_job import RANKS
from .step_limit import StepLimit
from .supervisor import SupervisorProcess, cause_in
from .trainer import TrainerDied, run_trainer
from .training_loop import TrainerSettings
from .validator import ValidatorProcess

if TYPE_CHECKING:
    from .adaptive_plan import AdaptivePlan
    from .study import Progress

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
_REPORT_SECONDS = 1.0
_TRAINER_SECONDS = 120.0
_ANSWER_SECONDS = 180.0  # the first answer of an actor comes after its process was started


class SessionLost(Exception):
    """A part died that the session cannot go on without; the next session takes up what is left."""


class Session:
    """Runs until the stream has ended and the trainer is done, or until a stop is asked for.

    stop : set to ask for an orderly end: the trainer writes a checkpoint, solvers stop at their next step.
    """

    def __init__(
        self, directory: RunDirectory, record: StudyRecord, number: int, stop: threading.Event,
        plan: AdaptivePlan | None = None,
    ) -> None:  # fmt: skip
        self._plan = plan
        self._directory, self._record, self._number = directory, record, number
        self._settings = record.settings
        self._num_steps = record.case.load().num_snapshots + 1
        self._stop_requested = stop
        self._started_jobs = record.settings.jobs
        self.early = ""
        """Why the session ended before the last planned window, though nobody asked for it; else empty."""
        self._trainer_result: dict[str, Any] | None = None
        self._trainer_error: BaseException | None = None
        self._greetings = Greetings(self._settings.ranks, self._settings.start_limit)
        self._step_limit = StepLimit(self._settings.step_limit, allowed=not self._settings.deterministic)

    def run(self, progress: Progress | None = None) -> str:
        """Run the session and return "finished" or "stopped".

        Raises
        ------
        StudyError : solver jobs or the trainer failed too often; the message holds their last words.
        SessionLost : the intake's process died; or the trainer, where its draws cannot be given back.
        """
        own = ray.get_runtime_context().get_node_id()
        self._place = choose_place(ray.nodes(), own, self._settings)
        elsewhere = self._place.apart or self._place.node != own
        if elsewhere and is_local(address_of(self._settings.interface)):
            raise StudyError(
                f"The intake runs on {self._place.address}, where --interface {self._settings.interface} would be out "
                f"of reach of other nodes. Give --interface {AUTO}, or an interface's name."
            )
        with ExitStack() as stack:
            intake = self._start_intake(stack)
            address = self._ask(intake.start)
            self._ask(intake.limit_running, self._settings.jobs)
            supervisor = self._start_supervisor(stack, address)
            if self._settings.held_out:
                stack.enter_context(ValidatorProcess(self._directory.path))
            trainer = threading.Thread(target=self._train, args=(address,), name="trainer", daemon=True)
            trainer.start()
            try:
                if not self._watch(intake, supervisor, trainer, progress):
                    return "stopped"
            except SessionLost:
                # The next session's trainer must be the only one: this one ends when it finds the intake gone.
                trainer.join(_TRAINER_SECONDS)
                if trainer.is_alive():
                    raise StudyError("The intake died, and the trainer did not end. Resume the study.") from None
                raise
            trainer.join()
            if self._trainer_error is not None:
                self._ask(intake.status)  # if it has died, that is why, and the trainer was told of it first
                if self._settings.deterministic and isinstance(self._trainer_error, TrainerDied):
                    raise SessionLost(f"trainer lost: {self._trainer_error}") from self._trainer_error
                raise StudyError(f"The trainer failed: {self._trainer_error}") from self._trainer_error
            return "stopped" if self._stop_requested.is_set() else "finished"

    def _start_intake(self, stack: ExitStack) -> Any:
        name = intake_name(self._record.study, self._number)
        # Not detached: in a cluster that stays, an intake whose driver was killed would stay too.
        actor = IntakeActor.options(name=name, namespace=NAMESPACE, resources=self._place.resources()).remote(
            str(self._directory.path), self._number
        )
        stack.callback(self._end_intake, actor)
        return actor

    def _end_intake(self, actor: Any) -> None:
        try:
            ray.get(actor.close.remote(), timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            logger.info("The intake could not be closed in order: %s", error)
        ray.kill(actor)

    def _ask(self, method: Any, *arguments: Any) -> Any:
        try:
            return ray.get(method.remote(*arguments), timeout=_ANSWER_SECONDS)
        except ray.exceptions.RayTaskError as error:
            raise StudyError(str(error.cause)) from error.cause
        except ray.exceptions.RayActorError as error:
            raise SessionLost(f"intake lost: {error}") from error

    def _start_supervisor(self, stack: ExitStack, address: str) -> SupervisorProcess:
        reference = self._directory.path / "secrets" / "case.json"
        reference.write_text(json.dumps(self._record.case.to_dict()))
        threads = thread_variables(self._settings.threads, os.environ)
        environment = {
            "HEADRACE_ADDRESS": address,
            "HEADRACE_TOKEN_FILE": str(self._directory.token_file),
            "HEADRACE_STUDY": f"{self._record.study:016x}",
            "HEADRACE_LOG_DIR": str(self._directory.ledger),
            **threads,
            "HEADRACE_LEASE": f"{LEASE_SECONDS:g}",
            RANKS: str(self._settings.ranks),
            **kind_to_neighbours(self._settings.busy_processes),
        }
        case, ranks = self._record.case.load(), self._settings.ranks
        foreign = isinstance(case.solver, StreamingProgram)
        own = [sys.executable, "-P", "-m", "headrace.online_training.solver_job", str(reference)]
        supervisor = SupervisorProcess(
            command=case.solver.words(case, ranks) if foreign else own, own_mpirun=foreign,
            ranks=ranks, environment=environment, log_dir=str(self._directory.logs),
            session=self._number, max_failures=self._settings.max_failures, scheduler=self._settings.scheduler,
            scheduler_options=self._settings.scheduler_options.split(),
            scheduler_launch=self._settings.scheduler_launch,
            bind=cores_for(threads) if self._settings.bind_cores else 0,
        )  # fmt: skip
        stack.callback(supervisor.stop)
        supervisor.start()
        supervisor.set_jobs(self._settings.jobs)
        return supervisor

    def _train(self, address: str) -> None:
        settings = self._settings
        try:
            self._trainer_result = run_trainer(
                TrainerSettings(
                    run_dir=str(self._directory.path), address=address, token_file=str(self._directory.token_file),
                    study=self._record.study, session=self._number, batch_size=settings.batch_size,
                    learning_rate=settings.learning_rate, total_windows=self._record.total_uses(self._num_steps),
                    checkpoint_every=settings.checkpoint_every, seed=settings.seed, device=self._place.device,
                    report_losses=self._plan is not None, schedule=settings.schedule, warm_up=settings.warm_up,
                    halve_every=settings.halve_every, callbacks=settings.callbacks, record_steps=settings.record_steps,
                ),
                settings.workers if settings.most_workers == 0 else (settings.workers, settings.max_workers),
                # What a dead trainer had drawn cannot be given back in a fixed order: the whole session starts again.
                0 if settings.deterministic else settings.max_failures,
                pinned_to=None if self._place.apart else self._place.resources(),
                spread=self._settings.spread_workers,
            )  # fmt: skip
        except BaseException as error:
            self._trainer_error = error

    def _watch(self, intake: Any, supervisor: SupervisorProcess, trainer: threading.Thread, progress: Any) -> bool:
        """Pass events between the parts until the trainer is done and the last held-out simulation is written.

        False: a stop was asked for before the trainer had begun, which can take a minute; it is not waited for.
        """
        stopping, started, reported, done, streaming = False, time.monotonic(), 0.0, 0, True
        told_short = False
        settings = self._settings
        rule = StopRule(self._directory.path, patience=settings.patience, least=settings.least_improvement)
        concurrency = Concurrency(settings.jobs, settings.max_running)
        with MetricsLog(self._directory.path, "intake") as intake_log:
            while trainer.is_alive() or (streaming and not stopping and self._trainer_error is None):
                time.sleep(_TICK_SECONDS)
                if self._stop_requested.is_set() and not stopping:
                    stopping = True
                    self._ask(intake.request_stop)
                for event in supervisor.events():
                    self._handle(event, intake, supervisor)
                if time.monotonic() - reported >= _REPORT_SECONDS:
                    reported = time.monotonic()
                    status = self._ask(intake.status)
                    # Both are too long for a line of the log.
                    self._await_hellos(status.pop("ranks"), supervisor)
                    self._await_steps(status.pop("running_in"), intake, supervisor)
                    if status.get("error"):
                        raise StudyError(f"The intake failed: {status['error']}")
                    if status.get("fatal"):
                        raise StudyError(status["fatal"])
                    if status["short"] and not told_short:
                        told_short = True
                        logger.warning(
                            "A simulation ended in order before its last step, so it gives fewer windows. If that is "
                            "not meant, see that the solver sends a snapshot for each of the case's times."
                        )
                    if not stopping and (reason := rule.reason()) is not None:
                        stopping, self.early = True, reason
                        logger.warning("The training ends early: %s.", reason)
                        self._ask(intake.request_stop)
                    if self._stop_requested.is_set() and status["generation"] < 0:
                        return False
                    streaming = status["queued"] + status["running"] + status["writing"] + status["spooled"] > 0
                    if status["done"] > done:
                        done = status["done"]
                        supervisor.note_progress()
                    if not stopping:
                        self._follow_need(concurrency, status, intake, supervisor)
                    if self._plan is not None and not stopping:
                        ask = partial(self._ask, intake.plan), partial(self._ask, intake.all_planned)
                        self._plan.follow(status, *ask)
                    intake_log.append({**status, "elapsed": reported - started})
                    if progress is not None:
                        progress(self._state(status, reported - started))
        return True

    def _await_hellos(self, present: Mapping[str, tuple[int, int]], supervisor: SupervisorProcess) -> None:
        late, overdue = self._greetings.look(present, time.monotonic())
        for text in late:
            logger.warning("%s", text)
        for job, reason in overdue.items():
            logger.warning("%s", reason)
            supervisor.end_job(job, reason, failed=True)

    def _await_steps(self, running: Mapping[str, Any], intake: Any, supervisor: SupervisorProcess) -> None:
        late, overdue = self._step_limit.look(running, time.monotonic())
        for text in late:
            logger.warning("%s", text)
        for job, (place, reason) in overdue.items():
            if self._ask(intake.give_up, place, reason):
                logger.warning("%s: it is given up, and the job is replaced.", reason)
                supervisor.end_job(job, reason, failed=False)

    def _follow_need(
        self, concurrency: Concurrency, status: Mapping[str, Any], intake: Any, supervisor: SupervisorProcess
    ) -> None:  # fmt: skip
        """Let as many simulations run as the trainer needs.

        Where they become fewer, their jobs stay: none is cut off in a simulation, and the next rise costs no start.
        """
        if concurrency.least == concurrency.most:
            return
        trainer = last_record(self._directory.path / "metrics.jsonl")
        if concurrency.follow(status, trainer, time.monotonic()):
            logger.info("%d simulations run at the same time from now on.", concurrency.limit)
            if concurrency.limit > self._started_jobs:
                self._started_jobs = concurrency.limit
                supervisor.set_jobs(self._started_jobs)
            self._ask(intake.limit_running, concurrency.limit)

    def _handle(self, event: Mapping[str, Any], intake: Any, supervisor: SupervisorProcess) -> None:
        if event["event"] == "begun" or (event["event"] == "started" and not event["waits"]):
            self._greetings.begin(event["job"], time.monotonic())
        elif event["event"] == "exited":
            job, code = event["job"], event["code"]
            self._greetings.end(job)
            for simulation in self._ask(intake.job_ended, job, code):
                logger.warning("Simulation %d is run again: job %s ended with code %d.", simulation, job, code)
            # A program that takes one simulation and ends is started again while there are any.
            if code == 0 and self._ask(intake.status)["queued"] and not self._stop_requested.is_set():
                supervisor.set_jobs(self._started_jobs)
        elif event["event"] == "gave_up":
            tail = event.get("tail", "")
            cause = cause_in(tail)
            raise StudyError(
                f"Solver jobs keep failing{f': {cause}' if cause else '.'}\nThe last one's log ends:\n{tail}"
            )

    def _state(self, status: Mapping[str, Any], elapsed: float) -> dict[str, Any]:
        path = self._directory.path
        trainer, validation = last_record(path / "metrics.jsonl"), last_record(path / "validation.jsonl")
        return {"intake": status, "trainer": trainer, "validation": validation, "elapsed": elapsed}
