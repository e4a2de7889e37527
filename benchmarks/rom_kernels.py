"""Kernels of the offline stage: POD, cubature, the share of one rank of many, and the bytes of all collectives.

A module of rom.py, which runs these parts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from lines import Figure

from headrace.rom.box import box_mesh
from headrace.rom.communicator import Communicator, Counting, run_threads
from headrace.rom.cubature import compressed, cubature
from headrace.rom.gappy import qdeim_points
from headrace.rom.kinematics import Kinematics
from headrace.rom.offline import Tolerances
from headrace.rom.pod import MassProduct, PointProduct, pod

THREADS = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}"
RANKS, SNAPSHOTS, MODES, STRESS_MODES = 48, 50, 20, 30
"""Of the blade on paper: ranks, snapshots, modes of the displacement and of the stress."""


def tsqr(quick: bool) -> Iterator[Figure]:
    """POD of 50 columns of a million rows; pyMOR's on the same matrix where it is installed."""
    rows = 100_000 if quick else 1_000_000
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 50)) @ (rng.standard_normal((50, 50)) * 10.0 ** -np.linspace(0, 8, 50)[:, None])
    ours = np.inf
    for method in ("tsqr", "gram"):
        start = time.perf_counter()
        basis = pod(X, PointProduct(np.ones(rows)), tolerance=1e-6, method=method)
        took = time.perf_counter() - start
        slip = float(np.abs(basis.modes.T @ basis.modes - np.eye(basis.modes.shape[1])).max())
        setup = f"50 columns of {rows} rows, {basis.modes.shape[1]} modes, orthogonal to {slip:.1e}; {THREADS}"
        yield f"tsqr: POD by {method}", took, "s", 10, None, setup
        ours = min(ours, took)
    try:
        from pymor.algorithms.pod import pod as rival
        from pymor.vectorarrays.numpy import NumpyVectorSpace
    except ImportError:
        yield "tsqr: pyMOR's POD over ours", np.nan, "x", 1.0, None, "not run: pip install pymor"
        return
    best = np.inf
    for method in ("method_of_snapshots", "qr_svd"):
        try:
            array = NumpyVectorSpace.from_numpy(X)
        except ValueError:
            array = NumpyVectorSpace.from_numpy(X.T)
        if len(array) != 50:
            array = NumpyVectorSpace.from_numpy(np.ascontiguousarray(X.T))
        start = time.perf_counter()
        modes = rival(array, rtol=1e-6, method=method)[0]
        took = time.perf_counter() - start
        yield f"tsqr: pyMOR's POD by {method}", took, "s", None, None, f"{len(modes)} modes; {THREADS}"
        best = min(best, took)
    yield "tsqr: pyMOR's POD over ours", best / ours, "x", 1.0, best, "the faster method of each"


def ecm(quick: bool) -> Iterator[Figure]:
    """Two-level cubature of 400 integrands at 200,000 points; smooth functions, so that they have about 300 ranks."""
    points, functions, rank = (20_000, 100, 60) if quick else (200_000, 400, 300)
    rng = np.random.default_rng(0)
    x = rng.random((points, 3))
    waves = rng.normal(size=(3, rank)) * 6
    basis = np.cos(x @ waves + rng.uniform(0, 6, rank)) * 10.0 ** -np.linspace(0, 4, rank)
    G = basis @ rng.standard_normal((rank, functions)) + 0.1
    w, numbers = np.full(points, 1.0 / points), np.arange(points)
    start = time.perf_counter()
    few = compressed(G, w, tolerance=1e-6)
    packed = time.perf_counter() - start
    rule = cubature(few, w, numbers, tolerance=1e-5, mode="two-level")
    miss = np.linalg.norm(rule.weights @ G[rule.points] - w @ G) / np.linalg.norm(w @ G)
    took = time.perf_counter() - start
    setup = (
        f"{functions} functions at {points} points, compressed to {few.shape[1]} in {packed:.3g} s, {len(rule.points)} "
        f"points chosen; {THREADS}"
    )
    yield "ecm: two-level cubature", took, "s", 60, None, setup
    yield "ecm: error of the integrals", float(miss), "1", 1e-5, None, setup


def waves(x: np.ndarray, count: int, digits: float, rng: np.random.Generator) -> np.ndarray:
    """Return smooth fields at points (points, 3), (points, count), whose sizes fall by so many digits."""
    return np.cos(x @ (rng.normal(size=(3, count)) * 6) + rng.uniform(0, 6, count)) * 10.0 ** -np.linspace(
        0, digits, count
    )


def share(quick: bool) -> Iterator[Figure]:
    """What one rank of 48 does offline at 5 million dofs of tet10, with made-up smooth snapshots; one process alone."""
    kinematics = Kinematics(box_mesh("tet10", (6, 6, 6) if quick else (16, 16, 15)))
    mesh, w, rng = kinematics.mesh, kinematics.weights, np.random.default_rng(0)
    places = kinematics.interpolate(mesh.points)
    u = np.concatenate([waves(mesh.points, MODES, 5.5, rng) for _ in range(3)], axis=1).reshape(-1, MODES)
    u = u @ rng.standard_normal((MODES, SNAPSHOTS))
    mix = rng.standard_normal((STRESS_MODES, SNAPSHOTS))
    stress = np.stack([waves(places, STRESS_MODES, 5.5, rng) @ mix + 0.1 for _ in range(6)], axis=1)
    setup = f"{3 * mesh.num_nodes} dofs, {mesh.num_elements} tet10, {len(w)} points, {SNAPSHOTS} snapshots"
    spent = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        spent[what] = time.perf_counter() - start
        return result

    basis = timed("POD of displacements", lambda: pod(u, MassProduct(kinematics), tolerance=1e-6))
    dual = timed("POD of one stress", lambda: pod(stress[:, 0], PointProduct(w), tolerance=1e-6))
    modes = basis.modes[:, :MODES]
    strains = timed("strains of the modes", lambda: np.stack([kinematics.strain(f.reshape(-1, 3)) for f in modes.T]))
    integrands = timed(
        "integrands", lambda: np.einsum("ipc,pcs->pis", strains, stress, optimize=True).reshape(len(w), -1)
    )
    wish = Tolerances()
    few = timed("compression", lambda: compressed(integrands, w, tolerance=0.1 * wish.cubature))
    allowed = 0.9 * wish.cubature
    candidates = timed("candidates", lambda: cubature(few, w, np.arange(len(w)), tolerance=0.1 * allowed, mode="local"))
    extra = int(np.ceil(wish.oversampling * dual.modes.shape[1]))
    timed("points of gappy POD", lambda: qdeim_points(dual.modes, np.arange(len(w)), extra))
    # What all ranks would gather: as many columns from each, here of points drawn from this one.
    here = rng.choice(len(w), min(RANKS * len(candidates.points), len(w)), replace=False)
    rule = timed("global selection", lambda: cubature(few[here], w[here], here, tolerance=allowed))
    found = (
        f"{setup}; {basis.modes.shape[1]} modes, {integrands.shape[1]} integrands compressed to {few.shape[1]}, "
        f"{len(candidates.points)} candidates, {len(rule.points)} points chosen from {len(here)}; {THREADS}"
    )
    for what, seconds in spent.items():
        yield f"share: {what}", seconds, "s", None, None, found
    yield "share: all of it", sum(spent.values()), "s", None, None, found


class _Listed(Counting):
    """Counts as its parent, and lists the bytes of each gather."""

    def __init__(self, inner: Communicator) -> None:
        super().__init__(inner)
        self.gathers: list[int] = []

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """List, count and gather. Collective."""
        self.gathers.append(np.asarray(values).nbytes)
        return super().gather(values)


def traffic(quick: bool) -> Iterator[Figure]:
    """Bytes that one rank hands over in every collective of the offline stage, beside the formula.

    Letters as in docs/rom_scaling.md: Ns snapshots, n modes, m functions, c candidates of this rank; K is the number
    of iterations of the exact cubature, which says itself how often it summed. Online nothing is sent.
    """
    Ns, m, points = 20, 30, 2000
    rng = np.random.default_rng(0)
    X, G = rng.standard_normal((4000, Ns)), rng.standard_normal((points, m)) + 1
    w, every = np.full(points, 1 / points), np.arange(points)

    def work(comm: Communicator) -> dict[str, tuple[_Listed, Any]]:
        mine = every[comm.rank :: comm.size]
        rows, product = X[comm.rank :: comm.size], PointProduct(np.ones(len(X) // comm.size))
        made: dict[str, tuple[_Listed, Any]] = {}

        def counted(name: str, call: Callable[[_Listed], Any]) -> None:
            seen = _Listed(comm)
            made[name] = seen, call(seen)

        for method in ("tsqr", "gram"):
            counted(f"POD by {method}", lambda seen, by=method: pod(
                rows, product, tolerance=1e-6, comm=seen, method=by))  # fmt: skip
        counted("compression", lambda seen: compressed(G[mine], w[mine], tolerance=1e-6, comm=seen))
        for mode in ("two-level", "exact"):
            counted(f"cubature, {mode}", lambda seen, by=mode: cubature(
                G[mine], w[mine], mine, tolerance=1e-6, comm=seen, mode=by))  # fmt: skip
        counted("points of gappy POD", lambda seen: qdeim_points(G[mine][:, :5], mine, 8, seen))
        return made

    for size in (2, 4, 8):
        levels = int(np.log2(size))
        for name, (seen, result) in run_threads(size, work)[0].items():
            n = result.modes.shape[1] if name.startswith("POD") else 0
            K = seen.calls["sum"] - 1
            c = seen.gathers[0] // 8 if seen.gathers else 0
            formula = {
                "POD by tsqr": {"exchange": levels * 8 * (Ns**2 + n**2), "maximum": 8},
                "POD by gram": {"sum": 8 * Ns**2, "exchange": levels * 8 * n**2, "maximum": 8},
                "compression": {"sum": 8 * (m + 1), "exchange": levels * 8 * m**2},
                "cubature, two-level": {"sum": 8 * (m + 1), "gather": 8 * (m + 1) * c, "maximum": 16},
                "cubature, exact": {"sum": 8 * (m + 1) * (K + 1), "maximum": 8 + 16 * K},
                "points of gappy POD": {"sum": 8 * 8 * 2 * 5, "maximum": 8 * 16},
            }[name]
            for operation, sent in seen.bytes.items():
                expected = formula.get(operation, 0)
                if sent or expected:
                    what = f"traffic: {name}, {operation}, {size} ranks: bytes beyond the formula"
                    yield what, abs(sent - expected), "bytes", 0, expected, f"sent {sent}"


KERNELS = (tsqr, ecm, share, traffic)
