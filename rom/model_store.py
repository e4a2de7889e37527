"""Reduced models in the HDF5 store: written by the ranks that made them, read on any number of ranks.

Laws, loads and supports are not in the file: they come from the problem that the reader gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .communicator import Communicator
from .gappy import Gappy
from .offline import Reduction, Snapshots
from .pod import Basis
from .problem import LocalProblem, Problem
from .reduced_model import ReducedModel
from .store import Store, StoreError, StoreWriter

if TYPE_CHECKING:
    from mpi4py import MPI

WHOLE = ("points", "weights", "strain_modes", "strain_lifting", "nodes", "node_points", "temperature_nodes",
         "temperature_values", "load_vectors")  # fmt: skip


def save_reduction(reduction: Reduction, path: str | Path) -> None:
    """Write the modes of all ranks and the model, without the snapshots. Collective."""
    local, model = reduction.local, reduction.model
    modes = reduction.displacement.modes
    with StoreWriter(path, local.subdomain, {"kind": "reduction", "error": reduction.error}) as store:
        store.put("basis/displacement", modes.reshape(-1, 3, modes.shape[1]), rows="nodes")
        _put_spectrum(store, "displacement", reduction.displacement)
        for name, basis in reduction.duals.items():
            _put_spectrum(store, name, basis)
            if name != "state":
                store.put(f"basis/{name}", basis.modes, rows="points")
        first = 0
        for k, (points, scale) in enumerate(zip(local.material.points, model.state_scales, strict=True)):
            last = first + len(points) * len(scale)
            count = reduction.duals["state"].modes.shape[1]
            table = np.zeros((local.kinematics.num_points, len(scale), count))
            table[points] = reduction.duals["state"].modes[first:last].reshape(len(points), len(scale), count)
            first = last
            store.put(f"basis/state_{k}", table, rows="points")
            store.put(f"model/scale_{k}", scale)
            store.put(f"model/law_{k}", model.law_points[k])
        for name in WHOLE:
            store.put(f"model/{name}", getattr(model, name))
        for name, gappy in model.gappy.items():
            store.put(f"gappy/{name}", gappy.rows)


def load_reduction(path: str | Path, problem: Problem, comm: MPI.Comm | Communicator | None = None) -> Reduction:
    """Return the reduction of a store on the ranks of a communicator, of any number. Collective.

    problem : gives laws, loads and supports, in the order of training. The snapshots are empty: enrichment knows only
    what it adds.

    Raises
    ------
    StoreError : a damaged store, one without a reduction, or one of another mesh or other numbers of laws and loads.
    """
    with Store(path, comm) as store:
        if store.attributes.get("kind") != "reduction":
            raise StoreError(f"{path} holds no reduced model; save_reduction writes one.")
        sub = store.subdomain
        sizes = (problem.mesh.num_nodes, problem.mesh.num_points)
        if sizes != (sub.num_nodes, sub.num_points):
            raise StoreError(f"{path} is of a mesh with {sub.num_nodes} nodes and {sub.num_points} points; "
                             f"the problem's has {sizes}.")  # fmt: skip
        apart = np.abs(sub.mesh.points - problem.mesh.points[sub.nodes]).max()
        if sub.comm.any(apart > 1e-9 * np.ptp(problem.mesh.points, axis=0).max()):
            raise StoreError(f"{path} is of another mesh: nodes lie up to {sub.comm.maximum(apart):.3g} from where the "
                             "problem has them. Leave the settings that change the mesh as in training.")  # fmt: skip
        local = LocalProblem(problem, sub)
        laws, every = local.material.laws, store.names("model")
        stored = (sum(name.split("/")[-1].startswith("law_") for name in every), len(store.get("model/load_vectors")))
        if stored != (len(laws), len(problem.loads)):
            raise StoreError(f"{path} has {stored} laws and loads; the problem {(len(laws), len(problem.loads))}.")
        scales = tuple(store.get(f"model/scale_{k}") for k in range(len(laws)))
        names = [name.split("/")[-1] for name in store.names("gappy")]
        model = ReducedModel(
            **{name: store.get(f"model/{name}") for name in WHOLE}, laws=laws, state_scales=scales,
            law_points=tuple(store.get(f"model/law_{k}") for k in range(len(laws))),
            gappy={name: Gappy(rows=store.get(f"gappy/{name}")) for name in names},
        )  # fmt: skip
        duals = {name: _basis(store, name, store.get(f"basis/{name}")) for name in names if name != "state"}
        states = [store.get(f"basis/state_{k}")[points] for k, points in enumerate(local.material.points)]
        flat = [table.reshape(table.shape[0] * table.shape[1], table.shape[2]) for table in states]
        duals["state"] = _basis(store, "state", np.concatenate(flat))
        modes = store.get("basis/displacement")
        displacement = _basis(store, "displacement", modes.reshape(-1, modes.shape[2]))
        error = float(store.attributes["error"])
    fields = [u.ravel() for u in local.lifting()]
    lifting = np.stack(fields, axis=1) if fields else np.zeros((len(displacement.modes), 0))
    empty = Snapshots(
        displacement=np.zeros((len(displacement.modes), 0)),
        stress=np.zeros((local.kinematics.num_points, 6, 0)),
        state=tuple(np.zeros((len(p), len(z), 0)) for p, z in zip(local.material.points, scales, strict=True)),
    )
    return Reduction(
        local=local, displacement=displacement, duals=duals, lifting=lifting, model=model, snapshots=empty, error=error
    )


def _put_spectrum(store: StoreWriter, name: str, basis: Basis) -> None:
    store.put(f"spectrum/{name}", basis.spectrum)
    store.put(f"energy/{name}", np.array([basis.energy, basis.discarded]))


def _basis(store: Store, name: str, modes: np.ndarray) -> Basis:
    spectrum, (energy, discarded) = store.get(f"spectrum/{name}"), store.get(f"energy/{name}")
    return Basis(modes=modes, singular_values=spectrum[: modes.shape[1]], spectrum=spectrum,
                 energy=float(energy), discarded=float(discarded))  # fmt: skip
