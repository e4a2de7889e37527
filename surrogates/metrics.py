"""How far predictions are from the truth: norms of the error, scale by scale, and how long they stay right.

All functions take trajectories (samples, time, fields, *grid) as numpy arrays or torch tensors, compute in
float64 and return numpy. With u the truth, û the prediction, and ⟨·⟩ the mean over the axes named:

    relative L2   ‖û - u‖ / ‖u‖                   one number per sample, over time, fields and space
    nRMSE         ‖û - u‖ / ‖u‖                   per field over everything else, then the mean over fields
    VRMSE         sqrt(⟨(û - u)²⟩ / (⟨(u - ⟨u⟩)²⟩ + ε))   likewise; 1 is what predicting the mean scores
    max error     max |û - u|                      per field, in its unit
    relative H1   ‖û - u‖₁ / ‖u‖₁                  like nRMSE, with ‖v‖₁² = ‖v‖² + ‖∇v‖²
    band errors   like nRMSE, with the part of the error at wave numbers within each band
    conservation  sqrt(⟨(⟨û⟩ - ⟨u⟩)²⟩ / ⟨u²⟩)       per field: means over space inside, what a closed box conserves
    correlation   of û and u over space            per sample and step, the mean over fields

Fields are kept apart because they have different units.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def relative_h1(
    prediction: Any, truth: Any, *, spacing: Sequence[float], periodic: Sequence[bool], per_step: bool = False
) -> np.ndarray:
    """Return the relative error in the H1 norm, over all samples: a scalar, or one value per step, (time,).

    The gradient is the difference of neighbouring points over their distance, which no oscillation escapes.

    Parameters
    ----------
    spacing : distance of neighbouring points, per axis; its unit of length weighs gradients against values.
    periodic : per axis, whether the last point neighbours the first.
    """
    u, error = _truth_and_error(prediction, truth)
    if len(spacing) != u.ndim - 3 or len(periodic) != u.ndim - 3:
        raise ValueError(f"Spacing {spacing} and periodic {periodic} need one value for each of {u.ndim - 3} axes.")
    axes = _pooled_axes(u, per_step)

    def norm(v: np.ndarray) -> np.ndarray:
        total = _sum_of_squares(v, axes)
        for axis, (h, closed) in enumerate(zip(spacing, periodic, strict=True), start=3):
            edge = {"append": np.take(v, [0], axis=axis)} if closed else {}
            total = total + _sum_of_squares(np.diff(v, axis=axis, **edge) / h, axes)
        return total

    return np.sqrt(norm(error) / _nonzero(norm(u))).mean(-1)


def band_errors(prediction: Any, truth: Any, *, edges: Sequence[int] = (4, 12), per_step: bool = False) -> np.ndarray:
    """Return the nRMSE of each band of wave numbers, shape (bands,), or of each step and band, (time, bands).

    The squares of the bands of one field add up to the square of its nRMSE (Parseval). Made for periodic axes;
    across walls the jump between the ends adds to the high bands.

    Parameters
    ----------
    edges : wave numbers |k|, in periods per box, where a new band begins: by default |k| < 4, 4 to 12, 12 and more,
        as in PDEBench (Takamoto et al. 2022).
    """
    u, error = _truth_and_error(prediction, truth)
    bands = _bands(u.shape[3:], edges)
    count = len(edges) + 1
    energy = np.abs(np.fft.fftn(error, axes=tuple(range(3, u.ndim)), norm="ortho")) ** 2
    per_band = np.stack([energy[..., bands == band].sum(-1) for band in range(count)], axis=-1)
    pooled = (0,) if per_step else (0, 1)
    whole = _nonzero(_sum_of_squares(u, _pooled_axes(u, per_step)))[..., None]
    return np.sqrt(per_band.sum(pooled) / whole).mean(-2)  # the mean over fields


def spectrum(states: Any) -> np.ndarray:
    """Return the energy ⟨u²⟩ of each whole wave number, (samples, time, fields, wave numbers).

    A wave number holds the modes with |k| within a half of it; all of them together hold ⟨u²⟩.
    """
    u = _array(states)
    ndim = u.ndim - 3
    shells = np.rint(_wave_numbers(u.shape[3:])).astype(int)
    energy = np.abs(np.fft.fftn(u, axes=tuple(range(3, u.ndim)), norm="forward")) ** 2
    flat = energy.reshape(-1, shells.size)
    sums = np.stack([np.bincount(shells.ravel(), weights=row) for row in flat])
    return sums.reshape(*u.shape[: u.ndim - ndim], -1)


def conservation_error(prediction: Any, truth: Any, *, per_step: bool = False) -> np.ndarray:
    """Return how far spatial means are off, over the size of the field: (fields,), or (time, fields)."""
    u, error = _truth_and_error(prediction, truth)
    space = tuple(range(3, u.ndim))
    pooled = (0,) if per_step else (0, 1)
    means = np.mean(np.mean(error, axis=space) ** 2, axis=pooled)
    return np.sqrt(means / _nonzero(np.mean(u**2, axis=_pooled_axes(u, per_step))))


def correlation(prediction: Any, truth: Any) -> np.ndarray:
    """Return the correlation of prediction and truth over space, the mean over fields, (samples, time).

    A field that is constant in space correlates with its like only: 1 if both are constant, else 0.
    """
    u_hat, u = _array(prediction), _array(truth)
    _truth_and_error(u_hat, u)  # names wrong shapes
    space = tuple(range(3, u.ndim))
    # Where all values are equal their mean may be off by its rounding, and the deviations from it correlate.
    varies = [np.ptp(v, axis=space, keepdims=True) != 0 for v in (u_hat, u)]
    pairs = zip(varies, (u_hat, u), strict=True)
    a, b = (np.where(some, v - v.mean(axis=space, keepdims=True), 0.0) for some, v in pairs)
    norms = np.sqrt(_sum_of_squares(a, space) * _sum_of_squares(b, space))
    both_constant = ~(varies[0] | varies[1]).reshape(norms.shape)
    return np.where(both_constant, 1.0, np.sum(a * b, axis=space) / _nonzero(norms)).mean(-1)


def correlation_time(prediction: Any, truth: Any, times: Any, *, threshold: float = 0.8) -> np.ndarray:
    """Return the time until which each roll-out correlates with the truth, shape (samples,).

    It is the time where the line between two steps first falls below the threshold; the last time, if none does. A
    state that is not finite correlates with nothing, 0.

    Parameters
    ----------
    times : of the steps, (time,); a roll-out that is wrong at once has times[0].
    threshold : 0.8 as in Kochkov et al. (2021) is usual.
    """
    with np.errstate(invalid="ignore"):
        r, t = correlation(prediction, truth), _array(times)
    if t.shape != r.shape[1:]:
        raise ValueError(f"Times have shape {t.shape}; these trajectories have {r.shape[1]} steps.")
    r = np.where(np.isnan(r), 0.0, r)
    below = r < threshold
    first = np.where(below.any(axis=1), below.argmax(axis=1), len(t))
    result = np.empty(len(r))
    for sample, step in enumerate(first):
        if step in (0, len(t)):
            result[sample] = t[0] if step == 0 else t[-1]
            continue
        before, after = r[sample, step - 1], r[sample, step]
        result[sample] = t[step - 1] + (t[step] - t[step - 1]) * (before - threshold) / (before - after)
    return result


def _wave_numbers(grid: Sequence[int]) -> np.ndarray:
    """|k| of every mode of a complex transform, in periods per box, shape of the grid."""
    axes = np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in grid), indexing="ij")
    return np.sqrt(sum(k**2 for k in axes))


def _bands(grid: Sequence[int], edges: Sequence[int]) -> np.ndarray:
    if list(edges) != sorted(set(edges)) or (edges and edges[0] <= 0):
        raise ValueError(f"Band edges {tuple(edges)} must be positive and increase.")
    return np.digitize(_wave_numbers(grid), np.asarray(edges, dtype=float))


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
