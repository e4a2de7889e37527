"""Programs that write VTK, HDF5, OpenFOAM's or CalculiX's files solve cases, on the grid or on their own points."""

import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from headrace.cases.calculix_results import CalculixResults
from headrace.cases.onto_grid import OntoGrid, component
from headrace.cases.openfoam import OpenFOAMTimes, read_internal_field
from headrace.cases.snapshot_files import HDF5Files, MeshFiles
from headrace.solvers import Case, Dirichlet, Grid, MemorySink, Periodic, Uniform
from headrace.solvers.external import ExternalProgram, ProgramError
from headrace.solvers.simulate import simulate

WRITER = str(Path(__file__).with_name("foreign_writer.py"))
CONFIGURATION = "a = @{a:.12g}\ninterval = @{interval}\nsteps = @{num_snapshots}\nmail = a@{}\n"
WALLS = Dirichlet(0.0)


def case_of(grid: Grid, read, *, fields=("u", "v"), **program) -> Case:
    solver = ExternalProgram(
        equation="u = a (1 + x + 2 y + t), v = -u.", files={"run.cfg": CONFIGURATION}, read=read, timeout=120, **program
    )
    return Case(
        name="foreign", fields=fields, grid=grid, boundary=Periodic(), parameters={"a": Uniform(1.0, 3.0)},
        initial=lambda x, p, rng: [0 * x[0] for _ in fields], solver=solver, duration=0.6, num_snapshots=3,
    )  # fmt: skip


def solved(case: Case, **parameters: float) -> np.ndarray:
    sink = MemorySink()
    simulate(case, case.accept(parameters), sink)
    return sink.values


def exact(x: np.ndarray, y: np.ndarray, a: float) -> np.ndarray:
    """(snapshots, u and v, *shape of x)."""
    u = np.stack([a * (1 + x + 2 * y + t) for t in np.arange(4) * 0.2])
    return np.stack([u, -u], axis=1)


SQUARE = Grid(shape=(8, 5), extent=(1.0, 1.0))
MESH_FIELDS = {"u": "temperature", "v": "velocity.y"}


@pytest.mark.parametrize(("kind", "at"), [("vtu", "points"), ("cells", "cells")])
def test_a_mesh_s_values_are_interpolated_and_half_a_file_is_never_read(kind: str, at: str) -> None:
    read = MeshFiles(file="out_{step:04d}.vtu", fields=MESH_FIELDS, at=at)
    grid = SQUARE if at == "points" else Grid(shape=(8, 5), extent=(0.8, 0.8), origin=(0.1, 0.1))
    case = case_of(grid, read, command=("{python}", WRITER, kind), snapshot="out_{step:04d}.vtu")
    x, y = np.meshgrid(grid.points(0, periodic=True), grid.points(1, periodic=True), indexing="ij")
    np.testing.assert_allclose(solved(case, a=1.7), exact(x, y, 1.7), rtol=1e-9)


def test_points_are_kept_where_the_case_says_so() -> None:
    read = MeshFiles(file="out_{step:04d}.vtu", fields=MESH_FIELDS, on="points")
    command = {"command": ("{python}", WRITER, "vtu"), "snapshot": "out_{step:04d}.vtu"}
    points = np.vstack([[[0, 0], [0, 1], [1, 0], [1, 1]], np.random.default_rng(3).random((200, 2))])
    found = solved(case_of(Grid(shape=(204,), extent=(204.0,)), read, **command), a=2.0)
    np.testing.assert_allclose(found, exact(points[:, 0], points[:, 1], 2.0), rtol=1e-9)
    with pytest.raises(ProgramError, match=r"204 points; a case that keeps them has Grid\(shape=\(204,\)"):
        solved(case_of(Grid(shape=(203,), extent=(1.0,)), read, **command), a=2.0)


def test_a_dataset_of_hdf5_is_turned_so_that_axis_0_is_x() -> None:
    grid = Grid(shape=(6, 4), extent=(1.0, 1.0))
    read = HDF5Files(file="out_{step:04d}.h5", fields={"u": "state/T"}, axes="zyx")
    case = case_of(grid, read, fields=("u",), command=("{python}", WRITER, "hdf5"), snapshot="out_{step:04d}.h5")
    x, y = np.meshgrid(np.arange(6) / 6, np.arange(4) / 4, indexing="ij")
    np.testing.assert_allclose(solved(case, a=1.0), exact(x, y, 1.0)[:, :1], rtol=1e-12)
    wrong = HDF5Files(file="out_{step:04d}.h5", fields={"u": "state/T"})
    case = case_of(grid, wrong, fields=("u",), command=("{python}", WRITER, "hdf5"), snapshot="out_{step:04d}.h5")
    with pytest.raises(ProgramError, match=r"has shape \(4, 6\) instead of \(6, 4\)"):
        solved(case, a=1.0)


@pytest.mark.parametrize(
    ("kind", "cells"), [("foam", "block"), ("foam", "grid"), ("foam", "points"), ("foam2", "block"), ("foam2", "grid")]
)
def test_time_directories_of_openfoam(kind: str, cells: str) -> None:
    read = OpenFOAMTimes(fields={"u": "T", "v": "U.y"}, cells=cells)
    # Inside of the outermost cells' centres interpolation is exact for a linear field.
    grids = {
        "block": Grid(shape=(6, 4), extent=(1.0, 1.0), origin=(1 / 12, 1 / 8)),
        "grid": Grid(shape=(7, 9), extent=(0.7, 0.7), origin=(0.15, 0.15)),
        "points": Grid(shape=(24,), extent=(24.0,)),
    }
    grid = grids[cells]
    snapshot = "{time}" if kind == "foam" else "processor0/{time}"
    case = case_of(grid, read, command=("{python}", WRITER, kind), snapshot=snapshot)
    if cells == "points":
        y, x = (m.ravel() for m in np.meshgrid((np.arange(4) + 0.5) / 4, (np.arange(6) + 0.5) / 6, indexing="ij"))
    else:
        x, y = np.meshgrid(grid.points(0, periodic=True), grid.points(1, periodic=True), indexing="ij")
    np.testing.assert_allclose(solved(case, a=1.3), exact(x, y, 1.3), rtol=1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("internalField nonuniform List<scalar> 3(1 2);", "announces 3 cells of 1 numbers, but holds 2"),
        ("internalField nonuniform List<scalar> 2(1 2", "ends within internalField"),
        ("internalField nonuniform List<scalar> 2(1 two);", "what should be numbers is not"),
        ("internalField nonuniform List<word> 2(a b);", "is no list of scalar"),
        ("FoamFile { format binary; }\ninternalField uniform 1;", "is binary; set writeFormat ascii"),
        ("boundaryField {}", "has no internalField"),
        ("internalField uniform 1;", "uniform, and no other field says how many"),
    ],
)
def test_what_is_wrong_with_a_field_of_openfoam_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "T").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_internal_field(tmp_path / "T")


def test_a_uniform_field_is_spread(tmp_path: Path) -> None:
    (tmp_path / "U").write_text("internalField uniform (1 2 3);")
    np.testing.assert_array_equal(read_internal_field(tmp_path / "U", 2), [[1, 2, 3], [1, 2, 3]])


def test_a_name_in_a_file_that_is_no_parameter_is_named() -> None:
    case = case_of(SQUARE, MeshFiles(file="x", fields={}), command=("true",))
    solver = ExternalProgram(equation="", command=("true",), files={"run.cfg": "nu = @{nu}"})
    with pytest.raises(ProgramError, match=r"@\{nu\} in run.cfg is no parameter; known are .*a"):
        list(solver(case, case.accept({}), None, np.random.default_rng(0)))


def test_a_grid_beside_the_mesh_is_named() -> None:
    points = np.random.default_rng(0).random((50, 3))
    case = case_of(Grid(shape=(4, 4, 4), extent=(4.0, 4.0, 4.0)), None, command=("true",))
    with pytest.raises(ValueError, match="away from the nearest of the mesh's points"):
        OntoGrid(points, case)


def test_interpolation_reproduces_linear_fields_in_one_and_three_dimensions() -> None:
    rng = np.random.default_rng(1)
    for ndim in (1, 3):
        points = rng.random((300, ndim)) * 1.4 - 0.2
        case = case_of(Grid(shape=(4,) * ndim, extent=(0.9,) * ndim), None, command=("true",))
        x = np.meshgrid(*(case.grid.points(axis, periodic=True) for axis in range(ndim)), indexing="ij")
        values = np.stack([1 + points @ np.arange(1, ndim + 1)])
        wanted = 1 + sum((axis + 1) * x[axis] for axis in range(ndim))
        np.testing.assert_allclose(OntoGrid(points, case)(values)[0], wanted, rtol=1e-10)


def test_components_of_vectors() -> None:
    values = np.array([[3.0, 4.0], [0.0, 1.0]])
    for name, wanted in (("U.x", [3, 0]), ("U.1", [4, 1]), ("U.magnitude", [5, 1])):
        np.testing.assert_array_equal(component(values, name), wanted)
    for name in ("U", "U.z", "U.q"):
        with pytest.raises(ValueError, match="2 numbers a point"):
            component(values, name)
    with pytest.raises(ValueError, match="one number a point"):
        component(np.ones(3), "p.x")


FOAM = {
    "system/blockMeshDict": """FoamFile { version 2.0; format ascii; class dictionary; object blockMeshDict; }
vertices ((0 0 0) (1 0 0) (1 0.5 0) (0 0.5 0) (0 0 0.1) (1 0 0.1) (1 0.5 0.1) (0 0.5 0.1));
blocks (hex (0 1 2 3 4 5 6 7) (40 4 1) simpleGrading (1 1 1));
edges ();
boundary (
    hot { type patch; faces ((0 4 7 3)); } cold { type patch; faces ((1 2 6 5)); }
    sides { type patch; faces ((0 1 5 4) (3 7 6 2)); } planes { type empty; faces ((0 3 2 1) (4 5 6 7)); }
);
""",
    "system/controlDict": """FoamFile { version 2.0; format ascii; class dictionary; object controlDict; }
application laplacianFoam; startFrom startTime; startTime 0; stopAt endTime; endTime @{duration}; deltaT 0.001;
writeControl runTime; writeInterval @{interval}; writeFormat ascii; writePrecision 12; timeFormat general;
timePrecision 6;
""",
    "system/fvSchemes": """FoamFile { version 2.0; format ascii; class dictionary; object fvSchemes; }
ddtSchemes { default Euler; } gradSchemes { default Gauss linear; } divSchemes { default none; }
laplacianSchemes { default Gauss linear corrected; } interpolationSchemes { default linear; }
snGradSchemes { default corrected; }
""",
    "system/fvSolution": """FoamFile { version 2.0; format ascii; class dictionary; object fvSolution; }
solvers { T { solver PCG; preconditioner DIC; tolerance 1e-12; relTol 0; } } SIMPLE { nNonOrthogonalCorrectors 0; }
""",
    "system/decomposeParDict": """FoamFile { version 2.0; format ascii; class dictionary; object decomposeParDict; }
numberOfSubdomains 2; method simple; simpleCoeffs { n (1 2 1); delta 0.001; }
""",
    "constant/transportProperties": """FoamFile { version 2.0; format ascii; class dictionary; object p; }
DT DT [0 2 -1 0 0 0 0] @{kappa};
""",
    "0/T": """FoamFile { version 2.0; format ascii; class volScalarField; object T; }
dimensions [0 0 0 1 0 0 0];
internalField uniform 1;
boundaryField {
    hot { type fixedValue; value uniform 2; } cold { type fixedValue; value uniform 1; }
    sides { type zeroGradient; } planes { type empty; }
}
""",
}


@pytest.mark.skipif(
    shutil.which("laplacianFoam") is None, reason="needs apt-get install -y --no-install-recommends openfoam"
)
@pytest.mark.parametrize(("cells", "ranks"), [("block", 1), ("grid", 1), ("block", 2)])
def test_openfoam_itself_solves_a_case(cells: str, ranks: int) -> None:
    """Heat in a bar whose left end is suddenly hot, against the Fourier series."""
    os.environ.setdefault("WM_PROJECT_DIR", "/usr/share/openfoam")
    run = "laplacianFoam"
    if ranks > 1:
        mpi = "mpirun.openmpi --allow-run-as-root --oversubscribe"
        run = f"decomposePar && {mpi} -n {ranks} laplacianFoam -parallel"
    solver = ExternalProgram(
        equation="∂T/∂t = κ ∇²T.", files=FOAM, snapshot="processor0/{time}" if ranks > 1 else "{time}", timeout=120,
        read=OpenFOAMTimes(fields={"T": "T"}, cells=cells),
        command=("sh", "-c", f"blockMesh && postProcess -func writeCellCentres -time 0 && {run}"),
    )  # fmt: skip
    shape = (40, 4) if cells == "block" else (20, 6)
    case = Case(
        name="bar", fields=("T",), grid=Grid(shape=shape, extent=(1.0, 0.5)), boundary=(WALLS, WALLS),
        parameters={"kappa": Uniform(0.1, 1.0)}, initial=lambda x, p, rng: [1 + 0 * x[0]], solver=solver,
        duration=0.2, num_snapshots=4,
    )  # fmt: skip
    found = solved(case, kappa=0.5)
    x = case.grid.points(0, periodic=False)
    for step in range(1, 5):
        series = 2 - x
        for n in range(1, 60):
            series = series - 2 / (n * np.pi) * np.sin(n * np.pi * x) * np.exp(-(n**2) * np.pi**2 * 0.5 * 0.05 * step)
        np.testing.assert_allclose(found[step, 0], np.tile(series[:, None], (1, shape[1])), atol=5e-3)


def bar_deck() -> str:
    """A bar of eight bricks along x, pulled at its end by a load that grows with time; Poisson's ratio is zero."""
    nodes = [(1 + i + 9 * (j + 2 * k), i / 8, j / 8, k / 8) for k in range(2) for j in range(2) for i in range(9)]
    corners = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1), (0, 1, 1))
    elements = [[1 + i + di + 9 * (dj + 2 * dk) for di, dj, dk in corners] for i in range(8)]
    left = [n for n, x, _, _ in nodes if x == 0]
    right = [n for n, x, _, _ in nodes if x == 1]
    lines = ["*NODE, NSET=ALL", *(f"{n}, {x}, {y}, {z}" for n, x, y, z in nodes), "*ELEMENT, TYPE=C3D8, ELSET=BAR"]
    lines += [", ".join(map(str, [i + 1, *element])) for i, element in enumerate(elements)]
    lines += ["*MATERIAL, NAME=M", "*ELASTIC", "@{stiffness:.9g}, 0.0", "*SOLID SECTION, ELSET=BAR, MATERIAL=M"]
    lines += ["*BOUNDARY", *(f"{n}, 1, 3, 0." for n in left)]
    lines += ["*STEP, NLGEOM, INC=1000", "*STATIC, DIRECT", "@{interval}, @{duration}"]
    lines += ["*CLOAD", *(f"{n}, 1, {1 / 256}" for n in right), "*NODE PRINT, NSET=ALL", "U", "*END STEP", ""]
    return "\n".join(lines)


@pytest.mark.skipif(shutil.which("ccx") is None, reason="needs apt-get install -y calculix-ccx")
@pytest.mark.parametrize("on", ["grid", "points"])
def test_calculix_solves_a_case(on: str) -> None:
    """A bar of length 1 and section 1/64 under a force that reaches 1/64: u_x = x t / stiffness."""
    read = CalculixResults(deck="bar.inp", fields={"u": "displacement.x"}, on=on)
    solver = ExternalProgram(
        equation="Equilibrium of an elastic bar.", command=("ccx", "bar"), files={"bar.inp": bar_deck()},
        snapshot="bar.dat", read=read, timeout=120,
    )  # fmt: skip
    grid = Grid(shape=(5,), extent=(1.25,)) if on == "grid" else Grid(shape=(36,), extent=(36.0,))
    case = Case(
        name="bar", fields=("u",), grid=grid, boundary=Periodic(), parameters={"stiffness": Uniform(1e3, 1e4)},
        initial=lambda x, p, rng: [0 * x[0]], solver=solver, duration=1.0, num_snapshots=4,
    )  # fmt: skip
    found = solved(case, stiffness=4e3)[:, 0]
    x = np.arange(5) / 4 if on == "grid" else np.tile(np.arange(9) / 8, 4)
    # A linear step would be one increment; with NLGEOM the strain of 2.5e-4 is seen in the fourth digit.
    np.testing.assert_allclose(found, np.arange(5)[:, None] / 4 * x / 4e3, rtol=5e-4)


def test_a_damaged_hdf5_file_is_named_whatever_h5py_says(tmp_path: Path) -> None:
    """An address beyond the file's end is a RuntimeError of h5py."""
    path, read = tmp_path / "a.h5", HDF5Files(file="a.h5", fields={"u": "g/u", "v": "g/v"})
    with h5py.File(path, "w") as file:
        file["g/u"] = file["g/v"] = np.zeros((8, 5))
        address = h5py.h5o.get_info(file["g"].id).addr
    case = case_of(SQUARE, read, command=("true",), snapshot="a.h5")
    assert read(tmp_path, 0, case).shape == (2, 8, 5)
    with pytest.raises(ValueError, match=r"a\.h5 has no dataset 'g' for field 'u'"):
        HDF5Files(file="a.h5", fields={"u": "g", "v": "g/v"})(tmp_path, 0, case)
    content = bytearray(path.read_bytes())
    # The group's header of version 1, 16 bytes, then one message: 8 bytes and the addresses of names and their heap.
    content[address + 24 : address + 32] = (2**40).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"^a\.h5 is damaged: .*addr"):
        read(tmp_path, 0, case)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(OSError, match=r"^a\.h5 is damaged: .*truncated"):
        read(tmp_path, 0, case)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.h5"):
        read(tmp_path, 0, case)
