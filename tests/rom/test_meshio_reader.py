"""Meshes and series in formats of others: the same mesh from each, series with times, and what is refused."""

import meshio
import numpy as np
import pytest

from headrace.rom.box import box_mesh
from headrace.rom.kinematics import Kinematics
from headrace.rom.meshio_reader import MIRRORED, FormatError, MeshioReader, from_meshio, read_mesh

NAMES = {"tet4": "tetra", "tet10": "tetra10", "hex8": "hexahedron", "hex20": "hexahedron20"}


def theirs(mesh, **data):
    return meshio.Mesh(mesh.points, [(NAMES[kind], block) for kind, block in mesh.cells.items()], **data)


@pytest.mark.parametrize("form", ["vtu", "vtk", "xdmf", "med", "gmsh22", "gmsh", "ansys"])
@pytest.mark.parametrize("kind", list(NAMES))
def test_every_format_gives_the_same_elements(kind, form, tmp_path):
    """The volume and the strains of a quadratic displacement agree point by point."""
    mesh = box_mesh(kind, (2, 1, 2), (2.0, 1.0, 3.0))
    if form == "ansys" and kind in ("tet10", "hex20"):
        pytest.skip("this format has linear cells only")
    path = tmp_path / f"mesh.{ {'gmsh22': 'msh', 'gmsh': 'msh', 'ansys': 'msh'}.get(form, form) }"
    theirs(mesh).write(path, file_format=form)
    read = read_mesh(path)
    np.testing.assert_array_equal(read.cells[kind], mesh.cells[kind])
    assert Kinematics(read).weights.sum() == pytest.approx(6.0)
    strains = [Kinematics(m).strain(m.points**2) for m in (mesh, read)]
    np.testing.assert_allclose(strains[1], strains[0], atol=1e-9)


@pytest.mark.parametrize("kind", list(NAMES))
def test_mirrored_elements_are_turned(kind):
    mesh = box_mesh(kind, (2, 1, 1))
    mirrored = meshio.Mesh(mesh.points, [(NAMES[kind], mesh.cells[kind][:, MIRRORED[kind]])])
    read = from_meshio(mirrored)[0]
    np.testing.assert_array_equal(read.cells[kind], mesh.cells[kind])


def test_physical_groups_of_gmsh_become_sets(tmp_path):
    mesh = box_mesh("hex8", (2, 1, 1))
    (quads,) = [nodes for _, nodes in mesh.faces("x0")]
    data = meshio.Mesh(
        mesh.points, [("hexahedron", mesh.cells["hex8"]), ("quad", quads)],
        cell_data={"gmsh:physical": [np.array([1, 2]), np.array([3])], "gmsh:geometrical": [np.array([1, 2]), [3]]},
        field_data={"left": np.array([1, 3]), "right": np.array([2, 3]), "wall": np.array([3, 2])},
    )  # fmt: skip
    data.write(tmp_path / "g.msh", file_format="gmsh22")
    read = read_mesh(tmp_path / "g.msh")
    assert read.elements("left").tolist() == [0] and read.elements("right").tolist() == [1]
    np.testing.assert_array_equal(read.face_sets["wall"], mesh.face_sets["x0"])


def write_series(folder, mesh, steps=4):
    for k in range(1, steps + 1):
        theirs(mesh, point_data={"displacement": k * mesh.points, "T": 20.0 + k + 0 * mesh.points[:, 0]}).write(
            folder / f"step_{k:03d}.vtu"
        )


def test_a_vtu_series_and_its_pvd(tmp_path):
    mesh = box_mesh("hex20", (2, 1, 1))
    write_series(tmp_path, mesh)
    reader = MeshioReader(str(tmp_path / "step_*.vtu"), temperature="T", reduced=True)
    assert list(reader.mesh.cells) == ["hex20r"] and reader.times.tolist() == [0, 1, 2, 3, 4]
    assert not reader.displacement(0).any() and reader.temperature(3)[0] == 23.0
    np.testing.assert_allclose(reader.displacement(3), 3 * mesh.points, atol=1e-12)
    sets = "".join(f'<DataSet timestep="{k / 10}" file="step_{k:03d}.vtu"/>' for k in range(1, 5))
    (tmp_path / "run.pvd").write_text(f"<VTKFile><Collection>{sets}</Collection></VTKFile>")
    reader = MeshioReader(tmp_path / "run.pvd")
    assert reader.times.tolist() == [0, 0.1, 0.2, 0.3, 0.4]
    np.testing.assert_allclose(reader.displacement(-1), 4 * mesh.points, atol=1e-12)


def test_an_xdmf_series(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # meshio writes the numbers there
    mesh = box_mesh("tet4", (1, 1, 1))
    with meshio.xdmf.TimeSeriesWriter(tmp_path / "run.xdmf") as writer:
        writer.write_points_cells(mesh.points, [("tetra", mesh.cells["tet4"])])
        for k in range(3):
            writer.write_data(0.5 * k, point_data={"u": k * mesh.points})
    reader = MeshioReader(tmp_path / "run.xdmf", displacement="u")
    assert reader.times.tolist() == [0, 0.5, 1.0]
    np.testing.assert_allclose(reader.displacement(2), 2 * mesh.points)


def test_bad_series_are_named(tmp_path):
    mesh = box_mesh("hex8", (2, 1, 1))
    write_series(tmp_path, mesh)
    pattern = str(tmp_path / "step_*.vtu")
    with pytest.raises(FormatError, match="no point data 'velocity'"):
        MeshioReader(pattern, displacement="velocity").displacement(1)
    with pytest.raises(FormatError, match="5 times for 4 increments"):
        MeshioReader(pattern, times=[1, 2, 3, 4, 5])
    bad = mesh.points.copy()
    bad[3, 1] = np.nan
    theirs(mesh, point_data={"displacement": bad}).write(tmp_path / "step_003.vtu")
    with pytest.raises(FormatError, match=r"step_003\.vtu: displacement is not finite at point 3"):
        MeshioReader(pattern).displacement(3)
    moved = box_mesh("hex8", (2, 1, 1), (3.0, 1.0, 1.0))
    theirs(moved, point_data={"displacement": moved.points}).write(tmp_path / "step_003.vtu")
    with pytest.raises(FormatError, match="Is it another mesh"):
        MeshioReader(pattern).displacement(3)
    other = box_mesh("hex8", (3, 1, 1))
    theirs(other, point_data={"displacement": other.points}).write(tmp_path / "step_003.vtu")
    with pytest.raises(FormatError, match="has 16 points"):
        MeshioReader(pattern).displacement(3)
    (tmp_path / "step_002.vtu").write_text("<VTKFile")
    with pytest.raises(FormatError, match=r"step_002\.vtu cannot be read by meshio"):
        MeshioReader(pattern).displacement(2)
    (tmp_path / "step_002.vtu").unlink()
    with pytest.raises(FormatError, match=r"files 2 to 2 are missing between step_001\.vtu and step_003\.vtu"):
        MeshioReader(pattern)
    (tmp_path / "step_01.vtu").touch()
    with pytest.raises(FormatError, match=r"step_001\.vtu and step_01\.vtu have one number, 1"):
        MeshioReader(pattern)
    for sets in ("", '<DataSet file="a"/>', '<DataSet timestep="1"/>', '<DataSet timestep="one" file="a"/>'):
        (tmp_path / "run.pvd").write_text(f"<VTKFile><Collection>{sets}</Collection></VTKFile>")
        with pytest.raises(FormatError, match=r"run\.pvd (has no|needs a file and a timestep in every) DataSet"):
            MeshioReader(tmp_path / "run.pvd")
    with pytest.raises(FormatError, match="no volume cells"):
        from_meshio(meshio.Mesh(mesh.points, [("quad", [[0, 1, 2, 3]])]))
    with pytest.raises(FormatError, match="'wedge'"):
        from_meshio(meshio.Mesh(mesh.points, [("tetra", [[0, 1, 2, 3]]), ("wedge", [[0, 1, 2, 3, 4, 5]])]))
    with pytest.raises(FormatError, match="There is no file"):
        read_mesh(tmp_path / "none.med")
