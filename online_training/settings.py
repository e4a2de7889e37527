"""The settings of a study: one typed, frozen model from which study.toml and the command line are made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .buffer_choice import BufferChoice
from .design import check_sampler
from .schedule import Schedule
from .scheduler import STEPS, Scheduler

RAY_NODES = "slurm-nodes"
"""Instead of a cluster's address: Ray is started on all nodes of the surrounding Slurm allocation."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str | int) -> int:
    """Return the number of bytes that "512MB", "2 GiB" or 1000 means.

    Raises
    ------
    ValueError : not a positive number with one of the units B, KB, MB, GB, TB, KiB, MiB, GiB.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", str(text))
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write e.g. 512MB, 2GB or 64MiB.")
    size = float(match[1]) * _UNITS[match[2].upper()]
    if not 1 <= size < 2**63:
        raise ValueError(f"{text!r} is not a size between 1 B and 2^63 B.")
    return int(size)


class StudySettings(BaseModel):
    """What a study does beside its case and its surrogate. Every field is a flag of `headrace train`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    simulations: int = Field(100, ge=1, description="Simulations to train on.")
    held_out: int = Field(10, ge=0, description="Further simulations kept for validation.")
    ranks: int = Field(2, ge=1, description="MPI ranks of one solver job.")
    threads: int = Field(
        0, ge=0, description="Threads of each solver rank; 0: what OMP_NUM_THREADS says where the study starts, else 1."
    )
    bind_cores: bool = Field(
        False, description="Bind each rank of a local job to cores of its own; a scheduler binds by its own options."
    )
    jobs: int = Field(1, ge=1, description="Solver jobs at the same time.")
    most_jobs: int = Field(
        0,
        ge=0,
        description="More than jobs: as many jobs at the same time as keep the trainer busy, from jobs to this number.",
    )
    workers: int = Field(1, ge=1, description="Trainer workers (Ray Train, data-parallel).")
    most_workers: int = Field(
        0,
        ge=0,
        description="More than workers: as many as Ray's cluster has GPUs or CPUs for, from workers to this number, "
        "also when that changes. In Python: workers=(1, 4).",
    )
    spread_workers: bool = Field(
        False,
        description="Spread the workers over the nodes of Ray; else they are on the intake's node while it has room.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to train: auto takes one GPU for each worker where there are as many."
    )
    record_steps: bool = Field(
        False,
        description="Replay the training step as a CUDA graph: for one worker on a GPU and small models.",
    )
    buffer: str = Field("256MB", description="Size of the reservoir in shared memory.")
    buffer_kind: Literal["reservoir", "fifo", "firo"] = Field(
        "reservoir",
        description="What becomes of windows that were used: drawn again (reservoir), or gone, in the order in which "
        "they came (fifo) or at random (firo). The last two need views 1.",
    )
    shards: int = Field(
        1,
        ge=1,
        description="Parts of the buffer; a simulation stays in the one that had most room, and trainer workers share "
        "the parts out among them, whatever their number.",
    )
    watermark: float = Field(
        0.1, gt=0, le=1, description="Training starts when this fraction of the reservoir, or of all steps, is there."
    )
    when_full: Literal["block", "skip", "spool"] = Field(
        "block",
        description="What becomes of a snapshot that the buffer has no room for: its solver waits (block), leaves it "
        "out (skip), or goes on while it lies on the intake's disk until there is room (spool).",
    )
    spool: str = Field("4GB", description="Size of the spool on disk; where it is full too, solvers wait.")
    spool_folder: str = Field(
        "", description="Folder of the spool, best on a disk of the intake's node; empty: spool/ in the run directory."
    )
    durability: Literal["memory", "node", "disk"] = Field(
        "memory",
        description="What an acknowledged step outlives: nothing (memory), the intake's process (node), the machine "
        "(disk; the reservoir then lies in the run directory). What is lost before its first use is run again.",
    )
    views: float = Field(10.0, gt=0, description="Target number of uses of each training window.")
    batch_size: int = Field(32, ge=1, description="Windows in one batch, over all workers.")
    learning_rate: float = Field(1e-3, gt=0, description="Highest learning rate of Adam.")
    schedule: Literal["cosine", "linear", "constant", "step"] = Field(
        "cosine", description="Learning rate over the samples used: to zero by a cosine or a line, constant, or halved."
    )
    warm_up: float = Field(0.02, ge=0, lt=1, description="Fraction of all uses over which the learning rate rises.")
    halve_every: int = Field(0, ge=0, description="Samples after which schedule step halves the learning rate.")
    patience: int = Field(0, ge=0, description="End after so many checkpoints without a better validation; 0: never.")
    least_improvement: float = Field(
        0.0, ge=0, lt=1, description="Relative improvement of the validation error that patience counts as one."
    )
    callbacks: str = Field(
        "", description="Functions of the case's file, separated by commas, that are told of progress and may end it."
    )
    nan_policy: Literal["quarantine", "stop", "keep"] = Field(
        "quarantine",
        description="NaN or infinity from a solver: drop the rest of that simulation, end the study, or train on it.",
    )
    sampler: str = Field(
        "sobol",
        description="How parameters are drawn: sobol, halton, lhs, uniform, breed (where the losses are large), or "
        "own:NAME for a function NAME(count, dims, rng) in the case's file.",
    )
    seed: int = Field(0, ge=0, description="Seed of design, sampler and weights.")
    deterministic: bool = Field(
        False,
        description="Draw in an order that the plan alone decides: a run repeats bit for bit on the CPU, also where it "
        "was killed and resumed. Solvers may wait for each other.",
    )
    checkpoint_every: float = Field(20.0, gt=0, description="Seconds between checkpoints.")
    start_limit: float = Field(
        300.0,
        gt=0,
        description="Seconds in which all ranks of a solver job that runs must have said hello to the study; else it "
        "is ended and replaced.",
    )
    step_limit: float = Field(
        0.0,
        ge=0,
        description="Seconds that a simulation may take for one step while there is room for it; else it goes into "
        "quarantine, and its job is replaced. 0: no limit.",
    )
    max_failures: int = Field(3, ge=0, description="Failures of one simulation, or of the trainer, before giving up.")
    statistics: bool = Field(
        False, description="Keep mean, variance, extremes and Sobol indices of the fields over all simulations."
    )
    offline: str = Field(
        "",
        description="Train on this data set of `headrace generate` instead of live simulations: the static rival, with "
        "the same model, loss, normaliser, schedule and validation. Simulations and held_out are then limits.",
    )
    loader: Literal["mapped", "hdf5"] = Field(
        "mapped",
        description="How a data set is read: packed once into float32 and memory-mapped, or from its HDF5 chunks.",
    )
    loader_processes: int = Field(0, ge=0, description="Processes that gather batches from a data set; 0: a thread.")
    scheduler: str = Field(
        "local",
        description="What starts solver jobs: mpirun on this node (local), slurm, pbs, steps of the Slurm allocation "
        "around the study (slurm-steps), or the path of a TOML file for another batch scheduler. Compute nodes must "
        "reach the intake: give --interface.",
    )
    scheduler_options: str = Field("", description="Further directives of batch jobs, e.g. '--partition=x --time=30'.")
    scheduler_launch: str = Field("", description="What starts the ranks in a batch job; empty: 'mpirun -n {ranks}'.")
    interface: str = Field(
        "127.0.0.1",
        description="What the intake listens on: an address, an interface's name such as ib0, or auto, by which other "
        "nodes know this one.",
    )
    port: int = Field(0, ge=0, le=65535, description="Port of the intake; 0 takes a free one.")
    ray_address: str = Field(
        "",
        description="HOST:PORT (or auto) of a running Ray cluster to train on, else RAY_ADDRESS; slurm-nodes: a Ray of "
        "the study's own on all nodes of the Slurm allocation around it. Empty: one of its own on this node.",
    )
    strict: bool = Field(False, description="Authenticate every payload byte, not only headers and checksums.")
    encrypt: bool = Field(False, description="Encrypt tcp connections (CURVE), at a third to a fifth of the speed.")

    @field_validator("sampler")
    @classmethod
    def _check_sampler(cls, value: str) -> str:
        return check_sampler(value)

    @field_validator("buffer", "spool", mode="before")
    @classmethod
    def _check_buffer(cls, value: str | int) -> str:
        parse_bytes(value)
        return str(value)

    @field_validator("scheduler")
    @classmethod
    def _check_scheduler(cls, value: str) -> str:
        if value in ("local", STEPS):
            return value
        Scheduler.load(value)
        return value if Path(value).stem == value else str(Path(value).absolute())

    @model_validator(mode="after")
    def _check_schedule(self) -> StudySettings:
        Schedule(kind=self.schedule, warm_up=self.warm_up, halve_every=self.halve_every)
        return self

    @model_validator(mode="after")
    def _check_views(self) -> StudySettings:
        if self.buffer_kind != "reservoir" and self.views != 1:
            raise ValueError(
                f"a buffer of kind {self.buffer_kind} uses each window once, but views is {self.views:g}; "
                "set views to 1, or take the reservoir"
            )
        return self

    @model_validator(mode="after")
    def _check_order(self) -> StudySettings:
        if self.deterministic and self.durability != "memory":
            raise ValueError("a deterministic run runs again what it needs; leave durability at memory")
        timed = (("sampler", "breed", "sobol"), ("when_full", "skip", "block"), ("when_full", "spool", "block"))
        for name, value, other in timed:
            if self.deterministic and getattr(self, name) == value:
                raise ValueError(f"{name} {value} follows the clock, so no deterministic run has it; take {other}")
        for name in ("most_jobs", "most_workers", "patience", "step_limit"):
            if self.deterministic and getattr(self, name):
                raise ValueError(f"{name} follows the clock, so no deterministic run has it; leave it out")
        return self

    @model_validator(mode="after")
    def _check_jobs(self) -> StudySettings:
        if 0 < self.most_jobs < self.jobs:
            raise ValueError(f"most_jobs is {self.most_jobs}, less than jobs, {self.jobs}; raise it, or leave it out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _take_python(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What Python says in one word: buffer=Reservoir("1GB"), workers=(1, 4)."""
        if isinstance(choice := values.get("buffer"), BufferChoice):
            values = {**choice.defaults, **values, **choice.settings()}
        if isinstance(values.get("workers"), tuple | list):
            least, most = values["workers"]
            return {**values, "workers": least, "most_workers": most}
        return values

    @model_validator(mode="after")
    def _check_workers(self) -> StudySettings:
        if 0 < self.most_workers < self.workers:
            raise ValueError(
                f"most_workers is {self.most_workers}, less than workers, {self.workers}; raise it, or leave it out"
            )
        if self.batch_size < self.max_workers:
            raise ValueError(
                f"a batch of {self.batch_size} windows cannot be dealt to {self.max_workers} workers; enlarge it"
            )
        return self

    @property
    def max_workers(self) -> int:
        """Trainer workers, at most."""
        return max(self.workers, self.most_workers)

    @property
    def max_running(self) -> int:
        """Simulations that may run at the same time, at most."""
        return max(self.jobs, self.most_jobs)

    @property
    def busy_processes(self) -> int:
        """How many processes want a core at the same time at most: ranks of solvers, and trainer workers."""
        return self.max_running * self.ranks + self.max_workers

    @property
    def buffer_bytes(self) -> int:
        """Size of the reservoir in bytes."""
        return parse_bytes(self.buffer)

    @property
    def spool_bytes(self) -> int:
        """Size of the spool in bytes."""
        return parse_bytes(self.spool)
