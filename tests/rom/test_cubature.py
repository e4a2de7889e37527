"""Cubature integrates its functions to the tolerance and the volume exactly, with the same points on any partition."""

import numpy as np
import pytest

from headrace.rom.communicator import run_threads
from headrace.rom.cubature import compressed, cubature

RNG = np.random.default_rng(2)
NUM, FUNCTIONS = 600, 20
INTEGRANDS = RNG.standard_normal((NUM, FUNCTIONS)) + 1.0
WEIGHTS = RNG.uniform(0.5, 1.5, NUM)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_integrals_are_met_and_the_volume_is_exact(tolerance):
    rule = cubature(INTEGRANDS, WEIGHTS, np.arange(NUM), tolerance=tolerance)
    exact = WEIGHTS @ INTEGRANDS
    error = np.linalg.norm(rule.weights @ INTEGRANDS[rule.points] - exact) / np.linalg.norm(exact)
    assert error <= tolerance and error == pytest.approx(rule.error, rel=1e-6, abs=1e-13)
    assert rule.weights.sum() == pytest.approx(WEIGHTS.sum(), rel=1e-14)
    assert (rule.weights > 0).all() and len(rule.points) <= FUNCTIONS + 1


@pytest.mark.parametrize("size", [2, 5])
def test_points_do_not_depend_on_the_partition(size):
    serial = cubature(INTEGRANDS, WEIGHTS, np.arange(NUM), tolerance=1e-6)
    owner = RNG.integers(size, size=NUM)

    def work(comm):
        own = np.flatnonzero(owner == comm.rank)
        return cubature(INTEGRANDS[own], WEIGHTS[own], own, tolerance=1e-6, comm=comm)

    for rule in run_threads(size, work):
        np.testing.assert_array_equal(rule.points, serial.points)
        np.testing.assert_allclose(rule.weights, serial.weights, rtol=1e-8)


def test_local_candidates_reselected_are_few_and_local_rules_are_many():
    """Two levels meet the tolerance with the points of one rank; local rules multiply the points with the ranks."""
    exact = WEIGHTS @ INTEGRANDS
    counts = {}

    def work(comm, mode):
        own = np.arange(NUM)[comm.rank :: comm.size]
        return cubature(INTEGRANDS[own], WEIGHTS[own], own, tolerance=1e-6, comm=comm, mode=mode)

    for mode in ("two-level", "local"):
        rule = run_threads(4, lambda comm, mode=mode: work(comm, mode))[0]
        counts[mode] = len(rule.points)
        error = np.linalg.norm(rule.weights @ INTEGRANDS[rule.points] - exact) / np.linalg.norm(exact)
        assert error <= (1e-6 if mode == "two-level" else 4e-6) and error == pytest.approx(rule.error, abs=1e-12)
        assert rule.weights.sum() == pytest.approx(WEIGHTS.sum(), rel=1e-13)
    assert counts["two-level"] <= FUNCTIONS + 1 and counts["local"] > 2.5 * counts["two-level"]


def test_compressed_integrands_stand_for_all():
    many = INTEGRANDS @ RNG.standard_normal((FUNCTIONS, 150))
    few = compressed(many, WEIGHTS, tolerance=1e-8)
    assert few.shape[1] == FUNCTIONS
    rule = cubature(few, WEIGHTS, np.arange(NUM), tolerance=1e-6)
    exact = WEIGHTS @ many
    assert np.linalg.norm(rule.weights @ many[rule.points] - exact) <= 1.1e-6 * np.linalg.norm(exact)


def test_integrands_that_vanish_on_a_rank_or_are_no_numbers():
    integrands = np.where(np.arange(NUM)[:, None] < NUM // 2, 0.0, INTEGRANDS)

    def work(comm, values=integrands):
        own = np.arange(NUM // 2) + comm.rank * (NUM // 2)
        return cubature(values[own], WEIGHTS[own], own, tolerance=1e-6, comm=comm, mode="two-level")

    rule = run_threads(2, work)[0]
    exact = WEIGHTS @ integrands
    assert np.linalg.norm(rule.weights @ integrands[rule.points] - exact) <= 1e-6 * np.linalg.norm(exact)
    bad = integrands.copy()
    bad[NUM - 3, 5] = np.inf
    with pytest.raises(ValueError, match=f"Integrand 5 is not finite at point {NUM - 3}"):
        run_threads(2, lambda comm: work(comm, bad))
