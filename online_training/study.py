"""A study: one case, one surrogate, trained online while the simulations run."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace.solvers import Case
from headrace.solvers.blocks import check_split
from headrace.solvers.case_file import CaseReference
from headrace.surrogates import Problem, Surrogate

from .adaptive_plan import AdaptivePlan
from .callbacks import find_callbacks
from .design import ADAPTIVE, draw_design, own_sampler
from .fixed_order import spare_slots
from .interface import address_of
from .layout import StreamLayout
from .ledger import Ledger, RecordWriter
from .ledger_index import rebuild_index
from .local_launcher import cores_for, find_mpirun, thread_variables
from .ray_session import ray_session
from .reservoir import check_capacity
from .run_directory import RunDirectory, StudyError, StudyRecord
from .scheduler import STEPS, Scheduler
from .settings import StudySettings
from .slot_memory import kept_path
from .step_launcher import StepLauncher

logger = logging.getLogger(__name__)

Progress = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """How a study ended.

    status : "finished", or "stopped" where it can be resumed.
    validation : errors on the held-out simulations: nrmse, vrmse, max_error over all, median_nrmse and worst_nrmse of
        single ones; empty where nothing was held out.
    """

    run_dir: Path
    status: str
    validation: dict[str, float] = field(default_factory=dict)


class Study:
    """Trains a surrogate of a case online: MPI solver jobs stream, Ray trains, a validated model is left in run_dir.

    Parameters
    ----------
    case : a `Case` that stands as a module variable in a file, or a `CaseReference` to it.
    surrogate : with its architecture only; its weights are built for the case.
    run_dir : where everything goes; see docs/run_directory.md.
    settings : fields of `StudySettings`.

    Raises
    ------
    ValueError : a setting, the case or the architecture does not fit; nothing was started.
    StudyError : the run directory is not usable.
    """

    def __init__(
        self, case: Case | CaseReference, surrogate: Surrogate, *, run_dir: str | Path, **settings: Any
    ) -> None:
        self.case = case if isinstance(case, CaseReference) else _reference(case)
        self.surrogate = surrogate
        self.settings = StudySettings(**settings)
        self.directory = RunDirectory(run_dir)

    @classmethod
    def open(cls, run_dir: str | Path) -> Study:
        """Return the study of an existing run directory.

        Raises
        ------
        StudyError : there is none, or it is damaged.
        """
        directory = RunDirectory(run_dir)
        record = directory.read()
        surrogate = directory.load_model(directory.model_initial)
        return cls(record.case, surrogate, run_dir=run_dir, **record.settings.model_dump())

    def run(self, *, resume: bool = False, progress: Progress | None = None) -> StudyResult:
        """Run to the end, or until Ctrl-C or SIGTERM asks for an orderly stop.

        resume : go on with the study in run_dir if there is one; safe to repeat, also after the end.
        progress : called about once a second with what intake, trainer and validator last said.

        Raises
        ------
        StudyError : the run directory belongs to another study, or solvers or trainer failed too often.
        """
        if self.settings.record_steps and not self.surrogate.recordable:
            logger.warning(
                "record_steps is left out: the batches of this %s differ in what they compute, and cannot be replayed.",
                type(self.surrogate).__name__,
            )
        if self.settings.offline:
            from .offline_study import run_offline

            return run_offline(self, resume=resume, progress=progress)
        record = self._prepare(resume)
        with self.directory.locked():
            status = "finished" if self._settled() else self._run_sessions(record, progress)
        validation = self._validate() if status == "finished" else {}
        return StudyResult(run_dir=self.directory.path, status=status, validation=validation)

    def _prepare(self, resume: bool) -> StudyRecord:
        case = self.case.load()
        case.verify()
        check_split(case.grid.shape, self.settings.ranks)
        try:
            find_mpirun()
        except RuntimeError as error:
            raise StudyError(str(error)) from error
        _require_port(self.settings.interface, self.settings.port)
        _require_cores(self.settings)
        resumed = resume and self.directory.exists
        if not (resumed and self._settled()):
            _require_scheduler(self.settings)
            _require_spool(self.settings)
        if resumed:
            record = self.directory.read()
            self.directory.require_same(record, self.case, self.settings)
            require_capacity(self.settings, case, record.window)
            return self.directory.update(replace(record, settings=self.settings))
        find_callbacks(self.settings.callbacks, self.case.load_module())
        self.surrogate.setup(Problem.of(case), seed=self.settings.seed)
        require_capacity(self.settings, case, self.surrogate.window)
        return self.directory.create(self.case, self.surrogate, self.settings)

    def _settled(self) -> bool:
        """Whether no session is left to run."""
        ledger = Ledger(self.directory.ledger)
        # A disk that was full may have room by now for what is validated on; what ended early ends there.
        return ledger.finished and (ledger.finished_early or not ledger.lacking_files)

    def _run_sessions(self, record: StudyRecord, progress: Progress | None) -> str:
        stop = threading.Event()
        # One Ray for all sessions: a process that stops it and starts it again may lose what Ray Train leaves running.
        with orderly_stop(stop.set), ray_session(self.directory, self.settings):
            for _ in range(self.settings.max_failures + 1):
                if stop.is_set():
                    return "stopped"
                if (status := self._run_session(record, progress, stop)) is not None:
                    rebuild_index(self.directory.ledger)
                    if status == "finished":
                        kept_path(record.study, self.directory.path, record.settings.durability).unlink(missing_ok=True)
                    return status
        raise StudyError(
            f"{self.settings.max_failures + 1} sessions were lost one after the other; see {self.directory.logs}."
        )

    def _run_session(self, record: StudyRecord, progress: Progress | None, stop: threading.Event) -> str | None:
        """Run one session to its end and say how it ended; None: a part of it died, and another session is needed."""
        from .session import Session, SessionLost  # imports Ray, which must find its environment prepared

        number = Ledger(self.directory.ledger).next_session()
        with RecordWriter(self.directory.ledger / f"study-{number}.log") as log:
            log.append({"e": "session", "n": number})
            adaptive = None
            if record.settings.sampler == ADAPTIVE:
                adaptive = AdaptivePlan(self.directory.path, record.case.load(), record.settings, log)
                adaptive.begin()
            self._plan(record, log)
            log.sync()
            session = Session(self.directory, record, number, stop, adaptive)
            try:
                status = session.run(progress)
            except SessionLost as error:
                logger.warning("The study starts a new session: %s", error)
                log.append({"e": "stopped", "reason": str(error)})
                return None
            finished = {"e": "finished", **({"early": session.early} if session.early else {})}
            log.append(finished if status == "finished" else {"e": "stopped", "reason": "asked to stop"})
            log.sync()
        return status

    def _plan(self, record: StudyRecord, log: RecordWriter) -> None:
        """Write down the parameters of all simulations that no earlier session wrote; held-out ones come last."""
        case, settings = record.case.load(), self.settings
        known = Ledger(self.directory.ledger).simulations
        dims, training = len(case.parameters), settings.simulations
        own = own_sampler(settings.sampler, record.case.load_module())
        for held_out, first, count in ((False, 0, training), (True, training, settings.held_out)):
            if settings.sampler == ADAPTIVE and not held_out:
                continue
            points = draw_design(dims, count, settings.seed, kind=settings.sampler, held_out=held_out, own=own)
            for number, point in enumerate(points, first):
                if number not in known:
                    values = dict(case.draw(point))
                    planned = {"e": "planned", "s": number, "held_out": held_out, "parameters": values}
                    log.append({**planned, "seed": settings.seed})

    def _validate(self) -> dict[str, float]:
        from .validator import validate_run

        return validate_run(self.directory.path)


def require_capacity(settings: StudySettings, case: Case, window: int) -> None:
    """Refuse settings that could never train or would deadlock, and say by how much they are short.

    Raises
    ------
    ValueError : the window is longer than a trajectory, the reservoir too small for jobs, window and batch, or the
        whole study smaller than one batch.
    """
    layout = StreamLayout.of(case, window)
    spare = spare_slots(settings.jobs, window) if settings.deterministic else 0
    capacity = settings.buffer_bytes // layout.step_bytes
    check_capacity(capacity, settings.max_running, window, settings.batch_size, spare)
    if settings.shards > capacity:
        raise ValueError(
            f"A buffer of {settings.buffer} holds {capacity} steps, too few for {settings.shards} shards. "
            "Enlarge it, or take fewer."
        )
    windows = settings.simulations * layout.num_starts
    missing = settings.batch_size - round(windows * settings.views)
    if missing > 0:
        raise ValueError(
            f"{settings.simulations} simulations of {layout.num_steps} steps have {windows} windows, each used "
            f"{settings.views:g} times: {missing} too few for one batch of {settings.batch_size}. "
            "Take more simulations or views, or smaller batches."
        )


def _require_scheduler(settings: StudySettings) -> None:
    """Find out before Ray is started what the first job would find out after it."""
    try:
        if settings.scheduler == STEPS:
            StepLauncher(settings.scheduler_options.split())
        elif settings.scheduler != "local":
            Scheduler.load(settings.scheduler).require_commands()
    except RuntimeError as error:
        raise StudyError(str(error)) from error


def _require_spool(settings: StudySettings) -> None:
    """Find out before Ray is started that a spool's folder can be none; whether there is room its own node knows."""
    folder = Path(settings.spool_folder)
    if settings.when_full == "spool" and any(part.is_file() for part in (folder, *folder.parents)):
        raise StudyError(f"The spool cannot lie in {folder}: that is a file, or in one. Name another folder.")


def _require_cores(settings: StudySettings) -> None:
    """Find out before anything starts that ranks cannot all have cores of their own."""
    threads = cores_for(thread_variables(settings.threads, os.environ))
    needed, there = settings.max_running * settings.ranks * threads, len(os.sched_getaffinity(0))
    if settings.bind_cores and settings.scheduler == "local" and needed > there:
        raise ValueError(
            f"{settings.max_running} jobs of {settings.ranks} ranks with {threads} threads need {needed} "
            f"cores to bind them to, and this node has {there}. Take fewer of them, or leave out bind_cores."
        )


def _require_port(interface: str, port: int) -> None:
    """Find out before Ray is started what the intake would find out after it."""
    interface = address_of(interface)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as ZeroMQ does
        try:
            probe.bind(("" if interface == "*" else interface, port))
            probe.listen()
        except OSError as error:
            raise ValueError(
                f"The intake cannot listen on {interface}:{port} ({error.strerror}). "
                "Choose an interface of this machine, and another port or 0 for one that is free."
            ) from error


def _reference(case: Case) -> CaseReference:
    """Return where a case object stands: the module variable of a file that is this object.

    Others may have imported it, the running script among them: the module of the case's own functions counts first.
    """
    homes = {getattr(function, "__module__", None) for function in (case.initial, case.rhs)}
    modules = sorted(list(sys.modules.items()), key=lambda item: (item[0] not in homes, item[0] == "__main__"))
    for _, module in modules:
        file = getattr(module, "__file__", None)
        if file is None:
            continue
        for name, value in list(vars(module).items()):
            if value is case:
                return CaseReference.of(file, name)
    raise ValueError(
        f"Case {case.name} is not a variable of a module with a file, so solver processes could not import it. "
        "Put it into a .py file at module level, or pass CaseReference.of(path, name, shape=...)."
    )


@contextmanager
def orderly_stop(request_stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into an orderly stop; a second SIGINT interrupts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        request_stop()

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
