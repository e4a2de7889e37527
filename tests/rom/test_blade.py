"""The blade as a case: a sound mesh for any shape, the loads it claims, yielding at the hot edge only."""

import numpy as np
import pytest

from headrace.cases.rom_blade import BladeShape, blade_mesh, rom_blade, times
from headrace.rom.kinematics import Kinematics
from headrace.rom.problem import LocalProblem
from headrace.rom.solver import Solver
from headrace.rom.subdomain import distribute


@pytest.mark.parametrize("kind", ["hex20r", "tet10", "hex8"])
def test_meshes_of_many_shapes_are_sound(kind):
    """Mesh itself refuses inverted elements; the foot has the volume of its block up to the start of the blend."""
    for shape in (BladeShape(), BladeShape(twist=45.0, camber=6.0, taper=0.5), BladeShape(thickness=8.0, twist=-30.0)):
        mesh, place = blade_mesh(shape, kind, (6, 2, 12))
        assert len(place) == mesh.num_nodes
        assert len(mesh.elements("foot")) + len(mesh.elements("blade")) == mesh.num_elements
        z = mesh.points[:, 2]
        assert z.min() == 0 and z.max() == pytest.approx(shape.foot_height + shape.height)
        starts = mesh.element_points()
        low = [e for e in mesh.elements("foot") if _top(mesh, e) <= 0.6 * shape.foot_height + 1e-9]
        volume = sum(Kinematics(mesh).weights[starts[e] : starts[e + 1]].sum() for e in low)
        top = max(_top(mesh, e) for e in low)
        assert volume == pytest.approx(shape.chord * shape.foot_thickness * top, rel=1e-2)


def _top(mesh, element):
    ((_, _, block),) = mesh.blocks()
    return mesh.points[block[element], 2].max()


def test_default_mesh_has_the_size_it_claims():
    assert 13_000 < 3 * rom_blade().mesh.num_nodes < 16_000


def test_one_cycle_of_a_coarse_blade():
    problem = rom_blade(counts=(6, 2, 12))
    local = LocalProblem(problem, distribute(problem.mesh))
    weight = local.kinematics.weights
    arm = 300.0 + weight @ local.kinematics.interpolate(problem.mesh.points)[:, 2] / weight.sum()
    spin = problem.loads[0].factor(0.5) * local.load_vectors[0]
    assert spin[:, 2].sum() == pytest.approx(8.2e-9 * 1200.0**2 * weight.sum() * arm, rel=1e-9)
    solver = Solver(problem)
    *_, held, end = (i for i in solver.run(times()) if i.time in (0.8, 1.0))
    p = solver.local.material.field("p", end.state)
    starts = problem.mesh.element_points()
    foot = np.concatenate([np.arange(starts[e], starts[e + 1]) for e in problem.mesh.elements("foot")])
    assert not p[foot].any() and 5e-4 < p.max() < 5e-2 and np.mean(p > 1e-5) < 0.3
    assert held.temperature[np.argmax(p)] > 700  # it yields where it is hot
    assert 1e-4 < np.abs(end.displacement).max() < 0.2 * np.abs(held.displacement).max()
