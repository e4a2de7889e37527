"""POD on any number of ranks is the singular value decomposition in the inner product of the finite elements."""

import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.rom import distribute
from headrace.rom.assembly import mass_matrix
from headrace.rom.communicator import Counting, run_threads
from headrace.rom.kinematics import Kinematics
from headrace.rom.pod import MassProduct, PointProduct, enrich, pod
from tests.mpi_run import run_mpi
from tests.rom.boxes import box

ROOT = Path(__file__).resolve().parents[2]
MESH = box("hex20", (3, 3, 2), distort=0.2)
RNG = np.random.default_rng(5)
SNAPSHOTS = (RNG.standard_normal((3 * MESH.num_nodes, 8)) * 10.0 ** -np.arange(8)) @ RNG.standard_normal((8, 8))


def serial_svd():
    """Left singular vectors of L^T X, with M = L L^T of the whole mesh, taken back by L^-T."""
    L = np.linalg.cholesky(np.kron(mass_matrix(Kinematics(MESH)).toarray(), np.eye(3)))
    U, s, _ = np.linalg.svd(L.T @ SNAPSHOTS, full_matrices=False)
    return np.linalg.solve(L.T, U), s, L @ L.T


def distributed(comm, method="tsqr"):
    sub = distribute(MESH, comm)
    rows = (3 * sub.nodes[:, None] + np.arange(3)).ravel()
    basis = pod(SNAPSHOTS[rows], MassProduct(Kinematics(sub.mesh)), tolerance=1e-3, comm=comm, method=method)
    return sub.gather(basis.modes.reshape(len(sub.nodes), -1)).reshape(len(SNAPSHOTS), -1), basis.spectrum


def check(modes, spectrum, digits=1e-12):
    exact, s, M = serial_svd()
    n = modes.shape[1]
    assert np.abs(spectrum - s).max() <= digits * s[0]
    assert np.abs(modes.T @ M @ modes - np.eye(n)).max() <= 1e-12
    overlap = exact[:, :n].T @ M @ modes
    assert np.abs(overlap @ overlap.T - np.eye(n)).max() <= digits
    assert 3 <= n < 8


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_modes_are_those_of_a_serial_svd(size):
    for modes, spectrum in run_threads(size, distributed):
        check(modes, spectrum)
    check(*distributed(None, "gram"), digits=1e-7)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_pod_sends_log2_of_the_ranks_triangles(size):
    """One butterfly of snapshots² numbers, and one of modes² that makes the modes orthonormal to the last digit."""
    X = RNG.standard_normal((320, 7))

    def work(comm):
        counted = Counting(comm)
        part = X[comm.rank :: size]
        modes = pod(part, PointProduct(np.ones(len(part))), tolerance=1e-6, comm=counted).modes
        return counted.bytes["exchange"], counted.calls["exchange"], modes.shape[1]

    for sent, _, n in run_threads(size, work):
        assert sent == int(np.log2(size)) * 8 * (7**2 + n**2)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_modes_are_those_of_a_serial_svd_over_mpi(ranks, tmp_path):
    out = tmp_path / "modes.npz"
    done = run_mpi(ranks, ["-m", "tests.rom.test_pod", str(out)], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = np.load(out)
    check(answer["modes"], answer["spectrum"])


def test_enrichment_step_by_step_is_the_pod_of_everything():
    product = PointProduct(np.linspace(1, 2, len(SNAPSHOTS)))
    whole = pod(SNAPSHOTS, product, tolerance=1e-13)
    basis = pod(SNAPSHOTS[:, :2], product, tolerance=1e-13)
    for k in range(2, 8):
        basis = enrich(basis, SNAPSHOTS[:, k : k + 1], product, tolerance=1e-13)
    np.testing.assert_allclose(basis.singular_values, whole.singular_values, atol=1e-12 * whole.spectrum[0])
    assert basis.energy == pytest.approx(whole.energy, rel=1e-12)
    np.testing.assert_allclose(product.gram(basis.modes, basis.modes), np.eye(8), atol=1e-12)


def test_truncation_keeps_the_projection_error_below_the_tolerance():
    product = PointProduct(np.ones(len(SNAPSHOTS)))
    for tolerance in (1e-1, 1e-3, 1e-5):
        basis = pod(SNAPSHOTS, product, tolerance=tolerance)
        error = np.linalg.norm(SNAPSHOTS - basis.modes @ (basis.modes.T @ SNAPSHOTS))
        assert error <= tolerance * np.linalg.norm(SNAPSHOTS)
        assert error == pytest.approx(np.sqrt(basis.discarded), rel=1e-6)


def test_bad_snapshots_are_named_and_nothing_gives_no_modes():
    product = PointProduct(np.ones(5))
    assert pod(np.zeros((5, 3)), product, tolerance=1e-3).modes.shape == (5, 0)
    bad = np.ones((5, 3))
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match="Snapshot 1 is not finite in local row 2"):
        pod(bad, product, tolerance=1e-3)
    with pytest.raises(ValueError, match="only 'tsqr'"):
        pod(np.ones((5, 3)), product, tolerance=1e-9, method="gram")


if __name__ == "__main__":
    from mpi4py import MPI

    modes, spectrum = distributed(MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        np.savez(sys.argv[1], modes=modes, spectrum=spectrum)
