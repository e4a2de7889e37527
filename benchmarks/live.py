"""A study in one process: intake, solver processes and the training loop of the package, without Ray and MPI.

Used by online_vs_offline.py and buffers.py, so that they run wherever numpy, torch and pyzmq are. What a study adds to
this are its supervisors: Ray Train, the launcher, the validator.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from headrace.cases.catalogue import find_case
from headrace.online_training.adaptive_plan import AdaptivePlan
from headrace.online_training.client import Connection as Solver
from headrace.online_training.design import ADAPTIVE, draw_design
from headrace.online_training.fifo import FIFO, FIRO
from headrace.online_training.intake import Intake, IntakeSettings
from headrace.online_training.layout import StreamLayout
from headrace.online_training.ledger import RecordWriter
from headrace.online_training.reservoir import Reservoir
from headrace.online_training.settings import StudySettings
from headrace.online_training.simulation_run import Assignment
from headrace.online_training.slot_memory import SlotMemory
from headrace.online_training.stream_sink import StreamSink
from headrace.online_training.training_loop import TrainerSettings, WindowLoss, connect, train
from headrace.online_training.validator import HeldOut
from headrace.solvers import MemorySink, Parameters
from headrace.solvers.simulate import simulate
from headrace.surrogates import Problem, Surrogate, load_surrogate

BUFFERS = {"fifo": FIFO, "firo": FIRO, "reservoir": Reservoir}
STUDY, TOKEN = 0x5EED, bytes(range(32))
CURVE = ("population", "unseen", "draws", "steps_accepted")
SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """One online training.

    case : name and shape, as `find_case` takes them.
    seconds : from the first step on, after which the stream ends, whatever is left.
    views : uses of each window that are waited for on both sides; None: neither side is ever slowed.
    slots : steps in the buffer.
    held_back : begin and end, in seconds, of a silence of all solvers, as between series of jobs.
    fixed : parameters that keep one value.
    most_windows : after which the training ends, though there are more; None: when the stream ends.
    """

    case: tuple[str, tuple[int, ...] | None]
    folder: Path
    buffer: str = "reservoir"
    slots: int = 4000
    watermark: int = 400
    simulations: int = 20000
    solvers: int = 1
    seconds: float = 60.0
    views: float | None = None
    batch_size: int = 32
    learning_rate: float = 1e-3
    total_windows: int = 100000
    schedule: str = "cosine"
    sampler: str = "sobol"
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    held_back: tuple[float, float] = (0.0, 0.0)
    fixed: tuple[tuple[str, float], ...] = ()
    most_windows: int | None = None


def prepare(folder: Path, surrogate: Surrogate, problem: Problem, seed: int) -> None:
    """Make a run directory's folders and its initial model."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "ledger").mkdir(parents=True)
    surrogate.setup(problem, seed=seed)
    surrogate.save(folder / "model-initial")
    (folder / "token").touch(0o600)
    (folder / "token").write_text(TOKEN.hex())


def solve_for_ever(case: tuple[str, Any], environment: dict[str, str], held_back: tuple[float, float]) -> None:
    """Be a solver: ask for parameters, solve, stream, ask again."""
    os.environ.update(environment)
    loaded = find_case(*case).load()
    fields = {name: loaded.grid.shape for name in loaded.fields}
    began = time.monotonic()
    with contextlib.suppress(ConnectionError), Solver(fields, None, steps=loaded.num_snapshots + 1) as connection:
        for stream in connection.simulations():
            parameters = Parameters({name: stream.parameters[name] for name in loaded.parameters})
            simulate(loaded, parameters, StreamSink(stream), study_seed=stream.seed, simulation=stream.simulation)
            now = time.monotonic() - began
            if held_back[0] <= now < held_back[1]:
                time.sleep(held_back[1] - now)


@contextlib.contextmanager
def solvers(
    settings: LiveSettings, addresses: str, run: Callable[..., None] | None = None
) -> Iterator[None]:  # fmt: skip
    """Keep solver processes running for the length of a block; run(case, environment) instead of the case's solver."""
    jobs = []
    for number in range(settings.solvers):
        environment = {
            "HEADRACE_ADDRESS": addresses, "HEADRACE_TOKEN_FILE": str(settings.folder / "token"),
            "HEADRACE_STUDY": f"{STUDY:016x}", "HEADRACE_JOB": f"1-{number:04d}", "HEADRACE_LEASE": "60",
            "HEADRACE_LOG_DIR": str(settings.folder / "ledger"),
        }  # fmt: skip
        target, more = (run, ()) if run else (solve_for_ever, (settings.held_back,))
        jobs.append(SPAWN.Process(target=target, args=(settings.case, environment, *more), daemon=True))
        jobs[-1].start()
    try:
        yield
    finally:
        for job in jobs:
            job.terminate()
            job.join(5)


def serve(settings: LiveSettings, pipe: Connection) -> None:
    """Be the intake, in a process of its own as in a study; answer (method, arguments) until "close"."""
    case, window = find_case(*settings.case).load(), pipe.recv()
    layout = StreamLayout.of(case, window)
    memory = SlotMemory.create(f"bench{os.getpid():x}", layout, settings.slots * layout.step_bytes)
    buffer = BUFFERS[settings.buffer](len(memory.array), window, watermark=settings.watermark, seed=settings.seed)
    free = settings.views is None
    intake = Intake(
        IntakeSettings(
            layout=layout, buffer=buffer, memory=memory, views=1.0 if free else settings.views,
            batch_size=settings.batch_size, study=STUDY, session=1, token=TOKEN, interface="127.0.0.1", port=0,
            run_dir=settings.folder, max_running=settings.solvers,
        )
    )  # fmt: skip
    if free:  # the trainer is not held back for the sake of a wanted number of uses
        intake._trainers.draws._may_draw = lambda: True
    intake.start()
    pipe.send(intake.addresses)
    while True:
        name, *arguments = pipe.recv()
        pipe.send(getattr(intake, name)(*arguments))
        if name == "close":
            return


class IntakeProcess:
    """The driver's side of an intake process."""

    def __init__(self, settings: LiveSettings, window: int) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=serve, args=(settings, theirs), daemon=True)
        self._lock = threading.Lock()
        self._process.start()
        self._pipe.send(window)
        self.addresses = self._pipe.recv()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the intake."""
        with self._lock:
            self._pipe.send((name, *arguments))
            return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self.call("close")
        self._process.join(10)


def train_online(settings: LiveSettings, surrogate: Surrogate) -> dict[str, Any]:
    """Train while solvers run; return the figures of the training, its curve and the model."""
    case = find_case(*settings.case).load()
    prepare(settings.folder, surrogate, Problem.of(case), settings.seed)
    intake = IntakeProcess(settings, surrogate.window)
    plan, log = plan_of(settings, case, intake)
    curve: list[dict[str, float]] = []
    over = threading.Event()
    began = time.monotonic()
    first: list[float] = []

    def watch() -> None:
        while not over.wait(0.25):
            status, now = intake.call("status"), time.monotonic() - began
            curve.append({"t": round(now, 2), **{key: status[key] for key in CURVE}})
            if plan is not None:
                plan.follow(status, partial(intake.call, "plan"), partial(intake.call, "all_planned"))
            if status["steps_accepted"] and not first:
                first.append(now)
            if first and now - first[0] > settings.seconds:
                intake.call("request_stop")
                return

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        with solvers(settings, intake.addresses):
            watcher.start()
            feed = connect(
                replace(
                    trainer_settings(settings), address=intake.addresses, token_file=str(settings.folder / "token"),
                    study=STUDY,
                )
            )  # fmt: skip
            if settings.most_windows is not None:
                _limit(feed, settings.most_windows)
            found = train(trainer_settings(settings), feed)
        ended, status = time.monotonic() - began, intake.call("status")
    finally:
        over.set()
        watcher.join(2)
        intake.close()
        log.close()
    return {
        "seconds": ended - first[0], "start_up": first[0], "windows": found["windows"], "loss": found["loss"],
        "unique": status["starts_used"], "accepted": status["windows_accepted"], "curve": curve,
        "blocked": status["blocked_seconds"] / max(status["solver_seconds"], 1e-9),
        "simulations": status["done"],
        # Nothing was trained where no batch came in time.
        "model": load_surrogate(settings.folder / ("model" if found["batch"] else "model-initial")),
    }  # fmt: skip


def _limit(feed: Any, most: int) -> None:
    """Let a feed end after a number of windows."""
    plain, drawn = feed.next, [0]

    def limited() -> Any:
        draw = plain() if drawn[0] < most else None
        drawn[0] += 0 if draw is None else len(draw.table)
        return draw

    feed.next = limited


def trainer_settings(settings: LiveSettings) -> TrainerSettings:
    """Return the settings of the training loop, the same for a stream and a data set."""
    return TrainerSettings(
        run_dir=str(settings.folder), address="", token_file="", study=1, session=1, batch_size=settings.batch_size,
        learning_rate=settings.learning_rate, total_windows=settings.total_windows, checkpoint_every=1e9,
        seed=settings.seed, threads=settings.threads, schedule=settings.schedule, device=settings.device,
        report_losses=settings.sampler == ADAPTIVE, record_steps=settings.device == "cuda",
    )  # fmt: skip


def plan_of(settings: LiveSettings, case: Any, intake: IntakeProcess) -> tuple[AdaptivePlan | None, RecordWriter]:
    """Plan the simulations; return the adaptive plan, where there is one, and the study's log."""
    log, plan = RecordWriter(settings.folder / "ledger" / "study-1.log"), None
    if settings.sampler == ADAPTIVE:
        study = StudySettings(
            simulations=settings.simulations, held_out=0, jobs=settings.solvers, sampler=ADAPTIVE, seed=settings.seed
        )
        plan = AdaptivePlan(settings.folder, case, study, log)
        plan.begin()
        points = plan.points
    else:
        kind = settings.sampler
        points = dict(enumerate(draw_design(len(case.parameters), settings.simulations, settings.seed, kind=kind)))
    fixed = dict(settings.fixed)
    assignments = [
        Assignment(simulation=n, parameters={**case.draw(point), **fixed}, seed=settings.seed)
        for n, point in points.items()
    ]
    intake.call("plan", assignments)
    if plan is None:
        intake.call("all_planned")
    return plan, log


def held_out(
    case: tuple[str, Any], count: int, seed: int = 0, fixed: tuple[tuple[str, float], ...] = ()
) -> list[HeldOut]:
    """Solve simulations that no training sees."""
    loaded = find_case(*case).load()
    found = []
    for n, point in enumerate(draw_design(len(loaded.parameters), count, seed, held_out=True)):
        sink, parameters = MemorySink(), loaded.accept({**loaded.draw(point), **dict(fixed)})
        simulate(loaded, parameters, sink, study_seed=seed, simulation=10**6 + n)
        found.append(
            HeldOut(
                simulation=n, parameters=np.array([parameters[name] for name in loaded.parameters]),
                times=np.asarray(loaded.times), states=np.asarray(sink.values, dtype=np.float32),
            )
        )  # fmt: skip
    return found


def windows_per_second(
    case: tuple[str, Any], make: Callable[[], Surrogate], batch_size: int, threads: int, device: str = "cpu",
    *, record: bool = True,
) -> float:  # fmt: skip
    """Return how fast the optimiser alone is on random windows, for the length of a schedule."""
    loaded = find_case(*case).load()
    problem, model = Problem.of(loaded), make()
    torch.set_num_threads(threads)
    model.setup(problem, seed=0)
    model.set_statistics([0.0] * len(problem.fields), [1.0] * len(problem.fields))
    model.to(device)
    from headrace.online_training.training_step import TrainingStep

    draw = SimpleNamespace(
        states=np.random.default_rng(0).standard_normal(
            (batch_size, model.window, len(problem.fields), *problem.shape), np.float32),
        times=np.tile(np.arange(model.window, dtype=np.float32) * float(problem.interval), (batch_size, 1)),
        parameters=np.tile(np.array([b for b, _ in problem.parameters.values()], np.float32), (batch_size, 1)),
        on_device=None,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=device == "cuda")
    one = TrainingStep(
        WindowLoss(model), optimizer, torch.device(device), num_ranks=1, record=record and model.recordable
    )  # fmt: skip

    def step() -> None:
        one.update(one.losses(draw, 1e-3), batch_size, 1e-3)

    for _ in range(8):
        step()
    began, count = time.monotonic(), 0
    while time.monotonic() - began < 1.5 or count < 3:
        step()
        count += 1
        if device == "cuda" and count % 16 == 0:
            torch.cuda.synchronize()
    return count * batch_size / (time.monotonic() - began)
