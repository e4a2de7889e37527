"""Gappy POD: points that make it well posed on any partition, and fields recovered from them."""

import numpy as np
import pytest
import scipy.linalg

from headrace.rom.communicator import run_threads
from headrace.rom.gappy import Gappy, qdeim_points

MODES = np.linalg.qr(np.random.default_rng(4).standard_normal((400, 6)))[0]


def test_the_first_points_are_those_of_pivoted_qr():
    pivots = scipy.linalg.qr(MODES.T, pivoting=True, mode="r")[1][:6]
    np.testing.assert_array_equal(qdeim_points(MODES, np.arange(400), 6), np.sort(pivots))


@pytest.mark.parametrize("size", [2, 3])
def test_points_do_not_depend_on_the_partition_even_where_a_rank_has_no_field(size):
    modes = MODES.copy()
    modes[:150] = 0.0
    serial = qdeim_points(modes, np.arange(400), 9)
    bounds = np.linspace(0, 400, size + 1).astype(int) if size == 2 else np.array([0, 100, 100, 400])

    def work(comm):
        part = np.arange(400)[bounds[comm.rank] : bounds[comm.rank + 1]]
        return qdeim_points(modes[part], part, 9, comm)

    assert len(serial) == 9 and serial.min() >= 150
    for points in run_threads(size, work):
        np.testing.assert_array_equal(points, serial)


def test_a_field_of_the_modes_is_recovered_and_another_is_noticed():
    points = qdeim_points(MODES, np.arange(400), 9)
    gappy, field = Gappy(rows=MODES[points]), MODES @ np.arange(1.0, 7.0)
    coefficients, misfit, norm = gappy.coefficients(field[points])
    np.testing.assert_allclose(coefficients, np.arange(1.0, 7.0), rtol=1e-12)
    assert misfit < 1e-12 * norm
    assert gappy.coefficients(np.random.default_rng(1).standard_normal(9))[1] > 0.1


def test_rank_deficient_modes_give_the_smallest_coefficients():
    gappy = Gappy(rows=np.repeat(MODES[:8, :1], 2, axis=1))
    np.testing.assert_allclose(gappy.coefficients(2 * MODES[:8, 0])[0], [1.0, 1.0], rtol=1e-12)
