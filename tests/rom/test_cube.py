"""The academic cube as a case: it yields, keeps a set, and its loads and mesh are those it claims."""

from pathlib import Path

import numpy as np
import pytest

from headrace.cases.rom_cube import rom_cube, times
from headrace.rom.box import box_mesh
from headrace.rom.problem import LocalProblem
from headrace.rom.solver import solve
from headrace.rom.subdomain import distribute
from tests.mpi_run import run_mpi


def test_one_cycle_of_the_cube():
    problem = rom_cube()
    assert (problem.mesh.num_nodes, problem.mesh.num_elements, problem.mesh.num_points) == (343, 216, 1728)
    local = LocalProblem(problem, distribute(problem.mesh))
    force = local.external_force(0.5).sum(axis=0)
    # ρ ω² V r of the centre of mass, 35 mm from the axis; half of 300 MPa on 100 mm².
    np.testing.assert_allclose(force, [8e-9 * 5000.0**2 * 1000 * 35, 0, -150.0 * 100], atol=1e-6 * 7000)
    series = solve(problem, times())
    p = np.stack([series.point_field("p", k) for k in range(len(series.times))])
    assert 1e-3 < p[-1].max() < 1e-2 and np.all(np.diff(p, axis=0) >= 0)
    assert np.abs(series.displacement(-1)).max() > 0.1 * np.abs(series.displacements).max()
    assert len(series.times) == 11 and series.temperature(5).max() == pytest.approx(220.0)


def test_boxes_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match="counts must be at least 1"):
        box_mesh("hex8", (1, 0, 1))
    with pytest.raises(ValueError, match="of 'hex27'"):
        box_mesh("hex27", (1, 1, 1))


@pytest.mark.mpi
def test_the_case_runs_as_a_script_on_two_ranks(tmp_path):
    script = Path(__file__).resolve().parents[2] / "cases" / "rom_cube.py"
    done = run_mpi(2, [str(script)], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("t = ") == 10
