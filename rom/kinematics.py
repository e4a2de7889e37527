"""From nodal displacements to strains at quadrature points, and from stresses there to nodal forces.

Letters in kernels: e element, q quadrature point of an element, n node of an element, d direction.
Nodal results are split fields: contributions of the own elements (see `subdomain`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .elements import ElementType
from .law import COMPONENTS
from .mesh import Mesh

CHUNK = 64  # elements whose strain matrices exist at the same time
# Row of the strain vector, direction of displacement, direction of derivative.
STRAIN_ENTRIES = ((0, 0, 0), (1, 1, 1), (2, 2, 2), (3, 0, 1), (3, 1, 0), (4, 0, 2), (4, 2, 0), (5, 1, 2), (5, 2, 1))
TENSOR_TO_VECTOR = np.array([[0, 3, 4], [3, 1, 5], [4, 5, 2]])


@dataclass(frozen=True, eq=False)
class _Block:
    """One element type: nodes (e, n), derivatives of shape functions (e, n, q*d), weights (e, q), first point."""

    kind: ElementType
    nodes: np.ndarray
    gradients: np.ndarray
    weights: np.ndarray
    points: slice


class Kinematics:
    """The strain-displacement operator of a mesh, applied without being stored as a matrix."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self.blocks = []
        first = 0
        for kind, _, nodes in mesh.blocks():
            X = mesh.points[nodes]  # (e, n, d)
            jacobian = np.einsum("end,qnr->eqdr", X, kind.gradients)
            gradients = np.einsum("qnr,eqrd->enqd", kind.gradients, np.linalg.inv(jacobian))
            weights = kind.weights * np.linalg.det(jacobian)
            last = first + weights.size
            flat = np.ascontiguousarray(gradients).reshape(len(nodes), kind.num_nodes, -1)
            self.blocks.append(_Block(kind, nodes, flat, weights, slice(first, last)))
            first = last
        self.num_points = first
        self.weights = np.concatenate([block.weights.ravel() for block in self.blocks])

    def interpolate(self, nodal: np.ndarray, *, plain: bool = False) -> np.ndarray:
        """Return a nodal field, (num_nodes, ...), at the quadrature points, (num_points, ...).

        plain : by the element types' `plain_values`, as CalculiX does with temperatures.
        """
        pieces = []
        for block in self.blocks:
            shape = block.kind.plain_values if plain else block.kind.values
            values = np.tensordot(nodal[block.nodes], shape, axes=(1, 1))  # (e, ..., q)
            pieces.append(np.moveaxis(values, -1, 1).reshape(-1, *nodal.shape[1:]))
        return np.concatenate(pieces)

    def strain(self, displacement: np.ndarray) -> np.ndarray:
        """Return the strain, (num_points, 6), of displacements (num_nodes, 3)."""
        strain = np.empty((self.num_points, len(COMPONENTS)))
        for block in self.blocks:
            H = np.swapaxes(displacement[block.nodes], 1, 2) @ block.gradients  # (e, d, q*d)
            H = H.reshape(len(H), 3, -1, 3)
            out = strain[block.points].reshape(len(H), -1, 6)
            for i in range(3):
                out[..., i] = H[:, i, :, i]
            for row, i, j in ((3, 0, 1), (4, 0, 2), (5, 1, 2)):
                out[..., row] = H[:, i, :, j] + H[:, j, :, i]
        return strain

    def internal_force(self, stress: np.ndarray) -> np.ndarray:
        """Return ∫ σ:ε(φ_i), split, (num_nodes, 3), of stresses (num_points, 6)."""
        force = np.zeros((self.mesh.num_nodes, 3))
        for block in self.blocks:
            weighted = stress[block.points] * block.weights.reshape(-1, 1)
            tensor = weighted[:, TENSOR_TO_VECTOR].reshape(len(block.nodes), -1, 3)  # (e, q*d, d)
            self.scatter(force, block.nodes, block.gradients @ tensor)
        return force

    def body_force(self, density: np.ndarray) -> np.ndarray:
        """Return ∫ f·φ_i, split, (num_nodes, 3), of a force per volume at the quadrature points (num_points, 3)."""
        force = np.zeros((self.mesh.num_nodes, 3))
        for block in self.blocks:
            weighted = (density[block.points] * block.weights.reshape(-1, 1)).reshape(*block.weights.shape, 3)
            self.scatter(force, block.nodes, np.einsum("qn,eqd->end", block.kind.values, weighted))
        return force

    def strain_matrices(self) -> Iterator[tuple[_Block, slice, np.ndarray]]:
        """Yield (block, elements of it, B) in chunks; B is (elements, q, 6, 3 n), dofs ordered node by node."""
        for block in self.blocks:
            for first in range(0, len(block.nodes), CHUNK):
                part = slice(first, min(first + CHUNK, len(block.nodes)))
                gradients = block.gradients[part].reshape(part.stop - first, block.kind.num_nodes, -1, 3)
                gradients = np.swapaxes(gradients, 1, 2)  # (e, q, n, d)
                B = np.zeros((*gradients.shape[:2], 6, 3 * block.kind.num_nodes))
                for row, i, j in STRAIN_ENTRIES:
                    B[:, :, row, i::3] = gradients[..., j]
                yield block, part, B

    def stiffness(self, tangent: np.ndarray) -> list[np.ndarray]:
        """Return ∫ Bᵀ C B of every element, one array (elements, 3 n, 3 n) per block; tangent (num_points, 6, 6)."""
        pieces: dict[int, list[np.ndarray]] = {}
        for block, part, B in self.strain_matrices():
            C = tangent[block.points].reshape(len(block.nodes), -1, 6, 6)[part] * block.weights[part, :, None, None]
            rows = B.shape[1] * 6
            flat = B.reshape(len(B), rows, -1)
            K = np.swapaxes(flat, 1, 2) @ (C @ B).reshape(len(B), rows, -1)
            pieces.setdefault(id(block), []).append(K)
        return [np.concatenate(pieces[id(block)]) for block in self.blocks]

    def mass(self) -> list[np.ndarray]:
        """Return ∫ φ_i φ_j of every element, one array (elements, n, n) per block.

        Reduced integration is not enough for it: hex20r uses the points of hex20, tetrahedra a product rule.
        """
        pieces = []
        for block in self.blocks:
            points, weights = mass_rule(block.kind)
            values, gradients = block.kind.shape(points)
            X = self.mesh.points[block.nodes]
            volume = np.linalg.det(np.einsum("end,qnr->eqdr", X, gradients)) * weights
            pieces.append(np.einsum("eq,qn,qm->enm", volume, values, values, optimize=True))
        return pieces

    @staticmethod
    def scatter(total: np.ndarray, nodes: np.ndarray, values: np.ndarray) -> None:
        """Add values (elements, n, 3) of a block's nodes (elements, n) to a nodal field, in place."""
        for d in range(3):
            total[:, d] += np.bincount(nodes.ravel(), values[..., d].ravel(), minlength=len(total))


def mass_rule(kind: ElementType) -> tuple[np.ndarray, np.ndarray]:
    """Return quadrature that integrates products of two shape functions: 3³ Gauss points, collapsed for tetrahedra."""
    x, w = np.polynomial.legendre.leggauss(3)
    a, b, c = (grid.ravel() for grid in np.meshgrid(x, x, x, indexing="ij"))
    weights = np.prod(np.meshgrid(w, w, w, indexing="ij"), axis=0).ravel()
    if kind.name.startswith("hex"):
        return np.stack([a, b, c], axis=1), weights
    # Duffy's map of the cube to the tetrahedron; its Jacobian needs one more point across the collapsed directions.
    x, w = np.polynomial.legendre.leggauss(4)
    r, s, t = ((1 + grid.ravel()) / 2 for grid in np.meshgrid(x, x, x, indexing="ij"))
    weights = np.prod(np.meshgrid(w, w, w, indexing="ij"), axis=0).ravel() / 8 * (1 - r) ** 2 * (1 - s)
    return np.stack([r, s * (1 - r), t * (1 - r) * (1 - s)], axis=1), weights
