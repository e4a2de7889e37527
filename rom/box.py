"""Structured meshes of boxes, of every element type, with named faces: for studies, or to be mapped to other shapes."""

from __future__ import annotations

import numpy as np

from .elements import HEX_CORNERS, HEX_EDGES, TET_EDGES, VOLUME_TYPES
from .mesh import Mesh

# Six tetrahedra around the diagonal from corner 0 to corner 6 of a hexahedron, all the right way round.
KUHN = np.array([[0, 1, 2, 6], [0, 2, 3, 6], [0, 3, 7, 6], [0, 7, 4, 6], [0, 4, 5, 6], [0, 5, 1, 6]])


def box_mesh(kind: str, counts: tuple[int, int, int], size: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Mesh:
    """Return the mesh of the box [0, size] with counts cells along x, y, z; tetrahedra are six per cell.

    Face sets x0, x1, y0, y1, z0, z1 are the sides at 0 and at size.

    Raises
    ------
    ValueError : unknown element type, or a count below 1.
    """
    if kind not in VOLUME_TYPES or min(counts) < 1:
        raise ValueError(f"A box of {counts} cells of {kind!r}: counts must be at least 1, types {VOLUME_TYPES}.")
    shape = np.array(counts)
    cells = np.stack(np.meshgrid(*[np.arange(n) for n in counts], indexing="ij"), axis=-1).reshape(-1, 3)
    grid = np.stack(np.meshgrid(*[np.arange(n + 1) for n in counts], indexing="ij"), axis=-1).reshape(-1, 3)
    corners = cells[:, None] + ((HEX_CORNERS + 1) / 2).astype(int)  # (cells, 8, 3)
    block = np.ravel_multi_index(np.moveaxis(corners, -1, 0), shape + 1)
    points = grid * (np.array(size) / shape)
    if kind.startswith("tet"):
        block = block[:, KUHN].reshape(-1, 4)
    if kind not in ("hex8", "tet4"):
        ends = np.array(HEX_EDGES if kind.startswith("hex") else TET_EDGES)
        pairs = np.sort(block[:, ends], axis=2).reshape(-1, 2)
        edges, where = np.unique(pairs, axis=0, return_inverse=True)
        block = np.concatenate([block, len(points) + where.reshape(len(block), -1)], axis=1)
        points = np.concatenate([points, points[edges].mean(axis=1)])
    bare = Mesh(points=points, cells={kind: block})
    return Mesh(points=points, cells=bare.cells, face_sets=_sides(bare, size))


def _sides(mesh: Mesh, size: tuple[float, float, float]) -> dict[str, np.ndarray]:
    """Return the outer faces whose corners all lie on each side."""
    ((kind, _, block),) = mesh.blocks()
    outside = mesh.boundary_faces()
    corners = np.array(kind.faces)[:, : 3 if kind.face_type.startswith("tri") else 4]
    X = mesh.points[block[outside[:, :1], corners[outside[:, 1]]]]  # (faces, corners, 3)
    sides = {}
    for axis, name in enumerate("xyz"):
        for side, value in enumerate((0.0, size[axis])):
            near = np.abs(X[:, :, axis] - value) < 1e-9 * size[axis]
            sides[f"{name}{side}"] = outside[near.all(axis=1)]
    return sides
