"""`headrace new-case`: the file of a new case and its test, ready to run and to be changed."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

import jinja2
import typer

_TEMPLATES = Path(__file__).with_name("templates")


def write_new_case(name: str, folder: Path) -> list[Path]:
    """Write NAME.py and test_NAME.py into a folder and return their paths.

    Raises
    ------
    ValueError : the name is no Python identifier in lower case.
    FileExistsError : one of the files exists; nothing is written then.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name) or name == "start":
        raise ValueError(f"Case name {name!r} is not allowed: lower-case letters, digits and _, as fisher_kpp.")
    made = {folder / f"{name}.py": "new_case.py.j2", folder / f"test_{name}.py": "new_case_test.py.j2"}
    for path in made:
        if path.exists():
            raise FileExistsError(f"{path} exists already; choose another name, or move it away.")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    folder.mkdir(parents=True, exist_ok=True)
    for path, template in made.items():
        text = environment.from_string((_TEMPLATES / template).read_text(encoding="utf-8"))
        path.write_text(text.render(name=name, title=name.replace("_", " ").capitalize()), encoding="utf-8")
    return list(made)


def new_case(name: str, folder: Path) -> None:
    """Write the files and say what to do with them."""
    case, test = write_new_case(name, folder)
    typer.echo(f"{case}\n{test}\nrun: python {case} solve; pytest {test}")
