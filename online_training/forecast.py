"""What a study will need before it is started: memory, storage, network and time, and what limits it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .feeder import memory_bytes
from .layout import StreamLayout
from .settings import StudySettings
from .supply import most_ahead

INTAKE_BYTES_PER_SECOND = 0.7e9
"""What one intake takes in over tcp in blocks of 400 kB: the least of benchmarks/results/scaling-cpu.json, rounded."""

# Bytes of ledger, seen on a study of 505 steps: 200 for a step and 87 for each rank's part of it, 64 for a window used.
_LEDGER_STEP, _LEDGER_RANK, _LEDGER_WINDOW = 200, 87, 64
_CHECKPOINTS = 2  # that stay
_ADAM = 4  # weights, gradients and two moments
_DRAWS = 4  # batches in a worker's hands: two asked for, one in use, one as tensors
_RING_BYTES, _ALL_RINGS_BYTES = 16 * 2**20, 2**30  # as IntakeSettings has them
_INTERPRETER_BYTES = {
    "trainer": 450e6, "feeder": 21e6, "intake": 100e6, "ray": 1150e6, "driver": 570e6, "validator": 240e6
}  # fmt: skip
"""Memory of a process beside what it holds, pages shared with others by their shares, as benchmarks/plan.py saw it on
CPUs; Ray: its processes on one node, and Ray Train's own actors."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What one step of each part costs, measured or given.

    simulation : seconds of one simulation on its ranks. batch : seconds of one batch on all workers.
    rank_bytes : resident memory of one solver rank. model_bytes : size of the weights.
    cores : of the node that solvers and trainer share where jobs are local; 0: more than they need.
    """

    simulation: float
    batch: float
    rank_bytes: float
    model_bytes: float
    cores: int = 0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Needs of a study, in bytes and seconds.

    memory : by part; all on the node of intake and trainer, but the solvers', which are where their jobs are.
    storage : by part, in the run directory.
    streamed : bytes of all samples, which are never stored.
    fetched : bytes that workers on other nodes than the intake's draw over the network, at most.
    seconds : that each part would take, were the others not there.
    jobs_enough : solver jobs with which the trainer is just kept busy.
    """

    memory: dict[str, float]
    storage: dict[str, float]
    streamed: float
    fetched: float
    seconds: dict[str, float]
    jobs_enough: int

    @property
    def limit(self) -> str:
        """The part that takes longest, which the others wait for."""
        return max(self.seconds, key=lambda part: self.seconds[part])

    @property
    def total_seconds(self) -> float:
        """Length of the study, its start-up not counted."""
        return self.seconds[self.limit]

    @property
    def rate(self) -> float:
        """Bytes per second between solvers and intake, on average."""
        return self.streamed / self.total_seconds


def require_seconds(name: str, value: float) -> None:
    """Raise ValueError unless the cost of a simulation or a batch is a positive number."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"The seconds of a {name} must be a positive number; got {value!r}.")


def forecast(layout: StreamLayout, settings: StudySettings, costs: Costs, *, on_gpus: bool = False) -> Forecast:
    """Return what a study will need.

    The parts work at the same time: a study is as long as its longest part. Held-out simulations are solved too.

    on_gpus : whether its workers have GPUs; then each has a feeder process.

    Raises
    ------
    ValueError : a cost is not a positive number.
    """
    for name, value in (("simulation", costs.simulation), ("batch", costs.batch)):
        require_seconds(name, value)
    every = settings.simulations + settings.held_out
    steps = every * layout.num_steps
    windows = settings.simulations * layout.num_starts
    uses = windows * settings.views
    elsewhere = settings.workers - 1 if settings.spread_workers else 0
    ranks = settings.max_running * settings.ranks
    batch_bytes = settings.batch_size * layout.window * layout.step_bytes
    slots = min(settings.buffer_bytes, settings.simulations * layout.num_steps * layout.step_bytes)
    rings = min(ranks * _RING_BYTES, _ALL_RINGS_BYTES) if settings.scheduler == "local" else 0
    workers = settings.workers * (_INTERPRETER_BYTES["trainer"] + _ADAM * costs.model_bytes) + _DRAWS * batch_bytes
    feeders = 0.0
    if on_gpus:
        size, count = settings.batch_size, settings.workers
        ahead = most_ahead(layout, size, count, settings.buffer_bytes // layout.step_bytes)
        feeders = count * (_INTERPRETER_BYTES["feeder"] + memory_bytes(layout, size, count, ahead))
    training = uses / settings.batch_size * costs.batch
    streamed = float(steps * layout.step_bytes)
    seconds = {
        "solvers": math.ceil(every / settings.max_running) * costs.simulation,
        "intake": streamed / INTAKE_BYTES_PER_SECOND,
        "trainer": training,
    }
    if costs.cores and settings.scheduler == "local":
        used = every * costs.simulation * settings.ranks + training * settings.workers
        seconds["cores of this node"] = used / costs.cores
    longest_other = max(size for part, size in seconds.items() if part != "solvers")
    return Forecast(
        memory={
            "reservoir (shared memory)": float(slots), "rings (shared memory)": float(rings),
            "intake": _INTERPRETER_BYTES["intake"], "trainer": workers, **({"feeders": feeders} if on_gpus else {}),
            "Ray": _INTERPRETER_BYTES["ray"],
            "driver": _INTERPRETER_BYTES["driver"], "validator": _INTERPRETER_BYTES["validator"],
            "solvers": ranks * costs.rank_bytes,
        },
        storage={
            # Held-out simulations are written in double precision.
            "held-out simulations": 2.0 * settings.held_out * layout.num_steps * layout.step_bytes,
            "checkpoints and model": (_CHECKPOINTS * (_ADAM - 1) + 2) * costs.model_bytes,
            "ledger": steps * (_LEDGER_STEP + settings.ranks * _LEDGER_RANK) + windows * _LEDGER_WINDOW,
        },
        streamed=streamed,
        # Windows of one batch that overlap share steps, of which each is sent once.
        fetched=float(uses * layout.window * layout.step_bytes) * elsewhere / settings.workers,
        seconds=seconds,
        jobs_enough=min(every, max(1, math.ceil(every * costs.simulation / longest_other))),
    )  # fmt: skip
