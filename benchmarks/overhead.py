"""What a solver loses by streaming, beside the least that sending can cost: one copy of each snapshot and one wake-up.

    python benchmarks/overhead.py [--quick] [--only simulations|shipped|sends] [--device cpu] [--resume]

Parts: `simulations`, built-in cases on 1 and 2 ranks under mpirun, in turn in the same processes: alone, streamed
through shared memory into a reservoir with room, and copied, where each snapshot becomes float32 in shared memory as
long as the rank's ring, and a byte in a pipe wakes another process (as seldom as messages leave, for steps that travel
together). The figure is the median over the turns of streamed over alone, so that a slower moment of the machine meets
both; `least` is the same of copied. Cases with `every` send a snapshot after so many time steps. `shipped`, the same of
built-in cases as they come, at their own size and with their own snapshots, of long ones those of the first second.
`sends`, the processor time of a rank's thread in one call of `send` (it does not count what the rank waits), a field
of float64 that becomes float32, after the rank has walked through so many bytes of memory, as a solver does between two
snapshots: what lay in the caches is gone then, the interpreter's part of them too.
One JSON line per figure, also in benchmarks/results/overhead-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from lines import Report, flags
from stream import ROLES, Shape, line_of, play, run_ranks, study_of

MOST_TURNS = 40
PATIENCE = 6.0  # seconds of turns
KINDS = ("alone", "streamed", "copied")


@dataclass(frozen=True)
class Setting:
    """A built-in case at some size (none: its own), which sends a snapshot after `every` time steps (0: as it says)."""

    name: str
    points: tuple[int, ...] | None
    every: int = 0
    snapshots: int = 100

    def __str__(self) -> str:
        if self.points is None:
            return f"{self.name} as shipped"
        often = f" every {self.every} steps" if self.every > 1 else ""
        return f"{self.name} {'x'.join(map(str, self.points))}{often}"

    def load(self) -> Any:
        """Return the case."""
        from headrace.cases.catalogue import find_case

        case = find_case(self.name, self.points).load()
        duration = case.duration * self.snapshots * max(1, self.every) / case.num_snapshots
        every = self.every or (case.steps_per_snapshot if self.points is None else None)
        return replace(case, duration=duration, num_snapshots=self.snapshots, steps_per_snapshot=every)


OVERHEAD = (
    Setting("heat2d", (64, 64)), Setting("heat2d", (256, 256)), Setting("heat2d", (512, 512), snapshots=40),
    Setting("heat2d", (64, 64), 16, 40), Setting("heat2d", (256, 256), 8, 20), Setting("heat2d", (512, 512), 4, 12),
    Setting("heat2d", (64, 64), 48, 40), Setting("heat2d", (64, 64), 96, 20), Setting("heat2d", (256, 256), 24, 12),
    Setting("heat2d", (512, 512), 8, 12), Setting("fisher_kpp", (256, 256), snapshots=12),
)  # fmt: skip
SHIPPED = tuple(Setting(name, None, snapshots=snapshots) for name, snapshots in (
    ("heat2d", 100), ("burgers1d", 100), ("kuramoto_sivashinsky", 100), ("gray_scott", 8), ("kolmogorov", 25),
    ("navier_stokes2d", 20), ("heat3d", 50), ("taylor_green3d", 4), ("cavity", 4), ("fisher_kpp", 50),
))  # fmt: skip


def run_simulations(shape: Shape, setting: list[Any], patience: float) -> None:
    """Be one rank; rank 0 prints for each turn and kind the seconds that passed, that its thread had the processor in
    all and within the sink, and that it waited for the study."""
    from mpi4py import MPI

    from headrace.online_training.client import Connection
    from headrace.online_training.stream_sink import StreamSink
    from headrace.solvers.simulate import simulate
    from headrace.solvers.sink import Sink, Snapshot

    points = None if setting[1] is None else tuple(setting[1])
    comm, loaded = MPI.COMM_WORLD, Setting(setting[0], points, *setting[2:]).load()
    parameters = loaded.draw(np.full(len(loaded.parameters), 0.5))
    fields = {f"f{i}": loaded.grid.shape for i in range(shape.fields)}  # the names of the benchmark's intake
    share = shape.step_bytes // comm.size
    ring = np.frombuffer(mmap.mmap(-1, max(2**20, 4 * share)), np.float32)  # of the length that an intake offers
    ring[...] = 0
    together = 16 if share <= 2**14 and setting[2] < 2 else 1  # as steps of so few bytes and microseconds travel
    listener = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)

    class Counted(Sink):
        """Counts the processor time of the calls of another sink; of none: does nothing."""

        def __init__(self, sink: Sink | None) -> None:
            self.sink, self.seconds = sink, 0.0

        def open(self, *args: Any) -> None:
            pass

        def write(self, snapshot: Snapshot) -> bool:
            began = time.thread_time()
            go_on = self.sink is None or self.sink.write(snapshot)
            self.seconds += time.thread_time() - began
            return go_on

        def close(self, *, failure: str | None = None) -> None:
            if self.sink is not None:
                self.sink.close(failure=failure)

    class Copied(Counted):
        """Copies each block into the ring and wakes the listener."""

        def __init__(self) -> None:
            super().__init__(None)
            self._place = 0

        def write(self, snapshot: Snapshot) -> bool:
            began, size = time.thread_time(), snapshot.values.size
            first = self._place if self._place + size <= len(ring) else 0
            ring[first : first + size].reshape(snapshot.values.shape)[...] = snapshot.values
            self._place = first + size
            if snapshot.step % together == together - 1:
                os.write(listener.stdin.fileno(), b".")
            self.seconds += time.thread_time() - began
            return True

    turns: list[dict[str, tuple[float, ...]]] = []
    with Connection(fields, comm) as connection:
        most, deadline = MOST_TURNS, time.perf_counter() + patience
        while len(turns) < most + 1:
            turn = {}
            for kind in KINDS if len(turns) % 2 else KINDS[::-1]:
                stream = connection.next() if kind == "streamed" else None
                sink = Copied() if kind == "copied" else Counted(StreamSink(stream) if stream else None)
                comm.Barrier()
                began, busy = time.perf_counter(), time.thread_time()
                simulate(loaded, parameters, sink, comm=comm, study_seed=1, simulation=1)
                busy = time.thread_time() - busy
                comm.Barrier()
                waited = stream.blocked_seconds if stream else 0.0
                turn[kind] = time.perf_counter() - began, busy, sink.seconds, waited
            turns.append(turn)
            if len(turns) == 2:  # the first one, in which everything is new, does not count
                left = (deadline - time.perf_counter()) / sum(seconds for seconds, *_ in turn.values())
                most = comm.bcast(min(MOST_TURNS, max(3, int(left))))
    listener.communicate()
    if comm.rank == 0:
        print(json.dumps(turns[1:]), flush=True)


def run_sends(shape: Shape, walks: list[int]) -> None:
    """Be a solver that walks through some MiB between two snapshots; print for each walk the median us of a send."""
    from headrace.online_training.client import Connection

    values, medians = np.random.default_rng(0).random((1, shape.rows, shape.columns)), []
    memory = np.zeros(max(walks) * 2**17)
    with Connection({"f0": (shape.rows, shape.columns)}) as connection:
        for walk, stream in zip(walks, connection.simulations(), strict=False):
            seconds = []
            with stream:
                for step in range(shape.steps):
                    memory[: walk * 2**17] += 1.0
                    began = time.thread_time()
                    stream.send(step=step, time=float(step), values=values)
                    seconds.append(time.thread_time() - began)
            medians.append(1e6 * float(np.median(seconds)))
    print(json.dumps(medians), flush=True)


ROLES["simulations"], ROLES["sends"] = run_simulations, run_sends


def measure_overhead(label: str, setting: Setting, ranks: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield by how much streaming lengthens a simulation, with a reservoir that always has room."""
    case = setting.load()
    shape = Shape(part="overhead", fields=len(case.fields), rows=0, columns=0, steps=len(case.times), ranks=ranks,
                  transport="shm", grid=case.grid.shape)  # fmt: skip
    told = [setting.name, setting.points, setting.every, setting.snapshots]
    with study_of(shape, MOST_TURNS + 1) as (environment, _):
        turns = json.loads(run_ranks(shape, "simulations", told, 2.0 if quick else PATIENCE, **environment))
    ratios = {kind: [turn[kind][0] / turn["alone"][0] for turn in turns] for kind in KINDS}
    found = {kind: [1e3 * statistics.median(one) / shape.steps for one in zip(*(turn[kind] for turn in turns),
             strict=True)] for kind in KINDS}  # fmt: skip
    (was, busy_was, _, _), (now, busy_now, within, waiting), (_, _, copying, _) = (found[kind] for kind in KINDS)
    for kind, name in (("streamed", ""), ("copied", ", least")):
        value = 100 * (statistics.median(ratios[kind]) - 1)
        low, _, high = statistics.quantiles(ratios[kind], n=4) if len(turns) > 1 else 3 * ratios[kind]
        yield line_of(
            label + name, value, "%", 0.0, goal=None if name else 2.0, met=None if name else value < 2.0,
            quartiles=[100 * (low - 1), 100 * (high - 1)], turns=len(turns),
            milliseconds={"alone": was, "streamed": now, "processor_alone": busy_was, "processor_streamed": busy_now,
                          "in_send": within, "waiting": waiting, "in_copy": copying},
            setup=f"{shape.steps} snapshots of {shape.step_bytes} bytes, median over turns; milliseconds a snapshot: "
            "passed alone and streamed, of rank 0's processor in all and within the calls of send, waited for the "
            "study, and of its processor for the copy and the wake-up",
        )  # fmt: skip


def measure_sends(points: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield what a send takes of a rank's processor time."""
    walks = [0, 16] if quick else [0, 1, 4, 16]
    shape = Shape(part="sends", fields=1, rows=points, columns=points, steps=100 if quick else 400, ranks=1,
                  transport="shm")  # fmt: skip
    with study_of(shape, len(walks) - 1) as (environment, _):
        medians = json.loads(run_ranks(shape, "sends", walks, **environment))
    for walk, value in zip(walks, medians, strict=True):
        yield line_of(
            f"sends {points}x{points}, {walk} MiB walked through", value, "us", None,
            setup=f"processor time of one call, median of {shape.steps}, a message of {shape.step_bytes} bytes",
        )  # fmt: skip


def main() -> None:
    """Measure what is asked for and print one JSON line per figure."""
    parser = flags(__doc__, ("simulations", "shipped", "sends"))
    parser.add_argument("--role", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play(options.role)
        return
    report = Report("overhead", quick=options.quick, resume=options.resume)
    wanted = {"simulations": OVERHEAD, "shipped": SHIPPED}
    for points in () if options.only in wanted else (16, 256) if options.quick else (16, 64, 256, 512):
        report.measure(f"sends {points}x{points},", measure_sends(points, options.quick))
    for part in wanted if options.only is None else wanted.keys() & {options.only}:
        for setting, ranks in product(wanted[part][:1] if options.quick else wanted[part], (1, 2)):
            label = f"overhead {setting}, {ranks} rank{'s' * (ranks > 1)}"
            report.measure(label, measure_overhead(label, setting, ranks, options.quick))


if __name__ == "__main__":
    main()
