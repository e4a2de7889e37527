"""A model that learns from a query: full steps enrich it while the error indicator is beyond a limit, and it is kept.

What training runs and earlier enrichments showed is replayed from their stores, so that stresses, points and internal
variables of the new model know it too; of displacements the present modes times their singular values stand for it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .calculix_deck import counterpart
from .case import RomCase
from .full_run import mesh_of
from .indicator import Correction, corrected
from .model_folder import ModelFolder, read_description, settings_of, write_description
from .model_store import save_reduction
from .offline import Reduction, Snapshots, Tolerances
from .online import Trajectory
from .replay import Replay
from .solver import Solver
from .store import Store, StoreWriter


def enrich(
    case: RomCase, where: ModelFolder, reduction: Reduction, answer: Trajectory, request: Mapping[str, Any]
) -> tuple[Correction, dict[str, Any]]:
    """Enrich a folder's model until its answer to a query is within a limit of the indicator, and keep it. Collective.

    The full steps are of the embedded solver, also where CalculiX trained the model. The new model lies beside those
    before it, with the answer that it learned from.

    reduction : of the query's problem, projected loads included. answer : of it so far.
    request : the `limit` of the indicator, the `settings` of the query, the `run` that asks.

    Returns the enriched model with its answer, and the request with what it took, as the folder's description has it.

    Raises
    ------
    StoreError : a training run that is missing or damaged; ConvergenceError : no equilibrium, of either model.
    """
    described, sub = read_description(where.model), reduction.local.subdomain
    begin = time.perf_counter()
    reduction = replace(reduction, snapshots=_known(case, where, described, reduction))
    parts = sub.gather(np.full(len(sub.elements), sub.comm.rank), at="elements")
    solver = Solver(reduction.local.problem, sub.comm, parts=parts)
    wish = Tolerances(**described["tolerances"])
    found = corrected(reduction, solver, answer.times, limit=request["limit"], tolerances=wish)
    record = {
        **request, "full_steps": list(found.full_steps), "iterations": found.iterations,
        "before": float(answer.misfits["p"].max()), "indicator": float(found.answer.misfits["p"].max()),
        "seconds": sub.comm.maximum(time.perf_counter() - begin), "cores": sub.comm.size,
    }  # fmt: skip
    number = len(described.get("enrichments", [])) + 1
    local = found.reduction.local
    with StoreWriter(where.enrichment(number), local.subdomain, {"kind": "enrichment", **record}) as store:
        for increment in found.along:
            heat = local.nodal_temperature(increment.time)
            store.append(increment.time, increment.displacement, temperature=heat, stress=increment.stress)
    save_reduction(found.reduction, where.reduction_after(number))
    if sub.comm.rank == 0:
        news = {"cubature_error": found.reduction.error, "enrichments": [*described.get("enrichments", []), record]}
        write_description(where.model, {**described, **found.reduction.sizes, **news})
    sub.comm.sum(1.0)
    return found, record


def _known(case: RomCase, where: ModelFolder, described: Mapping[str, Any], reduction: Reduction) -> Snapshots:
    """Return what a folder's model has learned from so far. Collective."""
    mesh = mesh_of(str(where.reduction)) if case.takes_mesh else None
    learned: list[tuple[Mapping[str, Any], Path]] = [
        *((record, where.training(k)) for k, record in enumerate(described["training"])),
        *((record, where.enrichment(k)) for k, record in enumerate(described.get("enrichments", []), start=1)),
    ]
    basis = reduction.displacement
    known = replace(reduction.snapshots, displacement=basis.modes * basis.singular_values)
    for record, path in learned:
        problem, _ = case.build(settings_of(record["settings"]), mesh)
        problem = counterpart(problem) if described["counterpart"] else problem
        with Store(path, reduction.local.subdomain.comm) as store:
            replay = Replay(store, problem, suspect=None)
            seen = Snapshots.collect(replay.local, islice(replay.run(), 1, None))
        known = known.joined(replace(seen, displacement=seen.displacement[:, :0]))
    return known
