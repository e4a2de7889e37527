"""A solver for tests: `mpirun -n N python mpi_stream.py JSON` sends fields whose every value is known.

Settings: shape, fields, steps, cut (ranks along each axis), cells (true: each rank owns cells here and there, and names
them), mode ("one" or "all" simulations),
crash ([simulation, attempt, step]: rank 0 kills itself there), pause (seconds between steps).
It prints one JSON line per rank: words, bytes sent, seconds blocked, simulations seen.
"""

import json
import os
import signal
import sys
import time

import numpy as np
from mpi4py import MPI

from headrace.online_training.client import STOP, Connection, connect


def place(rank: int, cut: list[int], shape: list[int]) -> tuple[slice, ...]:
    """This rank's block of a grid cut into blocks that differ in size."""
    where = []
    for parts, n in zip(cut, shape, strict=True):
        rank, i = divmod(rank, parts)
        edges = [len(part) for part in np.array_split(np.arange(n), parts)]
        where.append(slice(sum(edges[:i]), sum(edges[: i + 1])))
    return tuple(where)


def cells_of(rank: int, ranks: int, shape: list[int]) -> np.ndarray:
    """The numbers of this rank's cells, here and there in the grid; other ranks have others, and more or fewer."""
    mixed = np.random.default_rng(1).permutation(int(np.prod(shape)))
    edges = np.linspace(0, 1, ranks + 1) ** 2 * mixed.size
    return mixed[int(edges[rank]) : int(edges[rank + 1])]


def value_of(simulation: int, step: int, shape: list[int], field: int) -> np.ndarray:
    """The same numbers as intake_setup.field_of."""
    cells = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    return cells + 1000.0 * step + 100000.0 * simulation + 0.5 * field


def simulate(stream, comm, settings: dict) -> list[int]:
    by_number = settings.get("cells", False)
    cells = cells_of(comm.rank, comm.size, settings["shape"])
    where = cells if by_number else place(comm.rank, settings["cut"], settings["shape"])
    own = np.unravel_index(cells, settings["shape"]) if by_number else where
    words = []
    for step in range(settings["steps"]):
        values = {
            name: value_of(stream.simulation, step, settings["shape"], i)[own]
            for i, name in enumerate(settings["fields"])
        }
        if settings.get("nan") == [stream.simulation, step] and comm.rank == comm.size - 1:
            values[settings["fields"][0]].flat[0] = np.nan
        if settings.get("crash") == [stream.simulation, stream.attempt, step] and comm.rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        word = stream.send(step=step, time=0.1 * step, values=values, where=where)
        words.append(int(word))
        comm.Barrier()
        if word == STOP:
            break
        time.sleep(settings.get("pause", 0.0))
    return words


def main() -> None:
    settings, comm = json.loads(sys.argv[1]), MPI.COMM_WORLD.Dup()  # as our own solver jobs have it
    fields = {name: settings["shape"] for name in settings["fields"]}
    report = {"rank": comm.rank, "words": [], "bytes": 0, "blocked": 0.0, "skipped": 0, "seen": [], "lost": []}

    def note(stream, words: list[int]) -> None:
        report["words"].append(words)
        report["bytes"] += stream.bytes_sent
        report["blocked"] += stream.blocked_seconds
        report["skipped"] += stream.steps_skipped
        report["seen"].append([stream.simulation, stream.attempt, stream.parameters["nu"]])
        report["lost"].append(stream.lost is not None)

    if settings.get("mode") == "one":
        with connect(fields, comm) as stream:
            words = simulate(stream, comm, settings)
        note(stream, words)
    else:
        with Connection(fields, comm) as connection:
            for stream in connection.simulations():
                with stream:
                    words = simulate(stream, comm, settings)
                note(stream, words)
    for rank in range(comm.size):
        comm.Barrier()
        if rank == comm.rank:
            # In one write, also where output is not buffered: mpirun may put what another rank writes between two.
            sys.stdout.write(json.dumps(report) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
