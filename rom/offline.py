"""The offline stage: from snapshots on subdomains to a reduced model, and from its answers back to full fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .communicator import Communicator
from .cubature import compressed, cubature
from .gappy import Gappy, qdeim_points
from .kinematics import Kinematics
from .law import COMPONENTS
from .pod import Basis, MassProduct, PointProduct, pod
from .problem import LocalProblem
from .reduced_model import ReducedModel
from .solver import Increment

STRESSES = tuple(f"stress_{name}" for name in COMPONENTS)


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How much the offline stage may leave out, relative.

    Parameters
    ----------
    displacement, dual : of the PODs.
    cubature : of the empirical cubature.
    mode : of the cubature: "exact", "two-level", "local", or "all" for every point with its own weight.
    oversampling : points for gappy POD per mode of p.

    Raises
    ------
    ValueError : numbers that cannot be.
    """

    displacement: float = 1e-6
    dual: float = 1e-6
    cubature: float = 5e-6
    mode: str = "two-level"
    oversampling: float = 1.5

    def __post_init__(self) -> None:
        for name in ("displacement", "dual", "cubature"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"Tolerances: {name} {getattr(self, name)} must be between 0 and 1.")
        if self.mode not in ("exact", "two-level", "local", "all") or self.oversampling < 1:
            raise ValueError(f"Tolerances: mode {self.mode!r} or oversampling {self.oversampling} (>= 1) is not known.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshots:
    """Increments of one rank's subdomain as columns.

    Attributes
    ----------
    displacement : without the supports' motion, (3 * local nodes, snapshots); may have columns of its own more.
    stress : (local points, 6, snapshots).
    state : per law, (points of the law, variables, snapshots).
    """

    displacement: np.ndarray
    stress: np.ndarray
    state: tuple[np.ndarray, ...]

    @classmethod
    def collect(cls, local: LocalProblem, increments: Iterable[Increment]) -> Snapshots:
        """Return the snapshots of increments, of the solver or of a replay."""
        increments = list(increments)
        moved = [i.displacement - local.prescribed(i.time) for i in increments]
        return cls(
            displacement=np.stack([u.ravel() for u in moved], axis=1),
            stress=np.stack([i.stress for i in increments], axis=2),
            state=tuple(np.stack(s, axis=2) for s in zip(*(i.state for i in increments), strict=True)),
        )

    def joined(self, other: Snapshots) -> Snapshots:
        """Return these snapshots and others of the same subdomain."""
        return Snapshots(
            displacement=np.hstack([self.displacement, other.displacement]),
            stress=np.concatenate([self.stress, other.stress], axis=2),
            state=tuple(np.concatenate(pair, axis=2) for pair in zip(self.state, other.state, strict=True)),
        )

    def p(self, local: LocalProblem) -> np.ndarray:
        """Return the accumulated viscoplastic strain, (local points, snapshots), zero where a law has none."""
        values = np.zeros((len(self.stress), self.stress.shape[2]))
        for law, points, state in zip(local.material.laws, local.material.points, self.state, strict=True):
            if "p" in law.state_names:
                values[points] = state[:, law.column("p")]
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class Reduction:
    """One rank's part of a reduced model: the modes of all fields on the subdomain, and the model itself.

    Attributes
    ----------
    local : the problem on the subdomain.
    displacement : modes, rows 3 * local node + direction.
    duals : dual field -> modes at the local points; "state": at (point, variable), law by law, scaled.
    lifting : displacements of the supports at amplitude 1, (3 * local nodes, supports).
    model : what runs online, the same on every rank.
    snapshots : what it was made of.
    error : of the cubature on all integrands, relative.
    """

    local: LocalProblem
    displacement: Basis
    duals: Mapping[str, Basis]
    lifting: np.ndarray
    model: ReducedModel
    snapshots: Snapshots
    error: float

    @property
    def sizes(self) -> dict[str, Any]:
        """Numbers of unknowns, points and modes of both models, for descriptions."""
        model, sub = self.model, self.local.subdomain
        return {
            "dofs": 3 * sub.num_nodes, "elements": sub.num_elements, "points": sub.num_points,
            "modes": model.num_modes, "reduced_points": len(model.points),
            "cubature_points": int(np.count_nonzero(model.weights)),
            "dual_modes": {name: gappy.rows.shape[1] for name, gappy in model.gappy.items()},
        }  # fmt: skip

    def displacement_field(self, coefficients: np.ndarray, lifting: np.ndarray) -> np.ndarray:
        """Return displacements of the local nodes, (..., local nodes, 3), from coefficients of a trajectory."""
        flat = coefficients @ self.displacement.modes.T + lifting @ self.lifting.T
        return flat.reshape(*flat.shape[:-1], -1, 3)

    def dual_field(self, name: str, coefficients: np.ndarray) -> np.ndarray:
        """Return "p" or "stress_xx" ... at the local points, (..., local points)."""
        return coefficients @ self.duals[name].modes.T

    def state_field(self, coefficients: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return all internal variables of one query at one time, as `Increment.state`."""
        flat, parts, first = self.duals["state"].modes @ coefficients, [], 0
        for points, scale in zip(self.local.material.points, self.model.state_scales, strict=True):
            last = first + len(points) * len(scale)
            parts.append(flat[first:last].reshape(len(points), len(scale)) * scale)
            first = last
        return tuple(parts)

    def project(self, local: LocalProblem) -> np.ndarray:
        """Return the load vectors of another problem on the same subdomain for this model, (loads, n). Collective."""
        return _project(local, self.displacement.modes)


def compress(local: LocalProblem, snapshots: Snapshots, tolerances: Tolerances | None = None) -> Reduction:
    """Return the reduced model of snapshots. Collective over the subdomain's communicator.

    Raises
    ------
    ValueError : snapshots that are not finite, or that vanish everywhere; on every rank.
    ConvergenceError : the cubature's tolerance is below what rounding allows.
    """
    wish = tolerances or Tolerances()
    ranks, kinematics = local.subdomain.comm, local.kinematics
    basis = pod(snapshots.displacement, MassProduct(kinematics), tolerance=wish.displacement, comm=ranks)
    if not basis.modes.shape[1]:
        raise ValueError("All displacement snapshots vanish: there is nothing to reduce.")
    scales = _scales(snapshots.state, ranks)
    duals = _dual_bases(local, snapshots, scales, wish.dual)
    strains = _strains(kinematics, basis.modes)
    points, weights, error = _choose(local, snapshots, strains, duals["p"], wish)
    lifting = np.stack([u.ravel() for u in local.lifting()], axis=1) if local.problem.supports else np.zeros(
        (len(basis.modes), 0)
    )  # fmt: skip
    model = _gather_model(local, points, weights, (strains, _strains(kinematics, lifting)), duals, scales)
    model = ReducedModel(**model, load_vectors=_project(local, basis.modes), state_scales=scales)
    return Reduction(
        local=local, displacement=basis, duals=duals, lifting=lifting, model=model, snapshots=snapshots, error=error
    )


def _strains(kinematics: Kinematics, fields: np.ndarray) -> np.ndarray:
    """Return strains, (points, 6, fields), of displacements as columns."""
    out = np.empty((kinematics.num_points, 6, fields.shape[1]))
    for k, field in enumerate(fields.T):
        out[..., k] = kinematics.strain(field.reshape(-1, 3))
    return out


def _project(local: LocalProblem, modes: np.ndarray) -> np.ndarray:
    forces = np.array([vector.ravel() for vector in local.load_vectors]).reshape(len(local.load_vectors), len(modes))
    return local.subdomain.comm.sum(forces @ modes)


def _scales(state: tuple[np.ndarray, ...], ranks: Communicator) -> tuple[np.ndarray, ...]:
    """Return the root mean square of each internal variable over points and snapshots, one where it vanishes."""
    sizes = []
    for values in state:
        total = ranks.sum(np.append(np.einsum("pvs,pvs->v", values, values), len(values) * values.shape[2]))
        rms = np.sqrt(total[:-1] / max(total[-1], 1))
        sizes.append(np.where(rms > 0, rms, 1.0))
    return tuple(sizes)


def _dual_bases(
    local: LocalProblem, snapshots: Snapshots, scales: tuple[np.ndarray, ...], tolerance: float
) -> dict[str, Basis]:
    weights, ranks = local.kinematics.weights, local.subdomain.comm
    fields = {"p": snapshots.p(local), **{name: snapshots.stress[:, k] for k, name in enumerate(STRESSES)}}
    bases = {n: pod(f, PointProduct(weights), tolerance=tolerance, comm=ranks) for n, f in fields.items()}
    every = snapshots.stress.shape[2]
    rows = [
        (s / z[:, None]).reshape(s.shape[0] * s.shape[1], every) for s, z in zip(snapshots.state, scales, strict=True)
    ]
    each = [np.repeat(weights[p], len(z)) for p, z in zip(local.material.points, scales, strict=True)]
    bases["state"] = pod(np.concatenate(rows), PointProduct(np.concatenate(each)), tolerance=tolerance, comm=ranks)
    return bases


def _choose(
    local: LocalProblem, snapshots: Snapshots, strains: np.ndarray, p: Basis, wish: Tolerances
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return global numbers and weights of the reduced points, and the cubature's error on all integrands."""
    ranks, numbers, weights = local.subdomain.comm, local.subdomain.points, local.kinematics.weights
    if wish.mode == "all":
        everything = local.subdomain.gather(weights, at="points")
        return np.arange(len(everything)), everything, 0.0
    integrands = np.einsum("pci,pcs->pis", strains, snapshots.stress, optimize=True).reshape(len(weights), -1)
    few = compressed(integrands, weights, tolerance=0.1 * wish.cubature, comm=ranks)
    rule = cubature(few, weights, numbers, tolerance=0.9 * wish.cubature, comm=ranks, mode=wish.mode)
    extra = qdeim_points(p.modes, numbers, int(np.ceil(wish.oversampling * p.modes.shape[1])), ranks)
    points = np.union1d(rule.points, extra)
    found = np.zeros(len(points))
    found[np.searchsorted(points, rule.points)] = rule.weights
    mine = np.isin(numbers, points)
    sums = ranks.sum(np.stack([
        found[np.searchsorted(points, numbers[mine])] @ integrands[mine], weights @ integrands
    ]))  # fmt: skip
    return points, found, float(np.linalg.norm(sums[0] - sums[1]) / (np.linalg.norm(sums[1]) or 1.0))


def _gather_model(
    local: LocalProblem, points: np.ndarray, weights: np.ndarray, strains: tuple[np.ndarray, np.ndarray],
    duals: Mapping[str, Basis], scales: tuple[np.ndarray, ...],
) -> dict:  # fmt: skip
    """Return the parts of a model that lie at its points, gathered on every rank. Collective."""
    ranks = local.subdomain.comm
    here = np.flatnonzero(np.isin(local.subdomain.points, points))
    order = np.argsort(np.concatenate(ranks.gather(local.subdomain.points[here])))

    def gathered(values: np.ndarray) -> np.ndarray:
        return np.concatenate(ranks.gather(np.ascontiguousarray(values)))[order]

    owner = np.zeros(local.kinematics.num_points, dtype=int)
    for k, members in enumerate(local.material.points):
        owner[members] = k
    law_of = gathered(owner[here])
    law_points = tuple(np.flatnonzero(law_of == k) for k in range(len(local.material.laws)))
    shapes, corners = _temperature_rows(local, here)
    corners, shapes = gathered(corners), gathered(shapes)
    nodes, inverse = np.unique(corners, return_inverse=True)
    own = np.isin(local.subdomain.nodes, nodes) & local.subdomain.owned
    found = np.concatenate(ranks.gather(local.subdomain.nodes[own]))
    node_points = np.concatenate(ranks.gather(local.subdomain.mesh.points[own]))[np.argsort(found)]
    rows = {name: gathered(duals[name].modes[here]) for name in duals if name != "state"}
    states, first = [], 0
    for members, scale, at in zip(local.material.points, scales, law_points, strict=True):
        modes = duals["state"].modes[first : first + len(members) * len(scale)]
        first += len(members) * len(scale)
        table = np.zeros((local.kinematics.num_points, len(scale), modes.shape[1]))
        table[members] = modes.reshape(len(members), len(scale), modes.shape[1])
        states.append(gathered(table[here])[at].reshape(len(at) * len(scale), modes.shape[1]))
    rows["state"] = np.concatenate(states)
    return {
        "points": points, "weights": weights, "laws": local.material.laws, "law_points": law_points,
        "strain_modes": gathered(strains[0][here]), "strain_lifting": gathered(strains[1][here]),
        "nodes": nodes, "node_points": node_points, "temperature_nodes": inverse.reshape(corners.shape),
        "temperature_values": shapes, "gappy": {name: Gappy(rows=values) for name, values in rows.items()},
    }  # fmt: skip


def _temperature_rows(local: LocalProblem, here: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return shape functions and global nodes, (points, 20) each, of local points; unused places have value zero."""
    values, nodes = np.zeros((len(here), 20)), np.full((len(here), 20), local.subdomain.nodes[0])
    for block in local.kinematics.blocks:
        inside = (here >= block.points.start) & (here < block.points.stop)
        element, q = np.divmod(here[inside] - block.points.start, block.weights.shape[1])
        n = block.kind.num_nodes
        kind = block.kind
        values[inside, :n] = (kind.plain_values if local.problem.plain_temperature else kind.values)[q]
        nodes[inside, :n] = local.subdomain.nodes[block.nodes[element][:, :n]]
    return values, nodes
