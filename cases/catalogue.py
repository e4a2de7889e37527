"""Which built-in cases exist, and how a name or a path on the command line becomes a case."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.solvers.case_file import CaseReference

BUILT_IN = {
    "heat2d": "heat2d.py",
    "navier_stokes2d": "navier_stokes2d.py",
    "kolmogorov": "kolmogorov.py",
    "cavity": "cavity.py",
    "karman": "karman.py",
    "taylor_green3d": "taylor_green3d.py",
}
"""Name of each built-in case and its file beside this one; looking a case up imports no other."""


def find_case(text: str, shape: tuple[int, ...] | None = None) -> CaseReference:
    """Return the case that a person named: `heat2d`, `path/to/file.py` or `path/to/file.py:name`.

    shape : another number of grid points; None keeps the case's own.

    Raises
    ------
    ValueError : no built-in case of this name, or no such file.
    """
    from headrace.solvers.case_file import CaseReference

    if text in BUILT_IN:
        reference = CaseReference.of(Path(__file__).with_name(BUILT_IN[text]))
    else:
        path, colon, name = text.rpartition(":")
        if not colon or "/" in name or name.endswith(".py"):
            path, name = text, "case"
        if not path.endswith(".py"):
            raise ValueError(unknown_name("case", text, list(BUILT_IN)) + " A case of your own: path/to/file.py")
        if not Path(path).is_file():
            raise ValueError(f"There is no case file {path!r}. Built-in cases: {', '.join(BUILT_IN)}.")
        reference = CaseReference.of(Path(path), name)
    return reference if shape is None else replace(reference, shape=shape)


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """Return the message for a name that does not exist: what exists, and the nearest match."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"There is no {kind} {name!r}.{hint} There is: {', '.join(known) or 'none'}."


def parse_shape(text: str) -> tuple[int, ...]:
    """Return the numbers of "64x32".

    Raises
    ------
    ValueError : not 1 to 3 whole numbers with x between them.
    """
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 3 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--shape {text!r} is not allowed: write the number of points along each axis, e.g. 32x32.")
    return tuple(int(part) for part in parts)
