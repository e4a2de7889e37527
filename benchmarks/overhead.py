"""What a solver loses by streaming: the same simulations with a study, whose reservoir has room, and without one.

    python benchmarks/overhead.py [--quick] [--only simulations|sends] [--device cpu] [--resume]

Parts: `simulations`, built-in cases on 1 and 2 ranks under mpirun, through shared memory, with and without a study in
turn; the figure compares the fastest simulations of each. `sends`, the processor time of a rank's thread in one call of
`send` (it does not count what the rank waits), a field of float64 that becomes float32, after the rank has walked
through so many bytes of memory, as a solver does between two snapshots: what lay in the caches is gone then, the
interpreter's part of them too. One JSON line per figure, also in benchmarks/results/overhead-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from lines import Report, flags
from stream import ROLES, Shape, line_of, play, run_ranks, study_of

OVERHEAD = (("heat2d", (64, 64)), ("heat2d", (256, 256)), ("heat2d", (512, 512)), ("fisher_kpp", (256, 256)))


def run_simulations(shape: Shape, case: list[Any], count: int) -> None:
    """Be one rank of a solver of a built-in case; rank 0 prints of each simulation the seconds that passed, that its
    thread had the processor, and that it waited for the study."""
    from mpi4py import MPI

    from headrace.cases.catalogue import find_case
    from headrace.online_training.client import Connection
    from headrace.online_training.stream_sink import StreamSink
    from headrace.solvers.simulate import simulate

    comm, loaded = MPI.COMM_WORLD, find_case(case[0], tuple(case[1])).load()
    parameters = loaded.draw(np.full(len(loaded.parameters), 0.5))
    seconds = []
    fields = {f"f{i}": loaded.grid.shape for i in range(shape.fields)}  # the names of the benchmark's intake
    with Connection(fields, comm) as connection:
        for _ in range(count):
            stream = connection.next()
            comm.Barrier()
            began, busy = time.perf_counter(), time.thread_time()
            simulate(loaded, parameters, StreamSink(stream), comm=comm, study_seed=1, simulation=1)
            busy = time.thread_time() - busy
            comm.Barrier()
            seconds.append((time.perf_counter() - began, busy, stream.blocked_seconds))
            stream.end()
    if comm.rank == 0:
        print(json.dumps(seconds), flush=True)


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


def measure_overhead(
    label: str, name: str, points: tuple[int, int], ranks: int, quick: bool
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield by how much streaming lengthens a simulation, with a reservoir that always has room."""
    from headrace.cases.catalogue import find_case

    case = find_case(name, points).load()
    count = 2 if quick else 3
    shape = Shape(part="overhead", fields=len(case.fields), rows=points[0], columns=points[1],
                  steps=len(case.times), ranks=ranks, transport="shm")  # fmt: skip
    alone, streamed = [], []
    for _ in range(1 if quick else 2):  # in turn, so that a slower moment of the machine meets both
        plain = run_ranks(shape, "simulations", [name, points], count)
        alone += json.loads(plain)[1:]
        with study_of(shape, count - 1) as (environment, _):
            streamed += json.loads(run_ranks(shape, "simulations", [name, points], count, **environment))[1:]
    # Each of the three is the least of its own.
    (was, busy_was, _), (now, busy_now, blocked) = (map(min, zip(*found, strict=True)) for found in (alone, streamed))
    value = 100 * (now / was - 1)
    yield line_of(
        label, value, "%", 0.0, goal=2.0, met=value < 2.0,
        seconds_streamed=[one[0] for one in streamed], seconds_alone=[one[0] for one in alone],
        setup=f"{shape.steps} snapshots of {shape.step_bytes} bytes, least of {len(alone)} simulations each; "
        f"ms a snapshot: {1e3 * was / shape.steps:.3g} alone, {1e3 * now / shape.steps:.3g} streamed; of rank 0's "
        f"processor {1e3 * busy_was / shape.steps:.3g} and {1e3 * busy_now / shape.steps:.3g}, waiting for the study "
        f"{1e3 * blocked / shape.steps:.3g}",
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
    parser = flags(__doc__, ("simulations", "sends"))
    parser.add_argument("--role", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play(options.role)
        return
    report = Report("overhead", quick=options.quick, resume=options.resume)
    for points in () if options.only == "simulations" else (16, 256) if options.quick else (16, 64, 256, 512):
        report.measure(f"sends {points}x{points},", measure_sends(points, options.quick))
    cases = () if options.only == "sends" else OVERHEAD[:1] if options.quick else OVERHEAD
    for name, points in cases:
        for ranks in (1, 2):
            label = f"overhead {name} {points[0]}x{points[1]}, {ranks} rank{'s' * (ranks > 1)}"
            report.measure(label, measure_overhead(label, name, points, ranks, options.quick))


if __name__ == "__main__":
    main()
