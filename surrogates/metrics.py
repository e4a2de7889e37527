"""How far predictions are from the truth: relative L2, nRMSE, VRMSE and the largest error.

All functions take trajectories (samples, time, fields, *grid) as numpy arrays or torch tensors, compute in
float64 and return numpy. With u the truth, û the prediction, and ⟨·⟩ the mean over the axes named:

    relative L2   ‖û - u‖ / ‖u‖                   one number per sample, over time, fields and space
    nRMSE         ‖û - u‖ / ‖u‖                   per field over everything else, then the mean over fields
    VRMSE         sqrt(⟨(û - u)²⟩ / (⟨(u - ⟨u⟩)²⟩ + ε))   likewise; 1 is what predicting the mean scores
    max error     max |û - u|                      per field, in its unit

Fields are kept apart because they have different units.
"""

from __future__ import annotations

from typing import Any

import numpy as np

EPSILON = 1e-7
"""ε of the VRMSE, as in The Well (Ohana et al. 2024): keeps a constant truth from dividing by zero."""


def relative_l2(prediction: Any, truth: Any, *, per_step: bool = False) -> np.ndarray:
    """Return ‖û - u‖ / ‖u‖ of each sample, shape (samples,), or of each sample and step, (samples, time)."""
    u, error = _truth_and_error(prediction, truth)
    axes = tuple(range(2 if per_step else 1, u.ndim))
    return np.sqrt(_sum_of_squares(error, axes) / _nonzero(_sum_of_squares(u, axes)))


def nrmse(prediction: Any, truth: Any, *, per_step: bool = False) -> np.ndarray:
    """Return the nRMSE over all samples: a scalar, or one value per step, (time,)."""
    u, error = _truth_and_error(prediction, truth)
    axes = _pooled_axes(u, per_step)
    return np.sqrt(_sum_of_squares(error, axes) / _nonzero(_sum_of_squares(u, axes))).mean(-1)


def vrmse(prediction: Any, truth: Any, *, per_step: bool = False) -> np.ndarray:
    """Return the VRMSE with variances over samples, space and (unless per step) time: a scalar, or (time,).

    A single frame may be constant in space, like the initial state of a heat problem; pooled variances
    still mean something there. `frame_vrmse` is the variant with the variance of each frame.
    """
    u, error = _truth_and_error(prediction, truth)
    axes = _pooled_axes(u, per_step)
    return np.sqrt(np.mean(error**2, axis=axes) / (np.var(u, axis=axes) + EPSILON)).mean(-1)


def frame_vrmse(prediction: Any, truth: Any) -> np.ndarray:
    """Return the VRMSE of each frame and field with means over space only, as The Well reports it.

    Returns
    -------
    (samples, time, fields); The Well averages it over samples and fields.
    """
    u, error = _truth_and_error(prediction, truth)
    axes = tuple(range(3, u.ndim))
    return np.sqrt(np.mean(error**2, axis=axes) / (np.var(u, axis=axes) + EPSILON))


def max_error(prediction: Any, truth: Any, *, per_step: bool = False) -> np.ndarray:
    """Return max |û - u| of each field, shape (fields,), or of each step and field, (time, fields)."""
    u, error = _truth_and_error(prediction, truth)
    return np.abs(error).max(axis=_pooled_axes(u, per_step))


def _truth_and_error(prediction: Any, truth: Any) -> tuple[np.ndarray, np.ndarray]:
    u_hat, u = _array(prediction), _array(truth)
    if u_hat.shape != u.shape or u.ndim < 4:
        raise ValueError(
            f"Prediction {u_hat.shape} and truth {u.shape} must have one shape, (samples, time, fields, *grid)."
        )
    return u, u_hat - u


def _array(values: Any) -> np.ndarray:
    detach = getattr(values, "detach", None)
    return np.asarray(detach().cpu() if detach else values, dtype=np.float64)


def _pooled_axes(u: np.ndarray, per_step: bool) -> tuple[int, ...]:
    return (0, *(() if per_step else (1,)), *range(3, u.ndim))


def _sum_of_squares(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sum(values**2, axis=axes)


def _nonzero(norms: np.ndarray) -> np.ndarray:
    # A truth that is zero everywhere has no relative error: a deviation from it gives a huge number, none gives 0.
    return np.maximum(norms, 1e-200)
