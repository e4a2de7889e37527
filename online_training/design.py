"""The design of a study: at which points of the unit cube the parameters of its simulations lie."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

KINDS = ("sobol", "halton", "lhs", "uniform")
"""Designs that are known by name. `breed` (headrace.online_training.breed) begins with a Sobol sequence."""

ADAPTIVE = "breed"
OWN = "own:"

Sampler = Callable[[int, int, np.random.Generator], np.ndarray]
"""sampler(count, dims, rng) -> points (count, dims) in [0, 1); the same for the same generator."""


def check_sampler(name: str) -> str:
    """Return the name of a sampler: one of `KINDS`, breed, or own:FUNCTION, a function in the case's file.

    Raises
    ------
    ValueError : none of them.
    """
    if name in (*KINDS, ADAPTIVE) or re.fullmatch(OWN + r"[A-Za-z_]\w*", name):
        return name
    raise ValueError(
        f"sampler {name!r} is unknown; take {', '.join(KINDS)}, {ADAPTIVE}, "
        f"or {OWN}NAME for a function NAME(count, dims, rng) in the file of the case"
    )


def extensible(kind: str) -> bool:
    """Whether the first n points of a design are the same for every count >= n."""
    return kind != "lhs" and not kind.startswith(OWN)


def own_sampler(kind: str, module: object) -> Sampler | None:
    """Return the function that "own:NAME" stands for in the module of the case; None for other kinds.

    Raises
    ------
    ValueError : the module has no such function.
    """
    if not kind.startswith(OWN):
        return None
    function = getattr(module, kind.removeprefix(OWN), None)
    if not callable(function):
        raise ValueError(
            f"Sampler {kind!r}: the file of the case has no function {kind.removeprefix(OWN)}(count, dims, rng)."
        )
    return function


def draw_design(
    dims: int, count: int, seed: int, *, kind: str = "sobol", held_out: bool = False, own: Sampler | None = None
) -> np.ndarray:
    """Return design points, shape (count, dims), float64 in [0, 1).

    The first n points are the same for every count >= n, so that a study can be extended; not so for "lhs", whose
    strata depend on the count, nor for a function that does not care.

    Parameters
    ----------
    dims : parameters of the case; 0 is allowed.
    seed : of the study.
    kind : "sobol" or "halton", scrambled sequences of low discrepancy; "lhs", a Latin hypercube, one point in each of
        count slices of every axis; "uniform", independent points; "breed" begins as "sobol"; "own:NAME" calls `own`.
    held_out : draw from the stream of the validation simulations. It is keyed by another child of the
        seed, thus independent of the training points: their scrambling, or their numbers, have nothing in common.
    own : the function that "own:NAME" stands for; it gets a generator keyed like all others.

    Raises
    ------
    ValueError : unknown kind, a negative number of points or dimensions, or own returned something else.
    """
    if count < 0 or dims < 0:
        raise ValueError(f"A design of {count} points in {dims} dimensions is not possible; both must be 0 or more.")
    try:
        check_sampler(kind)
    except ValueError as error:
        raise ValueError(f"Design kind {kind!r} is unknown: {error}.") from None
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(held_out),)))
    if count == 0 or dims == 0:
        return generator.random((count, dims))
    if kind.startswith(OWN):
        return _own_points(kind, own, count, dims, generator)
    if kind == "uniform":
        return generator.random((count, dims))
    from scipy.stats import qmc  # takes two seconds, which every process of a study would spend

    if kind == "lhs":
        # Rounding in the last stratum may give 1.
        return np.minimum(qmc.LatinHypercube(dims, seed=generator).random(count), np.nextafter(1.0, 0.0))
    if kind == "halton":
        return qmc.Halton(dims, scramble=True, seed=generator).random(count)
    # A Sobol sequence is balanced after 2^m points only: the next power of two is drawn, and cut.
    return qmc.Sobol(dims, seed=generator).random_base2(max(count - 1, 0).bit_length())[:count]


def _own_points(kind: str, own: Sampler | None, count: int, dims: int, generator: np.random.Generator) -> np.ndarray:
    if own is None:
        raise ValueError(f"Design kind {kind!r} needs the function itself.")
    points = np.asarray(own(count, dims, generator), dtype=np.float64)
    if points.shape != (count, dims) or not np.all((points >= 0) & (points < 1)):
        inside = points.shape == (count, dims)
        found = f"values in [{points.min():g}, {points.max():g}]" if inside else f"shape {points.shape}"
        raise ValueError(
            f"Sampler {kind} must return {(count, dims)} points of the unit cube, in [0, 1); it returned {found}."
        )
    return points
