"""The command line's verbs on a user's own case: `python my_case.py solve | train | ...`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.solvers import Case


def run(case: Case, arguments: Sequence[str] | None = None) -> None:
    """Run a verb of the command line on the case of the calling script; ends the process.

    Collective where the script was started by mpirun and the verb is `solve`.

    Parameters
    ----------
    case : a module-level variable of the script; the script's file is what solver ranks import.
    arguments : verb and flags; those of the process if left out.

    Raises
    ------
    ValueError : the case is no module-level variable of a script file.
    """
    from headrace.solvers.case_file import CaseReference

    from .command_line import main

    script = sys.modules["__main__"]
    file = getattr(script, "__file__", None)
    names = [name for name, value in vars(script).items() if value is case]
    if file is None or not names:
        raise ValueError(
            f"run(case) was given case {case.name!r}, which is no module-level variable of a script file. "
            "Solver ranks import the case from its file: write `case = Case(...)` at the top level of a .py file "
            "and call run(case) there."
        )
    main(arguments, own_case=CaseReference.of(Path(file), names[0]))
