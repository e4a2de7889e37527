"""How wrong a reduced answer is, from what gappy POD cannot fit, and one full step that mends the model.

The misfit of p at the reduced points grows when the body does what training did not show (Casenave and Akkari, Math.
Comput. Appl. 24(2):41 (2019)). Pairs of misfit and true error of some runs calibrate it; where a
bound is exceeded, a step of the full solver at the time of the most unbalanced forces mends the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

from .offline import Reduction, Snapshots, Tolerances, compress
from .online import Query, ReducedSolver, Trajectory
from .solver import Increment, Solver


@dataclass(frozen=True, kw_only=True)
class ErrorBound:
    """A bound on the error of runs like those that calibrated it, from their indicators; made by `fit`.

    log error = level + power (log indicator - centre) + noise: the one-sided prediction interval of a straight line, so
    that it widens away from the indicators that it knows; never below any run that calibrated it.

    Attributes
    ----------
    level, power, centre : of the line.
    spread : sum of squares of log indicator - centre.
    margin : quantile of Student's t times the standard deviation about the line.
    lift : the furthest that a calibrating run lies above the line.
    count : how many runs calibrated it.
    """

    level: float
    power: float
    centre: float
    spread: float
    margin: float
    lift: float
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
            margin=float(student_t.ppf(confidence, len(x) - 2)) * deviation, lift=float(rest.max()), count=len(x),
        )  # fmt: skip

    def __call__(self, indicator: np.ndarray | float) -> np.ndarray | float:
        """Return the bound on the error."""
        away = np.log(np.maximum(indicator, np.finfo(float).tiny)) - self.centre
        width = self.margin * np.sqrt(1 + 1 / self.count + away**2 / self.spread)
        return np.exp(self.level + self.power * away + np.maximum(width, self.lift))


@dataclass(frozen=True, kw_only=True, eq=False)
class Correction:
    """A model after enrichment: the reduction, its answer to the query, and the times of the full steps."""

    reduction: Reduction
    answer: Trajectory
    full_steps: tuple[float, ...]


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
    tolerances: Tolerances | None = None,
) -> Correction:
    """Answer the solver's problem; while the misfit of p exceeds a limit, enrich by one full step and answer again.

    The laws at all points follow the answer's displacements, which says at which time forces are furthest from balance;
    the full step is that one, from the state before it. It adds a displacement; stresses, p and state of the whole
    replay join the snapshots, so that cubature and dual modes know the new problem, too. solver : of the new problem,
    on the subdomain of the reduction and with its laws, supports and loads. Collective.

    Raises
    ------
    ValueError : a solver of another mesh or partition.
    """
    if not np.array_equal(solver.subdomain.points, reduction.local.subdomain.points):
        raise ValueError("The solver's subdomain is not that of the reduction; make it with the same mesh and parts.")
    query, steps, taught = Query.of(solver.local.problem), [], reduction.snapshots
    answer = ReducedSolver(reduction.model).run([query], times)
    while len(steps) < max_steps and answer.misfits["p"].max() > limit:
        path, unbalanced = replayed(reduction, solver, answer)
        fresh = [k for k in range(1, len(path)) if path[k].time not in steps]
        if not fresh:
            break
        worst = max(fresh, key=unbalanced.__getitem__)
        step = list(solver.run([path[worst - 1].time, path[worst].time], start=path[worst - 1]))[-1]
        steps.append(step.time)
        taught = taught.joined(Snapshots.collect(solver.local, [step]))
        along = Snapshots.collect(solver.local, path[1:])  # of this round alone: earlier ones were further off
        reduction = compress(solver.local, taught.joined(along), tolerances)
        answer = ReducedSolver(reduction.model).run([query], times)
    return Correction(reduction=reduction, answer=answer, full_steps=tuple(steps))
