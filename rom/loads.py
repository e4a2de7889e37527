"""Loads, supports and temperatures: fixed fields times amplitudes of time.

Every load is factor(t) · vector, so that a reduced model projects its vector once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .kinematics import Kinematics
from .subdomain import Subdomain

DIRECTIONS = ("x", "y", "z")


@dataclass(frozen=True)
class Amplitude:
    """A number as a function of time: linear between given times, constant outside.

    Raises
    ------
    ValueError : lengths differ or times do not increase.
    """

    times: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(float(t) for t in self.times))
        object.__setattr__(self, "values", tuple(float(v) for v in self.values))
        if len(self.times) != len(self.values) or not self.times or np.any(np.diff(self.times) <= 0):
            raise ValueError(f"Amplitude needs increasing times, one value each; it has {self.times}, {self.values}.")

    def __call__(self, time: float) -> float:
        """Return the value at a time."""
        return float(np.interp(time, self.times, self.values))


ONE = Amplitude((0.0,), (1.0,))
Profile = float | Callable[[np.ndarray], np.ndarray]


def profile_at(profile: Profile, points: np.ndarray) -> np.ndarray:
    """Return a number, or a function of coordinates (n, 3), at points, (n,)."""
    if callable(profile):
        return np.broadcast_to(np.asarray(profile(points), dtype=float), (len(points),))
    return np.full(len(points), float(profile))


class Load(ABC):
    """A force on the body, factor(t) · vector."""

    amplitude: Callable[[float], float]

    def factor(self, time: float) -> float:
        """Return the factor at a time."""
        return float(self.amplitude(time))

    @abstractmethod
    def vector(self, subdomain: Subdomain, kinematics: Kinematics) -> np.ndarray:
        """Return nodal forces for factor 1, split, (num_local_nodes, 3)."""


@dataclass(frozen=True, kw_only=True)
class Pressure(Load):
    """Pressure on a face set, positive into the body; value may be a function of coordinates. Dead (small strain)."""

    faces: str
    value: Profile = 1.0
    amplitude: Callable[[float], float] = ONE

    def vector(self, subdomain: Subdomain, kinematics: Kinematics) -> np.ndarray:
        """Return -∫ p n·φ over the faces."""
        mesh = subdomain.mesh
        force = np.zeros((mesh.num_nodes, 3))
        for kind, nodes in mesh.faces(self.faces):
            X = mesh.points[nodes]
            a, b = (np.einsum("fnd,qn->fqd", X, kind.gradients[:, :, axis]) for axis in (0, 1))
            x = np.einsum("fnd,qn->fqd", X, kind.values)
            p = profile_at(self.value, x.reshape(-1, 3)).reshape(x.shape[:2])
            pull = -(p * kind.weights)[..., None] * np.cross(a, b)
            np.add.at(force, nodes, np.einsum("fqd,qn->fnd", pull, kind.values))
        return force


@dataclass(frozen=True, kw_only=True)
class BodyForce(Load):
    """A force per volume, the same everywhere: weight is density times gravity."""

    density: tuple[float, float, float]
    amplitude: Callable[[float], float] = ONE

    def vector(self, subdomain: Subdomain, kinematics: Kinematics) -> np.ndarray:
        """Return ∫ f·φ."""
        return kinematics.body_force(np.tile(np.array(self.density, dtype=float), (kinematics.num_points, 1)))


@dataclass(frozen=True, kw_only=True)
class Centrifugal(Load):
    """ρ ω² r away from an axis; the amplitude is the angular speed ω(t) in radians per unit of time."""

    density: float
    amplitude: Callable[[float], float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)

    def factor(self, time: float) -> float:
        """Return ω(t)²."""
        return float(self.amplitude(time)) ** 2

    def vector(self, subdomain: Subdomain, kinematics: Kinematics) -> np.ndarray:
        """Return ∫ ρ r·φ."""
        direction = np.array(self.axis, dtype=float) / np.linalg.norm(self.axis)
        arm = kinematics.interpolate(subdomain.mesh.points) - np.array(self.origin, dtype=float)
        return kinematics.body_force(self.density * (arm - np.outer(arm @ direction, direction)))


@dataclass(frozen=True, kw_only=True)
class NodalForce(Load):
    """The same force on every node of a set."""

    nodes: str
    force: tuple[float, float, float]
    amplitude: Callable[[float], float] = ONE

    def vector(self, subdomain: Subdomain, kinematics: Kinematics) -> np.ndarray:
        """Return the forces, shared out among the copies of a node."""
        nodes = subdomain.mesh.nodes(self.nodes)
        force = np.zeros((subdomain.mesh.num_nodes, 3))
        force[nodes] = np.array(self.force, dtype=float) / subdomain.copies[nodes, None]
        return force


@dataclass(frozen=True, kw_only=True)
class Support:
    """Prescribed displacement of a node set in one direction, amplitude(t) · value(x); default: held at zero.

    Raises
    ------
    ValueError : a direction other than "x", "y", "z".
    """

    nodes: str
    direction: str
    value: Profile = 0.0
    amplitude: Callable[[float], float] = ONE

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise ValueError(f"Support of {self.nodes}: direction {self.direction!r} must be one of {DIRECTIONS}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class NodalTemperature:
    """Temperatures of all nodes of the whole mesh at some times, linear in time between them, constant outside.

    times : (num_times,), increasing; values : (num_times, num_nodes).

    Raises
    ------
    ValueError : shapes that do not fit, times that do not increase, values that are not finite.
    """

    times: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", np.asarray(self.times, dtype=float))
        object.__setattr__(self, "values", np.asarray(self.values, dtype=float))
        if self.values.ndim != 2 or len(self.values) != len(self.times) or np.any(np.diff(self.times) <= 0):
            raise ValueError(f"NodalTemperature needs increasing times and values (times, nodes); it has {self.times} "
                             f"and values of shape {self.values.shape}.")  # fmt: skip
        if not np.all(np.isfinite(self.values)):
            raise ValueError(f"Temperature is not finite at (time, node) {np.argwhere(~np.isfinite(self.values))[0]}.")

    def at(self, time: float) -> np.ndarray:
        """Return the temperatures of all nodes at a time."""
        place = np.interp(time, self.times, np.arange(len(self.times)))
        k = min(int(place), len(self.times) - 1)
        after = self.values[min(k + 1, len(self.times) - 1)]
        return self.values[k] + (place - k) * (after - self.values[k])


Temperature = float | NodalTemperature | Callable[[np.ndarray, float], np.ndarray]


def temperature_at(temperature: Temperature, points: np.ndarray, nodes: np.ndarray, time: float) -> np.ndarray:
    """Return the temperatures of nodes, (n,), by their coordinates (n, 3) and global numbers (n,).

    temperature : a number, `NodalTemperature`, or a function (points, t) -> (n,).
    """
    if isinstance(temperature, NodalTemperature):
        return temperature.at(time)[nodes]
    if callable(temperature):
        return np.broadcast_to(np.asarray(temperature(points, time), dtype=float), (len(points),)).copy()
    return np.full(len(points), float(temperature))
