"""Files for ParaView, read back by VTK (VTKHDF) and by its own words (XDMF): same mesh, times and values."""

import xml.etree.ElementTree as ElementTree

import h5py
import numpy as np
import pytest

from headrace.rom import TimeSeries
from headrace.rom.kinematics import Kinematics
from headrace.rom.viewer_files import element_means, write_vtkhdf, write_xdmf
from tests.rom.boxes import box
from tests.rom.test_store import mixed


def series(mesh):
    rng = np.random.default_rng(0)
    return TimeSeries(
        mesh=mesh, times=[0, 0.5, 2.0], displacements=rng.random((3, mesh.num_nodes, 3)),
        temperatures=rng.random((3, mesh.num_nodes)),
        point_fields={"p": rng.random((3, mesh.num_points)), "stress": rng.random((3, mesh.num_points, 6))},
    )  # fmt: skip


def test_means_of_elements_weigh_by_volume():
    mesh = box("hex20", (2, 2, 1), distort=0.2)
    kinematics = Kinematics(mesh)
    x = kinematics.interpolate(mesh.points)
    means = element_means(mesh, x)
    volumes = element_means(mesh, np.ones(mesh.num_points))
    np.testing.assert_allclose(volumes, 1.0)
    starts = mesh.element_points()
    for e in range(mesh.num_elements):
        part = slice(starts[e], starts[e + 1])
        np.testing.assert_allclose(means[e], np.average(x[part], axis=0, weights=kinematics.weights[part]))


@pytest.mark.parametrize(
    "mesh", [box("hex20r", (2, 1, 1)), box("tet10", (1, 1, 1)), mixed()], ids=["hex", "tet", "mixed"]
)
def test_vtk_reads_what_was_written(mesh, tmp_path):
    pytest.importorskip("vtk", reason="no vtk: pip install vtk")
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOHDF import vtkHDFReader

    reader = series(mesh)
    write_vtkhdf(reader, tmp_path / "s.vtkhdf")
    theirs = vtkHDFReader()
    theirs.SetFileName(str(tmp_path / "s.vtkhdf"))
    theirs.UpdateInformation()
    assert theirs.GetNumberOfSteps() == 3
    for k in range(3):
        theirs.SetStep(k)
        theirs.Update()
        grid = theirs.GetOutput()
        assert grid.GetNumberOfCells() == mesh.num_elements
        u = vtk_to_numpy(grid.GetPointData().GetArray("displacement"))
        np.testing.assert_allclose(u, reader.displacement(k))
        p = vtk_to_numpy(grid.GetCellData().GetArray("p"))
        np.testing.assert_allclose(p, element_means(mesh, reader.point_field("p", k)))
        s = vtk_to_numpy(grid.GetCellData().GetArray("stress"))
        np.testing.assert_allclose(s, element_means(mesh, reader.point_field("stress", k)))
    np.testing.assert_allclose(vtk_to_numpy(grid.GetPoints().GetData()), mesh.points)


def test_vtk_reads_the_xdmf(tmp_path):
    pytest.importorskip("vtk", reason="no vtk: pip install vtk")
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOXdmf2 import vtkXdmfReader

    mesh = box("hex20r", (2, 1, 1))
    reader = series(mesh)
    write_xdmf(reader, tmp_path / "s.xdmf")
    theirs = vtkXdmfReader()
    theirs.SetFileName(str(tmp_path / "s.xdmf"))
    theirs.UpdateTimeStep(0.5)
    grid = theirs.GetOutputDataObject(0)
    assert grid.GetNumberOfCells() == mesh.num_elements
    np.testing.assert_allclose(vtk_to_numpy(grid.GetPointData().GetArray("displacement")), reader.displacement(1))
    p = vtk_to_numpy(grid.GetCellData().GetArray("p"))
    np.testing.assert_allclose(p, element_means(mesh, reader.point_field("p", 1)))


def test_the_xdmf_names_arrays_as_they_are(tmp_path):
    mesh = mixed()
    reader = series(mesh)
    write_xdmf(reader, tmp_path / "s.xdmf")
    grids = ElementTree.parse(tmp_path / "s.xdmf").getroot().findall(".//Grid[@Name='series']/Grid")
    assert [float(g.find("Time").attrib["Value"]) for g in grids] == [0, 0.5, 2.0]
    with h5py.File(tmp_path / "s.h5") as file:
        for item in grids[1].iter("DataItem"):
            name = item.text.partition(":/")[2]
            assert tuple(map(int, item.attrib["Dimensions"].split())) == file[name].shape
        sizes = {6: 4, 9: 8}  # XDMF's numbers of tetrahedron and hexahedron
        numbers, cells = file["topology"][:].tolist(), []
        while numbers:
            count = sizes[numbers[0]]
            cells.append(numbers[1 : 1 + count])
            numbers = numbers[1 + count :]
        assert cells == [nodes for block in mesh.cells.values() for nodes in block.tolist()]
        np.testing.assert_array_equal(file["000001/displacement"], reader.displacement(1))
