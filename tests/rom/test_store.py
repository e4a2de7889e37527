"""The store: what goes in comes out, on any number of ranks, and damage is found."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from headrace.rom.communicator import run_threads
from headrace.rom.mesh import Mesh
from headrace.rom.store import Store, StoreError, StoreWriter
from headrace.rom.subdomain import distribute
from tests.mpi_run import run_mpi
from tests.rom.boxes import box

ROOT = Path(__file__).resolve().parents[2]


def mixed():
    """Two element types and every kind of set, so that each order and number matters."""
    hexes, tets = box("hex8", (3, 2, 2)), box("tet4", (1, 1, 1))
    points = np.concatenate([hexes.points, tets.points + np.array([2, 0, 0])])
    return Mesh(
        points=points, cells={"tet4": tets.cells["tet4"] + hexes.num_nodes, "hex8": hexes.cells["hex8"]},
        node_sets={"some": [3, 5, 40]}, element_sets={"a/b": [0, 7, 9]}, face_sets={"lid": [[7, 5], [2, 1]]},
        node_labels=np.arange(len(points)) * 10 + 5,
    )  # fmt: skip


def fields(mesh, k):
    rng = np.random.default_rng(k)
    return rng.standard_normal((mesh.num_nodes, 3)), rng.standard_normal((mesh.num_points, 6))


def write(path, mesh, comm=None):
    sub = distribute(mesh, comm)
    with StoreWriter(path, sub, {"tolerance": 1e-6}) as store:
        for k in range(3):
            u, s = fields(mesh, k)
            store.append(0.5 * k, u[sub.nodes], temperature=u[sub.nodes, 0], stress=s[sub.points])
        store.put("basis/displacement", fields(mesh, 9)[0][sub.nodes][..., None], rows="nodes", tolerance=1e-6)
        store.put("cubature/weights", np.arange(4.0))


def check(path, mesh, comm=None, parts=None):
    with Store(path, comm, parts) as store:
        sub = store.subdomain
        assert store.times.tolist() == [0.0, 0.5, 1.0] and store.attributes == {"tolerance": 1e-6}
        for k in range(3):
            u, s = fields(mesh, k)
            np.testing.assert_array_equal(store.displacement(k), u[sub.nodes])
            np.testing.assert_array_equal(store.temperature(k), u[sub.nodes, 0])
            np.testing.assert_array_equal(store.point_field("stress", k), s[sub.points])
        assert store.point_field("p", 0) is None
        np.testing.assert_array_equal(store.get("basis/displacement")[..., 0], fields(mesh, 9)[0][sub.nodes])
        np.testing.assert_array_equal(store.get("cubature/weights"), np.arange(4.0))
        assert store.array_attributes("basis/displacement") == {"tolerance": 1e-6}
        return sub


@pytest.mark.parametrize("written", [1, 3, 4])
@pytest.mark.parametrize("read", [1, 2, 4, 5])
def test_readable_on_another_number_of_ranks(tmp_path, written, read):
    mesh = mixed()
    run_threads(written, lambda comm: write(tmp_path / "s", mesh, comm))
    subs = run_threads(read, lambda comm: check(tmp_path / "s.json", mesh, comm))
    assert np.array_equal(np.sort(np.concatenate([s.elements for s in subs])), np.arange(mesh.num_elements))


def test_the_mesh_comes_back_with_sets_and_labels(tmp_path):
    mesh = mixed()
    run_threads(3, lambda comm: write(tmp_path / "s", mesh, comm))
    back = Store(tmp_path / "s").mesh
    assert list(back.cells) == list(mesh.cells)
    for name in mesh.cells:
        np.testing.assert_array_equal(back.cells[name], mesh.cells[name])
    np.testing.assert_array_equal(back.points, mesh.points)
    np.testing.assert_array_equal(back.node_labels, mesh.node_labels)
    for name in ("some", "a/b", "lid"):
        np.testing.assert_array_equal(back.nodes(name), mesh.nodes(name))
    np.testing.assert_array_equal(back.elements("a/b"), mesh.elements("a/b"))
    assert {tuple(f) for f in back.face_sets["lid"]} == {tuple(f) for f in mesh.face_sets["lid"]}


def test_every_damaged_byte_is_found_or_harmless(tmp_path):
    """A flipped byte anywhere in the file either raises StoreError or changes nothing that is read."""
    mesh = box("hex8", (2, 1, 1))
    write(tmp_path / "s", mesh)
    path = tmp_path / "s-0000-of-0001.h5"
    whole = path.read_bytes()
    found = 0
    for place in np.random.default_rng(0).integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            check(tmp_path / "s", mesh)
        except StoreError as error:
            assert "s-0000-of-0001.h5" in str(error) or "lacks increment" in str(error) or "has no array" in str(error)
            found += 1
    assert found > 15
    path.write_bytes(whole)
    assert Store(tmp_path / "s").verify() > 12
    with h5py.File(path, "a") as file:
        file["basis/displacement"].attrs["rows"] = "nodules"
    with pytest.raises(StoreError, match=r"basis/displacement is damaged: it has no rows 'nodules'"):
        check(tmp_path / "s", mesh)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_files_are_refused(tmp_path, kept):
    write(tmp_path / "s", box("hex8", (2, 1, 1)))
    path = tmp_path / "s-0000-of-0001.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(StoreError, match=r"s-0000-of-0001\.h5 is missing, truncated or damaged"):
        Store(tmp_path / "s")


def test_bad_stores_say_what_is_wrong(tmp_path):
    mesh = box("hex8", (2, 1, 1))
    with pytest.raises(StoreError, match="There is no store"):
        Store(tmp_path / "s")
    sub = distribute(mesh)
    with pytest.raises(KeyError), StoreWriter(tmp_path / "s", sub) as store:
        store.append(0.0, np.zeros((12, 3)))
        raise KeyError("the solver died")
    with pytest.raises(StoreError, match=r"interrupted and left s-0000-of-0001\.h5\.part"):
        Store(tmp_path / "s")
    write(tmp_path / "s", mesh)
    index = tmp_path / "s.json"
    text = index.read_text()
    index.write_text(text.replace("0.5", "0.6"))
    with pytest.raises(StoreError, match="checksum"):
        Store(tmp_path / "s")
    for damage in (text[:50], "[]", "7", "null", "{}"):
        index.write_text(damage)
        with pytest.raises(StoreError, match="damaged"):
            Store(tmp_path / "s")
    assert json.loads(text)["version"] == 1
    index.write_text(text)
    with pytest.raises(StoreError, match="no array 'basis/p'"), Store(tmp_path / "s") as store:
        store.get("basis/p")
    content = h5py.File(tmp_path / "s-0000-of-0001.h5", "a")
    content["mesh/points"][0, 0] += 1
    content.close()
    with pytest.raises(StoreError, match="mesh/points is damaged"):
        Store(tmp_path / "s")
    h5py.File(tmp_path / "s-0000-of-0001.h5", "a").close()  # not possible while it were open
    with StoreWriter(tmp_path / "t", sub) as store:
        store.append(0.0, np.zeros((12, 3)))
        for bad, match in (((0.0, np.zeros((12, 3))), "times increase"),
                           ((1.0, np.zeros((11, 3))), "must have 12 rows"),
                           ((1.0, np.full((12, 3), np.nan)), "finite")):  # fmt: skip
            with pytest.raises(ValueError, match=match):
                store.append(*bad)
        with pytest.raises(ValueError, match="must be one of"):
            store.put("x", np.zeros(12), rows="dofs")


def test_a_rank_that_fails_at_the_end_leaves_the_older_store_as_it_was(tmp_path):
    mesh = mixed()
    run_threads(2, lambda comm: write(tmp_path / "s", mesh, comm))

    def write_again(comm):
        sub = distribute(mesh, comm)
        with StoreWriter(tmp_path / "s", sub) as store:
            store.append(0.0, np.zeros((len(sub.nodes), 3)))
            if comm.rank == 1:
                raise KeyError("the solver died")

    with pytest.raises(KeyError):
        run_threads(2, write_again)
    run_threads(2, lambda comm: check(tmp_path / "s", mesh, comm))


def test_a_store_whose_files_are_of_two_runs_is_none(tmp_path, monkeypatch):
    mesh = mixed()
    write(tmp_path / "s", mesh)

    def ended(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(StoreWriter, "_index", ended)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", mesh)
    with pytest.raises(StoreError, match="There is no store"):
        Store(tmp_path / "s")


@pytest.mark.mpi
def test_written_on_four_real_ranks_and_read_on_two(tmp_path):
    mesh = mixed()
    for ranks, mode in ((4, "write"), (2, "check")):
        done = run_mpi(ranks, ["-m", "tests.rom.test_store", str(tmp_path / "s"), mode], cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
    check(tmp_path / "s", mesh)


if __name__ == "__main__":
    from mpi4py import MPI

    (write if sys.argv[2] == "write" else check)(sys.argv[1], mixed(), MPI.COMM_WORLD)
