"""The online stage: Newton's method on the modes, with the laws at the reduced points, for many queries at once.

All queries of a batch share their times; each has its own loads, motion of supports and temperature field. A query that
does not converge is taken out of the batch and its step is cut, while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from .law import COMPONENTS, ConvergenceError
from .loads import Temperature
from .problem import Problem
from .reduced_model import ReducedModel
from .solver import SCALE_FLOOR, NewtonSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """What may change online: factors of the loads, amplitudes of the supports, as functions of time; temperature.

    load_vectors : of this query alone, (loads, n), where they are not those of the model; see `Reduction.project`.
    """

    loads: tuple[Callable[[float], float], ...]
    supports: tuple[Callable[[float], float], ...]
    temperature: Temperature
    load_vectors: np.ndarray | None = None

    @classmethod
    def of(cls, problem: Problem) -> Query:
        """Return the query that a problem with the model's loads and supports, in their order, poses."""
        return cls(
            loads=tuple(load.factor for load in problem.loads),
            supports=tuple(support.amplitude for support in problem.supports),
            temperature=problem.temperature,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """The converged end of a step for Q queries.

    Attributes
    ----------
    coefficients, lifting : of the modes and of the supports, (Q, n), (Q, supports).
    temperature, strain, stress : at the points, (Q, d, ...).
    state : per law, (Q, points of the law, variables).
    largest : the largest force so far, (Q,).
    slope : of the coefficients over time in the last step, (Q, n), from which the next one begins.
    """

    coefficients: np.ndarray
    lifting: np.ndarray
    temperature: np.ndarray
    strain: np.ndarray
    stress: np.ndarray
    state: tuple[np.ndarray, ...]
    largest: np.ndarray
    slope: np.ndarray

    def take(self, which: np.ndarray) -> Batch:
        """Return some of the queries, by increasing numbers; not to be written to."""
        if len(which) == len(self.coefficients):
            return self
        arrays = {name: getattr(self, name)[which] for name in _ARRAYS}
        return Batch(**arrays, state=tuple(s[which] for s in self.state))

    def put(self, which: np.ndarray, other: Batch) -> None:
        """Overwrite some of the queries, in place."""
        for name in _ARRAYS:
            getattr(self, name)[which] = getattr(other, name)
        for mine, theirs in zip(self.state, other.state, strict=True):
            mine[which] = theirs


OBSERVED_AT_ONCE = 64  # states from which gappy coefficients are found together: few calls, little memory
_ARRAYS = ("coefficients", "lifting", "temperature", "strain", "stress", "largest", "slope")


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """What a batch of Q queries did, the start included.

    Attributes
    ----------
    times : (T,).
    coefficients, lifting : (Q, T, n), (Q, T, supports).
    duals : dual field -> gappy coefficients, (Q, T, modes of it).
    misfits : dual field -> gappy misfit relative to the largest norm of the run, (Q, T): the error indicator.
    steps : the whole batch at each time where it was asked for, else empty.
    """

    times: np.ndarray
    coefficients: np.ndarray
    lifting: np.ndarray
    duals: dict[str, np.ndarray]
    misfits: dict[str, np.ndarray]
    steps: list[Batch]


@dataclass(eq=False)
class _Trial:
    """Laws and forces of some queries at a guess; failed marks those whose law did not converge."""

    batch: Batch
    residual: np.ndarray
    matrix: np.ndarray
    tangent: np.ndarray
    norm: np.ndarray
    scale: np.ndarray
    failed: np.ndarray

    def put(self, which: np.ndarray, other: _Trial) -> None:
        self.batch.put(which, other.batch)
        for name in ("residual", "matrix", "tangent", "norm", "scale", "failed"):
            getattr(self, name)[which] = getattr(other, name)


class ReducedSolver:
    """Answers queries with a reduced model; no rank but its own takes part."""

    def __init__(self, model: ReducedModel, *, settings: NewtonSettings | None = None) -> None:
        self.model = model
        self.settings = settings or NewtonSettings()
        n, d = model.num_modes, len(model.points)
        self.B = model.strain_modes
        self.flat = self.B.reshape(6 * d, n)
        self.weights = np.repeat(model.weights, 6)
        self.weighted = self.flat * self.weights[:, None]
        self.lifted = bool(model.strain_lifting.any())  # supports that are held at zero lift nothing
        self.iterations = 0

    def initial(self, queries: Sequence[Query], time: float) -> Batch:
        """Return the virgin body at a time."""
        Q, (d, _, n) = len(queries), self.B.shape
        laws = zip(self.model.laws, self.model.law_points, strict=True)
        return Batch(
            coefficients=np.zeros((Q, n)),
            lifting=np.zeros((Q, self.model.strain_lifting.shape[2])),
            temperature=np.stack([self.model.temperature(query.temperature, time) for query in queries]),
            strain=np.zeros((Q, d, 6)), stress=np.zeros((Q, d, 6)),
            state=tuple(np.repeat(law.initial_state(len(points))[None], Q, axis=0) for law, points in laws),
            largest=np.zeros(Q), slope=np.zeros((Q, n)),
        )  # fmt: skip

    def run(self, queries: Sequence[Query], times: Sequence[float], *, keep: bool = False) -> Trajectory:
        """Return the answers to queries at the given times, the first of which is the start, from the virgin body.

        keep : whether the trajectory holds strains, stresses and state of all steps.

        Raises
        ------
        ValueError : times that do not increase, or a query with other numbers of loads or supports than the model.
        ConvergenceError : a query failed after all cuts of a step; says which, when and why.
        """
        times = np.asarray(times, dtype=float)
        if len(times) < 2 or np.any(np.diff(times) <= 0):
            raise ValueError(f"times must be at least two, increasing; they are {times}.")
        for query in queries:
            have, want = (len(query.loads), len(query.supports)), (
                len(self.model.load_vectors), self.model.strain_lifting.shape[2],
            )  # fmt: skip
            if have != want:
                raise ValueError(f"A query has {have} loads and supports, the model {want}; use Query.of(problem).")
        now = self.initial(queries, times[0])
        steps, fresh = [now], [now]
        coefficients, lifting = [now.coefficients], [now.lifting]
        seen: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in self.model.gappy}
        for start, end in pairwise(times):
            now = self._advance(now, list(queries), np.arange(len(queries)), (start, end), 0)
            coefficients.append(now.coefficients)
            lifting.append(now.lifting)
            fresh.append(now)
            if keep:
                steps.append(now)
            if len(fresh) * len(queries) >= OBSERVED_AT_ONCE or end == times[-1]:
                for name, gappy in self.model.gappy.items():
                    values = np.stack([self.point_values(name, batch) for batch in fresh], axis=1)
                    seen[name].append(gappy.coefficients(values))
                fresh = []
        duals, misfits = {}, {}
        for name, parts in seen.items():
            duals[name], misfit, norm = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
            largest = np.broadcast_to(norm.max(axis=1, keepdims=True), norm.shape)
            misfits[name] = np.divide(misfit, largest, out=np.zeros_like(misfit), where=largest > 0)
        return Trajectory(
            times=times, coefficients=np.stack(coefficients, axis=1), lifting=np.stack(lifting, axis=1), duals=duals,
            misfits=misfits, steps=steps if keep else [],
        )  # fmt: skip

    def point_values(self, name: str, batch: Batch) -> np.ndarray:
        """Return a dual field at the points, (Q, d), or all scaled internal variables, (Q, any), for "state"."""
        if name == "state":
            return self.model.flat_state(batch.state)
        if name.startswith("stress_"):
            return batch.stress[..., COMPONENTS.index(name.removeprefix("stress_"))]
        values = np.zeros(batch.temperature.shape)
        for law, points, state in zip(self.model.laws, self.model.law_points, batch.state, strict=True):
            if name in law.state_names:
                values[:, points] = state[..., law.column(name)]
        return values

    def _advance(
        self, start: Batch, queries: list[Query], names: np.ndarray, span: tuple[float, float], cuts: int
    ) -> Batch:
        """Return the end of a span of time; what fails goes in two halves."""
        end, failed, why = self._step(start, queries, span)
        if failed.any() and start.slope.any():
            # Where loads turn, the last step points the wrong way: once more from where it ended.
            which = np.flatnonzero(failed)
            rest = start.take(which)
            rest = replace(rest, slope=np.zeros_like(rest.slope))
            again, still, why = self._step(rest, [queries[k] for k in which], span)
            end.put(which, again)
            failed[which] = still
        if failed.any():
            which = np.flatnonzero(failed)
            if cuts == self.settings.max_cuts:
                raise ConvergenceError(
                    f"Query {names[which[0]]} found no reduced equilibrium at time {span[1]:g} after "
                    f"{cuts} cuts of the step. {why} Refine the times, or check the query's loads and temperature."
                )
            middle = (span[0] + span[1]) / 2
            some, part = [queries[k] for k in which], names[which]
            half = self._advance(start.take(which), some, part, (span[0], middle), cuts + 1)
            end.put(which, self._advance(half, some, part, (middle, span[1]), cuts + 1))
        return end

    def _step(self, start: Batch, queries: list[Query], span: tuple[float, float]) -> tuple[Batch, np.ndarray, str]:
        """Return the end of one step by Newton's method, which queries failed, and why."""
        time, dt = span[1], span[1] - span[0]
        factors = np.array([[f(time) for f in q.loads] for q in queries]).reshape(len(queries), -1)
        force = factors @ self.model.load_vectors
        for k, query in enumerate(queries):
            if query.load_vectors is not None:
                force[k] = factors[k] @ query.load_vectors
        lifting = np.array([[f(time) for f in q.supports] for q in queries]).reshape(len(queries), -1)
        heat = np.stack([self.model.temperature(q.temperature, time) for q in queries])
        # As in the full model, prescribed motion enters the first iteration as a known increment.
        guess = replace(start, temperature=heat, coefficients=start.coefficients + dt * start.slope)
        trial, why = self._trial(start, guess, force, dt)
        moved = (lifting != start.lifting).any(axis=1)
        scale = trial.scale.copy()
        done = trial.failed.copy()
        for iteration in range(self.settings.max_iterations + 1):
            scale = np.maximum(scale, trial.scale)
            largest = np.maximum(trial.batch.largest, scale)
            trial.batch.largest[:] = largest
            allowed = np.maximum(scale, SCALE_FLOOR * largest)
            done |= trial.failed | ((trial.norm <= self.settings.tolerance * allowed) & ~moved)
            which = np.flatnonzero(~done)
            if not which.size or iteration == self.settings.max_iterations:
                trial.failed[which] = True
                break
            self.iterations += 1
            old = trial.batch.take(which)
            right = trial.residual[which]
            if moved.any():
                change = (lifting - trial.batch.lifting)[which]
                known = np.einsum("dis,qs->qdi", self.model.strain_lifting, change)
                pull = (trial.tangent[which] @ known[..., None]).reshape(len(which), -1)
                right = right - pull @ self.weighted
            step = np.linalg.solve(trial.matrix[which], right[..., None])[..., 0]
            moved[:] = False
            goal = replace(old, coefficients=old.coefficients + step, lifting=lifting[which])
            before = trial.norm[which] if iteration else None
            new, problem = self._search(start.take(which), goal, step, force[which], dt, before)
            if len(which) == len(queries):
                trial = new
            else:
                trial.put(which, new)
            why = problem or why
        end = replace(trial.batch, slope=(trial.batch.coefficients - start.coefficients) / dt)
        return end, trial.failed, why or "Newton's method did not reach the tolerance."

    def _search(
        self, begin: Batch, goal: Batch, step: np.ndarray, force: np.ndarray, dt: float, before: np.ndarray | None
    ) -> tuple[_Trial, str]:
        """Return the trial at a goal, whose step is halved for queries that it does not take below the norms before.

        before : None where Newton's method must take the whole step.
        """
        new, why = self._trial(begin, goal, force, dt)
        for halving in range(1, self.settings.max_halvings + 1 if before is not None else 1):
            worse = np.flatnonzero(~(new.norm <= before) | new.failed)
            if not worse.size:
                break
            shorter = goal.coefficients[worse] + step[worse] * (0.5**halving - 1)
            guess = replace(goal.take(worse), coefficients=shorter)
            other, why = self._trial(begin.take(worse), guess, force[worse], dt)
            better = np.flatnonzero(new.failed[worse] | (other.norm < new.norm[worse]))
            new.put(worse[better], _take(other, better))
        return new, why

    def _trial(self, start: Batch, guess: Batch, force: np.ndarray, dt: float) -> tuple[_Trial, str]:
        """Return laws and forces of all queries of a batch at a guess, from the batch at the start of the step."""
        Q, (d, _, n) = len(guess.coefficients), self.B.shape
        strain = (guess.coefficients @ self.flat.T).reshape(Q, d, 6)
        if self.lifted:
            strain += np.einsum("dis,qs->qdi", self.model.strain_lifting, guess.lifting)
        stress, tangent = np.zeros((Q, d, 6)), np.zeros((Q, d, 6, 6))
        state = tuple(s.copy() for s in start.state)
        failed, why = np.zeros(Q, dtype=bool), ""
        change = strain - start.strain
        for k, (law, points) in enumerate(zip(self.model.laws, self.model.law_points, strict=True)):
            while len(points) and not failed.all():
                good = np.flatnonzero(~failed)
                whole = len(good) == Q and len(points) == d  # then nothing need be copied
                every = (slice(None), slice(None)) if whole else np.ix_(good, points)
                fields = (start.temperature, guess.temperature, start.strain, change)
                inputs = [(a if whole else a[every]).reshape(-1, *a.shape[2:]) for a in fields]
                before = start.state[k][good]
                try:
                    s, after, C = law.update(*inputs, before.reshape(len(good) * len(points), before.shape[-1]), dt)
                except ConvergenceError as error:
                    failed[good[np.unique(error.points // len(points))] if error.points.size else good] = True
                    why = str(error)
                    continue
                stress[every] = s.reshape(len(good), len(points), 6)
                tangent[every] = C.reshape(len(good), len(points), 6, 6)
                state[k][good] = after.reshape(before.shape)
                break
        internal = stress.reshape(Q, -1) @ self.weighted
        residual = force - internal
        norm = np.where(failed, np.inf, np.linalg.norm(residual, axis=1))
        scale = np.maximum(np.linalg.norm(force, axis=1), np.linalg.norm(internal, axis=1))
        matrix = self.weighted.T @ (tangent @ self.B).reshape(Q, 6 * d, n)
        batch = replace(
            guess, strain=strain, stress=stress, state=state, largest=guess.largest.copy(),
            coefficients=guess.coefficients.copy(), lifting=guess.lifting.copy(),
        )  # fmt: skip
        return _Trial(batch, residual, matrix, tangent, norm, np.maximum(scale, np.where(failed, 0, norm)), failed), why


def _take(trial: _Trial, which: np.ndarray) -> _Trial:
    arrays = (getattr(trial, name)[which] for name in ("residual", "matrix", "tangent", "norm", "scale", "failed"))
    return _Trial(trial.batch.take(which), *arrays)
