"""A case travels as a file: the same file is the same case, a changed one is refused."""

import importlib
import json
import subprocess
import sys
import types
from types import SimpleNamespace

import pytest

from headrace.cases import heat2d
from headrace.solvers.case_file import CaseReference

SOURCE = '''
from headrace.solvers import Case, Grid, Periodic

def decay(u, d, p, t):
    """∂u/∂t = -u."""
    return -u

mine = Case(name="decay", fields=("u",), grid=Grid(shape=(8,), extent=(1.0,)), boundary=Periodic(),
            initial=lambda x, p, rng: 1.0, rhs=decay, duration=1.0, num_snapshots=2)
if __name__ == "__main__":
    raise SystemExit("a case file is imported, never run")
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "decay.py"
    path.write_text(SOURCE)
    return path


def test_it_travels_as_plain_data_and_comes_back(file, tmp_path):
    reference = CaseReference.of(file, "mine", shape=(16,))
    again = CaseReference.from_dict(json.loads(json.dumps(reference.to_dict())))
    assert again == reference
    assert again.load().name == "decay" and again.load().grid.shape == (16,)
    assert "shape" not in CaseReference.of(file, "mine").to_dict()
    relative = {**reference.to_dict(), "file": "decay.py"}
    assert CaseReference.from_dict(relative, folder=tmp_path) == reference


def test_the_copy_is_the_same_case_and_nothing_else_is_left(file, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    copy = CaseReference.of(file, "mine").copied_to(folder)
    assert copy.file == folder / "case.py" and [path.name for path in folder.iterdir()] == ["case.py"]
    file.unlink()
    case = copy.load()
    assert case.name == "decay" and case.rhs.__module__.startswith("headrace_case_")
    assert [path.name for path in folder.iterdir()] == ["case.py"]


def test_a_built_in_case_is_a_case_file_too(tmp_path):
    assert CaseReference.of(heat2d.__file__).copied_to(tmp_path).load().name == "heat2d"


def test_a_changed_file_is_refused_with_both_hashes(file, tmp_path):
    reference = CaseReference.of(file, "mine")
    file.write_text(SOURCE + "\n# changed\n")
    for action in (reference.load, lambda: reference.copied_to(tmp_path)):
        with pytest.raises(ValueError, match=rf"has changed: .*{reference.sha256[:16]}"):
            action()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decay.py"]


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (SOURCE, "case", "no Case named 'case'; it has mine"),
        ("case = 3", "case", "it has none"),
        ("def broken(:", "case", "does not run: SyntaxError"),
        ("import sys; sys.exit(3)", "case", "does not run: SystemExit: 3"),
        ("import a_module_beside_it", "case", "ModuleNotFoundError.*self-contained"),
    ],
)
def test_a_file_without_the_case_is_named(source, name, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(source)
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        CaseReference.of(file, name).load()


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A case file that needs a package beside it which is imported already; Python does not search the folder yet."""
    (tmp_path / "slopes").mkdir()
    (tmp_path / "slopes" / "__init__.py").write_text("")
    (tmp_path / "slopes" / "steep.py").write_text("slope = 1.0")
    file = tmp_path / "mine.py"
    file.write_text("from slopes.steep import slope\n" + SOURCE)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        importlib.import_module("slopes.steep")
    yield file
    for name in ("slopes", "slopes.steep"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("entries", [1, 2], ids=["first", "moved"])
def test_a_package_beside_it_is_hidden_whole_wherever_its_folder_is_searched(beside, entries, monkeypatch):
    # Some libraries put their own folders before the script's.
    path = [str(beside.parent / "of a library")] * (entries - 1) + [str(beside.parent), *sys.path]
    monkeypatch.setattr(sys, "path", list(path))
    package, module = sys.modules["slopes"], sys.modules["slopes.steep"]
    with pytest.raises(ValueError, match=r"No module named 'slopes'.*what lies beside it"):
        CaseReference.of(beside, "mine").load()
    assert sys.path == path
    assert sys.modules["slopes"] is package and sys.modules["slopes.steep"] is module


@pytest.mark.parametrize("how", ["PYTHONPATH", "site", "finder"])
def test_a_package_that_every_process_finds_is_the_one_that_is_imported(beside, how, monkeypatch):
    folder = str(beside.parent)
    monkeypatch.setattr(sys, "path", [folder, *sys.path, *([folder] if how == "site" else [])])
    if how == "PYTHONPATH":
        monkeypatch.setenv("PYTHONPATH", folder)
        sys.path.insert(1, folder)
    elif how == "finder":  # of an editable install, which finds that one package
        found = sys.modules["slopes"].__spec__
        finder = SimpleNamespace(find_spec=lambda name, path, target=None: found if name == "slopes" else None)
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    beside.write_text("import slopes\nfrom slopes import steep\n" + SOURCE)
    package, module = sys.modules["slopes"], sys.modules["slopes.steep"]
    case = CaseReference.of(beside, "mine").load_module()
    assert case.slopes is package and case.steep is module
    assert sys.modules["slopes"] is package


def test_modules_without_a_file_are_no_neighbours(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setitem(sys.modules, "made_up_by_a_test", types.ModuleType("made_up_by_a_test"))
    file.write_text("import sys\nimport made_up_by_a_test\n" + SOURCE)
    assert CaseReference.of(file, "mine").load().name == "decay"


def test_modules_that_come_while_neighbours_are_looked_for_do_no_harm(file, monkeypatch):
    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            monkeypatch.setitem(sys.modules, f"came_by_{name}", types.ModuleType("came"))
            raise AttributeError(name)

    monkeypatch.setitem(sys.modules, "lazy_module_of_a_test", Lazy("lazy_module_of_a_test"))
    monkeypatch.setattr(sys, "path", [str(file.parent), *sys.path])
    assert CaseReference.of(file, "mine").load().name == "decay"
    assert "came_by___file__" in sys.modules


def test_a_current_folder_that_is_gone_has_no_neighbours(file, tmp_path, monkeypatch):
    reference = CaseReference.of(file, "mine")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "gone").rmdir()
    assert reference.load().name == "decay"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        CaseReference.of(tmp_path / "none.py")


def test_a_shape_that_does_not_fit_is_named(file):
    with pytest.raises(ValueError, match="Shape 8x8 is not allowed: case decay wants one number per axis, as 8"):
        CaseReference.of(file, "mine", shape=(8, 8)).load()


def test_solving_needs_neither_torch_nor_ray_nor_a_running_mpi():
    script = (
        "import sys, headrace.solvers, headrace.solvers.simulate, headrace.solvers.verify, headrace.solvers.case_file\n"
        "import headrace.solvers.hdf5, headrace.cases.heat2d\n"
        "print([m for m in ('torch', 'ray', 'mpi4py.MPI', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
