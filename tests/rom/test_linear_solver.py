"""Factors, Krylov methods and the two-level preconditioner, against dense algebra and against their own promises."""

import numpy as np
import pytest

from headrace.rom import distribute
from headrace.rom.assembly import Pattern, mass_matrix
from headrace.rom.balancing import Balancing, rigid_motions
from headrace.rom.communicator import run_threads
from headrace.rom.elastic import IsotropicElasticity
from headrace.rom.element_operator import ElementOperator
from headrace.rom.kinematics import Kinematics
from headrace.rom.krylov import conjugate_gradients, gmres
from headrace.rom.law import ConvergenceError
from headrace.rom.mesh import Mesh
from headrace.rom.multifrontal import EliminationTree
from tests.rom.boxes import box

KINDS = ("tet4", "tet10", "hex8", "hex20", "hex20r")
STEEL = IsotropicElasticity(young=200e3, poisson=0.3)


def stiffness(mesh):
    kinematics = Kinematics(mesh)
    return kinematics, kinematics.stiffness(STEEL.stiffness(np.zeros(mesh.num_points)))


@pytest.mark.parametrize("kind", KINDS)
def test_kinematics_agree_with_each_other(kind):
    """K u is the internal force of C ε(u), 0 for rigid motions; the strain of a linear field is its gradient."""
    mesh = box(kind, (2, 2, 2), size=(1.0, 2.0, 0.5), distort=0.2)
    kinematics, matrices = stiffness(mesh)
    u = np.random.default_rng(1).standard_normal((mesh.num_nodes, 3))
    C = STEEL.stiffness(np.zeros(mesh.num_points))
    force = kinematics.internal_force(np.einsum("pij,pj->pi", C, kinematics.strain(u)))
    operator = ElementOperator(kinematics, matrices, np.ones((mesh.num_nodes, 3), dtype=bool))
    K = Pattern(mesh).assemble(matrices)
    np.testing.assert_allclose(operator(u), force, atol=1e-9 * np.abs(force).max())
    np.testing.assert_allclose((K @ u.ravel()).reshape(-1, 3), force, atol=1e-9 * np.abs(force).max())
    np.testing.assert_allclose(operator.diagonal().ravel(), K.diagonal(), rtol=1e-12)
    for k in range(6):
        assert np.abs(operator(rigid_motions(mesh.points)[..., k])).max() <= 1e-9 * np.abs(K.data).max()
    G = np.random.default_rng(2).standard_normal((3, 3))
    expected = [G[0, 0], G[1, 1], G[2, 2], G[0, 1] + G[1, 0], G[0, 2] + G[2, 0], G[1, 2] + G[2, 1]]
    np.testing.assert_allclose(
        kinematics.strain(mesh.points @ G.T), np.tile(expected, (mesh.num_points, 1)), atol=1e-12
    )
    assert kinematics.weights.sum() == pytest.approx(1.0, rel=1e-12)
    np.testing.assert_allclose(
        kinematics.interpolate(mesh.points @ G.T) @ np.linalg.inv(G.T), _positions(kinematics), atol=1e-11
    )


def _positions(kinematics):
    return kinematics.interpolate(kinematics.mesh.points)


@pytest.mark.parametrize("kind", KINDS)
def test_mass_matrix_integrates_products(kind):
    """∫ x², ∫ x y over the box, exact for quadratic elements; volume and centre for all."""
    mesh = box(kind, (2, 2, 2), size=(1.0, 2.0, 0.5))
    M = mass_matrix(Kinematics(mesh))
    one, (x, y, _) = np.ones(mesh.num_nodes), mesh.points.T
    assert one @ M @ one == pytest.approx(1.0, rel=1e-12)
    assert one @ M @ x == pytest.approx(0.5, rel=1e-12)
    assert x @ M @ x == pytest.approx(1 / 3, rel=1e-12)
    assert x @ M @ y == pytest.approx(0.5, rel=1e-12)
    assert np.linalg.eigvalsh(M.toarray()).min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_factor_solves_and_leaves_fixed_dofs_alone(kind):
    mesh = box(kind, (4, 3, 3), distort=0.1)
    _, matrices = stiffness(mesh)
    free = np.repeat(mesh.points[:, 0] > 0, 3)
    free[5] = False
    right = np.random.default_rng(0).standard_normal((3 * mesh.num_nodes, 2))
    tree = EliminationTree(mesh, free)
    x = tree.factor(matrices).solve(right)
    K = Pattern(mesh).assemble(matrices).toarray()
    expected = np.linalg.solve(K[np.ix_(free, free)], right[free])
    np.testing.assert_allclose(x[free], expected, atol=1e-9 * np.abs(expected).max())
    assert not x[~free].any()
    single = tree.factor(matrices).solve(right[:, 0])
    np.testing.assert_allclose(single, x[:, 0], atol=1e-12 * np.abs(expected).max())
    shift = np.where(free, 1e6, 0.0)
    shifted = tree.factor(matrices, shift).solve(right)
    expected = np.linalg.solve((K + np.diag(shift))[np.ix_(free, free)], right[free])
    np.testing.assert_allclose(shifted[free], expected, atol=1e-9 * np.abs(expected).max())


def test_the_factor_of_two_element_types():
    hexes, tets = box("hex8", (2, 1, 1)), box("tet4", (1, 1, 1))
    points = np.concatenate([hexes.points, tets.points + np.array([0.0, 0, 1])])
    unique, where = np.unique(points.round(9), axis=0, return_inverse=True)
    mesh = Mesh(
        points=unique, cells={"hex8": where[hexes.cells["hex8"]], "tet4": where[tets.cells["tet4"] + hexes.num_nodes]}
    )
    _, matrices = stiffness(mesh)
    free = np.repeat(mesh.points[:, 2] > 0, 3)
    K = Pattern(mesh).assemble(matrices).toarray()
    right = np.arange(3.0 * mesh.num_nodes)
    x = EliminationTree(mesh, free).factor(matrices).solve(right)
    np.testing.assert_allclose(x[free], np.linalg.solve(K[np.ix_(free, free)], right[free]), rtol=1e-8)


def test_a_floating_body_has_no_factor():
    mesh = box("hex8", (3, 3, 3))
    _, matrices = stiffness(mesh)
    with pytest.raises(ConvergenceError, match="supports leave a rigid motion free"):
        EliminationTree(mesh, np.ones(3 * mesh.num_nodes, dtype=bool)).factor(matrices)


@pytest.mark.parametrize("method", [conjugate_gradients, gmres])
def test_krylov_methods_reach_their_tolerance_and_say_when_they_do_not(method):
    rng = np.random.default_rng(5)
    Q = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    A = Q @ np.diag(np.logspace(0, 3, 60)) @ Q.T
    if method is gmres:
        A = A + 20 * (lambda S: S - S.T)(rng.standard_normal((60, 60)))
    b = rng.standard_normal(60)
    options = {"products": lambda fields, w: np.array([v @ w for v in fields]), "max_iterations": 200}
    for tolerance in (1e-3, 1e-10):
        x, iterations = method(lambda v: A @ v, lambda v: v / np.diagonal(A), b, tolerance=tolerance, **options)
        assert np.linalg.norm(A @ x - b) <= 1.01 * tolerance * np.linalg.norm(b) and iterations > 0
    assert method(lambda v: A @ v, lambda v: np.linalg.solve(A, v), b, tolerance=1e-8, **options)[1] <= 2
    assert not method(lambda v: A @ v, lambda v: v, 0 * b, tolerance=1e-8, **options)[0].any()
    with pytest.raises(ConvergenceError, match="after 3 iterations"):
        method(lambda v: A @ v, lambda v: v, b, tolerance=1e-12, **{**options, "max_iterations": 3})


def iterations_of(mesh, size, fixed=lambda x: x[:, 0] == 0, law=STEEL, parts=None):
    """CG iterations to 1e-8 with the balancing preconditioner, and the error of the solution."""

    def work(comm):
        sub = distribute(mesh, comm, parts)
        kinematics = Kinematics(sub.mesh)
        matrices = kinematics.stiffness(law.stiffness(kinematics.interpolate(sub.mesh.points[:, 2])))
        free = np.repeat(~fixed(sub.mesh.points)[:, None], 3, axis=1)
        operator = ElementOperator(kinematics, matrices, free)
        balancing = Balancing(sub, free)
        balancing.refresh(matrices, operator)
        balancing.prepare_coarse()
        exact = np.where(free, np.sin(7 * sub.mesh.points) + sub.mesh.points[:, ::-1], 0.0)
        right = sub.assemble(operator(exact))
        x, iterations = conjugate_gradients(
            lambda u: sub.assemble(operator(u)),
            balancing.apply,
            right,
            products=sub.products,
            tolerance=1e-8,
            max_iterations=100,
        )
        a, b = np.random.default_rng(8).standard_normal((2, mesh.num_nodes, 3))
        a, b = (np.where(free, v[sub.nodes], 0) for v in (a, b))
        skew = sub.dot(a, balancing.apply(b)) / sub.dot(b, balancing.apply(a)) - 1
        return iterations, sub.norm(x - exact) / sub.norm(exact), skew

    results = run_threads(size, work)
    assert len({r[0] for r in results}) == 1
    return results[0]


@pytest.mark.parametrize("kind", ["hex8", "tet10"])
def test_iterations_do_not_grow_with_the_number_of_subdomains(kind):
    counts = {}
    for size in (2, 4, 8):
        counts[size], error, skew = iterations_of(box(kind, (2 * size, 3, 3), size=(2 * size / 3, 1.0, 1.0)), size)
        assert error < 1e-6 and abs(skew) < 1e-8
    assert counts[8] <= counts[4] + 4 and counts[8] <= 20, counts


def test_boxes_of_subdomains_and_a_jump_of_stiffness():
    """8 subdomains around one corner, 5 of them not touching the support; stiffness falling 100 times over z."""
    from headrace.rom.law import Table

    mesh = box("hex8", (6, 6, 6))
    soft = IsotropicElasticity(young=Table((0.0, 1.0), (200e3, 2e3)), poisson=0.3)
    plain, error, _ = iterations_of(mesh, 8)
    graded, graded_error, _ = iterations_of(mesh, 8, law=soft)
    assert error < 1e-6 and graded_error < 1e-5 and plain <= 22 and graded <= 30, (plain, graded)


def test_subdomains_held_in_part():
    """One subdomain keeps a hinge, others are held at a single node: fewer than six rigid motions are left."""
    mesh = box("hex8", (6, 3, 3), size=(2.0, 1.0, 1.0))
    edge = lambda x: ((x[:, 0] == 0) & (x[:, 1] == 0)) | ((x[:, 0] == 2) & (x[:, 2] == 1) & (x[:, 1] == 1))  # noqa: E731
    iterations, error, _ = iterations_of(mesh, 4, fixed=edge)
    assert error < 1e-6 and iterations <= 40


def test_parts_in_pieces_still_converge():
    """Parts given by a user may hang apart, or only by an edge: more iterations, the same solution."""
    mesh = box("hex8", (6, 4, 4))
    centroids = mesh.points[mesh.cells["hex8"]].mean(axis=1)
    parts = ((centroids[:, 0] * 3).astype(int) + (centroids[:, 1] * 2).astype(int)) % 2
    iterations, error, _ = iterations_of(mesh, 2, parts=parts)
    assert error < 1e-6 and iterations <= 60


def test_two_bodies_on_two_ranks():
    """One body per rank and both bodies on both ranks; each body is held at its own side."""
    one = box("hex8", (3, 3, 3))
    points = np.concatenate([one.points, one.points + np.array([5.0, 0, 0])])
    mesh = Mesh(points=points, cells={"hex8": np.concatenate([one.cells["hex8"], one.cells["hex8"] + one.num_nodes])})
    held = lambda x: (x[:, 0] == 0) | (x[:, 0] == 5)  # noqa: E731
    for parts in (np.repeat([0, 1], 27), np.tile([0, 0, 1], 18)):
        iterations, error, _ = iterations_of(mesh, 2, fixed=held, parts=parts)
        assert error < 1e-6 and iterations <= 30
