"""Breed: new simulations near those on which the training loses most (after Dymchenko et al., arXiv 2410.05860)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .ledger import RecordWriter, decoded

LOSSES = "losses"
"""Folder of a run directory in which trainer workers leave what their windows cost."""

_SHRINK, _TRIES = 0.3, 6


@dataclass(frozen=True, kw_only=True)
class BreedSettings:
    """How far the sampler follows the losses.

    first_share, last_share : probability that a new simulation is the child of another one, at the beginning and from
        the middle of the adaptive part on; the others keep the point that the plain design gives them.
    spread : standard deviation of child about parent, in the unit cube; where a child falls outside, the spread is
        shrunk by 0.3 and drawn again, a few times.
    recent : a parent is one of so many simulations that the losses were last heard of.
    """

    first_share: float = 0.15
    last_share: float = 0.75
    spread: float = 0.07
    recent: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.first_share <= self.last_share <= 1 or not 0 < self.spread < 1 or self.recent < 1:
            raise ValueError(f"{self} needs 0 <= first_share <= last_share <= 1, 0 < spread < 1, recent >= 1.")


class Breed:
    """Proposes points of the unit cube; the same observations and numbers give the same proposals.

    The fitness of a simulation is the mean, over the uses of its windows, of by how many standard deviations of its
    batch a window's loss exceeded the batch's mean, and 0 where it did not.

    Parameters
    ----------
    design : points of the plain design, (simulations, dims); the first ones are taken as they are.
    first : number of those.
    """

    def __init__(self, design: np.ndarray, first: int, seed: int, settings: BreedSettings | None = None) -> None:
        self._design, self._first, self._seed = design, first, seed
        self._settings = settings or BreedSettings()
        self.points: dict[int, np.ndarray] = {}
        """Where each simulation runs that was added."""
        self._sums: dict[int, list[float]] = {}  # simulation -> sum of excesses, uses; least recently heard of first

    def add(self, simulation: int, point: np.ndarray) -> None:
        """Note at which point a simulation runs, so that it can be a parent."""
        self.points[simulation] = np.asarray(point, dtype=np.float64)

    def observe(self, simulation: int, excess: float, count: int) -> None:
        """Take the sum of excesses over a number of uses of a simulation's windows."""
        old = self._sums.pop(simulation, [0.0, 0.0])
        self._sums[simulation] = [old[0] + excess, old[1] + count]

    def fitness(self) -> dict[int, float]:
        """Return the fitness of the possible parents."""
        known = [one for one in self._sums if one in self.points][-self._settings.recent :]
        return {one: self._sums[one][0] / max(self._sums[one][1], 1.0) for one in known}

    def propose(self, simulation: int) -> np.ndarray:
        """Return the point of a simulation, (dims,) in [0, 1), and note it."""
        s, plain = self._settings, self._design[simulation]
        rng = np.random.default_rng([self._seed, simulation, 0xB3EED])
        part = (simulation - self._first) / max(1, len(self._design) - self._first)
        share = s.first_share + (s.last_share - s.first_share) * min(1.0, 2 * max(part, 0.0))
        fitness = self.fitness()
        total = sum(fitness.values())
        point = plain
        if simulation >= self._first and total > 0 and rng.random() < share:
            parents = list(fitness)
            weights = np.array(list(fitness.values())) / total
            point = _child(self.points[parents[rng.choice(len(parents), p=weights)]], s.spread, rng)
        self.add(simulation, point)
        return point


def _child(parent: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    for attempt in range(_TRIES):
        child = parent + rng.normal(0.0, spread * _SHRINK**attempt, parent.shape)
        if np.all((child >= 0) & (child < 1)):
            return child
    return np.clip(child, 0.0, np.nextafter(1.0, 0.0))


def excess_of(losses: np.ndarray) -> np.ndarray:
    """Return by how many standard deviations each loss exceeds the mean of its batch; 0 where it does not."""
    spread = losses.std()
    return np.maximum(losses - losses.mean(), 0.0) / spread if spread > 0 else np.zeros_like(losses)


class LossLog:
    """What one trainer worker tells the sampler: per report, each simulation's excess and number of uses."""

    def __init__(self, run_dir: str | Path, name: str) -> None:
        folder = Path(run_dir) / LOSSES
        folder.mkdir(exist_ok=True)
        self._records = RecordWriter(folder / f"{name}.log")

    def append(self, history: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Write the (simulations (batch,), losses (batch,)) of the batches since the last report.

        Raises
        ------
        OSError : the disk is full.
        """
        if not history:
            return
        simulations = np.concatenate([numbers for numbers, _ in history])
        excess = np.concatenate([excess_of(np.asarray(losses, dtype=np.float64)) for _, losses in history])
        numbers, places = np.unique(simulations, return_inverse=True)
        sums, counts = np.bincount(places, excess), np.bincount(places)
        self._records.append(
            {"s": [int(n) for n in numbers], "d": [round(float(d), 6) for d in sums], "c": [int(c) for c in counts]}
        )
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()


class LossReader:
    """Follows the loss logs of all workers of a run."""

    def __init__(self, run_dir: str | Path) -> None:
        self._folder = Path(run_dir) / LOSSES
        self._read: dict[Path, int] = {}

    def news(self) -> Iterator[tuple[int, float, int]]:
        """Yield (simulation, sum of excesses, uses) written since the last call, unfinished lines excepted."""
        for path in sorted(self._folder.glob("*.log")):
            with open(path, "rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read[path] = self._read.get(path, 0) + whole
            for line in data[:whole].splitlines(keepends=True):
                record = decoded(line)
                if record is not None:  # else of a machine that lost power: losses are hints, and others will come
                    yield from zip(record["s"], record["d"], record["c"], strict=True)
