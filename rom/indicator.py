"""How wrong a reduced answer is, from what gappy POD cannot fit, and one full step that mends the model.

The misfit of p at the reduced points grows when the body does what training did not show (Casenave and Akkari, Math.
Comput. Appl. 24(2):41 (2019)). Pairs of misfit and true error of some runs calibrate it; where a
bound is exceeded, a step of the full solver at the time of the most unbalanced forces mends the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student_t

from .offline import Reduction, Snapshots, Tolerances, compress
from .online import Query, ReducedSolver, Trajectory
from .solver import Increment, Solver


@dataclass(frozen=True, kw_only=True)
class ErrorBound:
    """A bound on the error of runs like those that calibrated it, from their indicators; made by `fit`.

    log error = level + power (log indicator - centre) + noise: the one-sided prediction interval of a straight line, so
    that it widens away from the indicators that it knows; never below any run that calibrated it. Outside these
    indicators the line's slope is not trusted alone: below, the bound falls no faster than the indicator, above, it
    grows no slower.

    Attributes
    ----------
    level, power, centre : of the line.
    spread : sum of squares of log indicator - centre.
    margin : quantile of Student's t times the standard deviation about the line.
    lift : the furthest that a calibrating run lies above the line.
    smallest, largest : log indicators that calibrated it.
    count : how many runs calibrated it.
    """

    level: float
    power: float
    centre: float
    spread: float
    margin: float
    lift: float
    smallest: float
    largest: float
    count: int

    @classmethod
    def fit(cls, indicators: np.ndarray, errors: np.ndarray, *, confidence: float = 0.95) -> ErrorBound:
        """Return the bound from pairs of several runs, that a new run keeps with a probability of `confidence`.

        Raises
        ------
        ValueError : fewer than three pairs with different positive indicators, or pairs that are not finite.
        """
        x, y = np.asarray(indicators, dtype=float).ravel(), np.asarray(errors, dtype=float).ravel()
        if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError(f"A bound needs as many errors as indicators, all finite; it has {x} and {y}.")
        positive = (x > 0) & (y > 0)
        if len(np.unique(x[positive])) < 3:
            raise ValueError(f"A bound needs at least three different positive indicators; it has {x[positive]}.")
        x, y = np.log(x[positive]), np.log(y[positive])
        # A bound that falls where the indicator grows would make no sense.
        power = max(float(np.polyfit(x, y, 1)[0]), 0.0)
        away = x - x.mean()
        rest = y - y.mean() - power * away
        deviation = float(np.sqrt(rest @ rest / (len(x) - 2)))
        return cls(
            level=float(y.mean()), power=power, centre=float(x.mean()), spread=float(away @ away),
            margin=float(student_t.ppf(confidence, len(x) - 2)) * deviation, lift=float(rest.max()),
            smallest=float(x.min()), largest=float(x.max()), count=len(x),
        )  # fmt: skip

    def __call__(self, indicator: np.ndarray | float) -> np.ndarray | float:
        """Return the bound on the error."""
        x = np.log(np.maximum(indicator, np.finfo(float).tiny))
        inside = np.clip(x, self.smallest, self.largest)
        return np.exp(np.maximum(self._log(x), self._log(inside) + x - inside))

    def _log(self, x: np.ndarray) -> np.ndarray:
        away = x - self.centre
        width = self.margin * np.sqrt(1 + 1 / self.count + away**2 / self.spread)
        return self.level + self.power * away + np.maximum(width, self.lift)


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """A model after enrichment: the reduction, its answer to the query, and what the full model was asked.

    full_steps : times of the full steps. iterations : of Newton's method with all of the mesh, single ones included.
    along : the laws at all points along the answer's displacements, the start included; empty where nothing was mended.
    """

    reduction: Reduction
    answer: Trajectory
    full_steps: tuple[float, ...]
    iterations: int
    along: tuple[Increment, ...]


def replayed(reduction: Reduction, solver: Solver, answer: Trajectory) -> tuple[list[Increment], list[float]]:
    """Return the increments of the laws along the answer's displacements, and their unbalanced forces. Collective.

    Both begin with the start. solver : of the query's problem on the subdomain of the reduction; nothing is solved.
    """
    fields = reduction.displacement_field(answer.coefficients[0], answer.lifting[0])
    increments, forces = [solver.initial(float(answer.times[0]))], [0.0]
    for displacement, time in zip(fields[1:], answer.times[1:], strict=True):
        increment, force = solver.follow(increments[-1], displacement, float(time))
        increments.append(increment)
        forces.append(force)
    return increments, forces


def corrected(
    reduction: Reduction,
    solver: Solver,
    times: Sequence[float],
    *,
    limit: float,
    max_steps: int = 3,
    max_single: int = 10,
    tolerances: Tolerances | None = None,
) -> Correction:
    """Answer the solver's problem; while the misfit of p exceeds a limit, enrich by one full step and answer again.

    The laws at all points follow the answer's displacements, which says how far forces are from balance at each time.
    Where they are furthest, a full step is made from the state before it; at up to `max_single` other times one
    iteration of Newton's method. What these displacements add to the answer's is what the modes lack. Stresses, p and
    state of the replay join the snapshots, so that cubature and dual modes know the new problem too; as these lag
    behind the displacements, the new answer is replayed and compressed once more, before its misfit counts.

    solver : of the new problem, on the subdomain of the reduction and with its laws, supports and loads. Collective.

    Raises
    ------
    ValueError : a solver of another mesh or partition.
    """
    if not np.array_equal(solver.subdomain.points, reduction.local.subdomain.points):
        raise ValueError("The solver's subdomain is not that of the reduction; make it with the same mesh and parts.")
    local, query, steps, iterations = solver.local, Query.of(solver.local.problem), [], 0
    answer, taught = ReducedSolver(reduction.model).run([query], times), reduction.snapshots
    path, unbalanced = [], []
    while len(steps) < max_steps and answer.misfits["p"].max() > limit:
        if not path:
            path, unbalanced = replayed(reduction, solver, answer)
        order = sorted(range(1, len(path)), key=unbalanced.__getitem__)
        fresh = [k for k in order if path[k].time not in steps]
        if not fresh:
            break
        worst = fresh[-1]
        step = list(solver.run([path[worst - 1].time, path[worst].time], start=path[worst - 1]))[-1]
        added = Snapshots.collect(local, [step])
        better = [added.displacement]
        for k in [k for k in order[::-1] if k != worst][:max_single]:
            moved = solver.improve(path[k - 1], path[k].displacement, path[k].time) - local.prescribed(path[k].time)
            better.append(moved.reshape(-1, 1))
        steps.append(step.time)
        iterations += step.iterations + len(better) - 1
        taught = taught.joined(replace(added, displacement=np.hstack(better)))
        for _ in range(2):
            along = Snapshots.collect(local, path[1:])  # of the newest answer alone: earlier ones were further off
            reduction = compress(local, taught.joined(along), tolerances)
            answer = ReducedSolver(reduction.model).run([query], times)
            path, unbalanced = replayed(reduction, solver, answer)
    return Correction(
        reduction=reduction, answer=answer, full_steps=tuple(steps), iterations=iterations, along=tuple(path)
    )
