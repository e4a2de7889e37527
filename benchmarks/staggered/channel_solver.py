"""Our staggered solver past the block of a channel: its numbers against time, in another process or on MPI ranks.

mpirun -n 8 python -m staggered.channel_solver NAME FOLDER writes FOLDER/NAME.npz, and STAGGERED_REFERENCES=FOLDER finds
it there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headrace.solvers import Case, Parameters, Sink, Snapshot
from headrace.solvers.simulate import simulate

from .figures import solved_beside
from .planes import Measured

if TYPE_CHECKING:
    from .channel import Channel


def means(solved: dict[str, np.ndarray]) -> tuple[float, float, np.ndarray]:
    """Return kinetic energy, drag and line of our solver over the second half of its time."""
    half = len(solved["energy"]) // 2
    return solved["energy"][half:].mean(), solved["drag"][half:].mean(), solved["line"]


def named(series: np.ndarray, lines: np.ndarray) -> dict[str, np.ndarray]:
    """Return the signals of steps by their names, and their lines."""
    return {"energy": series[:, 0], "drag": series[:, 1], "across": series[:, 2], "lines": lines}


def means_over(signals: dict[str, np.ndarray], where: slice) -> tuple[float, float, np.ndarray]:
    """Return kinetic energy, drag and line over some steps."""
    return signals["energy"][where].mean(), signals["drag"][where].mean(), signals["lines"][where].mean(0)


def distances(mine: tuple[float, float, np.ndarray], own: tuple[float, float, np.ndarray]) -> list[float]:
    """Return how far each of the means is from our solver's, relative."""
    return [abs(mine[0] / own[0] - 1), abs(mine[1] / own[1] - 1),
            float(np.linalg.norm(mine[2] - own[2]) / np.linalg.norm(own[2]))]  # fmt: skip


def compared(
    found: dict[str, np.ndarray], wanted: tuple[float, float, np.ndarray], span: slice, when: str, goal: float | None,
    words: str,
) -> Iterator[Measured]:  # fmt: skip
    """Yield how far the means of a roll-out over some steps are from wanted ones."""
    mine = means_over(found, span)
    off = distances(mine, wanted)
    for what, number in (("energy", 0), ("drag", 1)):
        told = f"{mine[number]:.5g}; {words}"
        yield f"{what} over our solver's{when}, less 1", off[number], goal, wanted[number], told
    what = f"mean profile three heights behind the block{when}, distance from our solver's"
    yield what, off[2], goal, None, words


def frequency(signal: np.ndarray, step: float) -> float:
    """Return the frequency of the strongest peak, the mean of its neighbourhood in the spectrum."""
    power = np.abs(np.fft.rfft((signal - signal.mean()) * np.hanning(len(signal)))) ** 2
    top = max(2, int(power[1:].argmax()) + 1)
    near = np.arange(max(1, top - 3), min(len(power), top + 4))
    return float((near * power[near]).sum() / power[near].sum() / (len(signal) * step))


class Signals(Sink):
    """Keeps `Channel.signals` of every snapshot, and the mean line of the second half, on all ranks alike."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.rows, self.lines = channel, [], []
        self._comm: Any = None

    def open(self, case: Case, parameters: Parameters, comm: Any) -> None:
        """Begin. Collective."""
        self._comm = comm

    def write(self, snapshot: Snapshot) -> bool:
        """Keep the numbers of a snapshot. Collective."""
        velocity, pressure, where = snapshot.values[:-1], snapshot.values[-1], snapshot.where
        numbers = np.array(self.channel.signals(velocity, pressure, where=where))
        line, place = np.zeros(self.channel.shape[1:]), self.channel.station - where[0].start
        if 0 <= place < velocity.shape[1]:
            line[where[1:]] = velocity[0, place]
        found = np.concatenate([numbers, line.ravel()])
        found = found if self._comm is None else self._comm.allreduce(found)
        self.rows.append(found[:3])
        self.lines.append(found[3:])
        return True

    def close(self, *, failure: str | None = None) -> None:
        """End."""

    def result(self) -> dict[str, np.ndarray]:
        """Return the series, and the mean line of the second half."""
        rows = np.array(self.rows)
        names = ("energy", "drag", "across")
        series = {name: rows[:, number] for number, name in enumerate(names)}
        return {**series, "line": np.mean(self.lines[len(rows) // 2 :], axis=0)}


def own_solver(name: str, comm: Any = None) -> dict[str, np.ndarray]:
    """Return the signals of our solver from the start of the held-out simulation. Collective."""
    from .channel import CHANNELS

    channel = CHANNELS[name]
    window = channel.start_windows("", 1, 1, "cpu", 1_000_000, torch.ones(1))
    sink = Signals(channel)
    case = channel.case(duration=channel.solved, start=channel.velocity(window.double())[:, 0].numpy())
    simulate(case, Parameters({}), sink, comm=comm)
    return sink.result()


@cache
def reference(name: str) -> Future[dict[str, np.ndarray]]:
    """Return `own_solver`, known from before or on its way."""
    return solved_beside(name, own_solver, name)


if __name__ == "__main__":
    from mpi4py import MPI

    solved = own_solver(sys.argv[1], MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        np.savez(Path(sys.argv[2]) / f"{sys.argv[1]}.npz", **solved)
