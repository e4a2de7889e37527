"""Constitutive laws: the vectorised contract, its error, and coefficients that depend on temperature.

Strains and stresses have 6 components in the order xx, yy, zz, xy, xz, yz (that of CalculiX and Abaqus); shear
strains are engineering strains (γ = 2ε), so that σ·ε is the work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

COMPONENTS = ("xx", "yy", "zz", "xy", "xz", "yz")


class ConvergenceError(RuntimeError):
    """Equations that were not solved: of a law at a point, of equilibrium in a step, or of a linear system.

    `points` are the indices (of the arrays that the law received) where it failed; empty where it is not about points.
    """

    def __init__(self, message: str, points: np.ndarray | None = None) -> None:
        super().__init__(message)
        self.points = np.zeros(0, dtype=int) if points is None else np.asarray(points, dtype=int)


class ConstitutiveLaw(ABC):
    """A small-strain material: stress and internal variables at the end of a step, at many points at once.

    The law is a function without memory: all history is in `state`, one row per point, whose columns are named.
    It owns its thermal expansion, so that `strain` is the total strain. A law with the accumulated viscoplastic
    strain calls that column "p".
    """

    @property
    @abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """Names of the columns of the state; () for a law without memory."""

    @property
    @abstractmethod
    def symmetric(self) -> bool:
        """Whether every tangent is symmetric, so that conjugate gradients may be used."""

    @abstractmethod
    def update(
        self,
        temperature0: np.ndarray,
        temperature1: np.ndarray,
        strain0: np.ndarray,
        strain_increment: np.ndarray,
        state: np.ndarray,
        dt: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Integrate the law over one step.

        Parameters
        ----------
        temperature0, temperature1 : temperatures at start and end of the step, (num_points,).
        strain0, strain_increment : total strain at the start, and its change, (num_points, 6).
        state : internal variables at the start, (num_points, len(state_names)); not modified.
        dt : duration of the step.

        Returns
        -------
        stress : at the end of the step, (num_points, 6).
        state : at the end of the step, a new array.
        tangent : ∂stress/∂strain_increment, consistent with the integration, (num_points, 6, 6).

        Raises
        ------
        ConvergenceError : with the points that failed; the caller cuts the step.
        """

    def initial_state(self, num_points: int) -> np.ndarray:
        """Return the virgin state, zeros of shape (num_points, len(state_names))."""
        return np.zeros((num_points, len(self.state_names)))

    def column(self, name: str) -> int:
        """Return the column of a named internal variable.

        Raises
        ------
        ValueError : no such variable.
        """
        if name not in self.state_names:
            raise ValueError(f"{type(self).__name__} has no internal variable {name!r}. It has: {self.state_names}.")
        return self.state_names.index(name)


@dataclass(frozen=True)
class Table:
    """A coefficient as a function of temperature: linear between the given temperatures, constant outside.

    Raises
    ------
    ValueError : lengths differ, temperatures do not increase, or a number is not finite.
    """

    temperatures: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperatures", tuple(float(t) for t in self.temperatures))
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        if len(self.temperatures) != len(self.values) or not self.values:
            raise ValueError(
                f"A table needs as many values as temperatures, at least one; it has {len(self.values)} values "
                f"and {len(self.temperatures)} temperatures."
            )
        if not np.all(np.isfinite(self.temperatures + self.values)):
            raise ValueError(f"A table must be finite; it has temperatures {self.temperatures}, values {self.values}.")
        if np.any(np.diff(self.temperatures) <= 0):
            raise ValueError(f"Temperatures of a table must increase; they are {self.temperatures}.")


Coefficient = float | Table


def coefficient_at(coefficient: Coefficient, temperature: np.ndarray) -> np.ndarray:
    """Return a coefficient at temperatures, shape of temperature."""
    if isinstance(coefficient, Table):
        return np.interp(temperature, coefficient.temperatures, coefficient.values)
    return np.full(np.shape(temperature), float(coefficient))


def coefficient_range(coefficient: Coefficient) -> tuple[float, float]:
    """Return the smallest and the largest value that a coefficient takes."""
    values = coefficient.values if isinstance(coefficient, Table) else (float(coefficient),)
    return min(values), max(values)


def require_range(
    law: str, name: str, coefficient: Coefficient, *, above: float, below: float = np.inf, closed: bool = False
) -> None:
    """Check that a coefficient stays in the open range (above, below), or [above, below) where closed.

    Raises
    ------
    ValueError : it leaves the range somewhere.
    """
    low, high = coefficient_range(coefficient)
    if not ((low >= above if closed else low > above) and high < below):
        sign = "at least" if closed else "above"
        raise ValueError(f"{law}: {name} takes values from {low:g} to {high:g}; it must be {sign} {above:g}"
                         + (f" and below {below:g}." if np.isfinite(below) else "."))  # fmt: skip
