"""`headrace submit`: one batch job that runs a whole study; its solvers are steps of the job, or jobs themselves."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import typer

from headrace.online_training.interface import AUTO
from headrace.online_training.scheduler import STEPS, Scheduler
from headrace.online_training.settings import RAY_NODES

from .output_folder import make_folder
from .study_flags import check_settings, flag
from .train_command import STOPPED

if TYPE_CHECKING:
    from headrace.solvers.case_file import CaseReference

_TEMPLATE = Path(__file__).with_name("templates") / "submit_slurm.sh"
_WHERE = ("scheduler", "ray_address")  # the script's own matter
_SOLVERS = {
    True: "its solver jobs are steps on all of them",
    False: "its solver jobs are batch jobs of their own",
}


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """What to ask the scheduler for.

    nodes, cores : number of nodes, and of cores on each.
    minutes : time limit of one job; a study that needs more goes on in the same job, requeued.
    notice : seconds before the limit at which the study writes its last checkpoint.
    options : further directives.
    steps : whether solver jobs are steps of this allocation; else they are batch jobs of their own, that connect in.
    """

    nodes: int
    cores: int
    minutes: int
    notice: int
    options: tuple[str, ...]
    steps: bool


def submit_study(
    reference: CaseReference, allocation: Allocation, *, model: str, architecture: list[str], run_dir: Path | None,
    given: dict[str, Any], dry_run: bool,
) -> None:  # fmt: skip
    """Write the script into the run directory and submit it; with dry_run, print it only.

    Raises
    ------
    ValueError : a setting that does not fit, too few cores for one solver job, or no time beside the notice.
    OSError : the folder of the run directory cannot be made.
    SchedulerError : the scheduler refuses.
    """
    name = reference.load().name
    folder = (run_dir if run_dir is not None else Path("runs") / f"{name}-{model.lower()}").absolute()
    settings = check_settings(given)
    if allocation.steps and settings.ranks > allocation.nodes * allocation.cores:
        raise ValueError(
            f"A solver job has {settings.ranks} ranks, but {allocation.nodes} nodes with {allocation.cores} cores each "
            "were asked for. Give more --nodes or --cores, or fewer --ranks."
        )
    if allocation.notice >= 60 * allocation.minutes:
        raise ValueError(
            f"--notice {allocation.notice} is no less than the whole time of a job, {60 * allocation.minutes} seconds. "
            "Give more --minutes, or less notice."
        )
    script = render(
        reference, allocation, name=name, model=model, architecture=architecture, folder=folder, given=given
    )
    if dry_run:
        typer.echo(script, nl=False)
        return
    make_folder(folder.parent)
    path = folder.with_name(folder.name + ".sbatch")
    path.write_text(script, encoding="utf-8")
    identity = Scheduler.load("slurm").submit_script(path)
    typer.echo(f"job {identity}, script {path}, log {folder.with_name(folder.name + '.log')}")


def render(
    reference: CaseReference, allocation: Allocation, *, name: str, model: str, architecture: list[str], folder: Path,
    given: dict[str, Any],
) -> str:  # fmt: skip
    """Return the batch script of a study."""
    command = [sys.executable, "-P", "-m", "headrace.cases", "train", f"{reference.file}:{reference.name}"]
    if reference.shape is not None:
        command += ["--shape", "x".join(map(str, reference.shape))]
    command += ["--model", model, *(word for text in architecture for word in ("--architecture", text))]
    for setting, value in given.items():
        if setting in _WHERE:
            continue
        if isinstance(value, bool):
            command.append(flag(setting) if value else f"--no-{flag(setting)[2:]}")
        else:
            command += [flag(setting), str(value)]
    command += ["--run-dir", str(folder), "--resume", "--plain"]
    command += ["--scheduler", STEPS if allocation.steps else "slurm"]
    command += [] if "interface" in given else ["--interface", AUTO]
    command += ["--ray-address", RAY_NODES] if allocation.nodes > 1 else []
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        keep_trailing_newline=True,
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        name=name, nodes=allocation.nodes, cores=allocation.cores, minutes=allocation.minutes, notice=allocation.notice,
        options=allocation.options, log=folder.with_name(folder.name + ".log"), folder=shlex.quote(str(Path.cwd())),
        command=shlex.join(command), solvers=_SOLVERS[allocation.steps], stopped=STOPPED,
    )  # fmt: skip
