"""Partitions, subdomains and communicators: everything is once, interfaces agree, sums are right."""

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from headrace.rom import distribute
from headrace.rom.communicator import Serial, communicator, run_threads
from headrace.rom.mesh import Mesh
from headrace.rom.partition import _bisect, face_graph, partition
from tests.rom.boxes import box


@pytest.mark.parametrize("kind", ["hex8", "tet10"])
@pytest.mark.parametrize("num_parts", [1, 2, 3, 5, 8])
def test_parts_are_equal_and_connected(kind, num_parts):
    mesh = box(kind, (6, 5, 3))
    parts = partition(mesh, num_parts)
    sizes = np.bincount(parts, minlength=num_parts)
    assert sizes.sum() == mesh.num_elements and sizes.max() <= 1.25 * mesh.num_elements / num_parts + 6
    graph = face_graph(mesh)
    for p in range(num_parts):
        inside = np.flatnonzero(parts == p)
        assert connected_components(graph[inside][:, inside])[0] == 1


def test_pieces_cut_off_by_a_hole_are_given_away():
    """A U of elements is cut by coordinates into parts that hang apart; the repair leaves connected ones."""
    mesh = box("hex8", (9, 3, 1), size=(9.0, 3.0, 1.0))
    centres = mesh.points[mesh.cells["hex8"]].mean(axis=1)
    keep = np.flatnonzero(~((centres[:, 0] > 1) & (np.abs(centres[:, 1] - 1.5) < 0.1)))
    u, _ = mesh.submesh(keep)
    graph = face_graph(u)

    def pieces(parts):
        inside = [np.flatnonzero(parts == p) for p in range(2)]
        return [connected_components(graph[elements][:, elements])[0] for elements in inside]

    assert max(pieces(_bisect(u, 2))) > 1
    assert pieces(partition(u, 2)) == [1, 1]


def test_too_many_parts_are_refused():
    with pytest.raises(ValueError, match="8 elements cannot be cut into 9 parts"):
        partition(box("hex8", (2, 2, 2)), 9)
    with pytest.raises(ValueError, match="'graph' is not known"):
        partition(box("hex8", (2, 2, 2)), 2, method="graph")
    with pytest.raises(ValueError, match="parts has shape"):
        distribute(box("hex8", (2, 2, 2)), parts=np.ones(8, dtype=int))


@pytest.mark.parametrize("size", [2, 4, 7])
def test_subdomains_cover_the_mesh_and_sums_count_interfaces_once(size):
    mesh = box("hex20", (4, 3, 3))
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, mesh.num_nodes, 3))
    volume_shares = rng.standard_normal((mesh.num_elements, 20))
    block = mesh.cells["hex20"]
    expected = np.bincount(block.ravel(), volume_shares.ravel(), minlength=mesh.num_nodes)

    def work(comm):
        sub = distribute(mesh, comm)
        np.testing.assert_array_equal(sub.mesh.points, mesh.points[sub.nodes])
        for name in mesh.face_sets:
            np.testing.assert_array_equal(sub.nodes[sub.mesh.nodes(name)], np.intersect1d(sub.nodes, mesh.nodes(name)))
        split = np.bincount(
            sub.mesh.cells["hex20"].ravel(), volume_shares[sub.elements].ravel(), minlength=len(sub.nodes)
        )
        return (sub.nodes, sub.elements, sub.points, sub.dot(a[sub.nodes], b[sub.nodes]),
                sub.gather(sub.assemble(split)), sub.gather(sub.points, at="points"), int(sub.owned.sum()))  # fmt: skip

    results = run_threads(size, work)
    assert np.array_equal(np.sort(np.concatenate([r[1] for r in results])), np.arange(mesh.num_elements))
    assert np.array_equal(np.sort(np.concatenate([r[2] for r in results])), np.arange(mesh.num_points))
    assert sum(r[6] for r in results) == mesh.num_nodes
    for result in results:
        assert result[3] == pytest.approx(np.vdot(a, b), rel=1e-12)
        np.testing.assert_allclose(result[4], expected, atol=1e-12)
        np.testing.assert_array_equal(result[5], np.arange(mesh.num_points))


def test_assembled_copies_agree_to_the_last_bit():
    mesh = box("hex8", (4, 4, 4))

    def work(comm):
        sub = distribute(mesh, comm)
        split = np.random.default_rng(comm.rank).standard_normal((len(sub.nodes), 3))
        return sub.nodes, sub.assemble(split)

    seen = {}
    for nodes, values in run_threads(8, work):
        for node, value in zip(nodes, values, strict=True):
            assert seen.setdefault(node, tuple(value)) == tuple(value)


def test_an_error_on_one_rank_is_raised_on_all():
    def work(comm):
        with pytest.raises(ValueError if comm.rank == 2 else RuntimeError, match="broken thing"):
            comm.raise_together(ValueError("broken thing") if comm.rank == 2 else None, RuntimeError)
        with pytest.raises(MemoryError if comm.rank == 1 else RuntimeError) as raised:
            comm.raise_together(MemoryError() if comm.rank == 1 else None, RuntimeError)
        assert comm.rank == 1 or "On rank 1: MemoryError" in str(raised.value)
        comm.raise_together(None, RuntimeError)
        return True

    assert run_threads(3, work) == [True] * 3
    with pytest.raises(ZeroDivisionError):
        run_threads(2, lambda comm: 1 / comm.rank if comm.rank == 0 else comm.sum(1.0))
    with pytest.raises(TypeError, match="pass None"):
        communicator(3)
    assert isinstance(communicator(None), Serial)


def test_points_of_two_element_types_keep_their_global_numbers():
    hexes, tets = box("hex8", (2, 1, 1)), box("tet4", (1, 1, 1))
    points = np.concatenate([hexes.points, tets.points + np.array([2, 0, 0])])
    mesh = Mesh(points=points, cells={"hex8": hexes.cells["hex8"], "tet4": tets.cells["tet4"] + hexes.num_nodes})
    parts = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    points_of = run_threads(2, lambda comm: distribute(mesh, comm, parts).points)
    np.testing.assert_array_equal(points_of[0], [*range(8), 16, 18, 20])
    np.testing.assert_array_equal(points_of[1], [*range(8, 16), 17, 19, 21])


def test_metis_parts_are_equal_and_connected_too():
    pytest.importorskip("pymetis")
    mesh = box("tet10", (5, 4, 3))
    parts = partition(mesh, 5, method="metis")
    sizes = np.bincount(parts)
    assert len(sizes) == 5 and sizes.max() <= 1.2 * sizes.min()
    graph = face_graph(mesh)
    for p in range(5):
        inside = np.flatnonzero(parts == p)
        assert connected_components(graph[inside][:, inside])[0] == 1
