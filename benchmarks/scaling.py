"""How the stream scales: producers into intake shards, many jobs under one launcher, and a large study from both.

    python benchmarks/scaling.py [--quick] [--only stream|jobs|model] [--device cpu] [--resume]

Parts: `stream`, 1 to 64 producers into 1, 2 and 4 intakes on this host over tcp. A producer is a process with the real
client that sends steps as fast as credits allow: one rank's block of the published large study (a field of 1000 x 1000
on 10 ranks, 400 kB) and a small one of 4 kB, which tells the cost of a message from that of a byte. Intakes and
producers share the cores of this host, which the lines name. Throughput: bytes accepted by all intakes in a window of
seconds, after all producers have begun. Fairness: Jain's index of what the producers got through,
(sum x)^2 / (n sum x^2), 1 where all got the same. Memory: what an intake holds beside its reservoir. Controller: how
long the intakes take to say their status under this load, asked once a second as a study does.
`jobs`, seconds of one look at N batch jobs (exit files, and a scheduler that lists them all).
`model`, no measurement: a study of the published size (Meyer et al., SC23, arXiv 2309.16743: 8 TB in 2 h from 5,120
cores in 512 clients into 4 GPUs, 20,000 simulations of 100 steps of 1000 x 1000 float32, 2.45 million uses of samples),
each resource's use at that size and the number of cores at which it is used up, from the lines above and from
results/fno-cuda.json. One JSON line per figure, also in benchmarks/results/scaling-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from lines import Report, flags, record

RESULTS = Path(__file__).parent / "results"
STUDY, TOKEN = 0x5CA1E, bytes(range(32))
PATIENCE = 180
BLOCKS = {"400 kB": (100, 1000), "4 kB": (10, 100)}
STEPS = 100  # of a simulation, as published
SLOTS_BYTES = 64 * 2**20
LINK_BYTES = 12.5e9  # of one node's 100 Gb/s link, less than which no such machine has


@dataclass(frozen=True, kw_only=True)
class Load:
    """Producers, intakes and the block that each producer sends."""

    producers: int
    shards: int
    block: str

    @property
    def shape(self) -> tuple[int, int]:
        """Points of a block."""
        return BLOCKS[self.block]

    @property
    def bytes(self) -> int:
        """Bytes of a block, float32."""
        return 4 * self.shape[0] * self.shape[1]

    def __str__(self) -> str:
        return f"stream {self.producers} producers of {self.block}, {self.shards} shard{'s' * (self.shards > 1)}"


def loads(quick: bool) -> Iterator[Load]:
    """Yield what is to be measured."""
    for block in BLOCKS:
        for shards in (1, 2, 4):
            for producers in (1, 8) if quick else (1, 2, 4, 8, 16, 32, 64):
                if producers >= shards and (not quick or shards < 4):
                    yield Load(producers=producers, shards=shards, block=block)


# -- the other processes -------------------------------------------------------------------------------------------


def serve_intake(load: Load, folder: str) -> None:
    """Be one intake: print its address, then its status, and what it used if asked for that, for each line on stdin."""
    from headrace.online_training.fifo import FIFO
    from headrace.online_training.intake import Intake
    from headrace.online_training.intake_settings import IntakeSettings
    from headrace.online_training.layout import StreamLayout
    from headrace.online_training.simulation_run import Assignment
    from headrace.online_training.slot_memory import SlotMemory

    class UsedAtOnce(FIFO):
        """The oldest step makes room for each new one: a trainer that is never slow."""

        def put(self, simulation: int, attempt: int, step: int, slot: int) -> None:
            super().put(simulation, attempt, step, slot)
            if self.population > self.capacity // 2:
                self.release([window.ticket for window in self.sample(1)])

    layout = StreamLayout(fields=("u",), shape=load.shape, num_steps=STEPS, window=1)
    memory = SlotMemory.create(f"scaling-{os.getpid()}", layout, SLOTS_BYTES)
    memory.array.fill(0)
    (Path(folder) / "ledger").mkdir()
    intake = Intake(
        IntakeSettings(
            layout=layout, buffer=UsedAtOnce(len(memory.array), 1), memory=memory, views=1e-9, batch_size=1,
            study=STUDY, session=1, token=TOKEN, interface="127.0.0.1", port=0, run_dir=Path(folder),
            max_running=load.producers, ring_bytes=0,
        )
    )  # fmt: skip
    intake.plan([Assignment(simulation=number, parameters={}) for number in range(10_000)])
    intake.start()
    print(intake.addresses, flush=True)
    for word in sys.stdin:
        used = {"cpu": time.process_time(), "held": private_bytes()} if word.strip() == "used" else {}
        print(json.dumps({**intake.status(), **used}), flush=True)
    os._exit(0)


def private_bytes() -> int:
    """Return the memory of this process that it shares with none; the reservoir is shared memory."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return sum(
        1024 * int(row.split()[1]) for row in rollup.splitlines() if row.startswith(("Private_Clean", "Private_D"))
    )


def produce(load: Load) -> None:
    """Be one producer until stdin ends; print the number of steps sent so far for each line on it."""
    from headrace.online_training.client import Connection

    sent = 0

    def answer() -> None:
        for _ in sys.stdin:
            print(sent, flush=True)
        os._exit(0)

    threading.Thread(target=answer, daemon=True).start()
    values = np.random.default_rng(os.getpid()).random((1, *load.shape), np.float32)
    where = tuple(slice(0, n) for n in load.shape)
    with Connection({"u": load.shape}, None) as connection:
        for stream in connection.simulations():
            with stream:
                for step in range(STEPS):
                    stream.send(step=step, time=float(step), values=values, where=where)
                    sent += 1


class Processes:
    """The processes of one load, asked all together; whatever happens they end with the block."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def start(self, role: str, load: Load, *rest: str, **environment: str) -> subprocess.Popen:
        """Start a process that plays a role."""
        process = subprocess.Popen(
            [sys.executable, __file__, "--role", json.dumps([role, asdict(load), *rest])], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip
        self._running.append(process)
        return process


def ask(processes: list[subprocess.Popen], what: str = "") -> list[Any]:
    """Ask processes for what they count, all at once."""
    for process in processes:
        process.stdin.write(f"{what}\n")
        process.stdin.flush()
    return [json.loads(process.stdout.readline()) for process in processes]


def measure_stream(load: Load, seconds: float) -> Iterator[dict[str, Any]]:
    """Yield the figures of one load."""
    with tempfile.TemporaryDirectory() as top, Processes() as processes:
        token = Path(top) / "token"
        token.touch(0o600)
        token.write_text(TOKEN.hex())
        folders = [Path(top) / str(number) for number in range(load.shards)]
        for folder in folders:
            folder.mkdir()
        intakes = [processes.start("intake", load, str(folder)) for folder in folders]
        addresses = [intake.stdout.readline().strip().split(",") for intake in intakes]
        tcp = [next(one for one in some if one.startswith("tcp")) for some in addresses]
        before = [status["held"] for status in ask(intakes, "used")]
        producers = [
            processes.start(
                "producer", load, HEADRACE_TOKEN_FILE=str(token), HEADRACE_STUDY=f"{STUDY:016x}",
                HEADRACE_JOB=f"1-{number:04d}", HEADRACE_ADDRESS=tcp[number % load.shards],
                HEADRACE_LOG_DIR=str(folders[number % load.shards] / "ledger"),
            )
            for number in range(load.producers)
        ]  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while min(ask(producers)) < 3:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{load}: not all producers began in {PATIENCE} s")
            time.sleep(0.2)
        began, first, counts = time.monotonic(), ask(intakes, "used"), ask(producers)
        answers = []
        while time.monotonic() - began < seconds:
            time.sleep(min(1.0, max(0.0, began + seconds - time.monotonic())))
            asked = time.perf_counter()
            ask(intakes)
            answers.append(1e3 * (time.perf_counter() - asked))
        last, ends, elapsed = ask(intakes, "used"), ask(producers), time.monotonic() - began
    if any(status["error"] or status["rejected"] for status in last):
        raise RuntimeError(f"{load}: an intake failed or rejected messages: {last}")
    steps = sum(b["steps_accepted"] - a["steps_accepted"] for a, b in zip(first, last, strict=True))
    got = [b - a for a, b in zip(counts, ends, strict=True)]
    squares = sum(x * x for x in got)
    busy = [(b["cpu"] - a["cpu"]) / elapsed for a, b in zip(first, last, strict=True)]
    held = [status["held"] - start for status, start in zip(last, before, strict=True)]
    setup = f"{seconds:g} s, tcp on one host, authentication and checksums on, pyzmq {zmq.__version__}"
    yield line(f"{load}: throughput", steps * load.bytes / elapsed / 1e6, "MB/s", setup)
    yield line(f"{load}: steps", steps / elapsed, "1/s", setup)
    yield line(f"{load}: fairness", sum(got) ** 2 / (len(got) * squares) if squares else 0.0, "1", setup)
    yield line(f"{load}: least to most", min(got) / max(1, max(got)), "1", setup)
    yield line(f"{load}: cores of an intake", statistics.mean(busy), "cores", setup)
    yield line(f"{load}: memory of an intake beside its reservoir, grown", max(held) / 1e6, "MB", setup)
    yield line(f"{load}: answer of all intakes to the controller", statistics.median(answers), "ms", setup)


def measure_jobs(count: int) -> Iterator[dict[str, Any]]:
    """Yield how long one look at so many batch jobs takes: their exit files, and a scheduler that lists them all."""
    from headrace.online_training.batch_launcher import BatchLauncher
    from headrace.online_training.launcher import Job

    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        listing = folder / "listing"
        listing.write_text("".join(f"{number} RUNNING\n" for number in range(1, count + 1)))
        programs = {"sbatch": f"n=$(cat {top}/n); echo $n; echo $((n + 1)) > {top}/n", "squeue": f"cat {listing}"}
        for name, body in programs.items():
            (folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (folder / name).chmod(0o755)
        (folder / "n").write_text("1")
        old = os.environ["PATH"]
        os.environ["PATH"] = f"{top}{os.pathsep}{old}"
        try:
            launcher = BatchLauncher("slurm", launch="run -n {ranks}", poll_seconds=0.0)
            began = time.perf_counter()
            for number in range(count):
                launcher.start(
                    Job(name=f"1-{number}", command=["true"], ranks=1, environment={}, log=folder / f"{number}.log")
                )
            started = time.perf_counter() - began
            looks, used = [], time.process_time()
            for _ in range(5):
                began = time.perf_counter()
                if launcher.poll():
                    raise RuntimeError("a job that runs was held for ended")
                looks.append(time.perf_counter() - began)
            used = (time.process_time() - used) / 5
        finally:
            os.environ["PATH"] = old
    setup = "exit files on a local disk; sbatch and squeue are shell scripts that answer at once"
    yield line(f"jobs {count}: one look", 1e3 * statistics.median(looks), "ms", setup)
    yield line(f"jobs {count}: processor time of one look", 1e3 * used, "ms", setup)
    yield line(f"jobs {count}: submission of one", 1e3 * started / count, "ms", setup)


# -- the model -----------------------------------------------------------------------------------------------------

CORES, CLIENTS, GPUS, HOURS = 5120, 512, 4, 2.0
STEP_BYTES, STUDY_BYTES, USES = 4e6, 8e12, 2.45e6


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One thing that a large study uses.

    used : fraction in use at the published size, or None where it does not grow with the number of cores.
    basis : where its capacity is from.
    """

    name: str
    used: float
    basis: str


def model(lines: list[dict[str, Any]]) -> list[Resource]:
    """Return the use of each resource at the published size; each grows in proportion to the number of cores.

    Intakes: bytes and blocks at what one intake takes in with many producers on it, times one for each GPU, which
    have nodes of their own. Trainers: bytes of samples used, at the bytes that a training step of the FNO gets through
    on one GPU. Links: one node for each GPU. Controller: one look at all jobs in each 5 s. Memory beside the reservoir:
    what one intake grew by per producer, against 64 GB.
    """
    values = {entry["name"]: entry["value"] for entry in lines}
    rate = STUDY_BYTES / (HOURS * 3600)
    block = STEP_BYTES * CLIENTS / CORES
    most = max(load.producers for load in _measured(values))

    def best(name: str, block_name: str) -> float:
        found = [
            values[f"{load}: {name}"] for load in _measured(values)
            if load.block == block_name and load.shards == 1 and load.producers >= min(8, most)
        ]  # fmt: skip
        return max(found)

    large, small = best("throughput", "400 kB") * 1e6, best("steps", "4 kB")
    one_host = "measured with producers and intakes on the same cores"
    resources = [
        Resource(name="intakes, bytes", used=rate / (GPUS * large), basis=f"{large / 1e9:.2f} GB/s each, {one_host}"),
        Resource(name="intakes, blocks", used=rate / block / (GPUS * small), basis=f"{small:.0f} 1/s each, {one_host}"),
        Resource(name="links", used=rate / (GPUS * LINK_BYTES), basis="100 Gb/s for each of 4 nodes, assumed"),
    ]
    grown = [
        values[f"{load}: memory of an intake beside its reservoir, grown"] / load.producers
        for load in _measured(values) if load.shards == 1 and load.producers == most
    ]  # fmt: skip
    resources.append(
        Resource(
            name="intakes, memory beside the reservoir", used=max(grown) * 1e6 * CORES / GPUS / 64e9,
            basis=f"{max(grown):.2f} MB for each peer, extrapolated from {most} to {CORES // GPUS} peers; 64 GB a node",
        )
    )  # fmt: skip
    looks = {
        int(name.split()[1].rstrip(":")): value
        for name, value in values.items()
        if name.startswith("jobs") and name.endswith(": one look")
    }
    if looks:
        count = max(looks)
        resources.append(
            Resource(name="controller", used=looks[count] * 1e-3 * CLIENTS / count / 5.0,
                     basis=f"{looks[count]:.0f} ms to look at {count} jobs, once in 5 s")
        )  # fmt: skip
    steps = _training_steps()
    if steps:
        name, bytes_per_second = max(steps.items(), key=lambda item: item[1])
        resources.append(
            Resource(name="trainers", used=USES * STEP_BYTES / (HOURS * 3600) / (GPUS * bytes_per_second),
                     basis=f"{bytes_per_second / 1e9:.2f} GB/s of samples on one H100, {name}; published: another")
        )  # fmt: skip
    return resources


def _measured(values: dict[str, float]) -> list[Load]:
    every = [
        Load(producers=producers, shards=shards, block=block)
        for block in BLOCKS for shards in (1, 2, 4) for producers in (1, 2, 4, 8, 16, 32, 64)
    ]  # fmt: skip
    return [load for load in every if f"{load}: throughput" in values]


def _training_steps() -> dict[str, float]:
    """Return bytes of samples per second of each measured training step of ours, "training B20 C32 64x64 ...: ours"."""
    path = RESULTS / "fno-cuda.json"
    found = {}
    for entry in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
        name, _, what = entry["name"].partition(": ")
        if name.startswith("training B") and what.startswith("ours") and entry["unit"] == "ms" and entry["value"]:
            _, batch, _, grid, *_ = name.split()
            points = int(np.prod([int(n) for n in grid.split("x")]))
            found[f"{name}, {what}"] = 4 * int(batch[1:]) * points / (entry["value"] * 1e-3)
    return found


def model_lines(lines: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the figures of the model, the resource that binds first at last; cores and device are the measurements'."""
    where = next({key: one[key] for key in ("cores", "device", "load")} for one in lines if "stream" in one["name"])
    resources = model(lines)
    study = f"{CORES} cores, {CLIENTS} clients, {GPUS} GPUs, 8 TB in 2 h"
    for resource in resources:
        setup = f"{resource.basis}; {study}"
        for what, value, unit in (
            ("used at the published size", resource.used, "1"),
            ("cores at which it is used up", CORES / resource.used, "cores"),
        ):
            yield {**line(f"model {resource.name}: {what}", value, unit, setup), **where}
    first = max(resources, key=lambda resource: resource.used)
    yield {**line(f"model binds first: {first.name}", CORES / first.used, "cores", first.basis), **where}


def line(name: str, value: float, unit: str, setup: str) -> dict[str, Any]:
    """Return the line of one figure."""
    return {
        **record((name, value, unit, None, None, setup), precision="fp32"),
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure what is asked for and print one JSON line per figure."""
    parser = flags(__doc__, ("stream", "jobs", "model"))
    parser.add_argument("--role", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        role, load, *rest = options.role
        {"intake": serve_intake, "producer": produce}[role](Load(**load), *rest)
        return
    report = Report("scaling", quick=options.quick, resume=options.resume)
    if options.only in (None, "stream"):
        for load in loads(options.quick):
            report.measure(f"{load}:", measure_stream(load, 1.5 if options.quick else 4.0))
    if options.only in (None, "jobs"):
        for count in (100,) if options.quick else (100, 512, 5000):
            report.measure(f"jobs {count}:", measure_jobs(count))
    if options.only in (None, "model"):
        report.resume = False
        report.measure("model", model_lines(report.lines))


if __name__ == "__main__":
    main()
