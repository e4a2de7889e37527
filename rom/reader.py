"""High-fidelity data from anywhere: the contract of a reader, and a series held in memory.

Only displacements are required. Strains, stresses and internal variables are replayed through the law over the
increments that the reader gives, so a reader must give *every* increment that the other code made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from .mesh import Mesh


class Reader(ABC):
    """Someone else's mesh and results, one increment at a time.

    Increment 0 is the initial state (displacement zero); `times[k]` is the end of increment k.

    Attributes
    ----------
    digits : significant digits of the displacements where files have rounded them, None where they have all.
    """

    digits: int | None = None

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
        `elements`. Such fields are only used to check the replay; except "temperature" (num_points,), which is
        then taken instead of the interpolated temperature of the nodes.
        """
        return None


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

    def __init__(
        self,
        *,
        mesh: Mesh,
        times: np.ndarray,
        displacements: np.ndarray,
        temperatures: np.ndarray | None = None,
        point_fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._mesh, self._times = mesh, np.asarray(times, dtype=float)
        self.displacements, self.temperatures = displacements, temperatures
        self.point_fields = dict(point_fields or {})
        if np.any(np.diff(self._times) <= 0):
            raise ValueError(f"times must increase; they are {self._times}.")
        self._check("displacements", displacements, (mesh.num_nodes, 3))
        if temperatures is not None:
            self._check("temperatures", temperatures, (mesh.num_nodes,))
        for name, values in self.point_fields.items():
            self._check(name, values, (mesh.num_points, *np.shape(values)[2:]))

    def _check(self, name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
        expected = (len(self._times), *shape)
        if np.shape(values) != expected:
            raise ValueError(f"{name} has shape {np.shape(values)}; mesh and times ask for {expected}.")
        if not np.all(np.isfinite(values)):
            bad = np.argwhere(~np.isfinite(values))[0]
            raise ValueError(f"{name} is not finite at increment {bad[0]}, node or point {bad[1]}.")

    @property
    def mesh(self) -> Mesh:
        """The mesh."""
        return self._mesh

    @property
    def times(self) -> np.ndarray:
        """Times of all increments, (num_increments + 1,)."""
        return self._times

    def displacement(self, increment: int) -> np.ndarray:
        """Return the displacement of all nodes, shape (num_nodes, 3)."""
        return self.displacements[increment]

    def temperature(self, increment: int) -> np.ndarray | None:
        """Return the temperature of all nodes, shape (num_nodes,), or None."""
        return None if self.temperatures is None else self.temperatures[increment]

    def point_field(self, name: str, increment: int) -> np.ndarray | None:
        """Return a field at all quadrature points, or None."""
        return self.point_fields[name][increment] if name in self.point_fields else None
