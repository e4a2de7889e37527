"""What a reduced model needs online: everything at its points, of a size that does not depend on the mesh.

It is the same on every rank, so that online nothing is communicated: all points are gathered on each process that
answers queries, and queries are dealt to the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .gappy import Gappy
from .law import ConstitutiveLaw
from .loads import Temperature, temperature_at


@dataclass(frozen=True, kw_only=True, eq=False)
class ReducedModel:
    """A projected problem on its points.

    Attributes
    ----------
    points, weights : global numbers of the points and their weights, (d,); zero where a point serves gappy POD alone.
    laws, law_points : the laws, and which of the d points each has.
    strain_modes, strain_lifting : strains of modes and of the supports' lifting, (d, 6, n), (d, 6, supports).
    nodes, node_points : global numbers and coordinates of the nodes that the points' temperatures need.
    temperature_nodes, temperature_values : for each point which of these nodes, and their shape functions, (d, k).
    load_vectors : the loads for factor 1 on the modes, (loads, n).
    gappy : dual field -> its modes at the points; "state" stands for all internal variables together.
    state_scales : per law, the size of each internal variable, by which "state" is divided.
    """

    points: np.ndarray
    weights: np.ndarray
    laws: tuple[ConstitutiveLaw, ...]
    law_points: tuple[np.ndarray, ...]
    strain_modes: np.ndarray
    strain_lifting: np.ndarray
    nodes: np.ndarray
    node_points: np.ndarray
    temperature_nodes: np.ndarray
    temperature_values: np.ndarray
    load_vectors: np.ndarray
    gappy: Mapping[str, Gappy]
    state_scales: tuple[np.ndarray, ...]

    @property
    def num_modes(self) -> int:
        """The number of displacement modes."""
        return self.strain_modes.shape[2]

    def temperature(self, temperature: Temperature, time: float) -> np.ndarray:
        """Return any temperature field at the points, (d,)."""
        nodal = temperature_at(temperature, self.node_points, self.nodes, time)
        return np.einsum("dk,dk->d", nodal[self.temperature_nodes], self.temperature_values)

    def flat_state(self, state: tuple[np.ndarray, ...]) -> np.ndarray:
        """Return internal variables, (..., points of the law, variables) per law, as the scaled vectors of "state"."""
        scaled = [s / scale for s, scale in zip(state, self.state_scales, strict=True)]
        parts = [s.reshape(*s.shape[:-2], s.shape[-2] * s.shape[-1]) for s in scaled]
        return np.concatenate(parts, axis=-1)
