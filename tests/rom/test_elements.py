"""Element types: partition of unity, exact quadrature, outward faces; meshes: sets, parts, refusals."""

import itertools
from math import factorial

import numpy as np
import pytest

from headrace.rom.elements import VOLUME_TYPES, element_type, gauss_triangle
from headrace.rom.kinematics import mass_rule
from headrace.rom.mesh import Mesh
from tests.rom.boxes import box

NODES = {"tet4": 4, "tet10": 10, "hex8": 8, "hex20": 20, "hex20r": 20}


def reference_nodes(kind):
    """Where each shape function is one, found from the documented edges."""
    from headrace.rom.elements import HEX_NODES, TET_EDGES

    if kind.startswith("hex"):
        return HEX_NODES[: NODES[kind]]
    corners = np.concatenate([np.zeros((1, 3)), np.eye(3)])
    return np.concatenate([corners, [(corners[a] + corners[b]) / 2 for a, b in TET_EDGES]])[: NODES[kind]]


@pytest.mark.parametrize("name", VOLUME_TYPES)
def test_shape_functions_are_one_at_their_node_and_reproduce_linear_fields(name):
    kind = element_type(name)
    X = reference_nodes(name)
    np.testing.assert_allclose(kind.shape(X)[0], np.eye(len(X)), atol=1e-14)
    field = X @ [1.0, -2.0, 0.5] + 3
    np.testing.assert_allclose(kind.values @ field, kind.points @ [1.0, -2.0, 0.5] + 3, atol=1e-14)
    np.testing.assert_allclose(
        np.einsum("qnd,n->qd", kind.gradients, field), np.tile([1, -2, 0.5], (kind.num_points, 1)), atol=1e-13
    )


@pytest.mark.parametrize("name", [*VOLUME_TYPES, "tri3", "tri6", "quad4", "quad8"])
def test_gradients_are_derivatives_of_values(name):
    kind = element_type(name)
    x = np.full((1, kind.points.shape[1]), 0.21)
    for d in range(x.shape[1]):
        h = 1e-6 * np.eye(x.shape[1])[d]
        slope = (kind.shape(x + h)[0] - kind.shape(x - h)[0]) / 2e-6
        np.testing.assert_allclose(kind.shape(x)[1][..., d], slope, atol=1e-9)


def simplex_integral(powers):
    """∫ x^a y^b z^c over the unit simplex."""
    return np.prod([float(factorial(p)) for p in powers]) / factorial(sum(powers) + len(powers))


def test_quadrature_is_exact_to_its_degree():
    points, weights = gauss_triangle()
    for a, b in itertools.product(range(5), repeat=2):
        if a + b <= 4:
            assert weights @ (points[:, 0] ** a * points[:, 1] ** b) == pytest.approx(
                simplex_integral((a, b)), rel=1e-13
            )
    rules = {"tet4": (element_type("tet4").points, element_type("tet4").weights, 1),
             "tet10": (element_type("tet10").points, element_type("tet10").weights, 2),
             "mass": (*mass_rule(element_type("tet10")), 4)}  # fmt: skip
    for name, (points, weights, degree) in rules.items():
        for powers in itertools.product(range(degree + 1), repeat=3):
            if sum(powers) <= degree:
                value = weights @ np.prod(points ** np.array(powers), axis=1)
                assert value == pytest.approx(simplex_integral(powers), rel=1e-12), (name, powers)


@pytest.mark.parametrize("name", VOLUME_TYPES)
def test_faces_close_the_element_and_point_outwards(name):
    kind = element_type(name)
    X = reference_nodes(name)
    face = element_type(kind.face_type)
    total, volume = np.zeros(3), 0.0
    for nodes in kind.faces:
        Y = X[list(nodes)]
        a, b = (np.einsum("nd,qn->qd", Y, face.gradients[:, :, k]) for k in (0, 1))
        normal = np.cross(a, b) * face.weights[:, None]
        total += normal.sum(axis=0)
        volume += np.einsum("qd,qd->", normal, face.values @ Y) / 3  # divergence theorem on x/3
    np.testing.assert_allclose(total, 0, atol=1e-13)
    assert volume == pytest.approx(kind.weights.sum(), rel=1e-13)


@pytest.mark.parametrize("name", VOLUME_TYPES)
def test_box_sets_and_parts(name):
    mesh = box(name, (2, 3, 2), size=(2.0, 3.0, 1.0), sets={"low": lambda x: x[:, 0] < 1})
    assert len(mesh.face_sets["x0"]) == (6 if name.startswith("hex") else 12)
    assert np.allclose(mesh.points[mesh.nodes("x0")][:, 0], 0)
    part, nodes = mesh.submesh(mesh.elements("low"))
    np.testing.assert_array_equal(part.points, mesh.points[nodes])
    assert part.num_elements == mesh.num_elements // 2
    np.testing.assert_array_equal(part.element_labels, mesh.element_labels[mesh.elements("low")])
    np.testing.assert_array_equal(nodes[part.nodes("x0")], mesh.nodes("x0"))
    assert len(part.face_sets["x1"]) == 0


def test_a_mesh_of_two_types_numbers_through_its_blocks():
    points = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)] + [[0.5, 0.5, 2]], dtype=float)
    hexes, tets = [[0, 1, 3, 2, 4, 5, 7, 6]], [[4, 5, 7, 8], [4, 7, 6, 8]]
    mesh = Mesh(
        points=points, cells={"hex8": hexes, "tet4": tets}, face_sets={"bottom": [[0, 0]], "roof": [[1, 1], [1, 2]]}
    )
    assert mesh.num_elements == 3 and mesh.num_points == 10
    np.testing.assert_array_equal(mesh.element_points(), [0, 8, 9, 10])
    np.testing.assert_array_equal(mesh.nodes("bottom"), [0, 1, 2, 3])
    assert {kind.name for kind, nodes in mesh.faces("roof") if len(nodes)} == {"tri3"}


def test_bad_meshes_are_refused_by_name():
    good = box("hex8", (1, 1, 2))
    cells = good.cells["hex8"]
    torn = np.where(np.arange(12)[:, None] == 2, np.nan, good.points)
    cases = {
        "no volume elements": dict(points=good.points, cells={}),
        "type 'quad4' is not a volume": dict(points=good.points, cells={"quad4": cells[:, :4]}),
        "Element 22 .hex8. is degenerate or inside out": dict(
            points=good.points, cells={"hex8": [cells[0], cells[1][[4, 5, 6, 7, 0, 1, 2, 3]]]}, element_labels=[11, 22]
        ),
        "Element 1 .hex8. names a node twice": dict(points=good.points, cells={"hex8": [[*cells[0][:7], cells[0][0]]]}),
        "node 3 are not finite": dict(points=torn, cells={"hex8": cells}),
        "0 to 11": dict(points=good.points, cells={"hex8": cells + 1}),
        "must be .n, 8.": dict(points=good.points, cells={"hex8": cells[:, :4]}),
        "face number": dict(points=good.points, cells={"hex8": cells}, face_sets={"f": [[0, 6]]}),
    }  # fmt: skip
    for message, arguments in cases.items():
        with pytest.raises(ValueError, match=message):
            Mesh(**arguments)
    flat = good.points * [1, 1, 0]
    with pytest.raises(ValueError, match="degenerate"):
        Mesh(points=flat, cells={"hex8": cells})
    with pytest.raises(ValueError, match=r"no set 'bolts'.*face sets x0"):
        good.nodes("bolts")
