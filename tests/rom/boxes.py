"""Boxes whose inside may be distorted, with element sets chosen by position."""

import numpy as np

from headrace.rom.box import box_mesh
from headrace.rom.elements import HEX_EDGES, TET_EDGES
from headrace.rom.mesh import Mesh


def box(kind, counts, size=(1.0, 1.0, 1.0), distort=0.0, sets=None):
    """`box_mesh`, whose inner corners move by up to distort·h and whose edges stay straight.

    sets : name -> function of centroids (n, 3) that chooses elements.
    """
    mesh = box_mesh(kind, counts, size)
    points = mesh.points.copy()
    num_corners, edges = (8, HEX_EDGES) if kind.startswith("hex") else (4, TET_EDGES)
    block = mesh.cells[kind]
    corners = np.unique(block[:, :num_corners])
    X = points[corners]
    inner = np.all((X > 1e-9) & (X < np.array(size) - 1e-9), axis=1)
    noise = np.random.default_rng(3).uniform(-distort, distort, X.shape) * np.array(size) / np.array(counts)
    points[corners] = X + inner[:, None] * noise
    if block.shape[1] > num_corners:
        for k, (a, b) in enumerate(edges):
            points[block[:, num_corners + k]] = (points[block[:, a]] + points[block[:, b]]) / 2
    centroids = points[block[:, :num_corners]].mean(axis=1)
    element_sets = {name: np.flatnonzero(choose(centroids)) for name, choose in (sets or {}).items()}
    return Mesh(points=points, cells=mesh.cells, face_sets=mesh.face_sets, element_sets=element_sets)
