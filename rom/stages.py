"""The stages of a reduced model as files: compress, run, evaluate. Each reads what the one before left in the folder.

All are collective over a communicator; `model_folder` says where everything lies, docs/rom.md who reads it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .calculix_deck import counterpart
from .case import RomCase
from .communicator import Communicator, communicator
from .enrichment import enrich
from .full_run import CALCULIX, EMBEDDED, FullRun, mesh_of, run_decks
from .indicator import ErrorBound
from .loading import load_names, with_loading
from .model_folder import (
    ModelError,
    ModelFolder,
    origin,
    plain_settings,
    read_description,
    settings_of,
    write_description,
)
from .model_store import load_reduction, save_reduction
from .offline import STRESSES, Reduction, Snapshots, Tolerances, compress
from .online import Query, ReducedSolver, Trajectory
from .pod import MassProduct
from .problem import LocalProblem, Problem
from .store import Store, StoreWriter
from .viewer_files import write_vtkhdf, write_xdmf

if TYPE_CHECKING:
    from mpi4py import MPI

LOADING = "loading.csv"
Watch = Callable[..., None]
"""Called with what is being done, and by name: `done` increments `of` how many."""


def _nobody(what: str, done: int, of: int) -> None:
    """Watch nothing."""


def compress_case(  # noqa: PLR0913  everything but the first two has a default
    case: RomCase,
    folder: str | Path,
    trainings: Sequence[Mapping[str, Any]] = ({},),
    *,
    sources: Sequence[str] = (EMBEDDED,),
    mesh: str | None = None,
    tolerances: Tolerances | None = None,
    displacement: str = "displacement",
    at_once: int = 1,
    notes: Mapping[str, Any] | None = None,
    comm: MPI.Comm | Communicator | None = None,
    watch: Watch = _nobody,
) -> dict[str, Any]:
    """Make a reduced model of training runs in a new folder and return its description. Collective.

    Where a source is CalculiX, the model is of the case's `counterpart`, whose laws CalculiX has; it stays so in all
    later stages.

    trainings : the settings of each run.
    sources : of each run, or one for all: see `FullRun`.
    mesh : file with the mesh, for a case that takes one; default: that of the first source.
    displacement : what series of meshio's formats call the displacement.
    at_once : how many runs of CalculiX at the same time.
    notes : kept in the description; anything JSON can hold.

    Raises
    ------
    ModelError : a folder that has a model already, sources that do not fit, runs on different meshes.
    ValueError, RuntimeError, OSError : what the case, the source or the offline stage refuse; on every rank.
    """
    ranks, where, wish = communicator(comm), ModelFolder(Path(folder)), tolerances or Tolerances()
    if where.model.exists():
        raise ModelError(f"{folder} has a model already; give another --out, or remove it.")
    sources = list(sources) * (len(trainings) if len(sources) == 1 else 1)
    if len(sources) != len(trainings) or not trainings:
        raise ModelError(f"{len(trainings)} training runs need as many sources, or one for all; there are {sources}.")
    if case.takes_mesh and mesh is None and sources[0] not in (EMBEDDED, CALCULIX):
        mesh = sources[0]
    given = mesh_of(mesh) if case.takes_mesh and mesh is not None else None
    built = [case.build(settings, given) for settings in trainings]
    if replaced := CALCULIX in sources:
        built = [(counterpart(problem), times) for problem, times in built]
    for problem, _ in built[1:]:
        require_same(built[0][0], problem)
    ranks.raise_together(made_folder(where.path), OSError)
    scratch = [where.path / "calculix" / f"training-{k:03d}" for k in range(len(built))]
    if decks := {str(s): b for s, b, source in zip(scratch, built, sources, strict=True) if source == CALCULIX}:
        run_decks(decks, ranks, at_once=at_once)
    snapshots: Snapshots | None = None
    records, local = [], None
    for k, ((problem, times), source) in enumerate(zip(built, sources, strict=True)):
        run = FullRun(problem, times, source, ranks, scratch=scratch[k], displacement=displacement)
        local = local or run.local
        if not np.array_equal(run.local.subdomain.elements, local.subdomain.elements):
            raise ModelError(f"The elements of {source} are dealt to the ranks otherwise than before; replay it with "
                             "the number of ranks that wrote it, or with another.")  # fmt: skip
        attributes = {"kind": "training", "settings": plain_settings(trainings[k]), "source": source}
        told = functools.partial(watch, f"training {k + 1} of {len(built)}", of=len(times) - 1)
        found = _stored(run, where.training(k), attributes, told)
        snapshots = found if snapshots is None else snapshots.joined(found)
        records.append({**attributes, "increments": found.stress.shape[2], "seconds": run.seconds, "cores": run.cores,
                        "replay_seconds": run.replay_seconds, "checks": run.checks})  # fmt: skip
    begin = time.perf_counter()
    reduction = compress(local, snapshots, wish)
    seconds = ranks.maximum(time.perf_counter() - begin)
    save_reduction(reduction, where.reduction)
    description = {
        "case": case.name, "counterpart": replaced, "training": records, "tolerances": asdict(wish),
        **reduction.sizes, "enrichments": [],
        "cubature_error": reduction.error, "compress_seconds": seconds, "cores": ranks.size,
        "notes": dict(notes or {}), "origin": origin(),
    }  # fmt: skip
    if ranks.rank == 0:
        write_description(where.model, description)
    ranks.sum(1.0)
    return description


def run_query(
    case: RomCase,
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    name: str | None = None,
    loading: str | Path | None = None,
    viewer: str = "vtkhdf",
    limit: float | None = None,
    comm: MPI.Comm | Communicator | None = None,
) -> dict[str, Any]:
    """Answer one query with the model of a folder, write its fields, and return the run's description. Collective.

    settings, loading : what is asked: settings of the case, and a table (see `loading`) that replaces amplitudes.
    name : of the run; default: the next number.
    viewer : "vtkhdf" or "xdmf": the file for ParaView beside the store of fields.
    limit : of the error indicator, beyond which full steps enrich the model, for this and all later runs; None: never.

    Raises
    ------
    ModelError : no model, a name that is taken, a viewer that is not known, a limit that is not positive.
    StoreError : a damaged model, or a problem of another mesh; ConvergenceError : no reduced equilibrium.
    """
    ranks, where = communicator(comm), ModelFolder(Path(folder))
    read_description(where.model)
    name = name or where.next_run()
    place = where.run(name)
    ranks.sum(1.0)  # nobody makes the folder before all have looked
    if (place / "run.json").exists():
        raise ModelError(f"{folder} has a run {name!r} already; give another --name.")
    if viewer not in ("vtkhdf", "xdmf"):
        raise ModelError(f"Viewer files {viewer!r} are not known: vtkhdf or xdmf.")
    if limit is not None and not limit > 0:
        raise ModelError(f"The limit of the indicator {limit:g} must be above 0.")
    problem, times = _asked(case, where, settings, loading)
    begin = time.perf_counter()
    reduction = load_reduction(where.reduction, problem, ranks)
    model = replace(reduction.model, load_vectors=reduction.project(reduction.local))
    loaded = time.perf_counter()
    # A model is the same on every rank, and so is the answer: nothing is sent.
    solver = ReducedSolver(model)
    answer = solver.run([Query.of(problem)], times)
    solved, record = time.perf_counter(), None
    if limit is not None and answer.misfits["p"].max() > limit:
        request = {"run": name, "settings": plain_settings(settings), "limit": limit}
        found, record = enrich(case, where, replace(reduction, model=model), answer, request)
        reduction, answer = found.reduction, found.answer
    ranks.raise_together(made_folder(place), OSError)
    if loading is not None and ranks.rank == 0:
        (place / LOADING).write_bytes(Path(loading).read_bytes())
    written = time.perf_counter()
    critical = _write_fields(reduction, answer, place / "fields", {"kind": "run", "name": name})
    if ranks.rank == 0:
        with Store(place / "fields") as fields:
            {"vtkhdf": write_vtkhdf, "xdmf": write_xdmf}[viewer](fields, place / f"fields.{viewer}")
    ranks.sum(1.0)
    described = {
        "case": case.name, "name": name, "settings": plain_settings(settings),
        "loading": loading is not None, "times": times.tolist(),
        "indicator": answer.misfits["p"][0].tolist(), "largest_p": critical, "iterations": solver.iterations,
        "load_seconds": loaded - begin, "seconds": solved - loaded, "fields_seconds": time.perf_counter() - written,
        "cores": 1, "enrichment": record, "enrichments": len(read_description(where.model).get("enrichments", [])),
        "bound": bound_of(where), "origin": origin(),
    }  # fmt: skip
    if ranks.rank == 0:
        write_description(place / "run.json", described)
    ranks.sum(1.0)
    return described


def evaluate_run(
    case: RomCase,
    folder: str | Path,
    name: str,
    *,
    source: str = EMBEDDED,
    displacement: str = "displacement",
    comm: MPI.Comm | Communicator | None = None,
    watch: Watch = _nobody,
) -> dict[str, Any]:
    """Compare a run with the full model under the same settings and loading; return the evaluation. Collective.

    Errors at a time are L2 norms of the difference over the largest norm of the full fields in the run.

    Raises
    ------
    ModelError : no such run, or a full run that has none of its times.
    ValueError, RuntimeError, OSError : what the source refuses.
    """
    ranks, where = communicator(comm), ModelFolder(Path(folder))
    asked, place = read_description(where.run(name) / "run.json"), where.run(name)
    loading = place / LOADING if asked["loading"] else None
    problem, times = _asked(case, where, settings_of(asked["settings"]), loading)
    run = FullRun(problem, times, source, ranks, scratch=place / "calculix", displacement=displacement)
    local, mass, point = run.local, MassProduct(run.local.kinematics), asked["largest_p"]["point"]
    weights, here = local.kinematics.weights, np.flatnonzero(local.subdomain.points == point)
    rows, seen = [], []
    with Store(place / "fields", ranks) as fields, StoreWriter(
        place / "truth", local.subdomain, {"kind": "truth", "name": name, "source": source}
    ) as truth:  # fmt: skip
        if not np.array_equal(fields.subdomain.points, local.subdomain.points):
            raise ModelError(f"{place} is dealt to the ranks otherwise than {source}; use another number of ranks.")
        for increment in run:
            k = int(np.argmin(np.abs(times - increment.time)))
            if abs(times[k] - increment.time) > 1e-9 * (times[-1] - times[0]):
                continue  # inside a step that was cut
            p = local.material.field("p", increment.state) if _has_p(local) else np.zeros(len(weights))
            truth.append(increment.time, increment.displacement, p=p)
            u_off, p_off = fields.displacement(k) - increment.displacement, fields.point_field("p", k) - p
            squares = [_square(mass, u_off), _square(mass, increment.displacement), p_off**2 @ weights, p**2 @ weights]
            at_point = [p[here].sum(), fields.point_field("p", k)[here].sum()]
            rows.append(ranks.sum(np.array([*squares, *at_point])))
            seen.append(k)
            watch(f"full model of {name}", done=k, of=len(times) - 1)
        if not seen:
            raise ModelError(f"{source} has none of the times of run {name}: {times[1]:g} to {times[-1]:g}.")
    table = np.array(rows)
    sizes = np.sqrt(table[:, [1, 3]].max(axis=0))
    evaluation = {
        "name": name, "source": source, "times": times[seen].tolist(),
        "error_u": _ratio(table[:, 0], sizes[0]), "error_p": _ratio(table[:, 2], sizes[1]),
        "p_at_point": {"full": table[:, 4].tolist(), "reduced": table[:, 5].tolist()},
        "seconds": run.seconds, "cores": run.cores, "replay_seconds": run.replay_seconds, "checks": run.checks,
        "origin": origin(),
    }  # fmt: skip
    if ranks.rank == 0:
        write_description(place / "evaluation.json", evaluation)
    ranks.sum(1.0)
    return evaluation


def costs(model: Mapping[str, Any], run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what a run saved: wall-time and core-time speed-ups, offline core-seconds, queries until they are paid.

    What enrichment took counts with the run that asked for it. Each is None where the full model's time is not known,
    or where the reduced one is not faster.
    """
    trainings = [(t["seconds"], t["cores"], t["replay_seconds"]) for t in model["training"]]
    known = all(seconds is not None for seconds, _, _ in trainings)
    replayed = sum(replay for _, _, replay in trainings)
    compressed = (model["compress_seconds"] + replayed) * model["cores"]
    offline = sum(s * c for s, c, _ in trainings) + compressed if known else None
    full, reduced = evaluation["seconds"], run["seconds"]
    if full is None:
        return {"wall": None, "core": None, "offline_core_seconds": offline, "break_even": None}
    mended = run.get("enrichment") or {"seconds": 0.0, "cores": 1}
    spent = reduced * run["cores"] + mended["seconds"] * mended["cores"]
    saved = full * evaluation["cores"] - spent
    return {
        "wall": full / (reduced + mended["seconds"]), "core": full * evaluation["cores"] / spent,
        "offline_core_seconds": offline, "break_even": offline / saved if known and saved > 0 else None,
    }  # fmt: skip


def _stored(run: FullRun, path: Path, attributes: Mapping[str, Any], watch: Callable[..., None]) -> Snapshots:
    """Write the increments of a run into a store as they come, and return them as snapshots. Collective."""
    local, kept = run.local, []
    with StoreWriter(path, local.subdomain, attributes) as store:
        for increment in run:
            p = {"p": local.material.field("p", increment.state)} if _has_p(local) else {}
            if not kept:
                rest = {name: np.zeros_like(values) for name, values in {"stress": increment.stress, **p}.items()}
                start = run.start
                store.append(start, np.zeros_like(increment.displacement), temperature=local.nodal_temperature(start),
                             **rest)  # fmt: skip
            temperature = local.nodal_temperature(increment.time)
            store.append(increment.time, increment.displacement, temperature=temperature, stress=increment.stress, **p)
            kept.append(increment)
            watch(done=len(kept))
    return Snapshots.collect(local, kept)


def _write_fields(reduction: Reduction, answer: Trajectory, path: Path, attributes: Mapping[str, Any]) -> dict:
    """Write the full fields of an answer, and return the largest p of its end, and at which point. Collective."""
    local = reduction.local
    with StoreWriter(path, local.subdomain, attributes) as store:
        for k, moment in enumerate(answer.times):
            stress = [reduction.dual_field(name, answer.duals[name][0, k]) for name in STRESSES]
            p = reduction.dual_field("p", answer.duals["p"][0, k])
            store.append(
                float(moment), reduction.displacement_field(answer.coefficients[0, k], answer.lifting[0, k]),
                temperature=local.nodal_temperature(float(moment)), p=p, stress=np.stack(stress, axis=1),
            )  # fmt: skip
    ranks = local.subdomain.comm
    largest = ranks.maximum(float(p.max()))
    mine = local.subdomain.points[p == largest]
    lowest = -ranks.maximum(-float(mine.min()) if mine.size else -np.inf)
    return {"value": largest, "point": int(lowest)}


def _asked(
    case: RomCase, where: ModelFolder, settings: Mapping[str, Any], loading: str | Path | None
) -> tuple[Problem, np.ndarray]:
    problem, times = case.build(settings, mesh_of(str(where.reduction)) if case.takes_mesh else None)
    if read_description(where.model)["counterpart"]:
        problem = counterpart(problem)
    return (problem, times) if loading is None else with_loading(problem, loading)


def require_same(first: Problem, other: Problem) -> None:
    """Raise where two problems cannot train one model."""
    mine, theirs = first.mesh, other.mesh
    if list(mine.cells) != list(theirs.cells) or not np.array_equal(mine.points, theirs.points) or any(
        not np.array_equal(mine.cells[kind], theirs.cells[kind]) for kind in mine.cells
    ):  # fmt: skip
        raise ModelError("Training runs have different meshes; leave the settings that change the mesh alone.")
    if load_names(first) != load_names(other) or list(first.laws) != list(other.laws):
        raise ModelError(f"Training runs have different loads, supports or laws: {load_names(first)} and "
                         f"{load_names(other)}.")  # fmt: skip


def made_folder(folder: Path) -> Exception | None:
    """Make a folder and return the error, if any."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error
    return None


def bound_of(where: ModelFolder) -> dict[str, float] | None:
    """Return the bound on the error of p that all evaluated runs together give, None where they are too few."""
    pairs = []
    for name in where.runs():
        if (where.run(name) / "evaluation.json").exists():
            seen = read_description(where.run(name) / "evaluation.json")
            indicator = read_description(where.run(name) / "run.json")["indicator"]
            pairs.append((max(indicator), max(seen["error_p"])))
    if len({x for x, y in pairs if x > 0 and y > 0}) < 3:
        return None
    return asdict(ErrorBound.fit(*np.array(pairs).T))


def _has_p(local: LocalProblem) -> bool:
    return any("p" in law.state_names for law in local.material.laws)


def _square(mass: MassProduct, field: np.ndarray) -> float:
    column = field.reshape(-1, 1)
    return float(mass.gram(column, column)[0, 0])


def _ratio(squares: np.ndarray, size: float) -> list[float]:
    return (np.sqrt(squares) / size if size > 0 else np.zeros(len(squares))).tolist()
