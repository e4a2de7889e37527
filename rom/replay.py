"""Replay: strains, stresses and internal variables from displacements alone, with checks of what was read.

The law is integrated over the increments that the other code made, one backward step each. Two figures say whether
that worked: the equilibrium residual of the replayed stress, which needs nothing but the displacements, and, where the
results have stresses, strains or p, their difference from the replayed ones. Where a file has rounded the
displacements, equilibrium gives their lost digits back (docs/rom.md says what they cost).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .communicator import Communicator
from .kinematics import Kinematics
from .law import ConstitutiveLaw, ConvergenceError
from .linear_solver import LinearSolver
from .material import Material, State
from .problem import LocalProblem, Problem
from .reader import Reader
from .solver import Increment
from .store import Store, StoreWriter
from .subdomain import Subdomain, distribute

if TYPE_CHECKING:
    from mpi4py import MPI

SUSPECT = 0.05  # relative residual beyond which results are refused: models that fit leave 1e-2 and less
COMPLETION = 1e-4  # relative residual of the linear system that completes digits: four more than were there
CHECKED = ("stress", "strain", "p")


class ReplayError(ValueError):
    """Results that cannot be replayed, or are far from equilibrium when they are; names the increment and suspects."""


@dataclass(kw_only=True)
class ReplayReport:
    """What the checks found, per increment.

    Attributes
    ----------
    times : ends of the increments, the start left out.
    equilibrium : ‖forces out of balance‖ / ‖internal forces‖ of the replayed stress, at free nodes.
    errors : field -> relative L2 difference of the replayed field from the printed one, by the largest norm so far;
        "equilibrium before completion" -> what `equilibrium` was before the digits of displacements were completed,
        "equilibrium of the printed stress" -> what it is of the stress that was read.
    """

    times: list[float] = field(default_factory=list)
    equilibrium: list[float] = field(default_factory=list)
    errors: dict[str, list[float]] = field(default_factory=dict)

    def worst(self) -> dict[str, float]:
        """Return the largest value of every check."""
        checks = {"equilibrium": self.equilibrium, **self.errors}
        return {name: max(values) for name, values in checks.items() if values}

    def __str__(self) -> str:
        """One line for people."""
        words = ", ".join(f"{name} {value:.2e}" for name, value in self.worst().items())
        return f"replay of {len(self.times)} increments: worst {words or 'unknown: nothing to check with'}"


class Replay:
    """Replays a reader's displacements through laws; `run` yields increments like those of the embedded solver.

    Parameters
    ----------
    reader : a reader of the whole mesh (each rank takes its rows), or a `Store` opened on the same communicator.
    laws : element set -> law, or a `Problem` on the reader's mesh, whose loads and supports then enter the check of
        equilibrium; without it, inner nodes are checked and body forces must be absent.
    temperature : where the reader has none and no problem says.
    suspect : equilibrium residual beyond which `run` raises; None never does.
    complete : whether displacements that a file has rounded (`Reader.digits`) get their digits back, where a problem is
        given: each increment takes one Newton step towards equilibrium, unless it would change more than the rounding;
        it costs a solution of the stiffness and a second pass of the laws.

    Attributes
    ----------
    subdomain, kinematics, material : of this rank's share.
    local : the problem on it, None where only laws were given.
    report : the checks so far.
    """

    def __init__(
        self,
        reader: Reader,
        laws: Mapping[str, ConstitutiveLaw] | Problem,
        comm: MPI.Comm | Communicator | None = None,
        *,
        temperature: float = 20.0,
        suspect: float | None = SUSPECT,
        complete: bool = True,
    ) -> None:
        self.reader, self.suspect, self.report = reader, suspect, ReplayReport()
        self._shared = isinstance(reader, Store)
        # Names of sets may differ between the reader's mesh and the problem's; nodes and elements must not.
        whole = laws.mesh if isinstance(laws, Problem) else reader.mesh
        self.subdomain: Subdomain = reader.subdomain if self._shared else distribute(whole, comm)
        self.comm = self.subdomain.comm
        self.local: LocalProblem | None = None
        if isinstance(laws, Problem):
            self._same_mesh(laws)
            self.local = LocalProblem(laws, self.subdomain)
            self.kinematics, self.material = self.local.kinematics, self.local.material
        else:
            self.kinematics, self.material = Kinematics(self.subdomain.mesh), Material(self.subdomain.mesh, laws)
        self._temperature = temperature
        self._free = self.local is None and _inner_nodes(self.subdomain)
        digits = reader.digits if complete and self.local is not None else None
        self._linear = LinearSolver(self.local) if digits is not None else None
        self._rounding = 10.0 ** (1 - digits) if digits is not None else 0.0
        self._largest = dict.fromkeys(CHECKED, 0.0)
        self._force = 0.0

    def run(self) -> Iterator[Increment]:
        """Yield the initial state and every increment. Collective.

        Raises
        ------
        ReplayError : the first increment with a displacement, numbers that are not finite, results of another shape,
            a law that fails over an increment, or a residual beyond `suspect`.
        """
        times = np.asarray(self.reader.times, dtype=float)
        if len(times) < 2 or np.any(np.diff(times) <= 0):
            raise ReplayError(f"Times must increase and be at least two; they are {times}.")
        u = self._read("displacement", 0)
        if self.comm.any(bool(np.any(u))):
            raise ReplayError(f"Increment 0 (time {times[0]:g}) has displacements; it must be the virgin state. Are "
                              "the first increments missing?")  # fmt: skip
        now = Increment(
            time=float(times[0]), displacement=u, temperature=self._heat(0),
            strain=np.zeros((len(self.subdomain.points), 6)), stress=np.zeros((len(self.subdomain.points), 6)),
            state=self.material.initial_state(),
        )  # fmt: skip
        yield now
        for k in range(1, len(times)):
            now = self._step(now, k, float(times[k]))
            yield now

    def _same_mesh(self, problem: Problem) -> None:
        """Check that the problem's nodes lie where the reader's do, and that elements name the same nodes."""
        theirs, numbers = self.reader.mesh, self.subdomain.nodes if self._shared else slice(None)
        if (
            self.subdomain.num_nodes != problem.mesh.num_nodes
            or problem.mesh.points[numbers].shape != theirs.points.shape
        ):
            raise ReplayError(f"The problem's mesh has {problem.mesh.num_nodes} nodes, that of the results "
                              f"{len(theirs.points)}.")  # fmt: skip
        apart = np.linalg.norm(problem.mesh.points[numbers] - theirs.points, axis=1)
        if np.any(apart > 1e-6 * np.ptp(problem.mesh.points, axis=0).max()):
            node = int(np.argmax(apart))
            raise ReplayError(f"Node {theirs.node_labels[node]} lies {apart[node]:.3g} from where the problem has it: "
                              "results of another mesh, or nodes in another order.")  # fmt: skip
        ours = problem.mesh if not self._shared else self.subdomain.mesh
        if list(ours.cells) != list(theirs.cells) or any(
            not np.array_equal(ours.cells[kind], theirs.cells[kind]) for kind in ours.cells
        ):
            raise ReplayError("The elements of the problem's mesh are not those of the results, or in another order.")

    def _step(self, before: Increment, k: int, time: float) -> Increment:
        u, heat = self._read("displacement", k), self._heat(k)
        strain, stress, state, tangent = self._follow(before, u, heat, k, time)
        if self._linear is not None:
            completed = self._completed(u, stress, tangent, time)
            if completed is not u:
                before_it = self.report.errors.setdefault("equilibrium before completion", [])
                before_it.append(self._equilibrium(stress, time))
                u = completed
                strain, stress, state, _ = self._follow(before, u, heat, k, time)
        residual = self._equilibrium(stress, time)
        self.report.times.append(time)
        if residual is not None:
            self.report.equilibrium.append(residual)
        after = Increment(
            time=time, displacement=u, temperature=heat, strain=strain, stress=stress, state=state,
            residual=residual or 0.0,
        )  # fmt: skip
        self._compare(after, k)
        if residual is not None and self.suspect is not None and residual > self.suspect:
            raise ReplayError(self._suspicion(k, time, residual))
        return after

    def _follow(
        self, before: Increment, u: np.ndarray, heat: np.ndarray, k: int, time: float
    ) -> tuple[np.ndarray, np.ndarray, State, np.ndarray]:
        """Return strain, stress, state and tangent at the end of an increment. Collective; raises on every rank."""
        strain = self.kinematics.strain(u)
        error: Exception | None = None
        try:
            result = self.material.update(
                before.temperature, heat, before.strain, strain - before.strain, before.state, time - before.time
            )
        except ConvergenceError as caught:
            error = ReplayError(f"The law fails over increment {k} (time {before.time:g} to {time:g}): {caught} "
                                "Increments may be missing before it.")  # fmt: skip
        self.comm.raise_together(error, ReplayError)
        return strain, *result

    def _completed(self, u: np.ndarray, stress: np.ndarray, tangent: np.ndarray, time: float) -> np.ndarray:
        """Return displacements after one Newton step towards equilibrium, or the same where it exceeds the rounding."""
        split = self.local.external_force(time) - self.kinematics.internal_force(stress)
        right = np.where(self.local.fixed, 0.0, self.subdomain.assemble(split))
        matrices = self.kinematics.stiffness(tangent)
        try:
            du = self._linear.solve(matrices, right, symmetric=self.material.symmetric, tolerance=COMPLETION)
        except ConvergenceError:
            return u
        largest, change = (self.comm.maximum(float(np.abs(field).max())) for field in (u, du))
        return u + du if change <= self._rounding * largest else u

    def _suspicion(self, k: int, time: float, residual: float) -> str:
        earlier = self.report.equilibrium[:-1]
        if not earlier or max(earlier) > 0.1 * self.suspect:
            why = "nodes in another order, results of another mesh, other laws, or loads that the check does not know"
        else:
            why = f"increments missing between {k - 1} and {k}"
        return (f"Increment {k} (time {time:g}) is out of equilibrium by {residual:.2g} of the internal forces, "
                f"{max(earlier, default=0):.2g} before it. Suspect {why}.")  # fmt: skip

    def _equilibrium(self, stress: np.ndarray, time: float) -> float | None:
        """Return the residual, or None where there are neither loads nor inner nodes to judge by. Collective."""
        internal = self.subdomain.assemble(self.kinematics.internal_force(stress))
        if self.local is not None:
            out = internal - self.subdomain.assemble(self.local.external_force(time))
            out = np.where(self.local.fixed, 0.0, out)
        else:
            if not self.comm.any(bool(np.any(self._free))):
                return None
            out = np.where(self._free[:, None], internal, 0.0)
        self._force = max(self._force, self.subdomain.norm(internal))
        return self.subdomain.norm(out) / self._force if self._force > 0 else 0.0

    def _compare(self, increment: Increment, k: int) -> None:
        names = {name for law in self.material.laws for name in law.state_names}
        for name in CHECKED:
            printed = self._read(name, k)
            if printed is not None and name == "stress":
                out = self._equilibrium(printed, increment.time)
                if out is not None:
                    self.report.errors.setdefault("equilibrium of the printed stress", []).append(out)
            if printed is None or (name == "p" and "p" not in names):
                continue
            ours = self.material.field("p", increment.state) if name == "p" else getattr(increment, name)
            w = self.kinematics.weights.reshape(-1, *[1] * (ours.ndim - 1))
            difference, size = self.comm.sum(np.array([np.sum(w * (ours - printed) ** 2), np.sum(w * printed**2)]))
            self._largest[name] = max(self._largest[name], float(np.sqrt(size)))
            error = float(np.sqrt(difference)) / self._largest[name] if self._largest[name] > 0 else 0.0
            self.report.errors.setdefault(name, []).append(error)

    def _heat(self, k: int) -> np.ndarray:
        points = self._read("point temperature", k)
        if points is not None:
            return points
        nodal = self._read("temperature", k)
        if nodal is None and self.local is not None:
            return self.local.temperature(float(self.reader.times[k]))
        if nodal is None:
            return np.full(len(self.subdomain.points), float(self._temperature))
        # Nodal temperatures reach the points as the problem says, whoever read them.
        plain = self.local is not None and self.local.problem.plain_temperature
        return self.kinematics.interpolate(nodal, plain=plain)

    def _read(self, name: str, k: int) -> np.ndarray | None:
        """Return this rank's rows of a field. Collective; a reader's error is raised on every rank."""
        error: Exception | None = None
        values = None
        try:
            if name in ("displacement", "temperature"):
                values = getattr(self.reader, name)(k)
                values = None if values is None else self._rows(name, values, self.subdomain.nodes, k)
            else:
                values = self.reader.point_field(name.removeprefix("point "), k)
                values = None if values is None else self._rows(name, values, self.subdomain.points, k)
        except (ValueError, RuntimeError, OSError, KeyError, IndexError) as caught:
            error = caught if isinstance(caught, ReplayError) else ReplayError(f"Increment {k}, {name}: {caught}")
            error.__cause__ = caught
        self.comm.raise_together(error, ReplayError)
        return values

    def _rows(self, name: str, values: np.ndarray, numbers: np.ndarray, k: int) -> np.ndarray:
        nodal = name in ("displacement", "temperature")
        whole = self.subdomain.num_nodes if nodal else self.subdomain.num_points
        columns = {"displacement": (3,), "temperature": (), "point temperature": (), "p": ()}.get(name, (6,))
        expected = (len(numbers) if self._shared else whole, *columns)
        values = np.asarray(values, dtype=float)
        if values.shape != expected:
            raise ReplayError(f"Increment {k}: {name} has shape {values.shape}; the mesh asks for {expected}. Are they "
                              "results of another mesh?")  # fmt: skip
        values = values if self._shared else values[numbers]
        if not np.all(np.isfinite(values)):
            bad = int(np.argwhere(~np.isfinite(values))[0, 0])
            what = f"node {self.subdomain.mesh.node_labels[bad]}" if nodal else f"quadrature point {numbers[bad]}"
            raise ReplayError(f"Increment {k}: {name} is not finite at {what}.")
        return values


def replay_to_store(replay: Replay, path: str | Path, **attributes: object) -> ReplayReport:
    """Run a replay into a store, increment by increment: displacement, temperature, stress, p. Collective."""
    has_p = any("p" in law.state_names for law in replay.material.laws)
    with StoreWriter(path, replay.subdomain, attributes) as store:
        for k, increment in enumerate(replay.run()):
            p = {"p": replay.material.field("p", increment.state)} if has_p else {}
            nodal = replay._read("temperature", k)
            store.append(increment.time, increment.displacement, temperature=nodal, stress=increment.stress, **p)
        store.attributes["replay"] = replay.report.worst()
    return replay.report


def _inner_nodes(subdomain: Subdomain) -> np.ndarray:
    """Return which local nodes are on no outer face of the whole mesh: a face of two ranks is outer on both.

    Collective. Faces between ranks are told apart from outer ones by their corners, which both ranks have.
    """
    mesh = subdomain.mesh
    pairs = mesh.boundary_faces()
    faces = mesh.face_nodes(pairs)
    inner = np.ones(mesh.num_nodes, dtype=bool)
    for kind, nodes in faces:
        corners = 3 if kind.name.startswith("tri") else 4
        keys = np.sort(subdomain.nodes[nodes[:, :corners]], axis=1)
        everywhere = np.concatenate(subdomain.comm.gather(keys))
        _, inverse, counts = np.unique(everywhere, axis=0, return_inverse=True, return_counts=True)
        offset = subdomain.comm.offsets(len(keys))[subdomain.comm.rank]
        outer = counts[inverse.ravel()[offset : offset + len(keys)]] == 1
        inner[nodes[outer].ravel()] = False
    # A node may be on an outer face of a neighbour only.
    return subdomain.assemble(np.where(inner, 0.0, 1.0)) == 0.0
