"""Which built-in cases exist, and how a name or a path on the command line becomes a case."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.rom.case import RomCase
    from headrace.solvers.case_file import CaseReference

BUILT_IN = {
    "heat2d": "heat2d.py",
    "navier_stokes2d": "navier_stokes2d.py",
    "navier_stokes2d_differences": "navier_stokes2d.py:differences",
    "navier_stokes2d_recipe": "navier_stokes2d.py:recipe",
    "kolmogorov": "kolmogorov.py",
    "cavity": "cavity.py",
    "karman": "karman.py",
    "taylor_green3d": "taylor_green3d.py",
    "heat3d": "heat3d.py",
    "advection_diffusion1d": "advection_diffusion.py:line",
    "advection_diffusion2d": "advection_diffusion.py:plane",
    "convection1d": "advection_diffusion.py:convection_line",
    "convection2d": "advection_diffusion.py:convection_in_plane",
    "burgers1d": "burgers.py",
    "burgers2d": "burgers.py:plane",
    "inviscid_burgers": "burgers.py:inviscid",
    "mixed_e1": "mixed1d.py:e1",
    "mixed_e2": "mixed1d.py:e2",
    "mixed_e3": "mixed1d.py:e3",
    "wave_we1": "wave1d.py:we1",
    "wave_we2": "wave1d.py:we2",
    "wave_we3": "wave1d.py:we3",
    "kuramoto_sivashinsky": "kuramoto_sivashinsky.py",
    "gray_scott": "gray_scott.py",
    "fisher_kpp": "fisher_kpp.py",
    "lorenz": "lorenz.py",
    "transport_convection": "transport.py:convection",
    "transport_convection_diffusion": "transport.py:convection_diffusion",
    "transport_stretching": "transport.py:stretching",
    "transport_reaction": "transport.py:reaction",
    "transport_burgers": "transport.py:burgers",
    "transport_standing_shock": "transport.py:standing_shock",
    "transport_breaking": "transport.py:breaking",
    "transport_rotation": "transport.py:rotation",
    "custom_case": "custom_case.py",
}
"""Name of each built-in case and its file beside this one, with the variable where it is not `case`; looking a case up
imports no other."""


REDUCED = {"rom_cube": "rom_cube.py", "rom_plate": "rom_plate.py", "rom_blade": "rom_blade.py"}
"""The same for cases of structural mechanics, which `headrace rom` reduces."""


def find_case(text: str, shape: tuple[int, ...] | None = None) -> CaseReference:
    """Return the case that a person named: `heat2d`, `path/to/file.py` or `path/to/file.py:name`.

    shape : another number of grid points; None keeps the case's own.

    Raises
    ------
    ValueError : no built-in case of this name, or no such file.
    """
    if text in REDUCED:
        raise ValueError(f"{text} is a case of structural mechanics: headrace rom compress {text} --out FOLDER.")
    reference = _reference(text, BUILT_IN)
    return reference if shape is None else replace(reference, shape=shape)


def find_rom_case(text: str) -> CaseReference:
    """Return the case of structural mechanics that a person named, as `find_case` does.

    Raises
    ------
    ValueError : no built-in case of this name, or no such file.
    """
    if text in BUILT_IN:
        raise ValueError(f"{text} is a PDE on a grid: headrace train {text}. To reduce there is: {', '.join(REDUCED)}.")
    return _reference(text, REDUCED)


def load_rom_case(reference: CaseReference) -> RomCase:
    """Import the file of a reference and return its case.

    Raises
    ------
    ValueError : the file changed since the reference was made, does not run, or has no such case.
    """
    from headrace.rom.case import RomCase

    return reference.load_as(RomCase)


def _reference(text: str, built_in: dict[str, str]) -> CaseReference:
    from headrace.solvers.case_file import CaseReference

    if text in built_in:
        file, _, name = built_in[text].partition(":")
        reference = CaseReference.of(Path(__file__).with_name(file), name or "case")
    else:
        path, colon, name = text.rpartition(":")
        if not colon or "/" in name or name.endswith(".py"):
            path, name = text, "case"
        if not path.endswith(".py"):
            raise ValueError(unknown_name("case", text, list(built_in)) + " A case of your own: path/to/file.py")
        if not Path(path).is_file():
            raise ValueError(f"There is no case file {path!r}. Built-in cases: {', '.join(built_in)}.")
        reference = CaseReference.of(Path(path), name)
    return reference


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
