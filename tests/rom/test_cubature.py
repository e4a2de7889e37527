"""Cubature integrates its functions to the tolerance and the volume exactly, with the same points on any partition."""

import numpy as np
import pytest

from headrace.rom.communicator import run_threads
from headrace.rom.cubature import cubature

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
