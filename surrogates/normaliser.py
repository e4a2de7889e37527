"""The scaling between physical units and what a network sees."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch

from .problem import Problem

_log = logging.getLogger(__name__)

_TINY = torch.finfo(torch.float32).tiny

_SMALLEST_VARIATION = 1e-6
"""Standard deviation over mean below which a float32 field holds little but rounding noise."""


class Normaliser(torch.nn.Module):
    """Maps fields to mean 0 and deviation 1, parameters and time to [-1, 1].

    The statistics of the fields come from the stream, once: weights are only valid together with the
    statistics that they were trained with, so both lie in the same file and the first ones stay.
    Tensors keep their dtype; fields are on the axis just before the grid.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        count = len(problem.fields)
        self.fields = problem.fields
        self.duration, self.num_snapshots = problem.duration, problem.num_snapshots
        self.ndim = len(problem.shape)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("std", torch.ones(count))
        self.register_buffer("frozen", torch.zeros((), dtype=torch.int64))
        logarithmic = [name in problem.logarithmic for name in problem.parameters]
        bounds = [
            (math.log(low), math.log(high)) if log else (low, high)
            for (low, high), log in zip(problem.parameters.values(), logarithmic, strict=True)
        ]
        low, high = torch.tensor(bounds, dtype=torch.float64).reshape(-1, 2).unbind(1)
        # Derived from the problem, which is in the file already.
        self.register_buffer("_centre", ((low + high) / 2).float(), persistent=False)
        self.register_buffer("_half_range", ((high - low) / 2).float(), persistent=False)
        self.register_buffer("_logarithmic", torch.tensor(logarithmic, dtype=torch.int64), persistent=False)
        self._any_logarithmic = any(logarithmic)

    def freeze(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Fix the statistics of the fields; once they are fixed, only report how far the stream has drifted.

        A field that does not vary is scaled by its magnitude: divided by its rounding noise it would be the whole loss.

        Raises
        ------
        ValueError : not one finite mean and one finite, non-negative deviation per field.
        """
        means, stds = [float(m) for m in mean], [float(s) for s in std]
        if len(means) != len(self.fields) or len(stds) != len(self.fields):
            raise ValueError(
                f"Statistics have {len(means)} means and {len(stds)} deviations; "
                f"one of each is needed for the fields {', '.join(self.fields)}."
            )
        for field, m, s in zip(self.fields, means, stds, strict=True):
            if not (math.isfinite(m) and math.isfinite(s) and s >= 0):
                raise ValueError(f"Statistics of field {field} are mean {m}, deviation {s}; they must be finite, >= 0.")
        if self.frozen.item():
            self._report_drift(means, stds)
            return
        sizes = [s if s > _SMALLEST_VARIATION * abs(m) else abs(m) for m, s in zip(means, stds, strict=True)]
        scales = [size if size > _TINY else 1.0 for size in sizes]
        self.mean.copy_(torch.tensor(means))
        self.std.copy_(torch.tensor(scales))
        self.frozen.fill_(1)

    def _report_drift(self, means: list[float], stds: list[float]) -> None:
        kept = zip(self.fields, self.mean.tolist(), self.std.tolist(), means, stds, strict=True)
        for field, old_mean, old_std, m, s in kept:
            _log.info(
                "Normaliser of field %s stays frozen; the stream drifted by %.3g deviations, its deviation %.3g-fold.",
                field, (m - old_mean) / old_std, s / old_std,
            )  # fmt: skip

    def _shaped(self, values: torch.Tensor) -> torch.Tensor:
        return values.reshape(-1, *(1,) * self.ndim)

    def normalise(self, states: torch.Tensor) -> torch.Tensor:
        """Return (states - mean) / std; states (..., fields, *grid)."""
        return (states - self._shaped(self.mean)) / self._shaped(self.std)

    def denormalise(self, states: torch.Tensor) -> torch.Tensor:
        """Return states·std + mean; states (..., fields, *grid)."""
        return states * self._shaped(self.std) + self._shaped(self.mean)

    def scale_parameters(self, parameters: torch.Tensor) -> torch.Tensor:
        """Return parameters (..., parameters) mapped linearly, or by their logarithm, from their bounds to [-1, 1]."""
        if self._any_logarithmic:
            # Where the logarithm is not wanted its argument is 1, so that no negative value makes a NaN.
            wanted = self._logarithmic.bool()
            logarithms = torch.log(torch.where(wanted, parameters, torch.ones_like(parameters)))
            parameters = torch.where(wanted, logarithms, parameters)
        return (parameters - self._centre) / self._half_range

    def clock(self, times: torch.Tensor) -> torch.Tensor:
        """Return two views of time, each mapped from [0, duration] to [-1, 1]: (...) -> (..., 2).

        They are t and log(1 + t / interval between snapshots). Transients from rough initial data change as
        much within the first snapshots as in all later ones; t alone hides that.
        """
        linear = times / self.duration
        logarithmic = torch.log1p(linear * self.num_snapshots) / math.log1p(self.num_snapshots)
        return 2 * torch.stack((linear, logarithmic), dim=-1) - 1
