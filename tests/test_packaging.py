"""Editable, regular and wheel installs give the same packages."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("solvers", "surrogates", "online_training", "rom", "cases")


def run(*command: object, **kwargs) -> str:
    """Run a command and return its output; a failure shows what it said."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=240, check=False, **kwargs
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, so that building leaves nothing in the working tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture
def environment(tmp_path):
    """A new virtual environment that sees the installed dependencies, but not this checkout of headrace."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # A path in a .pth file is searched for packages, but the .pth files inside it (an editable headrace) are not run.
    folders = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(folders) + "\n")
    return python


def check(python: Path, where: Path) -> None:
    """The packages come from where they should, the command answers, and the templates came along."""
    program = (
        "import importlib, pathlib, headrace.cases\n"
        f"for name in {PACKAGES!r}: print(importlib.import_module('headrace.' + name).__file__)\n"
        "print(sorted(p.name for p in (pathlib.Path(headrace.cases.__file__).parent / 'templates').iterdir()))"
    )
    *files, templates = run(python, "-c", program, cwd=where.anchor).splitlines()
    assert all(Path(file).is_relative_to(where) for file in files), files
    assert "report.html" in templates
    assert "train" in run(python.with_name("headrace"), "--help", cwd=where.anchor)


def install(python: Path, *what: object) -> None:
    """Install without asking any registry."""
    scrubbed = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    command = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation")
    run(*command, "--no-index", "--quiet", *what, env=scrubbed)


def test_regular_install(source, environment):
    install(environment, source)
    check(environment, environment.parent.parent)


def test_editable_install(source, environment):
    install(environment, "-e", source)
    check(environment, source)


def test_wheel(source, environment, tmp_path):
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path, source)
    (wheel,) = tmp_path.glob("headrace-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if not name.startswith("headrace")], "nothing generic may land in site-packages"
    install(environment, wheel)
    check(environment, environment.parent.parent)
