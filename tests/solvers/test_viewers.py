"""vtk's own readers find the fields of a trajectory at their places and times."""

import numpy as np
import pytest

from headrace.solvers import Dirichlet, Grid, Periodic
from headrace.solvers.hdf5 import HDF5Sink, read_trajectory
from headrace.solvers.simulate import simulate

from .problems import make_case

vtk = pytest.importorskip("vtkmodules.vtkIOHDF", reason="vtk is not installed: pip install vtk")


def written(tmp_path, ndim, boundary):
    """Write a trajectory whose value is known at every place and time."""
    grid = Grid(shape=(7, 5, 4)[:ndim], extent=(1.4, 1.5, 2.0)[:ndim], origin=(0.3, -1.0, 2.0)[:ndim])

    def grows(u, d, p, t):
        return (u[0] * 0 + 1, u[1] * 0 - 2)

    case = make_case(
        grid=grid, boundary=boundary, fields=("a", "b"), rhs=grows, duration=0.6, num_snapshots=3, steps_per_snapshot=1,
        initial=lambda x, p, rng: (known(x), known(x) ** 2),
    )  # fmt: skip
    simulate(case, case.accept({}), HDF5Sink(tmp_path / "one.h5"))
    return read_trajectory(tmp_path / "one.h5")


def known(x):
    return sum(weight * c for weight, c in zip((1.0, 10.0, 100.0), x, strict=False))


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("boundary", [Periodic(), Dirichlet(0.0)], ids=["periodic", "walls"])
@pytest.mark.filterwarnings("ignore:Case fisher")
def test_vtk_reads_the_time_series(ndim, boundary, tmp_path):
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonExecutionModel import vtkStreamingDemandDrivenPipeline

    run = written(tmp_path, ndim, boundary)
    reader = vtk.vtkHDFReader()
    reader.SetFileName(str(tmp_path / "one.vtkhdf"))
    reader.UpdateInformation()
    times = reader.GetOutputInformation(0).Get(vtkStreamingDemandDrivenPipeline.TIME_STEPS())
    assert np.allclose(times, run.times)
    for step, time in enumerate(run.times):
        reader.SetStep(step)
        reader.Update()
        image = reader.GetOutputDataObject(0)
        points = np.array([image.GetPoint(k) for k in range(image.GetNumberOfPoints())])
        assert len(points) == np.prod(run.shape)
        place = known(points.T[:ndim])
        for name, expected in (("a", place + time), ("b", place**2 - 2 * time)):
            found = vtk_to_numpy(image.GetPointData().GetArray(name))
            assert np.allclose(found, expected, rtol=1e-12, atol=1e-12), (name, step)


def test_vtk_reads_the_xdmf_companion(tmp_path):
    xdmf = pytest.importorskip("vtkmodules.vtkIOXdmf2", reason="this vtk has no XDMF reader")
    from vtkmodules.util.numpy_support import vtk_to_numpy

    written(tmp_path, 2, Periodic())
    reader = xdmf.vtkXdmfReader()
    reader.SetFileName(str(tmp_path / "one.xdmf"))
    reader.UpdateInformation()
    reader.UpdateTimeStep(0.4)
    grid = reader.GetOutputDataObject(0)
    while hasattr(grid, "GetBlock"):
        grid = grid.GetBlock(0)
    points = np.array([grid.GetPoint(k) for k in range(grid.GetNumberOfPoints())])
    found = vtk_to_numpy(grid.GetPointData().GetArray("a"))
    assert len(found) == 35 and np.allclose(found, known(points.T[:2]) + 0.4)
