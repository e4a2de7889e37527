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
from .indicator import Correction, corrected
from .mesh import Mesh
from .model_folder import ModelFolder, read_description, settings_of, write_description
from .model_store import save_reduction
from .offline import Reduction, Snapshots, Tolerances
from .replay import Replay
from .solver import Solver
from .store import Store, StoreWriter

LIMIT = 2e-3
"""Of the indicator: on the cube's hot spots p was then off by 0.2 to 1.8 % (docs/rom.md)."""


def enriched(
    case: RomCase, where: ModelFolder, reduction: Reduction, times: np.ndarray, *, limit: float = LIMIT,
    mesh: Mesh | None = None,
) -> tuple[Correction, dict[str, Any]]:  # fmt: skip
    """Answer the problem of a reduction and enrich the model until its indicator is within the limit. Collective.

    The full steps are of the embedded solver, also where CalculiX trained the model. Nothing is written.

    mesh : of a case that takes one. Returns the enriched model with its answer, and what it took.

    Raises
    ------
    StoreError : a training run that is missing or damaged; ConvergenceError : no equilibrium, of either model.
    """
    described, ranks = read_description(where.model), reduction.local.subdomain.comm
    begin = time.perf_counter()
    reduction = replace(reduction, snapshots=_known(case, where, reduction, mesh))
    sub = reduction.local.subdomain
    parts = sub.gather(np.full(len(sub.elements), ranks.rank), at="elements")
    solver = Solver(reduction.local.problem, ranks, parts=parts)
    wish = Tolerances(**described["tolerances"])
    found = corrected(reduction, solver, times, limit=limit, tolerances=wish)
    return found, {
        "limit": limit, "full_steps": list(found.full_steps), "iterations": found.iterations,
        "indicator": float(found.answer.misfits["p"].max()),
        "seconds": ranks.maximum(time.perf_counter() - begin), "cores": ranks.size,
    }  # fmt: skip


def keep(where: ModelFolder, found: Correction, record: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
    """Write an enriched model and what it learned from beside the ones before, and make it the folder's. Collective.

    record : of the enrichment, with the `settings` of its query. sizes : of the new model, for the description.
    """
    described, local = read_description(where.model), found.reduction.local
    number = len(described["enrichments"]) + 1
    with StoreWriter(where.enrichment(number), local.subdomain, {"kind": "enrichment", **record}) as store:
        for increment in found.along:
            heat = local.nodal_temperature(increment.time)
            store.append(increment.time, increment.displacement, temperature=heat, stress=increment.stress)
    save_reduction(found.reduction, where.reduction_after(number))
    if local.subdomain.comm.rank == 0:
        error = {"cubature_error": found.reduction.error}
        enrichments = [*described["enrichments"], dict(record)]
        write_description(where.model, {**described, **sizes, **error, "enrichments": enrichments})
    local.subdomain.comm.sum(1.0)


def _known(case: RomCase, where: ModelFolder, reduction: Reduction, mesh: Mesh | None) -> Snapshots:
    """Return what the model has learned from so far. Collective."""
    described = read_description(where.model)
    learned: list[tuple[Mapping[str, Any], Path]] = [
        *((record, where.training(k)) for k, record in enumerate(described["training"])),
        *((record, where.enrichment(k)) for k, record in enumerate(described["enrichments"], start=1)),
    ]
    known = replace(
        reduction.snapshots, displacement=reduction.displacement.modes * reduction.displacement.singular_values
    )
    for record, path in learned:
        problem, _ = case.build(settings_of(record["settings"]), mesh)
        problem = counterpart(problem) if described["counterpart"] else problem
        with Store(path, reduction.local.subdomain.comm) as store:
            replay = Replay(store, problem, suspect=None)
            seen = Snapshots.collect(replay.local, islice(replay.run(), 1, None))
        known = known.joined(replace(seen, displacement=seen.displacement[:, :0]))
    return known
