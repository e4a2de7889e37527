"""Parameters of a PDE: their distributions, and the values of one simulation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


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


def _within(bounds: Uniform | LogUniform, value: float) -> float:
    """Return a value between the bounds, which rounding may have left."""
    return min(max(value, bounds.low), bounds.high)


@dataclass(frozen=True)
class Uniform(Distribution):
    """Uniform on [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_bounds(self.low, self.high)

    def from_unit(self, q: float) -> float:
        """Return low + q·(high - low)."""
        return _within(self, self.low + q * (self.high - self.low))

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
        return _within(self, self.low * (self.high / self.low) ** q)

    def to_unit(self, value: float) -> float:
        """Return log(value / low) / log(high / low)."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def contains(self, value: float) -> bool:
        """Return low <= value <= high."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"in [{self.low:g}, {self.high:g}], log-uniform"


@dataclass(frozen=True)
class Integers(Distribution):
    """Whole numbers from low to high, both included, all equally likely; values are floats such as 3.0."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not (float(self.low).is_integer() and float(self.high).is_integer() and self.low < self.high):
            raise ValueError(f"Integers({self.low}, {self.high}) needs whole numbers with low < high.")

    def from_unit(self, q: float) -> float:
        """Return the value in whose equal share of the unit interval q lies."""
        count = int(self.high - self.low) + 1
        return float(self.low + _share(q, count))

    def to_unit(self, value: float) -> float:
        """Return the middle of the value's share."""
        return (value - self.low + 0.5) / (self.high - self.low + 1)

    def contains(self, value: float) -> bool:
        """Return whether value is whole and low <= value <= high."""
        return float(value).is_integer() and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"a whole number in [{self.low}, {self.high}]"


@dataclass(frozen=True)
class Choice(Distribution):
    """One of several numbers, all equally likely; they are kept in ascending order."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        values = tuple(sorted(float(value) for value in self.values))
        if len(values) < 2 or len(set(values)) < len(values) or not all(math.isfinite(value) for value in values):
            raise ValueError(f"Choice({self.values}) needs two or more different finite numbers.")
        object.__setattr__(self, "values", values)

    def from_unit(self, q: float) -> float:
        """Return the value in whose equal share of the unit interval q lies."""
        return self.values[_share(q, len(self.values))]

    def to_unit(self, value: float) -> float:
        """Return the middle of the value's share."""
        return (self.values.index(value) + 0.5) / len(self.values)

    def contains(self, value: float) -> bool:
        """Return whether value is one of the values."""
        return value in self.values

    def __str__(self) -> str:
        return f"one of {', '.join(f'{value:g}' for value in self.values)}"


def _share(q: float, count: int) -> int:
    return min(int(q * count), count - 1)


@dataclass(frozen=True)
class Vector:
    """Several numbers under one name, each with a distribution of its own: `p.wind` is a tuple.

    A case keeps the components as parameters of their own, wind_0, wind_1, ...: each is a coordinate of a design, a
    flag `--set wind_0=...`, and an input of a surrogate.

    components : one distribution each, two or more.
    """

    components: tuple[Distribution, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", tuple(self.components))
        if len(self.components) < 2 or not all(isinstance(part, Distribution) for part in self.components):
            raise ValueError(
                f"Vector({self.components!r}) needs two or more distributions, one per component, such as "
                "Vector((Uniform(0, 1), Uniform(0, 1)))."
            )

    @classmethod
    def of(cls, distribution: Distribution, size: int) -> Vector:
        """Return a vector whose components have one distribution, independently of each other."""
        return cls((distribution,) * size)


@dataclass(frozen=True)
class Seed:
    """Declares that the initial state is random: `initial` draws from the generator `rng` that it receives.

    The generator is keyed by (study seed, simulation), so that it is the same on any number of ranks and when a
    simulation is run again. A seed has no value in p, takes no coordinate of a design, and is no input of a surrogate.
    """

    def __str__(self) -> str:
        return "random, from the study's seed and the simulation's number"


Declared = Distribution | Vector | Seed


def component_names(name: str, size: int) -> list[str]:
    """Return what the components of a vector are called."""
    return [f"{name}_{index}" for index in range(size)]


def flattened(declared: Mapping[str, Declared]) -> tuple[dict[str, Distribution], tuple[str, ...]]:
    """Return the scalar parameters, vectors by component, and the names of the seeds.

    Raises
    ------
    TypeError : something is no distribution.
    ValueError : two parameters have one name, or one has that of a method of `Parameters`.
    """
    scalars: dict[str, Distribution] = {}
    seeds = []
    for name, distribution in declared.items():
        if hasattr(Parameters, name):
            raise ValueError(f"parameter {name} cannot be read as p.{name}, which is a method; give it another name.")
        if isinstance(distribution, Seed):
            seeds.append(name)
            continue
        if isinstance(distribution, Vector):
            parts = dict(zip(component_names(name, len(distribution.components)), distribution.components, strict=True))
        else:
            parts = {name: distribution}
        for part, one in parts.items():
            if not isinstance(one, Distribution):
                raise TypeError(f"parameter {part} is {one!r}; use Uniform(low, high) or another Distribution.")
            if part in scalars or (part != name and part in declared):
                raise ValueError(f"parameter {part} is declared twice, as itself and as a component of a vector.")
            scalars[part] = one
    return scalars, tuple(seeds)


class Parameters(Mapping[str, float]):
    """The parameter values of one simulation, read as `p.nu` or `p["nu"]`; immutable.

    The components of a vector are `p.wind_0`, `p.wind_1`, ..., and `p.wind` is the tuple of them.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, float]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            parts = self._components(name)
            if len(parts) > 1:
                return parts
            raise AttributeError(
                f"This case has no parameter {name!r}; it has {', '.join(self._values) or 'none'}."
            ) from None

    def _components(self, name: str) -> tuple[float, ...]:
        parts = []
        while f"{name}_{len(parts)}" in self._values:
            parts.append(self._values[f"{name}_{len(parts)}"])
        return tuple(parts)

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
