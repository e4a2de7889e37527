"""The embedded high-fidelity solver: quasi-static equilibrium over time by Newton's method on subdomains."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .communicator import Communicator
from .law import ConvergenceError
from .linear_solver import LinearSolver
from .material import State
from .problem import LocalProblem, Problem
from .reader import TimeSeries
from .subdomain import distribute

if TYPE_CHECKING:
    from mpi4py import MPI

logger = logging.getLogger(__name__)

LOOSEST = 1e-3  # relative residual of the linear systems far from equilibrium
SCALE_FLOOR = 1e-6  # part of the largest force so far below which forces count as zero


@dataclass(frozen=True, kw_only=True)
class NewtonSettings:
    """How hard the solver tries.

    Parameters
    ----------
    tolerance : of the out-of-balance force relative to the external and internal forces.
    max_iterations : of Newton's method before the step is cut in half.
    max_cuts : how often in a row a step may be halved.
    max_halvings : of a Newton step in the line search.

    Raises
    ------
    ValueError : numbers that cannot be.
    """

    tolerance: float = 1e-8
    max_iterations: int = 15
    max_cuts: int = 8
    max_halvings: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise ValueError(f"NewtonSettings: tolerance {self.tolerance} must be between 0 and 1.")
        for name, low in (("max_iterations", 1), ("max_cuts", 0), ("max_halvings", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"NewtonSettings: {name} {getattr(self, name)} must be at least {low}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Increment:
    """The converged end of one increment, on this rank's subdomain.

    Attributes
    ----------
    time : end of the increment.
    displacement : consistent, (num_local_nodes, 3).
    temperature, strain, stress : at the local quadrature points, (num_local_points, ...).
    state : internal variables per law; see `Material.field`.
    iterations : Newton iterations of the increment.
    residual : relative out-of-balance force reached.
    """

    time: float
    displacement: np.ndarray
    temperature: np.ndarray
    strain: np.ndarray
    stress: np.ndarray
    state: State
    iterations: int = 0
    residual: float = 0.0


@dataclass(eq=False)
class _Trial:
    """A displacement with everything that follows from it; residual is consistent and zero at prescribed dofs."""

    displacement: np.ndarray
    strain: np.ndarray
    stress: np.ndarray
    state: State
    tangent: np.ndarray
    residual: np.ndarray
    norm: float
    scale: float


class Solver:
    """Solves a problem on the ranks of a communicator; `run` yields every increment that it makes.

    Attributes
    ----------
    subdomain : this rank's share of the mesh.
    local : the problem on it.
    linear : the linear solver, with counts of its iterations and factorisations.
    """

    def __init__(
        self,
        problem: Problem,
        comm: MPI.Comm | Communicator | None = None,
        *,
        settings: NewtonSettings | None = None,
        parts: np.ndarray | None = None,
    ) -> None:
        """Distribute the mesh and prepare loads and linear solver; every rank passes the same problem. Collective."""
        self.settings = settings or NewtonSettings()
        self.subdomain = distribute(problem.mesh, comm, parts)
        self.local = LocalProblem(problem, self.subdomain)
        self.linear = LinearSolver(self.local)
        self.comm = self.subdomain.comm
        self._largest = 0.0

    def initial(self, time: float) -> Increment:
        """Return the virgin body at a time: no displacement, no strain, no history."""
        points = self.local.kinematics.num_points
        return Increment(
            time=time,
            displacement=np.zeros((self.subdomain.mesh.num_nodes, 3)),
            temperature=self.local.temperature(time),
            strain=np.zeros((points, 6)),
            stress=np.zeros((points, 6)),
            state=self.local.material.initial_state(),
        )

    def run(self, times: Sequence[float], start: Increment | None = None) -> Iterator[Increment]:
        """Yield the increments that lead through the given times, those of cut steps included. Collective.

        times : increasing; the first is the start, where the body is virgin unless `start` says otherwise.

        Raises
        ------
        ValueError : times that do not increase, or that do not begin where `start` ends.
        ConvergenceError : a step failed after all cuts; says when and why. On every rank.
        """
        times = [float(t) for t in times]
        if len(times) < 2 or np.any(np.diff(times) <= 0):
            raise ValueError(f"times must be at least two, increasing; they are {times}.")
        if start is not None and start.time != times[0]:
            raise ValueError(f"times begin at {times[0]:g}, but the given start is at {start.time:g}.")
        now = start or self.initial(times[0])
        for goal in times[1:]:
            cuts = 0
            while now.time < goal:
                dt = (goal - now.time) / 2**cuts
                # Without this, rounding would leave a last step of length zero.
                end = goal if cuts == 0 else now.time + dt
                try:
                    now = self.step(now, end)
                except ConvergenceError as error:
                    cuts += 1
                    if cuts > self.settings.max_cuts:
                        raise ConvergenceError(
                            f"No equilibrium at time {end:g} from {now.time:g}, after {self.settings.max_cuts} cuts of "
                            f"the step. {error} Refine the times, or check loads, supports and laws."
                        ) from error
                    logger.info("step to %g cut in half: %s", end, error)
                    continue
                cuts = max(cuts - 1, 0)
                yield now

    def step(self, start: Increment, time: float) -> Increment:
        """Return the equilibrium at a later time, in one increment. Collective.

        Raises
        ------
        ConvergenceError : Newton's method failed; on every rank.
        """
        temperature = self.local.temperature(time)
        force = self.local.external_force(time)
        # The first iteration starts from the old displacement; prescribed motion enters it as a known increment.
        trial = self._trial(start, temperature, force, start.displacement, time)
        known = np.where(self.local.fixed, self.local.prescribed(time) - start.displacement, 0.0)
        moved = self.comm.any(bool(np.any(known)))
        scale = trial.scale
        for iteration in range(self.settings.max_iterations + 1):
            scale = max(scale, trial.scale)
            self._largest = max(self._largest, scale)
            allowed = max(scale, SCALE_FLOOR * self._largest)
            relative = trial.norm / allowed if allowed > 0 else 0.0
            if relative <= self.settings.tolerance and not moved:
                return Increment(
                    time=time, displacement=trial.displacement, temperature=temperature, strain=trial.strain,
                    stress=trial.stress, state=trial.state, iterations=iteration, residual=relative,
                )  # fmt: skip
            if iteration == self.settings.max_iterations:
                break
            du = self._direction(trial, known if moved else None, relative)
            trial = self._advance(start, temperature, force, trial, du, time, search=iteration > 0)
            moved = False
        raise ConvergenceError(
            f"Newton's method left a relative out-of-balance force of {relative:.3g} after "
            f"{self.settings.max_iterations} iterations; {self.settings.tolerance:.3g} was asked for."
        )

    def follow(self, start: Increment, displacement: np.ndarray, time: float) -> tuple[Increment, float]:
        """Return the increment that a given displacement makes, and the norm of forces out of balance. Collective.

        Raises
        ------
        ConvergenceError : the law fails; on every rank.
        """
        temperature = self.local.temperature(time)
        trial = self._trial(start, temperature, self.local.external_force(time), displacement, time)
        return Increment(
            time=time, displacement=displacement, temperature=temperature, strain=trial.strain, stress=trial.stress,
            state=trial.state, residual=trial.norm / trial.scale if trial.scale > 0 else 0.0,
        ), trial.norm  # fmt: skip

    def improve(self, start: Increment, displacement: np.ndarray, time: float) -> np.ndarray:
        """Return a displacement at a time after one iteration of Newton's method, from the state before. Collective.

        displacement : consistent, as the supports prescribe; (num_local_nodes, 3).

        Raises
        ------
        ConvergenceError : the law or the linear solver fails; on every rank.
        """
        trial = self._trial(start, self.local.temperature(time), self.local.external_force(time), displacement, time)
        return displacement + self._direction(trial, None, trial.norm / trial.scale if trial.scale > 0 else 0.0)

    def _trial(
        self, start: Increment, temperature: np.ndarray, force: np.ndarray, displacement: np.ndarray, time: float
    ) -> _Trial:
        """Evaluate laws and forces at a displacement. Collective; raises on every rank."""
        local = self.local
        strain = local.kinematics.strain(displacement)
        error: ConvergenceError | None = None
        try:
            stress, state, tangent = local.material.update(
                start.temperature, temperature, start.strain, strain - start.strain, start.state, time - start.time
            )
        except ConvergenceError as caught:
            error = caught
        self.comm.raise_together(error, ConvergenceError)
        internal, external = (
            self.subdomain.assemble(split) for split in (local.kinematics.internal_force(stress), force)
        )
        residual = np.where(local.fixed, 0.0, external - internal)
        norms = [self.subdomain.norm(field) for field in (residual, external, internal)]
        return _Trial(displacement, strain, stress, state, tangent, residual, norms[0], max(norms))

    def _direction(self, trial: _Trial, known: np.ndarray | None, relative: float) -> np.ndarray:
        """Return Newton's increment, the known part of prescribed dofs included. Collective."""
        matrices = self.local.kinematics.stiffness(trial.tangent)
        right = trial.residual
        tolerance = self.settings.tolerance
        if known is not None:
            split = np.zeros_like(known)
            for block, K in zip(self.local.kinematics.blocks, matrices, strict=True):
                moved = (K @ known[block.nodes].reshape(len(K), -1, 1)).reshape(len(K), -1, 3)
                self.local.kinematics.scatter(split, block.nodes, moved)
            right = right - self.subdomain.assemble(split)
            relative = 1.0
        # As accurate as keeps Newton's convergence quadratic, but not beyond what the tolerance can see.
        accuracy = max(min(LOOSEST, relative), min(0.1 * tolerance / max(relative, tolerance), LOOSEST))
        du = self.linear.solve(matrices, right, symmetric=self.local.material.symmetric, tolerance=accuracy)
        return du if known is None else du + known

    def _advance(
        self,
        start: Increment,
        temperature: np.ndarray,
        force: np.ndarray,
        trial: _Trial,
        du: np.ndarray,
        time: float,
        *,
        search: bool,
    ) -> _Trial:
        """Return the trial at the end of the increment, which is halved while that does not lower the residual."""
        best: _Trial | None = None
        for halving in range(self.settings.max_halvings + 1 if search else 1):
            new = self._trial(start, temperature, force, trial.displacement + du / 2**halving, time)
            if new.norm < trial.norm or not search:
                return new
            if best is None or new.norm < best.norm:
                best = new
        if best.norm > 10 * trial.norm:
            raise ConvergenceError(
                f"Newton's method diverges: the residual grew from {trial.norm:.3g} to {best.norm:.3g}."
            )
        return best


def solve(
    problem: Problem,
    times: Sequence[float],
    comm: MPI.Comm | Communicator | None = None,
    *,
    settings: NewtonSettings | None = None,
) -> TimeSeries:
    """Solve a problem and return the whole series, on every rank, in memory. Collective.

    For meshes that do not fit one process, use `Solver.run` and keep each rank's own part.

    Raises
    ------
    ConvergenceError : see `Solver.run`.
    """
    solver = Solver(problem, comm, settings=settings)
    increments = [solver.initial(times[0]), *solver.run(times)]
    gather = solver.subdomain.gather
    fields: dict[str, list[np.ndarray]] = {"strain": [], "stress": []}
    if any("p" in law.state_names for law in solver.local.material.laws):
        fields["p"] = []
    for increment in increments:
        for name in fields:
            values = solver.local.material.field("p", increment.state) if name == "p" else getattr(increment, name)
            fields[name].append(gather(values, at="points"))
    return TimeSeries(
        mesh=problem.mesh,
        times=np.array([increment.time for increment in increments]),
        displacements=np.stack([gather(increment.displacement) for increment in increments]),
        temperatures=np.stack([gather(solver.local.nodal_temperature(increment.time)) for increment in increments]),
        point_fields={name: np.stack(values) for name, values in fields.items()},
    )
