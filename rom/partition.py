"""Cutting a mesh into parts of equal work, each connected through element faces."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components

from .mesh import Mesh


def partition(mesh: Mesh, num_parts: int, *, method: str = "coordinates") -> np.ndarray:
    """Return the part of each element, shape (num_elements,).

    method : "coordinates" bisects the elements recursively along their longest extent; "metis" cuts the graph of
        shared faces with pymetis, which must be installed. Both are deterministic. Pieces of a part that hang apart
        are given to the part that they touch most, because a linear solver wants connected subdomains.

    Raises
    ------
    ValueError : more parts than elements, or an unknown method.
    """
    if not 1 <= num_parts <= mesh.num_elements:
        raise ValueError(f"{mesh.num_elements} elements cannot be cut into {num_parts} parts; use fewer ranks.")
    if method not in ("coordinates", "metis"):
        raise ValueError(f"Partition method {method!r} is not known; use 'coordinates' or 'metis'.")
    if num_parts == 1:
        return np.zeros(mesh.num_elements, dtype=int)
    neighbours = face_graph(mesh)
    if method == "metis":
        try:
            import pymetis
        except ImportError as error:
            raise ValueError("Method 'metis' needs pymetis: pip install pymetis, or use 'coordinates'.") from error

        graph = pymetis.CSRAdjacency(neighbours.indptr, neighbours.indices)
        parts = np.array(pymetis.part_graph(num_parts, adjacency=graph)[1])
    else:
        parts = _bisect(mesh, num_parts)
    parts = _reattach(parts, neighbours)
    if len(np.unique(parts)) < num_parts:
        raise ValueError(
            f"Cutting {mesh.num_elements} elements into {num_parts} parts left one empty; use fewer ranks."
        )
    return parts


def face_graph(mesh: Mesh) -> sp.csr_array:
    """Return the graph whose edges join elements that share a face, (num_elements, num_elements)."""
    pairs, corners = mesh.all_faces()
    order = np.lexsort(corners.T)
    same = np.all(corners[order[1:]] == corners[order[:-1]], axis=1)
    a, b = pairs[order[:-1][same], 0], pairs[order[1:][same], 0]
    shape = (mesh.num_elements, mesh.num_elements)
    return sp.csr_array((np.ones(2 * len(a)), (np.concatenate([a, b]), np.concatenate([b, a]))), shape=shape)


def _bisect(mesh: Mesh, num_parts: int) -> np.ndarray:
    """Recursive coordinate bisection of the centroids, weighted by the number of nodes of each element."""
    centroids = np.concatenate([mesh.points[block].mean(axis=1) for _, _, block in mesh.blocks()])
    work = np.concatenate([np.full(len(block), float(kind.num_nodes)) for kind, _, block in mesh.blocks()])
    parts = np.zeros(mesh.num_elements, dtype=int)
    stack = [(np.arange(mesh.num_elements), 0, num_parts)]
    while stack:
        elements, first, count = stack.pop()
        if count == 1:
            parts[elements] = first
            continue
        # Rounding keeps ties in the order of numbers, so that round-off in coordinates does not move the cut.
        extent = np.ptp(centroids[elements], axis=0)
        along = np.round(centroids[elements, np.argmax(extent)], 9 - int(np.ceil(np.log10(extent.max() + 1e-300))))
        order = elements[np.argsort(along, kind="stable")]
        low = count // 2
        total = np.cumsum(work[order])
        cut = int(np.searchsorted(total, total[-1] * low / count - work[order[0]] / 2)) + 1
        cut = min(max(cut, low), len(order) - (count - low))
        stack += [(order[:cut], first, low), (order[cut:], first + low, count - low)]
    return parts


def _reattach(parts: np.ndarray, neighbours: sp.csr_array) -> np.ndarray:
    """Give every piece that hangs apart from the largest piece of its part to the part it shares most faces with."""
    parts = parts.copy()
    edges = neighbours.tocoo()
    for _ in range(10):
        inside = parts[edges.row] == parts[edges.col]
        graph = sp.csr_array((np.ones(inside.sum()), (edges.row[inside], edges.col[inside])), shape=neighbours.shape)
        num_pieces, piece = connected_components(graph, directed=False)
        sizes = np.bincount(piece, minlength=num_pieces)
        part_of = np.zeros(num_pieces, dtype=int)
        part_of[piece] = parts
        largest = {p: max(np.flatnonzero(part_of == p), key=lambda k: sizes[k]) for p in np.unique(parts)}
        moved = False
        for k in range(num_pieces):
            if largest[part_of[k]] == k:
                continue
            touching = parts[edges.col[(piece[edges.row] == k) & (piece[edges.col] != k)]]
            if touching.size:
                parts[piece == k] = np.argmax(np.bincount(touching))
                moved = True
        if not moved:
            break
    return parts
