"""`headrace new-case`: the file of a new case and its test, ready to run and to be changed."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import jinja2
import typer

from .output_folder import make_folder

_TEMPLATES = Path(__file__).with_name("templates")


def write_new_case(name: str, folder: Path) -> list[Path]:
    """Write NAME.py and test_NAME.py into a folder and return their paths.

    Raises
    ------
    ValueError : the name is no Python identifier in lower case, or that of a module.
    OSError : the folder cannot be made.
    FileExistsError : one of the files exists; nothing is written then.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or name == "start":
        raise ValueError(f"Case name {name!r} is not allowed: lower-case letters, digits and _, as fisher_kpp.")
    made = {folder / f"{name}.py": "new_case.py.j2", folder / f"test_{name}.py": "new_case_test.py.j2"}
    if name in sys.stdlib_module_names or name in packages_distributions():
        raise ValueError(f"Case name {name!r} is not allowed: {name}.py would hide the module that this Python has.")
    for path in made:
        if path.exists():
            raise FileExistsError(f"{path} exists already; choose another name, or move it away.")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    make_folder(folder)
    for path, template in made.items():
        text = environment.from_string((_TEMPLATES / template).read_text(encoding="utf-8"))
        path.write_text(text.render(name=name, title=name.replace("_", " ").capitalize()), encoding="utf-8")
    return list(made)


def new_case(name: str, folder: Path) -> None:
    """Write the files and say what to do with them."""
    case, test = write_new_case(name, folder)
    typer.echo(f"{case}\n{test}\nrun: python {case} solve; pytest {test}")
