"""Levenberg-Marquardt: exact on linear problems, with half of a symmetric product."""

import pytest
import torch

from headrace.surrogates.least_squares import Equations, levenberg_marquardt, lower_gram


class Mean(Equations):
    """Residuals x - b of one unknown x; "points" are the values b."""

    recordable = False

    def __init__(self):
        self.x = torch.zeros(1, dtype=torch.float64)

    @property
    def unknowns(self):
        return self.x

    def put(self, flat):
        self.x = flat

    def weights(self, points):
        return None

    def prepared(self, points):
        return points

    def values(self, points):
        return self.x - points

    def linearised(self, points):
        return self.values(points), torch.ones(len(points), 1, dtype=torch.float64)


def test_a_linear_problem_is_solved():
    equations, points = Mean(), torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    fit = levenberg_marquardt(equations, lambda step: points, steps=8)
    assert float(equations.x) == pytest.approx(3.0, abs=1e-10)
    assert fit.residual == pytest.approx((14 / 3) ** 0.5, rel=1e-10)


def test_blocks_below_the_diagonal_are_those_of_the_product():
    rows = torch.randn(40, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(lower_gram(rows).tril(), (rows.T @ rows).tril(), rtol=1e-12, atol=1e-12)
