"""Many queries at once: settings drawn at random, or from a table, and the statistics of p at the critical point.

The critical point is the quadrature point whose p is largest at the end in the mean over all draws. Queries are dealt
to the ranks; each answers its own in batches that share one call of the laws.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .atomic import write_text
from .calculix_deck import counterpart
from .case import RomCase
from .communicator import Communicator, communicator
from .full_run import mesh_of
from .law import ConvergenceError
from .loading import read_table
from .loads import ONE
from .model_folder import ModelError, ModelFolder, origin, plain_settings, read_description, write_description
from .model_store import load_reduction
from .offline import Reduction
from .online import Query, ReducedSolver
from .problem import Problem
from .stages import bound_of, made_folder, require_same

if TYPE_CHECKING:
    from mpi4py import MPI

AT_ONCE = 50
"""Queries that share one call of the laws."""

QUANTILES = (0.05, 0.5, 0.95)
LARGEST = 10**6
"""Draws that are answered at most."""


@dataclass(frozen=True)
class Distribution:
    """Of one setting: "uniform" between two numbers, or "normal" with mean and standard deviation.

    Raises
    ------
    ValueError : another kind, or numbers that cannot be.
    """

    kind: str
    first: float
    second: float

    def __post_init__(self) -> None:
        good = {"uniform": self.first < self.second, "normal": self.second > 0}.get(self.kind, False)
        if not good or not np.isfinite([self.first, self.second]).all():
            raise ValueError(f"Distribution {self} is not allowed: uniform(LOW,HIGH) or normal(MEAN,DEVIATION).")

    @classmethod
    def parse(cls, text: str) -> Distribution:
        """Return the distribution of a text such as "uniform(110,130)" or "normal(120,5)"."""
        found = re.fullmatch(r"\s*(\w+)\s*\(\s*([^,()]+),\s*([^,()]+)\)\s*", text)
        try:
            return cls(found[1], float(found[2]), float(found[3]))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Distribution {text!r} is not allowed: uniform(LOW,HIGH) or normal(MEAN,DEVIATION)."
            ) from error

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return independent draws, (count,)."""
        return getattr(rng, self.kind)(self.first, self.second, count)

    def __str__(self) -> str:
        return f"{self.kind}({self.first:g}, {self.second:g})"


def drawn(case: RomCase, distributions: Mapping[str, Distribution], count: int, seed: int) -> dict[str, np.ndarray]:
    """Return independent draws of settings, (count,) each, in the order of the distributions.

    Raises
    ------
    ValueError : a setting that the case does not have or that is no number of its kind; too few or too many draws.
    """
    rng = np.random.default_rng(seed)
    return _checked(case, {name: one.draw(rng, count) for name, one in distributions.items()}, count)


def tabled(case: RomCase, path: str | Path) -> dict[str, np.ndarray]:
    """Return the draws of a table (.csv): the first row names settings, each further row is a draw.

    Raises
    ------
    ValueError : a table that cannot be read, or what `drawn` refuses.
    """
    names, values = read_table(Path(path))
    return _checked(case, dict(zip(names, values.T, strict=True)), len(values))


def _checked(case: RomCase, draws: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    if not draws or not 2 <= count <= LARGEST:
        raise ValueError(f"A sample needs settings that vary and 2 to {LARGEST} draws; it has {list(draws)}, {count}.")
    for name, values in draws.items():
        (default,) = case.parse([f"{name}={values[0]}"]).values()
        if not isinstance(default, float):
            raise ValueError(f"Setting {name} of case {case.name} cannot vary: it is no decimal number.")
    return draws


def sample_case(
    case: RomCase,
    folder: str | Path,
    settings: Mapping[str, Any],
    draws: Mapping[str, np.ndarray],
    *,
    name: str | None = None,
    notes: Mapping[str, Any] | None = None,
    comm: MPI.Comm | Communicator | None = None,
    watch: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Answer all draws with the model of a folder, and return and write what they say. Collective.

    settings : those that do not vary. draws : setting -> values, (draws,) each; see `drawn`, `tabled`.
    name : of the sample; default: the next number. notes : kept in the description, e.g. the distributions.
    watch : called with the number of draws answered.

    `samples/NAME/table.csv` has one row per draw: its settings, p at the critical point at the end, the indicator.

    Raises
    ------
    ModelError : no model, a name that is taken, draws with another mesh or other loads than the model.
    ValueError : draws whose times differ; ConvergenceError : a draw without reduced equilibrium.
    """
    ranks, where = communicator(comm), ModelFolder(Path(folder))
    described = read_description(where.model)
    name = name or where.next_sample()
    place = where.sample(name)
    ranks.sum(1.0)  # nobody makes the folder before all have looked
    if (place / "sample.json").exists():
        raise ModelError(f"{folder} has a sample {name!r} already; give another --name.")
    mesh = mesh_of(str(where.reduction)) if case.takes_mesh else None
    count = len(next(iter(draws.values())))

    def asked(draw: int) -> tuple[Problem, np.ndarray]:
        problem, times = case.build({**settings, **{key: float(v[draw]) for key, v in draws.items()}}, mesh)
        return counterpart(problem) if described["counterpart"] else problem, times

    first, times = asked(0)
    reduction = load_reduction(where.reduction, first, ranks)
    model = replace(reduction.model, load_vectors=reduction.project(reduction.local))
    reduction = replace(reduction, model=model)
    begin = time.perf_counter()
    coefficients, indicators = [], []
    for start in range(0, count, AT_ONCE * ranks.size):
        here = range(start, min(start + AT_ONCE * ranks.size, count))
        found = _answered(reduction, here, [asked(draw) for draw in here], times)
        coefficients.append(found[0])
        indicators.append(found[1])
        watch(here[-1] + 1)
    seconds = ranks.maximum(time.perf_counter() - begin)
    point, p = _at_critical_point(reduction, np.concatenate(coefficients))
    indicator = np.concatenate(indicators)
    description = {
        "case": case.name, "name": name, "settings": plain_settings(settings), "varied": list(draws), "draws": count,
        "point": point, "times": times.tolist(), **_statistics(p),
        "largest_indicator": float(indicator.max()), "bound": bound_of(where),
        "seconds": seconds, "cores": ranks.size, "notes": dict(notes or {}), "origin": origin(),
    }  # fmt: skip
    ranks.raise_together(made_folder(place), OSError)
    if ranks.rank == 0:
        text = io.StringIO()
        columns = np.column_stack([*draws.values(), p[:, -1], indicator])
        np.savetxt(text, columns, delimiter=",", header=",".join([*draws, "p", "indicator"]), comments="", fmt="%.10g")
        write_text(place / "table.csv", text.getvalue())
        write_description(place / "sample.json", description)
    ranks.sum(1.0)
    return description


def _answered(
    reduction: Reduction, draws: range, built: list[tuple[Problem, np.ndarray]], times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return gappy coefficients of p and largest misfits of a batch of draws, dealt to the ranks. Collective."""
    ranks = reduction.local.subdomain.comm
    for problem, other in built:
        require_same(reduction.local.problem, problem)
        if not np.array_equal(other, times):
            raise ValueError("The draws have different times; leave the settings that change them alone.")
    problems = [problem for problem, _ in built]
    queries = _queries(reduction, problems)
    mine = np.arange(ranks.rank, len(queries), ranks.size)
    found, error = (np.zeros((0, len(times), reduction.duals["p"].modes.shape[1])), np.zeros(0)), None
    try:
        if mine.size:
            found = _answers(reduction, [problems[k] for k in mine], [queries[k] for k in mine], times)
    except ConvergenceError as caught:
        error = ConvergenceError(f"Of draws {draws[0]} to {draws[-1]}: {caught}")
    ranks.raise_together(error, ConvergenceError)
    order = np.argsort(np.concatenate(ranks.gather(mine)))
    return tuple(np.concatenate(ranks.gather(part))[order] for part in found)


def _statistics(p: np.ndarray) -> dict[str, Any]:
    """Return the statistics of p at one point, (draws, T), at the end and over time."""
    ends = p[:, -1]
    return {
        "mean": float(ends.mean()), "deviation": float(ends.std(ddof=1)),
        "standard_error": float(ends.std(ddof=1) / np.sqrt(len(ends))),
        "quantiles": {f"{q:g}": float(np.quantile(ends, q)) for q in QUANTILES},
        "over_time": {"mean": p.mean(axis=0).tolist(),
                      **{f"{q:g}": np.quantile(p, q, axis=0).tolist() for q in QUANTILES}},
    }  # fmt: skip


def _queries(reduction: Reduction, problems: list[Problem]) -> list[Query]:
    """Return the queries; a load that is not the same but for its amplitude is projected anew. Collective."""
    local, modes = reduction.local, reduction.displacement.modes
    vectors = np.repeat(reduction.model.load_vectors[None], len(problems), axis=0)
    changed = np.zeros(vectors.shape[:2], dtype=bool)
    for row, problem in enumerate(problems):
        for k, (load, known) in enumerate(zip(problem.loads, local.problem.loads, strict=True)):
            if not (is_dataclass(load) and replace(load, amplitude=ONE) == replace(known, amplitude=ONE)):
                changed[row, k] = True
                vectors[row, k] = load.vector(local.subdomain, local.kinematics).ravel() @ modes
    if changed.any():
        vectors[changed] = local.subdomain.comm.sum(vectors[changed])
    return [
        replace(Query.of(problem), load_vectors=own if new.any() else None)
        for problem, own, new in zip(problems, vectors, changed, strict=True)
    ]


def _answers(
    reduction: Reduction, problems: list[Problem], queries: list[Query], times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return gappy coefficients of p, (Q, T, modes), and the largest misfits, (Q,); laws may differ."""
    groups: list[tuple[tuple, list[int]]] = []
    for k, problem in enumerate(problems):
        laws = tuple(problem.laws.values())
        members = next((rows for known, rows in groups if known == laws), None)
        if members is None:
            groups.append((laws, [k]))
        else:
            members.append(k)
    found: dict[int, tuple[np.ndarray, float]] = {}
    for laws, members in groups:
        answer = ReducedSolver(replace(reduction.model, laws=laws)).run([queries[k] for k in members], times)
        for row, k in enumerate(members):
            found[k] = answer.duals["p"][row], float(answer.misfits["p"][row].max())
    return tuple(np.stack([found[k][part] for k in range(len(problems))]) for part in (0, 1))


def _at_critical_point(reduction: Reduction, coefficients: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the global number of the critical point, and p there, (draws, T), the start included. Collective."""
    ranks, points = reduction.local.subdomain.comm, reduction.local.subdomain.points
    modes = reduction.duals["p"].modes
    ends = modes @ coefficients[:, -1].mean(axis=0)
    largest = ranks.maximum(float(ends.max(initial=-np.inf)))
    mine = points[ends == largest]
    point = int(-ranks.maximum(-float(mine.min()) if mine.size else -np.inf))
    row = ranks.sum(modes[points == point].sum(axis=0))
    return point, coefficients @ row
