"""High-fidelity data from anywhere: the contract of a reader, and a series held in memory.

Only displacements are required. Strains, stresses and internal variables are replayed through the law over the
increments that the reader gives, so a reader must give *every* increment that the other code made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from .mesh import Mesh


class Reader(ABC):
    """Someone else's mesh and results, one increment at a time.

    Increment 0 is the initial state (displacement zero); `times[k]` is the end of increment k.
    """

    @property
    @abstractmethod
    def mesh(self) -> Mesh:
        """The mesh, in our node order of elements (see `elements`)."""

    @property
    @abstractmethod
    def times(self) -> np.ndarray:
        """Times of all increments, the initial state included, increasing, shape (num_increments + 1,)."""

    @abstractmethod
    def displacement(self, increment: int) -> np.ndarray:
        """Return the displacement of all nodes, shape (num_nodes, 3)."""

    def temperature(self, increment: int) -> np.ndarray | None:
        """Return the temperature of all nodes, shape (num_nodes,), or None where there is none."""
        return None

    def point_field(self, name: str, increment: int) -> np.ndarray | None:
        """Return a field at all quadrature points, or None where the results do not have it.

        name : "stress" or "strain" (num_points, 6), "p" (num_points,). Points are ordered by element, then as in
        `elements`. Such fields are only used to check the replay.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class TimeSeries(Reader):
    """A reader of arrays in memory: the embedded solver's results, or a small file already loaded.

    Parameters
    ----------
    mesh : the mesh.
    times : (num_increments + 1,), increasing.
    displacements : (num_increments + 1, num_nodes, 3).
    temperatures : (num_increments + 1, num_nodes), or None.
    point_fields : name -> (num_increments + 1, num_points, ...).

    Raises
    ------
    ValueError : shapes that do not fit the mesh, times that do not increase, numbers that are not finite.
    """

    mesh: Mesh  # type: ignore[assignment]
    times: np.ndarray  # type: ignore[assignment]
    displacements: np.ndarray
    temperatures: np.ndarray | None = None
    point_fields: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = {"displacements": (len(self.times), self.mesh.num_nodes, 3)}
        if self.temperatures is not None:
            expected["temperatures"] = (len(self.times), self.mesh.num_nodes)
        for name, shape in expected.items():
            array = getattr(self, name)
            if np.shape(array) != shape:
                raise ValueError(f"{name} has shape {np.shape(array)}; mesh and times ask for {shape}.")
            if not np.all(np.isfinite(array)):
                bad = np.argwhere(~np.isfinite(array))[0]
                raise ValueError(f"{name} is not finite at increment {bad[0]}, node {bad[1]}.")
        if np.any(np.diff(self.times) <= 0):
            raise ValueError(f"times must increase; they are {self.times}.")
        for name, array in self.point_fields.items():
            if np.shape(array)[:2] != (len(self.times), self.mesh.num_points):
                raise ValueError(
                    f"Point field {name} has shape {np.shape(array)}; its first two lengths must be "
                    f"{(len(self.times), self.mesh.num_points)}."
                )

    def displacement(self, increment: int) -> np.ndarray:
        """Return the displacement of all nodes, shape (num_nodes, 3)."""
        return self.displacements[increment]

    def temperature(self, increment: int) -> np.ndarray | None:
        """Return the temperature of all nodes, shape (num_nodes,), or None."""
        return None if self.temperatures is None else self.temperatures[increment]

    def point_field(self, name: str, increment: int) -> np.ndarray | None:
        """Return a field at all quadrature points, or None."""
        return self.point_fields[name][increment] if name in self.point_fields else None
