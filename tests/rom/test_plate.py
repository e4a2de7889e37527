"""The holed plate as a case: its shape, its stress concentration, its cyclic yielding."""

import numpy as np
import pytest

from headrace.cases.rom_plate import HALF_THICKNESS, HALF_WIDTH, HOLE, plate_mesh, rom_plate
from headrace.rom.elastic import IsotropicElasticity
from headrace.rom.kinematics import Kinematics
from headrace.rom.loads import Pressure, Support
from headrace.rom.problem import LocalProblem, Problem
from headrace.rom.solver import solve
from headrace.rom.subdomain import distribute


@pytest.mark.parametrize("kind", ["hex20r", "tet10"])
def test_the_plate_is_a_square_with_a_hole(kind):
    mesh = plate_mesh(kind, (6, 8, 1))
    volume = (HALF_WIDTH**2 - np.pi * HOLE**2 / 4) * HALF_THICKNESS
    assert Kinematics(mesh).weights.sum() == pytest.approx(volume, rel=2e-5)
    problem = rom_plate(kind=kind, counts=(6, 8, 1))
    force = LocalProblem(problem, distribute(mesh)).external_force(0.25).sum(axis=0)
    np.testing.assert_allclose(force, [130 * HALF_WIDTH * HALF_THICKNESS, 0, 0], atol=1e-9)
    with pytest.raises(ValueError, match="even number of cells"):
        plate_mesh(kind, (4, 5, 1))


def test_default_meshes_have_the_size_they_claim():
    assert 12_000 < 3 * plate_mesh("hex20r").num_nodes < 18_000
    assert 12_000 < 3 * plate_mesh("tet10").num_nodes < 18_000


def test_stress_concentration_of_the_elastic_plate():
    """Above 3.23, that of a long strip with a hole of 1/4 (R. C. Heywood), as short plates are.

    Quadrature points lie inside, so that the peak rises a little as the mesh is refined.
    """
    supports = [Support(nodes=f"s{d}", direction=d) for d in "xyz"]
    steel, pull = IsotropicElasticity(young=200e3, poisson=0.3), Pressure(faces="right", value=-1.0)
    factors = []
    for counts in ((10, 12, 1), (15, 18, 1)):
        problem = Problem(mesh=plate_mesh("hex20r", counts), laws={"all": steel}, supports=supports, loads=[pull])
        factors.append(solve(problem, [0, 1]).point_field("stress", 1)[:, 0].max())
    assert 3.23 < factors[1] < 3.7 and 0 < factors[1] - factors[0] < 0.1, factors


def test_the_edge_of_the_hole_yields_in_every_cycle():
    problem = rom_plate(counts=(4, 6, 1), cycles=1)
    p = solve(problem, np.linspace(0, 1, 13)).point_fields["p"].max(axis=1)
    assert p[3] > 1e-4 and p[9] > 1.5 * p[3] and np.all(np.diff(p) >= 0), p
