"""The design of a study: at which points of the unit cube the parameters of its simulations lie."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.stats import qmc


def draw_design(
    dims: int, count: int, seed: int, *, kind: Literal["sobol", "uniform"] = "sobol", held_out: bool = False
) -> np.ndarray:
    """Return design points, shape (count, dims), float64 in [0, 1).

    The first n points are the same for every count >= n, so that a study can be extended.

    Parameters
    ----------
    dims : parameters of the case; 0 is allowed.
    seed : of the study.
    kind : "sobol", a scrambled Sobol sequence (low discrepancy), or "uniform", independent points.
    held_out : draw from the stream of the validation simulations. It is keyed by another child of the
        seed, thus independent of the training points: their scrambling, or their numbers, have nothing in common.

    Raises
    ------
    ValueError : unknown kind, or a negative number of points or dimensions.
    """
    if count < 0 or dims < 0:
        raise ValueError(f"A design of {count} points in {dims} dimensions is not possible; both must be 0 or more.")
    if kind not in ("sobol", "uniform"):
        raise ValueError(f"Design kind {kind!r} is unknown; use 'sobol' or 'uniform'.")
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(held_out),)))
    if kind == "uniform" or count == 0 or dims == 0:
        return generator.random((count, dims))
    # A Sobol sequence is balanced after 2^m points only: the next power of two is drawn, and cut.
    return qmc.Sobol(dims, seed=generator).random_base2(max(count - 1, 0).bit_length())[:count]
