"""The laws of a whole mesh as one: each element set has its law, all are updated together."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .law import ConstitutiveLaw, ConvergenceError
from .mesh import Mesh

State = tuple[np.ndarray, ...]


class Material:
    """Laws by element set over all quadrature points of a mesh; the state is one array per law, in their order.

    Parameters
    ----------
    mesh : the mesh, or that of a subdomain (where a set may be empty).
    laws : element set -> law; "all" is every element. Every element must be in exactly one set.

    Raises
    ------
    ValueError : an element without a law or with two.
    """

    def __init__(self, mesh: Mesh, laws: Mapping[str, ConstitutiveLaw]) -> None:
        self.mesh = mesh
        self.laws = tuple(laws.values())
        starts = mesh.element_points()
        owner = np.zeros(mesh.num_elements, dtype=int)
        self.points = []
        for name in laws:
            elements = mesh.elements(name)
            owner[elements] += 1
            counts = np.diff(starts)[elements]
            first = np.repeat(starts[elements] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
            self.points.append(first + np.arange(counts.sum()))
        if np.any(owner != 1):
            element = int(np.argmax(owner != 1))
            raise ValueError(
                f"Element {mesh.element_labels[element]} has {owner[element]} laws from the sets {list(laws)}; it "
                "needs exactly one. Give disjoint element sets that cover the mesh, or {'all': law}."
            )

    @property
    def symmetric(self) -> bool:
        """Whether all tangents are symmetric."""
        return all(law.symmetric for law in self.laws)

    def initial_state(self) -> State:
        """Return the virgin state."""
        return tuple(law.initial_state(len(points)) for law, points in zip(self.laws, self.points, strict=True))

    def update(
        self,
        temperature0: np.ndarray,
        temperature1: np.ndarray,
        strain0: np.ndarray,
        strain_increment: np.ndarray,
        state: State,
        dt: float,
    ) -> tuple[np.ndarray, State, np.ndarray]:
        """Integrate all laws over one step; arguments and results as in `ConstitutiveLaw.update`.

        Raises
        ------
        ConvergenceError : names the element and the quadrature point in it.
        """
        stress = np.zeros_like(strain0)
        tangent = np.zeros((len(strain0), 6, 6))
        new = []
        for law, points, before in zip(self.laws, self.points, state, strict=True):
            inputs = (array[points] for array in (temperature0, temperature1, strain0, strain_increment))
            try:
                stress[points], after, tangent[points] = law.update(*inputs, before, dt)
            except ConvergenceError as error:
                raise self._located(error, points) from error
            new.append(after)
        return stress, tuple(new), tangent

    def field(self, name: str, state: State) -> np.ndarray:
        """Return an internal variable at all points, (num_points,); zero where the law does not have it.

        Raises
        ------
        ValueError : no law has it.
        """
        values = np.zeros(int(self.mesh.element_points()[-1]))
        known = {known for law in self.laws for known in law.state_names}
        if name not in known:
            raise ValueError(
                f"No law has an internal variable {name!r}. They have: {', '.join(sorted(known)) or 'none'}."
            )
        for law, points, columns in zip(self.laws, self.points, state, strict=True):
            if name in law.state_names:
                values[points] = columns[:, law.column(name)]
        return values

    def _located(self, error: ConvergenceError, points: np.ndarray) -> ConvergenceError:
        where = points[error.points]
        if not where.size:
            return error
        starts = self.mesh.element_points()
        element = int(np.searchsorted(starts, where[0], side="right")) - 1
        label = self.mesh.element_labels[element]
        return ConvergenceError(f"Element {label}, quadrature point {where[0] - starts[element]}: {error}", where)
