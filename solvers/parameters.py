"""Parameters of a PDE: their distributions, and the values of one simulation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


class Distribution(ABC):
    """Where one scalar parameter may lie, as a map from the unit interval.

    A sampler draws points of the unit cube; each distribution turns one coordinate into a value.
    """

    @abstractmethod
    def from_unit(self, q: float) -> float:
        """Return the value at quantile q in [0, 1]."""

    @abstractmethod
    def to_unit(self, value: float) -> float:
        """Return the quantile of a value: the inverse of `from_unit`."""

    @abstractmethod
    def contains(self, value: float) -> bool:
        """Return whether a value is allowed."""


def _require_bounds(low: float, high: float) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"Bounds ({low}, {high}) must be finite with low < high.")


@dataclass(frozen=True)
class Uniform(Distribution):
    """Uniform on [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_bounds(self.low, self.high)

    def from_unit(self, q: float) -> float:
        """Return low + q·(high - low)."""
        return self.low + q * (self.high - self.low)

    def to_unit(self, value: float) -> float:
        """Return (value - low) / (high - low)."""
        return (value - self.low) / (self.high - self.low)

    def contains(self, value: float) -> bool:
        """Return low <= value <= high."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class LogUniform(Distribution):
    """Uniform in log(value) on [low, high], low > 0."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_bounds(self.low, self.high)
        if self.low <= 0:
            raise ValueError(f"LogUniform needs low > 0, got {self.low}; use Uniform for ranges that touch 0.")

    def from_unit(self, q: float) -> float:
        """Return low·(high / low)^q."""
        return self.low * (self.high / self.low) ** q

    def to_unit(self, value: float) -> float:
        """Return log(value / low) / log(high / low)."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def contains(self, value: float) -> bool:
        """Return low <= value <= high."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"in [{self.low:g}, {self.high:g}], log-uniform"


class Parameters(Mapping[str, float]):
    """The parameter values of one simulation, read as `p.nu` or `p["nu"]`; immutable."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, float]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> float:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(
                f"This case has no parameter {name!r}; it has {', '.join(self._values) or 'none'}."
            ) from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Parameters are fixed for a simulation; {name!r} cannot be set.")

    def __reduce__(self) -> tuple[type, tuple[dict[str, float]]]:
        return Parameters, (dict(self._values),)

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return "Parameters(" + ", ".join(f"{name}={value:g}" for name, value in self._values.items()) + ")"
