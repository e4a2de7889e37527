"""Meshes: nodes, volume elements by type, and named sets of nodes, elements and faces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from .elements import VOLUME_TYPES, ElementType, element_type


def frozen(array: np.ndarray, dtype: type) -> np.ndarray:
    """Return a read-only array of the given type."""
    view = np.ascontiguousarray(array, dtype=dtype).view()
    view.setflags(write=False)
    return view


@dataclass(frozen=True, kw_only=True, eq=False)
class Mesh:
    """A mesh of volume elements; elements are numbered through the blocks of `cells` in their order, from 0.

    Parameters
    ----------
    points : coordinates of the nodes, (num_nodes, 3).
    cells : element type -> node numbers, (num_elements, nodes of the type), in the order of `elements`.
    node_sets : name -> node numbers.
    element_sets : name -> element numbers.
    face_sets : name -> pairs (element, face of the element), (num_faces, 2); faces from 0.
    node_labels, element_labels : the numbers that another code gave them; default 1, 2, ...

    Raises
    ------
    ValueError : no volume elements, unknown type, node or element numbers out of range, coordinates not finite,
        a degenerate or inverted element (named by its label).
    """

    points: np.ndarray
    cells: Mapping[str, np.ndarray]
    node_sets: Mapping[str, np.ndarray] = field(default_factory=dict)
    element_sets: Mapping[str, np.ndarray] = field(default_factory=dict)
    face_sets: Mapping[str, np.ndarray] = field(default_factory=dict)
    node_labels: np.ndarray | None = None
    element_labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        blocks = {name: block for name, block in self.cells.items() if len(block)}
        if not blocks:
            raise ValueError(f"The mesh has no volume elements; it needs some of type {', '.join(VOLUME_TYPES)}.")
        if unknown := sorted(set(blocks) - set(VOLUME_TYPES)):
            raise ValueError(f"Element type {unknown[0]!r} is not a volume type; use {', '.join(VOLUME_TYPES)}.")
        _set(self, "cells", {name: frozen(block, np.int64) for name, block in blocks.items()})
        _set(self, "points", frozen(self.points, float))
        for kind in ("node_sets", "element_sets"):
            sets = {
                name: frozen(np.unique(np.asarray(s, dtype=np.int64)), np.int64)
                for name, s in getattr(self, kind).items()
            }
            _set(self, kind, sets)
        faces = {name: frozen(np.reshape(pairs, (-1, 2)), np.int64) for name, pairs in self.face_sets.items()}
        _set(self, "face_sets", faces)
        for kind, number in (("node_labels", len(self.points)), ("element_labels", self.num_elements)):
            given = getattr(self, kind)
            _set(self, kind, frozen(np.arange(1, number + 1) if given is None else given, np.int64))
        _check_numbers(self)
        _check_shapes(self)

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return len(self.points)

    @property
    def num_elements(self) -> int:
        """Number of elements of all types."""
        return sum(len(block) for block in self.cells.values())

    @property
    def num_points(self) -> int:
        """Number of quadrature points of all elements."""
        return sum(len(block) * kind.num_points for kind, _, block in self.blocks())

    def blocks(self) -> Iterator[tuple[ElementType, int, np.ndarray]]:
        """Yield (type, number of the first element, node numbers) of each block."""
        first = 0
        for name, block in self.cells.items():
            yield element_type(name), first, block
            first += len(block)

    def element_points(self) -> np.ndarray:
        """Return where the quadrature points of each element start, shape (num_elements + 1,)."""
        counts = [np.full(len(block), kind.num_points) for kind, _, block in self.blocks()]
        return np.concatenate([[0], np.cumsum(np.concatenate(counts))])

    def nodes(self, name: str) -> np.ndarray:
        """Return a node set; the name of an element or face set gives the nodes of those elements or faces.

        Raises
        ------
        ValueError : no set of this name.
        """
        if name in self.node_sets:
            return self.node_sets[name]
        if name in self.face_sets:
            return np.unique(np.concatenate([nodes.ravel() for _, nodes in self.faces(name)]))
        if name in self.element_sets:
            pieces = [
                block[np.isin(np.arange(first, first + len(block)), self.element_sets[name])].ravel()
                for _, first, block in self.blocks()
            ]
            return np.unique(np.concatenate(pieces))
        raise ValueError(f"The mesh has no set {name!r}. {self._sets()}")

    def elements(self, name: str) -> np.ndarray:
        """Return an element set; "all" is every element.

        Raises
        ------
        ValueError : no element set of this name.
        """
        if name in self.element_sets:
            return self.element_sets[name]
        if name == "all":
            return np.arange(self.num_elements)
        raise ValueError(f"The mesh has no element set {name!r}. {self._sets()}")

    def faces(self, name: str) -> list[tuple[ElementType, np.ndarray]]:
        """Return (face type, node numbers (num_faces, nodes of the type)) of each kind of face in a face set.

        Raises
        ------
        ValueError : no face set of this name.
        """
        if name not in self.face_sets:
            raise ValueError(f"The mesh has no face set {name!r}. {self._sets()}")
        return self.face_nodes(self.face_sets[name])

    def face_nodes(self, pairs: np.ndarray) -> list[tuple[ElementType, np.ndarray]]:
        """Return (face type, outward node numbers) of faces given as pairs (element, face)."""
        found: dict[str, list[np.ndarray]] = {}
        for kind, first, block in self.blocks():
            inside = pairs[(pairs[:, 0] >= first) & (pairs[:, 0] < first + len(block))]
            table = np.array(kind.faces)
            found.setdefault(kind.face_type, []).append(block[inside[:, :1] - first, table[inside[:, 1]]])
        return [(element_type(name), np.concatenate(pieces)) for name, pieces in found.items()]

    def all_faces(self) -> tuple[np.ndarray, np.ndarray]:
        """Return every face as (element, face) and its sorted corner nodes, padded with -1 to 4."""
        pairs, corners = [], []
        for kind, first, block in self.blocks():
            num_corners = 3 if kind.face_type.startswith("tri") else 4
            numbers = np.arange(first, first + len(block))
            for face, nodes in enumerate(kind.faces):
                pairs.append(np.stack([numbers, np.full(len(block), face)], axis=1))
                key = np.full((len(block), 4), -1)
                key[:, :num_corners] = np.sort(block[:, nodes[:num_corners]], axis=1)
                corners.append(key)
        return np.concatenate(pairs), np.concatenate(corners)

    def boundary_faces(self) -> np.ndarray:
        """Return the faces that belong to one element only, as pairs (element, face)."""
        pairs, corners = self.all_faces()
        _, inverse, counts = np.unique(corners, axis=0, return_inverse=True, return_counts=True)
        return pairs[counts[inverse.ravel()] == 1]

    def submesh(self, elements: np.ndarray) -> tuple[Mesh, np.ndarray]:
        """Return the mesh of some elements with its sets, and the numbers here of its nodes, increasing."""
        chosen = np.zeros(self.num_elements, dtype=bool)
        chosen[elements] = True
        cells = {kind.name: block[chosen[first : first + len(block)]] for kind, first, block in self.blocks()}
        nodes = np.unique(np.concatenate([block.ravel() for block in cells.values()]))
        new_node = np.full(self.num_nodes, -1)
        new_node[nodes] = np.arange(len(nodes))
        new_element = np.where(chosen, np.cumsum(chosen) - 1, -1)
        face_sets = {}
        for name, pairs in self.face_sets.items():
            kept = pairs[chosen[pairs[:, 0]]]
            face_sets[name] = np.stack([new_element[kept[:, 0]], kept[:, 1]], axis=1)
        part = Mesh(
            points=self.points[nodes],
            cells={name: new_node[block] for name, block in cells.items()},
            node_sets={name: (new := new_node[s])[new >= 0] for name, s in self.node_sets.items()},
            element_sets={name: (new := new_element[s])[new >= 0] for name, s in self.element_sets.items()},
            face_sets=face_sets,
            node_labels=self.node_labels[nodes],
            element_labels=self.element_labels[chosen],
        )
        return part, nodes

    def _sets(self) -> str:
        kinds = {"node sets": self.node_sets, "element sets": self.element_sets, "face sets": self.face_sets}
        return "It has " + "; ".join(f"{kind} {', '.join(sets) or 'none'}" for kind, sets in kinds.items()) + "."


def _set(mesh: Mesh, name: str, value: object) -> None:
    object.__setattr__(mesh, name, value)


def _check_numbers(mesh: Mesh) -> None:
    if mesh.points.ndim != 2 or mesh.points.shape[1] != 3:
        raise ValueError(f"Mesh points have shape {mesh.points.shape}; they must be (num_nodes, 3).")
    if not np.all(np.isfinite(mesh.points)):
        node = np.argwhere(~np.isfinite(mesh.points))[0, 0]
        raise ValueError(f"Coordinates of node {mesh.node_labels[node]} are not finite: {mesh.points[node]}.")
    if len(mesh.node_labels) != mesh.num_nodes or len(mesh.element_labels) != mesh.num_elements:
        raise ValueError(
            f"The mesh has {mesh.num_nodes} nodes and {mesh.num_elements} elements, but "
            f"{len(mesh.node_labels)} and {len(mesh.element_labels)} labels."
        )
    for kind, _, block in mesh.blocks():
        if block.ndim != 2 or block.shape[1] != kind.num_nodes:
            raise ValueError(f"Cells {kind.name} have shape {block.shape}; they must be (n, {kind.num_nodes}).")
    limits = {
        "nodes of elements": (mesh.cells, mesh.num_nodes),
        "node set": (mesh.node_sets, mesh.num_nodes),
        "element set": (mesh.element_sets, mesh.num_elements),
        "face set": ({k: v[:, 0] for k, v in mesh.face_sets.items()}, mesh.num_elements),
    }
    for what, (groups, limit) in limits.items():
        for name, numbers in groups.items():
            if numbers.size and (numbers.min() < 0 or numbers.max() >= limit):
                raise ValueError(
                    f"{what} {name} holds number {numbers.min()} or {numbers.max()}; the mesh has 0 to {limit - 1}."
                )
    faces_of = np.concatenate([np.full(len(block), len(kind.faces)) for kind, _, block in mesh.blocks()])
    for name, pairs in mesh.face_sets.items():
        if np.any((pairs[:, 1] < 0) | (pairs[:, 1] >= faces_of[pairs[:, 0]])):
            raise ValueError(f"Face set {name} holds a face number that its element does not have; faces count from 0.")


def _check_shapes(mesh: Mesh) -> None:
    """Check that every element is neither collapsed nor inside out: repeated nodes, Jacobians that are not positive."""
    for kind, first, block in mesh.blocks():
        ordered = np.sort(block, axis=1)
        repeated = np.any(ordered[:, 1:] == ordered[:, :-1], axis=1)
        if np.any(repeated):
            element = first + np.argmax(repeated)
            raise ValueError(
                f"Element {mesh.element_labels[element]} ({kind.name}) names a node twice: "
                f"{mesh.node_labels[block[element - first]]}. Write collapsed elements as tetrahedra."
            )
        X = mesh.points[block]
        size = np.ptp(X, axis=1).max(axis=1)
        for q in range(kind.num_points):
            jacobian = np.linalg.det(np.swapaxes(X, 1, 2) @ kind.gradients[q])
            bad = ~(jacobian > 1e-12 * size**3)
            if np.any(bad):
                element = first + np.argmax(bad)
                raise ValueError(
                    f"Element {mesh.element_labels[element]} ({kind.name}) is degenerate or inside out: Jacobian "
                    f"{jacobian[element - first]:.3g} at quadrature point {q}. Check the order of its nodes "
                    f"{mesh.node_labels[block[element - first]]} (see headrace.rom.elements) and their positions."
                )
