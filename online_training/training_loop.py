"""The training loop of one worker: draws windows from the stream, steps the optimiser, tells the records."""

from __future__ import annotations

import functools
import logging
import math
import time
import warnings
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headrace.surrogates import Surrogate, WindowBatch
from headrace.surrogates.files import save_surrogate

from .adam import Adam
from .agreement import Workers
from .callbacks import Callbacks, EventKind, TrainingEvent
from .checkpoint import (
    Checkpoint,
    TrainingState,
    discard_newer,
    folder_name,
    latest_checkpoint,
    optimizer_settings,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from .data_parallel import DataParallel
from .run_directory import RunDirectory
from .schedule import WARM_UP, Schedule
from .training_step import TrainingStep
from .worker_records import WorkerRecords

if TYPE_CHECKING:
    from .feed import Draw, Feed
    from .feeder_process import FeederProcess

logger = logging.getLogger(__name__)

_REPORT_SECONDS = 1.0
_NAMED = 8  # simulations that an error message names


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What one worker of a training must know; plain data.

    run_dir : holds model-initial/ and receives checkpoints/, metrics, ledger file and model/.
    address, token_file, study : of the intake's sockets.
    session : number of the study's session; with generation and rank, the name of the ledger file.
    generation : counts the starts of the trainer in this run directory; an older one is fenced off.
    batch_size : windows of one batch over all workers.
    learning_rate, schedule, warm_up, halve_every : of `headrace.online_training.schedule.Schedule`.
    total_windows : uses of windows that the study plans.
    checkpoint_every : seconds.
    threads : of torch on the CPU; the solvers want the other cores.
    seed : of whatever a loss draws at random.
    report_losses : whether each worker leaves its simulations' losses in losses/, for a sampler that follows them.
    callbacks : names of functions in the case's file, separated by commas.
    record_steps : whether a GPU replays the step as a CUDA graph, where the surrogate's loss allows it.
    """

    run_dir: str
    address: str
    token_file: str
    study: int
    session: int
    total_windows: int
    generation: int = 1
    rank: int = 0
    num_ranks: int = 1
    batch_size: int = 32
    learning_rate: float = 1e-3
    checkpoint_every: float = 20.0
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    report_losses: bool = False
    schedule: str = "cosine"
    warm_up: float = WARM_UP
    halve_every: int = 0
    callbacks: str = ""
    record_steps: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < self.num_ranks:
            raise ValueError(
                f"A batch of {self.batch_size} windows cannot be dealt to {self.num_ranks} workers; enlarge it."
            )
        if self.total_windows < 1 or self.threads < 1:
            raise ValueError(f"total_windows {self.total_windows} and threads {self.threads} must be positive.")


def train(settings: TrainerSettings, feed: Feed | FeederProcess | None = None) -> dict[str, Any]:
    """Train from the newest checkpoint, or from model-initial/, to the end of the stream. Collective over the workers.

    Worker 0 writes metrics.jsonl, checkpoints/ and, at the end, model/. With several workers torch.distributed
    must be set up.

    feed : where windows come from; left out, the intake at the settings' address.

    Returns
    -------
    {"batch", "windows", "loss" (mean of the last report), "generation", "seconds"}

    Raises
    ------
    FloatingPointError : the loss is not finite; names batch and simulations.
    ValueError : no checkpoint is sound, or it does not fit the model.
    OSError : disk full, or the intake cannot be reached.
    """
    torch.set_num_threads(settings.threads)
    feed = feed if feed is not None else connect(settings)
    try:
        with WorkerRecords(
            settings.run_dir, (settings.session, settings.generation, settings.rank), losses=settings.report_losses
        ) as records:
            return _Training(settings, feed, records).run()
    finally:
        feed.close()


def connect(settings: TrainerSettings) -> Feed | FeederProcess:
    """Return the feed of one worker from the intake at the settings' address; on a GPU it is a process."""
    from .client import read_token
    from .feed import Feed
    from .feeder_process import FeederProcess

    make = functools.partial(FeederProcess, device=settings.device) if settings.device.startswith("cuda") else Feed
    return make(
        settings.address, read_token(settings.token_file), settings.study, rank=settings.rank,
        num_ranks=settings.num_ranks, generation=settings.generation, batch_size=settings.batch_size,
    )  # fmt: skip


class WindowLoss(torch.nn.Module):
    """The loss as a forward pass, which is what DistributedDataParallel watches."""

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__()
        self.surrogate = surrogate

    def forward(self, states: torch.Tensor, times: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        """Return the loss of each window, (batch,)."""
        return self.surrogate.training_loss(WindowBatch(states=states, times=times, parameters=parameters))


class _Training:
    """Model, optimiser and position of one worker; `run` is the loop."""

    def __init__(self, settings: TrainerSettings, feed: Feed | FeederProcess, records: WorkerRecords) -> None:
        self._settings, self._feed, self._records = settings, feed, records
        self._run_dir = Path(settings.run_dir)
        self._device = torch.device(settings.device)
        self._workers = Workers(settings.rank, settings.num_ranks)
        self._surrogate = RunDirectory(self._run_dir).load_model(self._run_dir / "model-initial")
        self._surrogate = self._surrogate.to(self._device).train()
        parameters = list(self._surrogate.parameters())
        fused = self._device.type in ("cpu", "cuda") and all(p.is_floating_point() for p in parameters)
        record = settings.record_steps and self._surrogate.recordable and self._device.type == "cuda"
        # Capturable: its count of steps lies on the GPU, where a recorded step can go on with it.
        self._optimizer = Adam(parameters, lr=settings.learning_rate, fused=fused, capturable=record)
        self._batch = self._windows = 0
        self._saved_batch = 0
        self._loss, self._learning_rate = math.nan, settings.learning_rate
        self._record: dict[str, Any] = {}
        self._schedule = Schedule(
            kind=settings.schedule, peak=settings.learning_rate, total=settings.total_windows,
            warm_up=settings.warm_up, halve_every=settings.halve_every,
        )  # fmt: skip
        self._callbacks = Callbacks(self._run_dir, settings.callbacks if settings.rank == 0 else "")
        self._restore()
        self._step = TrainingStep(
            self._data_parallel(WindowLoss(self._surrogate)), self._optimizer, self._device,
            num_ranks=settings.num_ranks, record=record,
        )  # fmt: skip
        # Since the last report: per batch its number, simulations and losses (batch,), still on the device.
        self._history: list[tuple[int, np.ndarray, torch.Tensor]] = []
        self._reported = self._checkpointed = self._started = time.monotonic()
        self._reported_windows, self._reported_starved = self._windows, feed.starved_seconds
        feed.before_telling = records.flush

    def run(self) -> dict[str, Any]:
        """Train until the stream ends."""
        with self._step.own_stream():
            ended = self._train()
        if ended != self._settings.num_ranks:
            raise RuntimeError(f"The stream ended for {ended} of {self._settings.num_ranks} workers only.")
        return self._finish()

    def _train(self) -> int:
        """Train until the stream ends; return for how many workers it has."""
        while True:
            draw = self._feed.next()
            now = time.monotonic() if self._settings.rank == 0 else math.inf
            checkpoint = self._settings.rank == 0 and now - self._checkpointed >= self._settings.checkpoint_every
            report = checkpoint or (self._settings.rank == 0 and now - self._reported >= _REPORT_SECONDS)
            # The workers agree while the forward pass runs.
            outcome = self._workers.agree(
                0 if draw is None else len(draw.table), ended=draw is None, report=report, checkpoint=checkpoint
            )
            losses = None if draw is None else self._losses(draw)
            agreed = outcome()
            if agreed.ended:
                return agreed.ended
            self._update(losses, agreed.windows)
            self._history.append((self._batch, draw.table["simulation"], losses.detach()))
            self._records.first_uses(draw, self._batch)
            self._feed.release(draw)
            if agreed.report:
                self._report()
            if agreed.checkpoint:
                self._save()

    def _losses(self, draw: Draw) -> torch.Tensor:
        """Loss of each window of a draw, (batch,)."""
        self._seed_generators()
        return self._step.losses(draw, self._rate(len(draw.table)))

    def _rate(self, windows: int) -> float:
        """Learning rate in the middle of a batch."""
        return self._schedule.rate(self._windows + windows / 2)

    def _update(self, losses: torch.Tensor, windows: int) -> None:
        self._learning_rate = self._rate(windows)
        self._step.update(losses, windows, self._learning_rate)
        self._batch += 1
        self._windows += windows

    def _seed_generators(self) -> None:
        """Key the random numbers of a batch by seed, batch and worker: a resumed training draws the same ones."""
        key = f"{self._settings.seed} {self._batch} {self._settings.rank}"
        seed = zlib.crc32(key.encode())
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _report(self) -> None:
        """Check the losses since the last report and write their mean. Collective.

        The only place where a GPU is waited for, about once a second.
        """
        now, starved = time.monotonic(), self._feed.starved_seconds
        losses = []
        if self._history:
            # One copy for all: a small network makes thousands of batches from one report to the next.
            sizes = np.cumsum([len(values) for _, _, values in self._history])
            losses = np.split(torch.cat([values for _, _, values in self._history]).double().cpu().numpy(), sizes[:-1])
        bad = next((index for index, values in enumerate(losses) if not np.isfinite(values).all()), None)
        row = np.full(4 + _NAMED, -1.0)
        row[:3] = sum(values.sum() for values in losses), sum(map(len, losses)), starved - self._reported_starved
        if bad is not None:
            batch, simulations, _ = self._history[bad]
            named = np.unique(simulations[~np.isfinite(losses[bad])])[:_NAMED]
            row[:1], row[3], row[4 : 4 + len(named)] = 0, batch, named
        table = self._workers.gather(row)
        self._require_finite(table[:, 3], table[:, 4:])
        self._records.losses([(one[1], values) for one, values in zip(self._history, losses, strict=True)])
        elapsed = max(now - self._reported, 1e-9)
        self._loss = float(table[:, 0].sum() / max(table[:, 1].sum(), 1))
        self._record = {
            "generation": self._settings.generation, "batch": self._batch, "windows": self._windows,
            "total_windows": self._settings.total_windows, "loss": self._loss,
            "learning_rate": self._learning_rate,
            "samples_per_second": (self._windows - self._reported_windows) / elapsed,
            "starved": min(1.0, float(table[:, 2].mean()) / elapsed), **self._callbacks.verdict,
        }  # fmt: skip
        self._records.metrics(self._record)
        self._tell("report", losses)
        self._history.clear()
        self._reported, self._reported_windows, self._reported_starved = now, self._windows, starved

    def _tell(self, kind: EventKind, losses: Sequence[np.ndarray] = ()) -> None:
        """Tell the callbacks; what they want to end is ended by the driver, which reads it in the metrics.

        losses : of the batches in the history, (batch,) each.
        """
        if self._settings.callbacks:
            of: dict[int, list[float]] = defaultdict(list)
            for (_, simulations, _), values in zip(self._history[: len(losses)], losses, strict=True):
                for simulation, value in zip(simulations.tolist(), values.tolist(), strict=True):
                    of[simulation].append(value)
            event = TrainingEvent(
                kind=kind, batch=self._batch, windows=self._windows, metrics=self._record,
                surrogate=self._surrogate, run_dir=self._run_dir, steer=self._feed.steer,
                losses={simulation: sum(values) / len(values) for simulation, values in of.items()},
            )  # fmt: skip
            self._callbacks.tell(event)

    def _require_finite(self, batches: np.ndarray, simulations: np.ndarray) -> None:
        """batches (workers,): first bad batch of each, -1 where there is none; simulations (workers, names)."""
        if (batches < 0).all():
            return
        first = batches[batches >= 0].min()
        named = np.unique(simulations[batches == first])
        raise FloatingPointError(
            f"The loss of batch {int(first)} is not finite, on windows of the simulations "
            f"{', '.join(str(int(s)) for s in named[named >= 0])}; the training stops. Batch {self._saved_batch} "
            f"is the last checkpoint. Resume with a learning rate below {self._settings.learning_rate:g}, "
            "or look at these simulations."
        )

    def _save(self) -> None:
        """Write a checkpoint. Collective."""
        state = TrainingState(
            batch=self._batch, windows=self._windows, generation=self._settings.generation,
            learning_rate=self._learning_rate,
            random={"seed": self._settings.seed, "counter": self._batch},
            optimizer=optimizer_settings(self._optimizer),
        )  # fmt: skip
        folder = self._run_dir / "checkpoints"
        self._workers.on_first(
            lambda: save_checkpoint(folder, state, model=self._surrogate, optimizer=self._optimizer),
            f"write the checkpoint of batch {self._batch}",
        )
        self._saved_batch, self._checkpointed = self._batch, time.monotonic()
        self._tell("checkpoint")

    def _finish(self) -> dict[str, Any]:
        """Leave a last report, a last checkpoint and the model. Collective."""
        if self._history:
            self._report()
        if self._batch:
            self._workers.on_first(self._surrogate.finish, "finish the model")
        if self._batch > self._saved_batch:
            self._save()
        if self._batch:
            self._workers.on_first(lambda: save_surrogate(self._surrogate, self._run_dir / "model"), "save the model")
        self._tell("end")
        return {
            "batch": self._batch, "windows": self._windows, "loss": self._loss,
            "generation": self._settings.generation, "seconds": time.monotonic() - self._started,
        }  # fmt: skip

    def _restore(self) -> None:
        """Take up the newest sound checkpoint, which worker 0 chooses; else freeze the normaliser. Collective."""
        folder = self._run_dir / "checkpoints"
        checkpoint: Checkpoint | None = latest_checkpoint(folder) if self._settings.rank == 0 else None
        batch = self._workers.from_first(checkpoint.state.batch if checkpoint else -1)
        if batch < 0:
            statistics = self._feed.statistics()
            if statistics["count"]:  # else the study was stopped before anything came, and no batch will
                self._surrogate.set_statistics(statistics["mean"], statistics["std"])
            return
        if checkpoint is None:
            checkpoint = read_checkpoint(folder / folder_name(batch))
        else:
            discard_newer(folder, batch)
        self._surrogate.load_state_dict(checkpoint.model)
        restore_optimizer(checkpoint, self._surrogate, self._optimizer)
        self._batch = self._saved_batch = checkpoint.state.batch
        self._windows = checkpoint.state.windows
        self._feed.begin_at(self._batch)
        logger.info("Training goes on from batch %d (%d windows used).", self._batch, self._windows)

    def _data_parallel(self, loss: WindowLoss) -> torch.nn.Module:
        if self._settings.num_ranks == 1:
            return loss
        devices = None if self._device.type == "cpu" else [self._device]
        # Newer versions have another name for the switch and warn of this one, which older versions need.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return DataParallel(
                # The only buffers are the frozen normaliser's, equal everywhere: no need to send them every batch.
                loss, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )  # fmt: skip
