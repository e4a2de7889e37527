"""`headrace train`: one study from its flags to its report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from headrace.online_training.run_directory import RunDirectory
from headrace.online_training.study import Study

from .models import make_model
from .study_flags import check_settings
from .study_progress import StudyProgress

if TYPE_CHECKING:
    from headrace.solvers.case_file import CaseReference

STOPPED = 3
"""Exit code of a study that was asked to stop and can be resumed."""


def train_case(
    reference: CaseReference, *, model: str, architecture: list[str], run_dir: Path | None, resume: bool, plain: bool,
    given: dict[str, Any],
) -> int:  # fmt: skip
    """Run a study and print its validation errors and the path of its report; return the exit code.

    given : the settings that were given as flags; a resumed study keeps its own values of the others.

    Raises
    ------
    ValueError : a flag, the case or the model does not fit.
    StudyError : the run directory is not usable, or solvers or trainer failed too often.
    """
    surrogate = make_model(model, architecture, reference)
    case = reference.load()
    folder = run_dir if run_dir is not None else Path("runs") / f"{case.name}-{model.lower()}"
    directory = RunDirectory(folder)
    if resume and directory.exists:
        record = directory.read()
        if record.model != type(surrogate).__name__:
            raise ValueError(f"{folder} trains a {record.model}; --model {model} cannot go on with it.")
        given = {**record.settings.model_dump(), **given}
    settings = check_settings(given)
    study = Study(reference, surrogate, run_dir=folder, **settings.model_dump())

    console = Console(stderr=True, highlight=False)
    _log_warnings(console)
    with StudyProgress(case, settings, console, plain=plain) as progress:
        live = f"{settings.simulations} simulations on {settings.ranks} ranks each"
        progress.say(
            f"training {type(surrogate).__name__} on {case.name}, {' x '.join(map(str, case.grid.shape))} points: "
            f"{f'data set {settings.offline}' if settings.offline else live}, run directory {folder}"
        )
        result = study.run(resume=resume, progress=progress.show)
    if result.status != "finished":
        typer.echo(f"stopped in order; go on with the same command and --resume, run directory {folder}", err=True)
        return STOPPED
    from .evaluation import single_sentence
    from .report import write_report

    report = write_report(folder)
    if result.validation:
        typer.echo(single_sentence(result.validation))
        typer.echo(f"validation nRMSE {result.validation['nrmse']:#.4g}")
        typer.echo(f"validation VRMSE {result.validation['vrmse']:#.4g}")
    typer.echo(f"report {report}")
    return 0


def _log_warnings(console: Console) -> None:
    """Show what the library warns of above the live display."""
    from rich.logging import RichHandler

    handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
    handler.setLevel(logging.WARNING)
    logging.getLogger("headrace").addHandler(handler)
