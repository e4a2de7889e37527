"""The rules of the house: which folder may import which, what is documented, how large the surface is."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("solvers", "surrogates", "online_training", "rom", "cases")
ALLOWED = {
    "solvers": set(),
    "rom": set(),
    "surrogates": {"solvers"},
    "online_training": {"surrogates", "solvers"},
    "cases": {"online_training", "surrogates", "solvers", "rom"},
}
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports_of(tree: ast.AST):
    """Yield (line, module) of every absolute import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"headrace.{alias.name}" for alias in node.names] if node.module == "headrace" else [node.module]
            yield from ((node.lineno, name) for name in names)


def public_definitions(tree: ast.Module):
    """Yield public functions, classes and methods."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            for item in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and not item.name.startswith("_"):
                    yield item


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way_and_everything_public_is_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    folder = path.relative_to(ROOT).parts[0]
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for line, module in imports_of(tree):
        parts = module.split(".")
        if parts[0] == "headrace" and len(parts) > 1 and parts[1] != folder:
            assert parts[1] in ALLOWED[folder], f"{path}:{line}: {folder} imports {parts[1]}"
    for node in public_definitions(tree):
        assert ast.get_docstring(node), f"{path}:{node.lineno}: {node.name} has no docstring"
        # The file that users copy is written as they would write it.
        if not isinstance(node, ast.ClassDef) and path.name != "custom_case.py":
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [a.arg for a in arguments if a.arg not in ("self", "cls") and a.annotation is None]
            assert not bare and node.returns is not None, f"{path}:{node.lineno}: {node.name}: {bare or 'result'}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_own_processes_take_no_file_of_the_current_folder_for_a_module(path):
    bare = re.findall(r'sys\.executable,\s*"-[mc]"', path.read_text(encoding="utf-8"))
    assert not bare, f'{path}: {bare}: write sys.executable, "-P", "-m"'


def test_ray_is_imported_in_few_files():
    users = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        for _, module in imports_of(ast.parse(path.read_text(encoding="utf-8")))
        if module.split(".")[0] == "ray"
    }
    assert len(users) <= 5, sorted(users)
    assert not any(name.startswith(("solvers", "surrogates", "rom")) for name in users)


@pytest.mark.parametrize("folder", FOLDERS)
def test_public_surface_is_small(folder):
    module = importlib.import_module(f"headrace.{folder}")
    names = getattr(module, "__all__", [])
    assert len(names) <= 12, names
    for name in names:
        assert getattr(module, name).__doc__, f"headrace.{folder}.{name} has no docstring"


def modules_after(code: str) -> set[str]:
    """Names of all modules that a fresh interpreter holds after running code."""
    program = code + "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_client_loads_numpy_pyzmq_and_the_standard_library_only():
    theirs = modules_after("import numpy, zmq")  # what these two bring along is theirs
    loaded = modules_after("import headrace.online_training.client") - theirs
    roots = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert "headrace" in roots and roots <= {"headrace", "numpy", "zmq", "xxhash"}, roots
    # xxhash where it is, and only then.
    alone = "import sys; sys.modules['xxhash'] = None; from headrace.online_training import client; "
    assert modules_after(alone + "assert client.CHECKSUMS == ('crc32',)")


def test_importing_headrace_does_not_start_mpi():
    names = [
        "headrace." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCES
        if path.name != "__main__.py"
    ]
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert "mpi4py.MPI" not in loaded


def test_solver_modules_load_neither_torch_nor_ray():
    loaded = modules_after("import headrace.solvers, headrace.online_training.solver_job, headrace.cases.heat2d")
    assert not {"torch", "ray", "pandas"} & loaded
