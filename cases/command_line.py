"""The command line: its verbs, their flags, and how errors reach a person."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import rom_command
from .models import MODELS
from .ranks import USER_ERRORS, launched_rank, launched_size, leave
from .study_flags import setting_parameters

if TYPE_CHECKING:
    from headrace.solvers.case_file import CaseReference

HELP = "Neural PDE surrogates trained online from live MPI solvers."

INTERRUPTED = 130
RESUME_HINT = "; where the study had begun, the same command with --resume goes on"

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a study.", show_default=False)]
Model = Annotated[str, typer.Option(help=f"Surrogate: {', '.join(MODELS)}, or a class of the case's file.")]
Architecture = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="Argument of the surrogate, e.g. modes=12; repeat for several."),
]
NewRun = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Run directory. Default: runs/CASE-MODEL.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live display.")]


def main(arguments: Sequence[str] | None = None, *, own_case: CaseReference | None = None) -> None:
    """Run the command line and end the process: 0 done, 1 a check failed, 2 wrong input or missing resource.

    own_case : the case of a user's script; its verbs then take no CASE.
    """
    app = build_app(own_case)
    if launched_size() == 1 and threading.current_thread() is threading.main_thread():
        # As Ctrl-C: files and processes are left in order. A study has a handler of its own; ranks end with mpirun.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        if launched_rank() > 0:
            # Only rank 0 talks, so that help, usage errors and progress come once.
            silence = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(silence))
            stack.enter_context(redirect_stderr(silence))
        app(args=None if arguments is None else list(arguments))


def build_app(own_case: CaseReference | None = None) -> typer.Typer:
    """Return the Typer application; with a script's own case, `solve`, `generate` and `train` take no CASE."""
    app = typer.Typer(
        help=HELP, no_args_is_help=True, add_completion=own_case is None, pretty_exceptions_enable=False,
        # Plain help: in boxes a flag's description is left with 17 of 80 columns.
        rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )  # fmt: skip
    case = _case_parameter(own_case)
    for function in (
        doctor, cases, solve, generate, train, submit, plan,
        convert, certify, new_case, evaluate, report, status, audit,
    ):  # fmt: skip
        if not (own_case and function in (cases, convert, certify, new_case)):
            first = case if function in (solve, generate, train, submit, plan) else []
            last = setting_parameters() if function in (train, submit, plan) else []
            _add_verb(app, function.__name__.replace("_", "-"), _as_verb(function, first, last, own_case))
    if own_case is None:
        stages = typer.Typer(help=rom_command.HELP, short_help=rom_command.HELP, no_args_is_help=True)
        for function in rom_command.STAGES:
            _add_verb(stages, function.__name__, _as_verb(function, [], [], None))
        app.add_typer(stages, name="rom")
    return app


def doctor() -> int:
    """Check MPI, Ray, torch, shared memory, ports and disk, and say what to do about each finding."""
    from .doctor import examine, show

    return show(examine(Path.cwd()))


def cases() -> None:
    """List the built-in cases with their equation, parameters and cost."""
    from .solve_command import list_cases

    list_cases()


def solve(
    *,
    case: CaseReference,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Value of a parameter; repeat for several. Default: median."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HDF5 file to write, an .xdmf and a .vtkhdf beside it. Default: CASE.h5."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the result into this PNG.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random initial states.")] = 0,
    plain: Plain = False,
) -> None:
    """Run one simulation into an HDF5 file that ParaView opens; serial, or on the ranks of mpirun."""
    from .solve_command import solve_case

    solve_case(case, settings=settings or [], output=output, plot=plot, seed=seed, plain=plain)


def generate(  # noqa: PLR0913  the flags of a command
    *,
    case: CaseReference,
    simulations: Annotated[int, typer.Option(min=1, help="Number of simulations.")] = 100,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Folder. Default: CASE-data.")] = None,
    held_out: Annotated[int, typer.Option(min=0, help="Further simulations for validation, into FOLDER/held_out.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of parameters and random initial states.")] = 0,
    sampler: Annotated[
        str, typer.Option(help="How parameters are drawn: sobol, halton, lhs, uniform or own:NAME.")
    ] = "sobol",
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Simulations at the same time. Default: one per core.")
    ] = None,
    layout: Annotated[
        str, typer.Option(help="headrace, one file per simulation; or well, FOLDER/well besides for The Well's reader.")
    ] = "headrace",
    plain: Plain = False,
) -> int:
    """Run many simulations into a folder, one HDF5 file each, on all cores or on the ranks of mpirun."""
    from .generate_command import generate_data_set

    if layout not in ("headrace", "well"):
        raise ValueError(f"--layout {layout!r} is not allowed: headrace or well.")
    folder = Path(f"{case.load().name}-data") if output is None else output
    failed = generate_data_set(
        case, simulations=simulations, held_out=held_out, folder=folder, seed=seed, sampler=sampler, jobs=jobs,
        plain=plain,
    )  # fmt: skip
    if layout == "well":
        from .well_layout import lay_out

        lay_out(case, folder)
    return failed


def train(
    *,
    case: CaseReference,
    model: Model = "mlp",
    architecture: Architecture = None,
    run_dir: NewRun = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the study stopped; starts it where there is none yet.")
    ] = False,
    plain: Plain = False,
    **given: Any,
) -> int:
    """Train a surrogate online from live MPI simulations, then validate it and write the report."""
    from .train_command import train_case

    chosen = {name: value for name, value in given.items() if value is not None}
    return train_case(
        case, model=model, architecture=architecture or [], run_dir=run_dir, resume=resume, plain=plain, given=chosen
    )


def submit(  # noqa: PLR0913  the flags of a command
    *,
    case: CaseReference,
    model: Model = "mlp",
    architecture: Architecture = None,
    run_dir: NewRun = None,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes of the allocation.")] = 1,
    cores: Annotated[int, typer.Option(min=1, help="Cores on each node.")] = 4,
    minutes: Annotated[int, typer.Option(min=1, help="Time limit; at its end the job goes on by requeueing.")] = 60,
    notice: Annotated[int, typer.Option(min=1, help="Seconds before the limit for the last checkpoint.")] = 120,
    steps: Annotated[
        bool,
        typer.Option("--steps/--jobs-apart", help="Solver jobs are steps of this job, or batch jobs of their own."),
    ] = True,
    directive: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Further directive, as --partition=x; several times too.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the script and submit nothing.")] = False,
    **given: Any,
) -> None:
    """Submit one Slurm job that trains a surrogate online, with Ray on all of its nodes."""
    from .submit_command import Allocation, submit_study

    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen.get("scheduler", "slurm") != "slurm":
        raise ValueError(f"--scheduler {chosen['scheduler']!r} cannot run a whole study; submit knows slurm.")
    allocation = Allocation(
        nodes=nodes, cores=cores, minutes=minutes, notice=notice, steps=steps, options=tuple(directive or ())
    )
    submit_study(
        case, allocation, model=model, architecture=architecture or [], run_dir=run_dir, given=chosen, dry_run=dry_run
    )


def certify(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="CASE|COMMAND",
            show_default=False,
            help="A case, or the command line of a solver, as 'mpirun -n {ranks} ./heat'.",
        ),
    ],
    command: Annotated[str, typer.Option(help="Command line that is to solve the case, instead of its own.")] = "",
    shape: Annotated[str | None, typer.Option(metavar="NXxNY", help="Number of the case's grid points.")] = None,
    ranks: Annotated[str, typer.Option(help="Numbers of ranks to compare; the first one serves all checks.")] = "2,1,4",
    steps: Annotated[int, typer.Option(help="Without a case: snapshots of one simulation.")] = 0,
    parameter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=LOW:HIGH", help="Without a case: a parameter and two values.")
    ] = None,
) -> int:
    """Test a solver that is to stream into a study, and say what is wrong with it; exit code 1 where something is."""
    from .certify_command import certify as run

    return run(subject, command=command, shape=shape, ranks=ranks, steps=steps, parameters=parameter or [])


def convert(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What HEADRACE_OUTPUT named.", show_default=False)],
    of: Annotated[
        str | None, typer.Option("--case", metavar="CASE", help="Case whose grid it is. Default: points one apart.")
    ] = None,
    shape: Annotated[str | None, typer.Option(metavar="NXxNY", help="Number of the case's grid points.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Parameter of the run, kept in the file.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="HDF5 file. Default: FOLDER.h5.")] = None,
) -> None:
    """Turn the blocks that a foreign solver wrote without a study into HDF5 that ParaView opens."""
    from .convert_command import convert as write

    write(folder, case=None if of is None else _chosen_case(of, shape, None), output=output, settings=settings or [])


def plan(
    *,
    case: CaseReference,
    model: Model = "mlp",
    architecture: Architecture = None,
    simulation_seconds: Annotated[
        float | None, typer.Option(help="Seconds of one simulation on its ranks, where the study will run.")
    ] = None,
    batch_seconds: Annotated[
        float | None, typer.Option(help="Seconds of one batch on all workers, where the study will run.")
    ] = None,
    **given: Any,
) -> None:
    """Say how much memory, storage, network and time a study will take, and what limits it; start nothing."""
    from .plan_command import plan_study

    chosen = {name: value for name, value in given.items() if value is not None}
    plan_study(
        case, model=model, architecture=architecture or [], simulation_seconds=simulation_seconds,
        batch_seconds=batch_seconds, given=chosen,
    )  # fmt: skip


def new_case(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the case, as fisher_kpp.", show_default=False)],
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write.")] = Path(),
) -> None:
    """Write the file of a new case, and its test, to be changed."""
    from .new_case_command import new_case as write

    write(name, folder)


def evaluate(run: Run) -> None:
    """Measure the surrogate of a run on its held-out simulations."""
    from .evaluate_command import evaluate_run

    evaluate_run(run)


def report(run: Run) -> None:
    """Write the report of a run: one HTML file that needs nothing else."""
    from .report import write_report

    typer.echo(f"report {write_report(run)}")


def status(run: Run) -> None:
    """Show how far a study is; works while it runs and after."""
    from .status_command import show_status

    show_status(run)


def audit(run: Run) -> int:
    """Prove from three independent logs that no step was lost or counted twice; exit code 1 where one was."""
    from .status_command import show_audit

    return show_audit(run)


def _case_parameter(own_case: CaseReference | None) -> list[inspect.Parameter]:
    """Return the parameters that name the case: CASE, unless a script has its own, and --shape."""
    case = Annotated[
        str, typer.Argument(metavar="CASE", help="Built-in case, or path/to/file.py[:name].", show_default=False)
    ]
    shape = Annotated[str | None, typer.Option(metavar="NXxNY", help="Number of grid points, e.g. 32x32.")]
    parameters = [inspect.Parameter("shape", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=shape)]
    if own_case is None:
        parameters.insert(0, inspect.Parameter("case", inspect.Parameter.KEYWORD_ONLY, annotation=case))
    return parameters


def _add_verb(app: typer.Typer, name: str, verb: Callable[..., None]) -> None:
    """Add a verb whose line in the list of verbs is the first of its docstring, whole on a narrow terminal too."""
    app.command(name=name, short_help=inspect.getdoc(verb).partition("\n")[0])(verb)


def _as_verb(
    function: Callable[..., int | None],
    first: list[inspect.Parameter],
    last: list[inspect.Parameter],
    own_case: CaseReference | None,
) -> Callable[..., None]:
    """Return a verb with flags before and after its own, whose case is looked up and whose errors become one line."""
    takes_case = any(parameter.name == "shape" for parameter in first)

    @functools.wraps(function)
    def verb(*, debug: bool, **flags: Any) -> None:
        try:
            if takes_case:
                flags["case"] = _chosen_case(flags.pop("case", None), flags.pop("shape"), own_case)
            code = function(**flags)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt:
            typer.secho(f"interrupted{RESUME_HINT if function is train else ''}", fg="red", err=True)
            # A rank that waits in MPI for this one hears of the interrupt never; one in a long call of numpy hears of
            # it when that returns, and must then still take away the files that it has half written.
            leave(INTERRUPTED, "interrupted", patience=3.0)
        except Exception as error:
            leave(_explain(error, debug=debug), f"{type(error).__name__}: {error}")
        leave(code or 0)

    names = _annotation_names(function)
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(function, eval_str=True, globals=names).parameters.values()
        if parameter.name != "case" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    option = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
    debug = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
    parameters = [*first, *own, debug, *last]
    del verb.__wrapped__
    verb.__signature__ = inspect.Signature(parameters)
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return verb


def _annotation_names(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what a verb's annotations refer to; the case's own type is not needed to parse flags."""
    return {**function.__globals__, "CaseReference": Any}


def _chosen_case(text: str | None, shape: str | None, own_case: CaseReference | None) -> CaseReference:
    from .catalogue import find_case, parse_shape

    points = None if shape is None else parse_shape(shape)
    if text is not None:
        return find_case(text, points)
    assert own_case is not None
    return own_case if points is None else replace(own_case, shape=points)


def _explain(error: Exception, *, debug: bool) -> int:
    """Write an error for a person, once, and return the exit code: 2 for a wrong input, 1 for a defect of ours."""
    # What no loaded module can have raised need not be loaded: `headrace rom` does without torch.
    names = {"ledger": "LedgerDamage", "run_directory": "StudyError"}
    modules = {name: sys.modules.get(f"headrace.online_training.{name}") for name in names}
    kinds = [getattr(module, names[name]) for name, module in modules.items() if module is not None]
    expected = isinstance(error, (*USER_ERRORS, *kinds))
    if debug or not expected:
        traceback.print_exception(error)
    if not expected:
        typer.echo("This is a defect of headrace, not of your input; please report it with the lines above.", err=True)
        return 1
    hint = " (--debug shows where)" if isinstance(error, TypeError) and not debug else ""
    # Of an error of the system with words of ours, not its number.
    ours = isinstance(error, OSError) and error.strerror and error.filename is None
    typer.secho(f"error: {error.strerror if ours else error}{hint}", fg="red", err=True)
    return 2
