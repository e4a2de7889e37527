"""The five volume elements and their faces: node order, shape functions, quadrature.

Node order is that of Abaqus and CalculiX (and VTK, which agrees for all of these). Corner nodes of a hexahedron go
counter-clockwise around the bottom (ζ = -1), then around the top; then come the middles of edges 1-2, 2-3, 3-4, 4-1,
5-6, 6-7, 7-8, 8-5, 1-5, 2-6, 3-7, 4-8. A tetrahedron has 1, 2, 3 counter-clockwise seen from 4; then the middles of
1-2, 2-3, 3-1, 1-4, 2-4, 3-4. Faces are numbered as Abaqus's S1...S6 (from 0 here), but their nodes are listed so that
the normal points outwards.

Quadrature points of hexahedra run with ξ fastest, then η, then ζ; all point orders are those of CalculiX's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

# Corner signs (ξ, η, ζ) and the two corners whose edge each middle node halves.
HEX_CORNERS = np.array(
    [[-1, -1, -1], [1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1]], dtype=float
)
HEX_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
HEX_NODES = np.concatenate([HEX_CORNERS, [(HEX_CORNERS[a] + HEX_CORNERS[b]) / 2 for a, b in HEX_EDGES]])
TET_EDGES = ((0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3))
QUAD_CORNERS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=float)
QUAD_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0))
QUAD_NODES = np.concatenate([QUAD_CORNERS, [(QUAD_CORNERS[a] + QUAD_CORNERS[b]) / 2 for a, b in QUAD_EDGES]])
TRI_EDGES = ((0, 1), (1, 2), (2, 0))

HEX_FACES = ((0, 3, 2, 1), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7))
TET_FACES = ((0, 2, 1), (0, 1, 3), (1, 2, 3), (2, 0, 3))


@dataclass(frozen=True, kw_only=True, eq=False)
class ElementType:
    """One kind of element, of volume or of face.

    Attributes
    ----------
    name : tet4, tet10, hex8, hex20, hex20r; or tri3, tri6, quad4, quad8.
    num_nodes : nodes of one element.
    points, weights : quadrature on the reference element, (num_points, dimension) and (num_points,).
    values : shape functions at the quadrature points, (num_points, num_nodes).
    plain_values : what CalculiX takes for temperatures instead: the mean of the nodes of hex8, for hex20 the trilinear
        function through what the shape functions give at the points of hex20r; the shape functions of the others.
    gradients : their derivatives by the reference coordinates, (num_points, num_nodes, dimension).
    shape : function (points) -> (values, gradients) anywhere.
    faces : local node numbers of each face, outward, corner nodes first; () for face types.
    face_type : name of the face's type; "" for face types.
    """

    name: str
    num_nodes: int
    points: np.ndarray
    weights: np.ndarray
    values: np.ndarray
    plain_values: np.ndarray
    gradients: np.ndarray
    shape: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    faces: tuple[tuple[int, ...], ...] = ()
    face_type: str = ""

    @property
    def num_points(self) -> int:
        """Number of quadrature points."""
        return len(self.weights)


def simplex_linear(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and gradients of the linear functions of a triangle or tetrahedron (barycentric coordinates)."""
    dimension = points.shape[1]
    values = np.concatenate([1 - points.sum(axis=1, keepdims=True), points], axis=1)
    slopes = np.concatenate([-np.ones((1, dimension)), np.eye(dimension)])
    return values, np.broadcast_to(slopes, (len(points), *slopes.shape)).copy()


def simplex_quadratic(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and gradients of the quadratic functions: L(2L - 1) at corners, 4 L_a L_b at middles."""
    edges = TRI_EDGES if points.shape[1] == 2 else TET_EDGES
    L, dL = simplex_linear(points)
    a, b = np.array(edges).T
    values = np.concatenate([L * (2 * L - 1), 4 * L[:, a] * L[:, b]], axis=1)
    corner = (4 * L - 1)[..., None] * dL
    middle = 4 * (L[:, a, None] * dL[:, b] + L[:, b, None] * dL[:, a])
    return values, np.concatenate([corner, middle], axis=1)


def cube_linear(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and gradients of the multilinear functions of a square or cube."""
    return _products(points, QUAD_CORNERS if points.shape[1] == 2 else HEX_CORNERS)


def cube_serendipity(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and gradients of the serendipity functions of the 8-node square or 20-node cube.

    Middles are (1 - ξ²)(1 ± η)(1 ± ζ)/4 and the like; corners are the multilinear ones less half of the middles
    on their edges.
    """
    flat = points.shape[1] == 2
    corners, edges, nodes = (QUAD_CORNERS, QUAD_EDGES, QUAD_NODES) if flat else (HEX_CORNERS, HEX_EDGES, HEX_NODES)
    middle, d_middle = _products(points, nodes[len(corners) :])
    corner, d_corner = _products(points, corners)
    for m, pair in enumerate(edges):
        for c in pair:
            corner[:, c] -= middle[:, m] / 2
            d_corner[:, c] -= d_middle[:, m] / 2
    return np.concatenate([corner, middle], axis=1), np.concatenate([d_corner, d_middle], axis=1)


def _products(points: np.ndarray, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return products of (1 ± ξ)/2 where a node's coordinate is ±1 and of (1 - ξ²) where it is 0, and gradients."""
    x = points[:, None, :]
    factors = np.where(nodes == 0, 1 - x**2, (1 + nodes * x) / 2)
    slopes = np.where(nodes == 0, -2 * x, nodes / 2)
    gradients = np.empty(factors.shape)
    for axis in range(nodes.shape[1]):
        others = [other for other in range(nodes.shape[1]) if other != axis]
        gradients[..., axis] = slopes[..., axis] * factors[..., others].prod(axis=2)
    return factors.prod(axis=2), gradients


def gauss_cube(order: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the tensor Gauss rule of the square or cube, ξ fastest."""
    x, w = np.polynomial.legendre.leggauss(order)
    grids = np.meshgrid(*[x] * dimension, indexing="ij")
    weights = np.meshgrid(*[w] * dimension, indexing="ij")
    return np.stack([g.ravel() for g in reversed(grids)], axis=1), np.prod(weights, axis=0).ravel()


def gauss_tet4() -> tuple[np.ndarray, np.ndarray]:
    """Return the one-point rule of the tetrahedron."""
    return np.full((1, 3), 0.25), np.array([1 / 6])


def gauss_tet10() -> tuple[np.ndarray, np.ndarray]:
    """Return the four-point rule of the tetrahedron, exact for quadratic polynomials."""
    a, b = (5 - np.sqrt(5)) / 20, (5 + 3 * np.sqrt(5)) / 20
    return np.array([[a, a, a], [b, a, a], [a, b, a], [a, a, b]]), np.full(4, 1 / 24)


def gauss_triangle() -> tuple[np.ndarray, np.ndarray]:
    """Return the six-point rule of the triangle, exact for quartic polynomials (Dunavant 1985)."""
    root = np.sqrt(38 - 44 * np.sqrt(2 / 5))
    orbits = []
    for sign in (1, -1):
        a = (8 - np.sqrt(10) + sign * root) / 18
        w = (620 + sign * np.sqrt(213125 - 53320 * np.sqrt(10))) / 3720 / 2
        orbits.append(([[a, a], [1 - 2 * a, a], [a, 1 - 2 * a]], [w] * 3))
    return np.concatenate([o[0] for o in orbits]), np.concatenate([o[1] for o in orbits])


def _face_nodes(
    corners: tuple[tuple[int, ...], ...], edges: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, ...], ...]:
    """Return corner nodes of faces followed by the middle nodes between them."""
    first = 1 + max(max(face) for face in corners)
    middle = {frozenset(edge): first + k for k, edge in enumerate(edges)}
    closed = ((face, (*face[1:], face[0])) for face in corners)
    return tuple(
        (*face, *(middle[frozenset(pair)] for pair in zip(face, after, strict=True))) for face, after in closed
    )


def _plain_values(name: str, points: np.ndarray, values: np.ndarray) -> np.ndarray:
    if name == "hex8":
        return np.full_like(values, 1 / 8)
    if name == "hex20":
        inner = gauss_cube(2, 3)[0]
        # Multilinear functions with nodes at the inner points; those come with the first coordinate fastest.
        at_corners = inner[[0, 1, 3, 2, 4, 5, 7, 6]]
        return cube_linear(points / np.abs(inner[0, 0]))[0] @ cube_serendipity(at_corners)[0]
    return values


@cache
def element_type(name: str) -> ElementType:
    """Return an element type by name.

    Raises
    ------
    ValueError : unknown name.
    """
    hex20_faces, tet10_faces = _face_nodes(HEX_FACES, HEX_EDGES), _face_nodes(TET_FACES, TET_EDGES)
    known = {
        "tet4": (4, simplex_linear, gauss_tet4(), TET_FACES, "tri3"),
        "tet10": (10, simplex_quadratic, gauss_tet10(), tet10_faces, "tri6"),
        "hex8": (8, cube_linear, gauss_cube(2, 3), HEX_FACES, "quad4"),
        "hex20": (20, cube_serendipity, gauss_cube(3, 3), hex20_faces, "quad8"),
        "hex20r": (20, cube_serendipity, gauss_cube(2, 3), hex20_faces, "quad8"),
        "tri3": (3, simplex_linear, gauss_triangle(), (), ""),
        "tri6": (6, simplex_quadratic, gauss_triangle(), (), ""),
        "quad4": (4, cube_linear, gauss_cube(2, 2), (), ""),
        "quad8": (8, cube_serendipity, gauss_cube(3, 2), (), ""),
    }
    if name not in known:
        raise ValueError(f"Element type {name!r} is not known; use one of {', '.join(VOLUME_TYPES)}.")
    num_nodes, shape, (points, weights), faces, face_type = known[name]
    values, gradients = shape(points)
    return ElementType(
        name=name, num_nodes=num_nodes, points=points, weights=weights, values=values,
        plain_values=_plain_values(name, points, values), gradients=gradients, shape=shape, faces=faces,
        face_type=face_type,
    )  # fmt: skip


VOLUME_TYPES = ("tet4", "tet10", "hex8", "hex20", "hex20r")
