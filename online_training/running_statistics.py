"""Mean and standard deviation of each field, accumulated step by step."""

from __future__ import annotations

import numpy as np

_TOGETHER = 2**16
"""Values that are taken at a time: in double precision they stay in a processor's cache."""


class RunningStatistics:
    """Merges the moments of one step after the other in double precision (Chan, Golub and LeVeque, 1983)."""

    def __init__(self, num_fields: int) -> None:
        self.count = 0
        self.mean = np.zeros(num_fields)
        self._m2 = np.zeros(num_fields)

    def add(self, step: np.ndarray) -> None:
        """Take the cells of one step, shape (fields, *grid)."""
        flat = step.reshape(len(self.mean), -1)
        n = flat.shape[1]
        most = max(1, _TOGETHER // len(flat))
        # About the mean of the first ones, which is as good as about that of all: it is off by no more than the root of
        # n / most standard deviations, since they are among those that deviate.
        values = flat[:, :most].astype(np.float64)
        about, first = values.mean(axis=1), 0.0
        values -= about[:, None]
        second = np.einsum("ij,ij->i", values, values)
        for begin in range(most, n, most):
            values = flat[:, begin : begin + most].astype(np.float64)
            values -= about[:, None]
            first += values.sum(axis=1)
            second += np.einsum("ij,ij->i", values, values)
        mean, m2 = about + first / n, second - first**2 / n
        total = self.count + n
        delta = mean - self.mean
        self._m2 += m2 + delta**2 * (self.count * n / total)
        self.mean += delta * (n / total)
        self.count = total

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each field (fields,); 1 before the first step."""
        return np.sqrt(self._m2 / self.count) if self.count else np.ones_like(self.mean)

    def to_dict(self) -> dict[str, object]:
        """Return count, mean and std as plain values."""
        return {"count": self.count, "mean": self.mean.tolist(), "std": self.std.tolist()}

    def drift_from(self, frozen: RunningStatistics) -> dict[str, list[float]]:
        """How far the mean moved, in frozen standard deviations, and the ratio of standard deviations, by field."""
        scale = np.where(frozen.std > 0, frozen.std, 1.0)
        return {
            "mean": ((self.mean - frozen.mean) / scale).tolist() if self.count else [0.0] * len(self.mean),
            "std": (self.std / scale).tolist() if self.count else [1.0] * len(self.mean),
        }
