"""The offline twin of a study: the same run directory, training loop and validation, fed from a data set on disk."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.solvers import Case
from headrace.surrogates import Problem

from .callbacks import find_callbacks
from .early_stopping import StopRule
from .layout import StreamLayout
from .ledger import Ledger, RecordWriter
from .metrics_log import last_record
from .offline_data import OfflineData, simulation_files
from .offline_feed import OfflineFeed
from .run_directory import RunDirectory, StudyError, StudyRecord
from .training_loop import TrainerSettings, train
from .validator import ValidatorProcess, validate_run

if TYPE_CHECKING:
    from .study import Progress, Study, StudyResult

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 1.0


def run_offline(study: Study, *, resume: bool, progress: Progress | None) -> StudyResult:
    """Train on the data set that the settings name; a call of `Study.run`.

    Held-out simulations come from the set's folder held_out/, where it has one, else they are the last ones of the set,
    which are then not trained on.

    Raises
    ------
    ValueError : the data set does not fit the case, or there are no simulations left to train on.
    StudyError : the run directory belongs to another study, or the training failed.
    """
    from .study import StudyResult

    case = study.case.load()
    if study.settings.workers > 1:
        raise ValueError(f"A data set is trained on by one worker; workers is {study.settings.workers}.")
    directory = study.directory
    if resume and directory.exists:
        record = directory.read()
        directory.require_same(record, study.case, _within(study.settings.offline, study.settings))
    else:
        record = _create(study, case)
    with directory.locked():
        status = "finished" if Ledger(directory.ledger).finished else _run_session(record, case, directory, progress)
    return StudyResult(
        run_dir=directory.path, status=status, validation=validate_run(directory.path) if status == "finished" else {}
    )


def _within(folder: str, settings: Any) -> Any:
    """The settings with as many simulations as the data set has."""
    found, apart = len(simulation_files(folder)), len(simulation_files(Path(folder) / "held_out"))
    if not found:
        raise ValueError(f"{folder} holds no simulations sim-NUMBER.h5; make some with `headrace generate`.")
    held_out = min(settings.held_out, apart if apart else found - 1)
    simulations = min(settings.simulations, found if apart else found - held_out)
    return settings.model_copy(update={"simulations": simulations, "held_out": held_out, "offline": str(folder)})


def _create(study: Study, case: Case) -> StudyRecord:
    folder = Path(study.settings.offline).absolute()
    settings = _within(str(folder), study.settings)
    case.verify()
    find_callbacks(settings.callbacks, study.case.load_module())
    study.surrogate.setup(Problem.of(case), seed=settings.seed)
    layout = StreamLayout.of(case, study.surrogate.window)
    OfflineData(folder, layout, limit=settings.simulations, mapped=False)  # says what does not fit, before any file
    record = study.directory.create(study.case, study.surrogate, settings)
    apart = simulation_files(folder / "held_out") or simulation_files(folder)[settings.simulations :]
    for path in apart[: settings.held_out]:
        _link(path, study.directory.held_out / path.name)
    return record


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def _run_session(record: StudyRecord, case: Case, directory: RunDirectory, progress: Progress | None) -> str:
    from .study import orderly_stop

    settings = record.settings
    number = Ledger(directory.ledger).next_session()
    layout = StreamLayout.of(case, record.window)
    data = OfflineData(settings.offline, layout, limit=settings.simulations, mapped=settings.loader == "mapped")
    feed = OfflineFeed(
        data, batch_size=settings.batch_size, views=settings.views, seed=settings.seed,
        processes=settings.loader_processes,
    )  # fmt: skip
    trainer = TrainerSettings(
        run_dir=str(directory.path), address="", token_file="", study=record.study, session=number,
        batch_size=settings.batch_size, learning_rate=settings.learning_rate,
        total_windows=max(1, round(len(data) * settings.views)), checkpoint_every=settings.checkpoint_every,
        seed=settings.seed, device=_device(settings.device), schedule=settings.schedule, warm_up=settings.warm_up,
        halve_every=settings.halve_every, callbacks=settings.callbacks, record_steps=settings.record_steps,
    )  # fmt: skip
    validator = ValidatorProcess(directory.path) if settings.held_out else nullcontext()
    with RecordWriter(directory.ledger / f"study-{number}.log") as log, validator:
        log.append({"e": "session", "n": number})
        stopped = threading.Event()

        def stop() -> None:
            stopped.set()
            feed.stop()

        rule = StopRule(directory.path, patience=settings.patience, least=settings.least_improvement)
        finished = {"e": "finished"}

        def watch(elapsed: float) -> None:
            reason = rule.reason()
            if reason is not None and "early" not in finished:
                finished["early"] = reason
                logger.warning("The training ends early: %s.", reason)
                feed.stop()
            _tell(directory, progress, elapsed)

        with orderly_stop(stop):
            _train(trainer, feed, watch)
        status = "stopped" if stopped.is_set() else "finished"
        log.append(finished if status == "finished" else {"e": "stopped", "reason": "asked to stop"})
        log.sync()
    return status


def _train(settings: TrainerSettings, feed: OfflineFeed, tell: Callable[[float], None]) -> None:
    """Run the training loop in a thread, so that this one hears signals and tells of progress."""
    failure: list[BaseException] = []

    def work() -> None:
        try:
            train(replace(settings, generation=1), feed)
        except BaseException as error:
            failure.append(error)

    started = time.monotonic()
    thread = threading.Thread(target=work, name="trainer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_REPORT_SECONDS)
        tell(time.monotonic() - started)
    if failure:
        raise StudyError(f"The trainer failed: {failure[0]}") from failure[0]


def _tell(directory: RunDirectory, progress: Progress | None, elapsed: float) -> None:
    if progress is not None:
        path = directory.path
        state = {"trainer": last_record(path / "metrics.jsonl"), "validation": last_record(path / "validation.jsonl")}
        progress({"intake": {}, **state, "elapsed": elapsed})


def _device(wanted: str) -> str:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise StudyError("device=cuda needs a GPU, and torch sees none. Use device=cpu.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
