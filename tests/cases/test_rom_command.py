"""`headrace rom`: a user's own case from full runs and from result files to a report, serial and on two ranks."""

import io
import json
import re
import shutil
import subprocess
import sys

import meshio
import numpy as np
import pytest
from matplotlib import image
from typer.testing import CliRunner

from headrace.cases import rom_pictures
from headrace.cases.command_line import build_app
from headrace.rom.box import box_mesh
from headrace.rom.model_folder import ModelError, ModelFolder, read_description
from headrace.rom.store import Store
from tests.mpi_run import run_mpi

CASE = '''
"""A bar that is pulled until it flows."""
import numpy as np
from headrace.rom.box import box_mesh
from headrace.rom.case import RomCase
from headrace.rom.elastic import IsotropicElasticity
from headrace.rom.loads import Amplitude, Pressure, Support
from headrace.rom.problem import Problem
from headrace.rom.viscoplastic import KinematicHardening, NortonChaboche

LAW = NortonChaboche(elasticity=IsotropicElasticity(young=200e3, poisson=0.3), yield_stress=100.0, viscosity=200.0,
                     exponent=8.0, kinematic=(KinematicHardening(modulus=50e3, recall=300.0),))

def on(mesh, pull, shear):
    rise = Amplitude((0.0, 1.0, 2.0), (0.0, 1.0, 0.0))
    return Problem(
        mesh=mesh, laws={"all": LAW}, supports=[Support(nodes="x0", direction=d) for d in "xyz"],
        loads=[Pressure(faces="x1", value=lambda x: -pull * (1 + 0.2 * x[:, 1]), amplitude=rise),
               Pressure(faces="z1", value=shear, amplitude=rise)])

def bar(*, pull: float = 200.0, shear: float = 10.0, long: float = 4.0):
    return on(box_mesh("hex8", (4, 2, 2), (long, 2.0, 2.0)), pull, shear)

def of_files(mesh, *, pull: float = 200.0, shear: float = 10.0):
    return on(mesh, pull, shear)

case = RomCase(name="bar", problem=bar, times=np.linspace(0, 2, 9))
mine = RomCase(name="mine", problem=of_files, times=np.linspace(0, 2, 9))
'''


def rom(*arguments):
    done = CliRunner().invoke(build_app(), ["rom", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of two training runs, with an evaluated run beside its training and an evaluated new loading."""
    folder = tmp_path_factory.mktemp("rom")
    (folder / "bar.py").write_text(CASE)
    code, text = rom("compress", folder / "bar.py", "--out", folder / "model", "--set", "long=4.5", "--train",
                     "pull=180", "--train", "pull=220 shear=20")  # fmt: skip
    assert code == 0, text
    (folder / "new.csv").write_text("time, pressure:x1\n0, 0\n0.5, 0.5\n1, 1\n1.5, 0.3\n")
    for more in (["--set", "pull=180"], ["--loading", folder / "new.csv", "--name", "table", "--viewer", "xdmf"]):
        code, text = rom("run", folder / "model", *more)
        assert code == 0, text
    code, text = rom("evaluate", folder / "model")
    assert code == 0, text
    return folder / "model"


def evaluation(model, name):
    return read_description(ModelFolder(model).run(name) / "evaluation.json")


def test_runs_agree_with_the_full_model_and_say_what_they_saved(model):
    trained, table = evaluation(model, "run-001"), evaluation(model, "table")
    assert max(trained["error_u"]) < 1e-4 and max(trained["error_p"]) < 1e-4
    assert trained["times"] == pytest.approx(np.linspace(0, 2, 9)[1:])
    assert 0 < max(table["error_u"]) < 0.05 and table["times"] == pytest.approx([0.5, 1, 1.5])
    assert trained["seconds"] > 0 and trained["cores"] == 1
    with Store(model / "runs" / "table" / "fields") as fields:
        assert fields.times == pytest.approx([0, 0.5, 1, 1.5])
    assert (model / "runs" / "table" / "fields.xdmf").read_text().count("<Time ") == 4
    assert (model / "runs" / "run-001" / "fields.vtkhdf").stat().st_size > 1000
    for name, pull in (("third", 200), ("bounded", 205)):
        code, text = rom("run", model, "--set", f"pull={pull}", "--name", name)
        assert code == 0 and ("error of p at most" in text) == (name == "bounded"), text
        code, text = rom("evaluate", model, "--run", "third")
        assert code == 0, text


def test_the_report_has_every_picture_and_needs_no_other_file(model, monkeypatch):
    monkeypatch.setattr(rom_pictures, "can_draw_off_screen", lambda: False)
    code, text = rom("report", model)
    assert code == 0, text
    html = (model / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 2 + 3 * len([*model.glob("runs/*/evaluation.json")])
    assert "http" not in re.sub(r"data:image[^\"]*", "", html)
    for word in ("cubature points", "singular values", "pays after", "pull = 180.0", "loading of a table"):
        assert word in html, word
    names = {path.name for path in (model / "pictures").iterdir()}
    assert {"singular-values.png", "points.png", "table-p.png", "table-errors.png", "run-001-p-at-point.png"} <= names


def test_a_sample_says_what_its_draws_say_alone(model, tmp_path, monkeypatch):
    """Its statistics are those of single runs with the same settings, on one and on two ranks."""
    code, text = rom("sample", model, "--draw", "pull=uniform(180,220)", "--draw", "shear=normal(15,2)", "--draws", 60,
                     "--seed", 3)  # fmt: skip
    assert code == 0 and "60 draws" in text, text
    told = read_description(model / "samples" / "sample-001" / "sample.json")
    table = np.loadtxt(model / "samples" / "sample-001" / "table.csv", delimiter=",", skiprows=1)
    assert np.all((180 < table[:, 0]) & (table[:, 0] < 220)) and abs(table[:, 1].mean() - 15) < 1
    assert told["mean"] == pytest.approx(table[:, 2].mean(), rel=1e-8)
    assert told["deviation"] == pytest.approx(table[:, 2].std(ddof=1), rel=1e-6)
    assert list(told["quantiles"].values()) == pytest.approx(np.quantile(table[:, 2], [0.05, 0.5, 0.95]), rel=1e-8)
    for row in (0, 59):
        code, text = rom("run", model, "--set", f"pull={table[row, 0]}", "--set", f"shear={table[row, 1]}",
                         "--name", f"draw{row}")  # fmt: skip
        assert code == 0, text
        run = ModelFolder(model).run(f"draw{row}")
        with Store(run / "fields") as fields:
            assert fields.point_field("p", 8)[told["point"]] == pytest.approx(table[row, 2], rel=1e-5)
        assert max(read_description(run / "run.json")["indicator"]) == pytest.approx(table[row, 3], rel=1e-3)
        shutil.rmtree(run)
    rows = tmp_path / "rows.csv"
    rows.write_text("pull,shear\n" + "".join(f"{a},{b}\n" for a, b, *_ in table[:7]))
    done = run_mpi(2, ["-m", "headrace.cases", "rom", "sample", str(model), "--table", str(rows), "--name", "two"])
    assert done.returncode == 0, done.stdout + done.stderr
    two = np.loadtxt(model / "samples" / "two" / "table.csv", delimiter=",", skiprows=1)
    assert read_description(model / "samples" / "two" / "sample.json")["cores"] == 2
    np.testing.assert_allclose(two[:, 3], table[:7, 3], rtol=1e-4)
    twice = tmp_path / "twice.csv"
    twice.write_text("pull,pull\n1,2\n3,4\n")
    for wrong, message in (
        (["--draw", "pull=gauss(1,2)"], "uniform(LOW,HIGH) or normal(MEAN,DEVIATION)"),
        (["--table", twice], "must name the columns once each"),
        (["--draw", "pul=uniform(1,2)"], "Did you mean pull"),
        (["--draw", "pull=uniform(1,2)", "--table", rows], "not both"),
        (["--draw", "long=uniform(4,5)", "--draws", 3], "is of another mesh"),
    ):
        code, text = rom("sample", model, *wrong)
        assert code == 2 and message in text.replace("\n", " "), text
    assert ModelFolder(model).samples() == ["sample-001", "two"]
    monkeypatch.setattr(rom_pictures, "can_draw_off_screen", lambda: False)
    assert rom("report", model)[0] == 0
    html = (model / "report.html").read_text()
    assert "Many queries: two" in html and "pull uniform(180, 220), shear normal(15, 2)" in html
    shutil.rmtree(model / "samples")


def test_two_ranks_make_the_same_model_and_answers(model, tmp_path):
    case, out = model.parent / "bar.py", tmp_path / "model"
    program = ["-m", "headrace.cases", "rom"]
    for arguments in (
        ["compress", case, "--out", out, "--set", "long=4.5", "--train", "pull=180", "--train", "pull=220 shear=20"],
        ["run", out, "--set", "pull=180"],
        ["evaluate", out],
        ["report", out],
    ):
        done = run_mpi(2, [*program, *map(str, arguments)], env={"COLUMNS": "200"})
        assert done.returncode == 0, done.stdout + done.stderr
    assert evaluation(out, "run-001")["cores"] == 2
    assert max(evaluation(out, "run-001")["error_p"]) < 1e-4
    with Store(model / "runs/run-001/fields") as one, Store(out / "runs/run-001/fields") as two:
        size = np.abs(one.displacement(4)).max()
        np.testing.assert_allclose(one.displacement(4), two.displacement(4), atol=1e-4 * size)
    # What two ranks wrote, one reads.
    for stage in (["run", out, "--set", "pull=200", "--name", "alone"], ["evaluate", out, "--run", "alone"]):
        code, text = rom(*stage)
        assert code == 0, text
    assert evaluation(out, "alone")["cores"] == 1 and max(evaluation(out, "alone")["error_p"]) < 0.02
    done = run_mpi(2, [*program, "run", str(out), "--set", "pul=1"])
    assert done.returncode == 2 and done.stderr.count("has no setting") == 1


def test_a_query_unlike_training_enriches_the_model(model, tmp_path, monkeypatch):
    """Beyond the limit a few full steps mend the answer, and the model keeps what it learned and what it knew."""
    mended, far = tmp_path / "model", ["--set", "pull=150", "--set", "shear=-60"]
    shutil.copytree(model, mended, ignore=shutil.ignore_patterns("runs"))
    for name, more in (("before", []), ("after", ["--enrich"])):
        code, text = rom("run", mended, *far, "--name", name, *more)
        assert code == 0 and ("enriched" in text) == bool(more), text
    (learned,) = read_description(mended / "model.json")["enrichments"]
    assert 1 <= len(learned["full_steps"]) <= 3 and learned["indicator"] <= 2e-3 < learned["before"], learned
    # On two ranks it goes on from what one rank left, and still knows training and the first enrichment.
    other = ["--set", "pull=-180", "--set", "shear=60"]
    done = run_mpi(2, ["-m", "headrace.cases", "rom", "run", str(mended), *other, "--enrich", "--name", "two"])
    assert done.returncode == 0 and "enriched" in done.stdout, done.stdout + done.stderr
    for name, asked in (("trained", ["--set", "pull=180"]), ("again", far)):
        code, text = rom("run", mended, *asked, "--name", name, "--enrich")
        assert code == 0 and "enriched" not in text, text
    code, text = rom("evaluate", mended)
    assert code == 0, text
    assert text.count("s of enrichment: ") == 2 and text.count("times as fast") == 5, text
    errors = {name: max(evaluation(mended, name)["error_p"]) for name in ModelFolder(mended).runs()}
    assert errors.pop("before") > 0.1 and len(errors) == 4 and max(errors.values()) < 0.02, errors
    monkeypatch.setattr(rom_pictures, "can_draw_off_screen", lambda: False)
    assert rom("report", mended)[0] == 0
    html = (mended / "report.html").read_text()
    assert "enriched by" in html and "Answered before the model was last enriched: after, before." in html
    assert rom("run", mended, "--enrich", "--limit", "0")[0] == 2


def test_a_body_that_stays_elastic_has_a_model_and_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(rom_pictures, "can_draw_off_screen", lambda: False)
    case, out = tmp_path / "elastic.py", tmp_path / "model"
    case.write_text(CASE.replace('{"all": LAW}', '{"all": LAW.elasticity}'))
    both = ["--train", "pull=100", "--train", "shear=40"]
    for stage in (["compress", case, *both, "--out"], ["run", "--set", "pull=50"], ["evaluate"], ["report"]):
        code, text = rom(*stage, out)
        assert code == 0, text
    assert max(evaluation(out, "run-001")["error_u"]) < 1e-6 and max(evaluation(out, "run-001")["error_p"]) == 0.0


def test_neither_torch_nor_ray_is_loaded(model):
    program = (
        "import sys\nfrom headrace.cases.command_line import main\n"
        f"try:\n    main(['rom', 'run', {str(model)!r}, '--set', sys.argv[1]])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "assert code == int(sys.argv[2]), code\nassert not {'torch', 'ray'} & set(sys.modules)"
    )
    for setting, code in (("pull=190", "0"), ("pul=190", "2")):
        command = [sys.executable, "-c", program, setting, code]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_models_of_result_files_equal_that_of_the_solver(model, tmp_path):
    mine = f"{model.parent / 'bar.py'}:mine"
    both = [word for k in range(2) for word in ("--from", model / f"training-{k:03d}")]
    code, text = rom("compress", mine, "--out", tmp_path / "stores", *both, "--train", "pull=180", "--train",
                     "pull=220 shear=20")  # fmt: skip
    assert code == 0 and "equilibrium" in text, text
    made, again = (read_description(ModelFolder(f).model) for f in (model, tmp_path / "stores"))
    assert (again["modes"], again["reduced_points"]) == (made["modes"], made["reduced_points"])

    with Store(model / "training-000") as series:
        mesh = series.mesh
        deck = tmp_path / "bar.inp"
        deck.write_text(as_deck(mesh))
        for k in range(1, len(series.times)):
            meshio.Mesh(mesh.points, {"hexahedron": mesh.cells["hex8"]}, {"U": series.displacement(k)}).write(
                tmp_path / f"step_{k}.vtu"
            )
    sets = "".join(f'<DataSet timestep="{k / 4}" file="step_{k}.vtu"/>' for k in range(1, 9))
    (tmp_path / "bar.pvd").write_text(f'<VTKFile type="Collection"><Collection>{sets}</Collection></VTKFile>')
    upper, out = tmp_path / "upper.py", tmp_path / "files"
    upper.write_text(CASE.replace('"x0"', '"X0"').replace('"x1"', '"X1"').replace('"z1"', '"Z1"'))
    command = ["compress", f"{upper}:mine", "--out", out, "--from", tmp_path / "bar.pvd", "--mesh", deck,
               "--displacement", "U"]  # fmt: skip
    code, text = rom(*command, "--set", "pull=260")
    assert code == 2 and "equilibrium" in text, text
    code, text = rom(*command, "--set", "pull=180")
    assert code == 0, text
    for stage in (["run", out, "--set", "pull=180"], ["evaluate", out]):
        code, text = rom(*stage)
        assert code == 0, text
    assert max(evaluation(out, "run-001")["error_p"]) < 1e-4


def as_deck(mesh):
    """The mesh as an input deck with the sets that the case names."""
    lines = ["*NODE", *(f"{k + 1}, {x}, {y}, {z}" for k, (x, y, z) in enumerate(mesh.points))]
    cells = enumerate(mesh.cells["hex8"] + 1, start=1)
    lines += ["*ELEMENT, TYPE=C3D8", *(", ".join(map(str, (e, *nodes))) for e, nodes in cells)]
    lines += ["*NSET, NSET=X0", *(f"{n + 1}," for n in mesh.nodes("x0"))]
    for name in ("x1", "z1"):
        lines += [f"*SURFACE, NAME={name}", *(f"{e + 1}, S{f + 1}" for e, f in mesh.face_sets[name])]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "rom_cupe", "--out", "new"], "Did you mean rom_cube"),
        (["compress", "heat2d", "--out", "new"], "is a PDE on a grid"),
        (["compress", "CASE", "--out", "MODEL"], "has a model already"),
        (["compress", "CASE", "--out", "new", "--mode", "guess"], "'guess'"),
        (["compress", "CASE", "--out", "new", "--solver", "guess"], "embedded or calculix"),
        (["compress", "CASE", "--out", "new", "--from", "nowhere.inp"], "nowhere.inp"),
        (["compress", "CASE:mine", "--out", "new"], "takes the mesh of files"),
        (["compress", "CASE", "--out", "new", "--mesh", "bar.inp"], "makes its own mesh"),
        (["compress", "CASE", "--out", "CASE"], "it is no folder. Name one"),
        (["compress", "CASE", "--out", "CASE/new"], "Cannot make the folder"),
        (["compress", "rom_plate", "--out", "new", "--set", "cycles=-1"], "no times for the settings {'cycles': -1}"),
        (["compress", "CASE", "--out", "new", "--train", "long=3", "--train", "long=4"], "different meshes"),
        (["run", "MODEL", "--set", "pul=3"], "Did you mean pull"),
        (["run", "MODEL", "--set", "pull=much"], "must be like its default"),
        (["run", "MODEL", "--set", "long=5"], "is of another mesh"),
        (["run", "MODEL", "--name", "table"], "has a run 'table' already"),
        (["run", "MODEL", "--name", "../table"], "cannot be named"),
        (["run", "MODEL", "--viewer", "png"], "vtkhdf or xdmf"),
        (["run", "nowhere"], "There is no"),
        (["evaluate", "MODEL", "--run", "nothing"], "There is no"),
        (["evaluate", "nowhere"], "There is no"),
        (["report", "nowhere"], "There is no"),
    ],
)
def test_what_is_wrong_is_named(model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    places = {"MODEL": str(model), "CASE": str(model.parent / "bar.py")}
    code, text = rom(*(re.sub("MODEL|CASE", lambda m: places[m[0]], a) for a in arguments))
    assert code == 2 and message in text, text
    assert not (tmp_path / "new" / "model.json").exists()


def test_tolerances_that_cannot_be_leave_no_folder(tmp_path):
    code, text = rom("compress", "rom_plate", "--out", str(tmp_path / "new"), "--pod", "-1")
    assert code == 2 and "displacement -1.0 must be between 0 and 1" in text, text
    assert not (tmp_path / "new").exists()


def test_a_truncated_model_and_a_loading_that_does_not_fit_are_named(model, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    file = copy / "reduction-0000-of-0001.h5"
    file.write_bytes(file.read_bytes()[:-2000])
    code, text = rom("run", copy)
    assert code == 2 and "reduction-0000-of-0001.h5 is missing, truncated or damaged" in text, text
    for table, message in (
        ("time, pressure:x9\n0, 0\n1, 1\n", "this problem has pressure:x1, pressure:z1, support:x0:x"),
        ("time, pressure:x1\n0, 0\n1, nan\n", "row 3: a number is not finite"),
        ("time, pressure:x1\n0, 0\n1\n", "row 3: 2 numbers are needed"),
        ("time, pressure:x1\n1, 0\n1, 2\n", "row 3 does not"),
        ("\n\ntime, pressure:x1\n\n0, 0\n1, nan\n", "row 6: a number is not finite"),
        ("time, pressure:x1, pressure:x1\n0, 0, 0\n1, 1, 2\n", "must name the columns once each"),
        ("pressure:x1\n0\n1\n", "`time` among them"),
        ("", "is empty"),
    ):
        (tmp_path / "new.csv").write_text(table)
        code, text = rom("run", model, "--loading", tmp_path / "new.csv")
        assert code == 2 and message in text, text


def test_pyvista_draws_what_matplotlib_draws(monkeypatch):
    if not rom_pictures.can_draw_off_screen():
        pytest.skip("PyVista cannot draw here: pip install pyvista; apt-get install libegl1 libgl1-mesa-dri")
    mesh = box_mesh("tet10", (3, 2, 1), (3.0, 2.0, 1.0))
    values = np.linspace(0, 1, mesh.num_points)
    drawn = {}
    for name in ("pyvista", "matplotlib"):
        monkeypatch.setattr(rom_pictures, "can_draw_off_screen", lambda name=name: name == "pyvista")
        fields = rom_pictures.fields_on_mesh(mesh, {"p": values, "change": values - 0.5}, errors=("change",))
        points = rom_pictures.points_on_mesh(mesh, np.arange(0, 60, 5), np.where(np.arange(12) < 9, 1.0, 0.0))
        drawn[name] = [image.imread(io.BytesIO(png))[..., :3] for png in (fields, points)]
    for ours, theirs in zip(*drawn.values(), strict=True):
        # Both show a body in colours in front of white, about as large.
        inked = [float((picture.min(axis=2) < 0.98).mean()) for picture in (ours, theirs)]
        assert 0.03 < min(inked) and max(inked) < 0.9 and max(inked) < 4 * min(inked), inked
        assert (np.ptp(ours, axis=2) > 0.3).any() and (np.ptp(theirs, axis=2) > 0.3).any()


def test_a_damaged_description_is_refused(model, tmp_path):
    content = json.loads((model / "model.json").read_text())
    for change, message in (({"modes": 1}, "damaged or was edited"), ({"version": 99}, "edited"), (None, "is damaged")):
        (tmp_path / "model.json").write_text("{" if change is None else json.dumps({**content, **change}))
        with pytest.raises(ModelError, match=message):
            read_description(tmp_path / "model.json")
    changed = tmp_path / "model.json"
    changed.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="is damaged"):
        read_description(changed)
