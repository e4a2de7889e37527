"""Boxes of every element type, with names for their faces, and a distorted inside on request."""

import numpy as np

from headrace.rom.elements import HEX_EDGES, HEX_NODES, TET_EDGES
from headrace.rom.mesh import Mesh

# Six tetrahedra around the diagonal from corner 0 to corner 6 of a hexahedron, all the right way round.
KUHN = np.array([[0, 1, 2, 6], [0, 2, 3, 6], [0, 3, 7, 6], [0, 7, 4, 6], [0, 4, 5, 6], [0, 5, 1, 6]])


def box(kind, counts, size=(1.0, 1.0, 1.0), distort=0.0, sets=None):
    """A mesh of counts cells along each axis; faces x0, x1, y0, y1, z0, z1; distort moves inner corners by a part of h.

    sets : name -> function of centroids (n, 3) that chooses elements.
    """
    counts = np.array(counts)
    cells = np.stack(np.meshgrid(*[np.arange(n) for n in counts], indexing="ij"), axis=-1).reshape(-1, 3)
    corner_grid = np.stack(np.meshgrid(*[np.arange(n + 1) for n in counts], indexing="ij"), axis=-1).astype(float)
    if distort:
        inner = np.all((corner_grid > 0) & (corner_grid < counts), axis=-1)
        noise = np.random.default_rng(3).uniform(-distort, distort, corner_grid.shape)
        corner_grid += inner[..., None] * noise
    corner_grid *= np.array(size) / counts
    corners = cells[:, None] + ((HEX_NODES[:8] + 1) / 2).astype(int)  # (cells, 8, 3)
    number = np.ravel_multi_index(np.moveaxis(corners, -1, 0), counts + 1)
    linear = corner_grid.reshape(-1, 3)
    if kind.startswith("hex"):
        blocks = number
        ends = list(HEX_EDGES)
    else:
        blocks = number[:, KUHN].reshape(-1, 4)
        ends = list(TET_EDGES)
    points = linear
    if kind not in ("hex8", "tet4"):
        pairs = np.sort(blocks[:, np.array(ends)], axis=2).reshape(-1, 2)
        edges, where = np.unique(pairs, axis=0, return_inverse=True)
        points = np.concatenate([linear, linear[edges].mean(axis=1)])
        blocks = np.concatenate([blocks, len(linear) + where.reshape(len(blocks), -1)], axis=1)
    mesh = Mesh(points=points, cells={kind: blocks})
    outside = mesh.boundary_faces()
    centres = _face_centres(mesh, outside)
    face_sets = {}
    for axis, name in enumerate("xyz"):
        for side, value in enumerate((0.0, size[axis])):
            face_sets[f"{name}{side}"] = outside[np.abs(centres[:, axis] - value) < 1e-9 * size[axis]]
    centroids = points[blocks[:, : 8 if kind.startswith("hex") else 4]].mean(axis=1)
    element_sets = {name: np.flatnonzero(choose(centroids)) for name, choose in (sets or {}).items()}
    return Mesh(points=points, cells={kind: blocks}, face_sets=face_sets, element_sets=element_sets)


def _face_centres(mesh, pairs):
    centres = np.empty((len(pairs), 3))
    for kind, first, block in mesh.blocks():
        table = np.array(kind.faces)[:, : 3 if kind.face_type.startswith("tri") else 4]
        inside = (pairs[:, 0] >= first) & (pairs[:, 0] < first + len(block))
        nodes = block[pairs[inside, :1] - first, table[pairs[inside, 1]]]
        centres[inside] = mesh.points[nodes].mean(axis=1)
    return centres
