"""`headrace rom`: the stages of a reduced model, from full runs or result files to a report; each under mpirun too."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .output_folder import make_folder
from .ranks import together, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.rom.case import RomCase

HELP = "Reduced-order models of structures: compress, run, sample, evaluate, report."

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a reduced model.", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Setting of the case, e.g. cycles=20; repeat for several."),
]
Solver = Annotated[str, typer.Option(help="Full model: embedded, or calculix (needs ccx).")]
Displacement = Annotated[str, typer.Option(metavar="NAME", help="What series of files call the displacement.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines instead of a live display.")]


def compress(  # noqa: PLR0913  the flags of a command
    *,
    which: Annotated[
        str, typer.Argument(metavar="CASE", help="Built-in case, or path/to/file.py[:name].", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder of the model.", show_default=False)],
    settings: Settings = None,
    train: Annotated[
        list[str] | None,
        typer.Option(metavar="'A=1 B=2'", help="Settings of a training run beside --set; repeat for several runs."),
    ] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="PATH", help="Results instead of a run: a CalculiX deck (.inp, .dat beside it), "
                     "'step_*.vtu', .pvd, .xdmf, a store. Repeat for several runs."),
    ] = None,
    mesh: Annotated[
        str | None, typer.Option(metavar="FILE", help="Mesh of a case that takes one. Default: that of --from.")
    ] = None,
    solver: Solver = "embedded",
    at_once: Annotated[int, typer.Option(min=1, help="Runs of CalculiX at the same time.")] = 1,
    pod: Annotated[float, typer.Option(help="Relative tolerance of the PODs.")] = 1e-6,
    cubature: Annotated[float, typer.Option(help="Relative tolerance of the cubature.")] = 5e-6,
    mode: Annotated[str, typer.Option(help="Cubature over ranks: two-level, exact or local.")] = "two-level",
    displacement: Displacement = "displacement",
    plain: Plain = False,
) -> None:  # fmt: skip
    """Train a reduced model on runs of the full one, or on result files."""
    from headrace.rom.model_folder import ModelError, ModelFolder, plain_settings
    from headrace.rom.offline import Tolerances
    from headrace.rom.stages import compress_case

    from .catalogue import find_rom_case, load_rom_case

    comm = world()

    def prepare() -> tuple[Any, RomCase, dict[str, Any], list[dict[str, Any]], list[str], Tolerances]:
        reference = find_rom_case(which)
        loaded = load_rom_case(reference)
        common = loaded.parse(settings or [])
        sources = from_ or [_full_model(solver)]
        count = max(len(train or []), len(sources))
        each = [loaded.parse(shlex.split(text)) for text in train or [""] * count]
        if len(each) != count:
            raise ValueError(f"{len(sources)} times --from and {len(each)} times --train do not fit together.")
        if ModelFolder(out).model.exists():
            raise ModelError(f"{out} has a model already; give another --out, or remove it.")
        if mesh is not None and not loaded.takes_mesh:
            raise ValueError(f"Case {loaded.name} makes its own mesh, of its settings: leave out --mesh.")
        wish = Tolerances(displacement=pod, dual=pod, cubature=cubature, mode=mode)
        if comm is None or comm.rank == 0:
            make_folder(out)
        return reference, loaded, common, [{**common, **one} for one in each], sources, wish

    reference, loaded, common, trainings, sources, wish = together(comm, prepare)
    if comm is None or comm.rank == 0:
        reference = reference.copied_to(out)
    notes = {"variable": reference.name, "sha256": reference.sha256, "settings": plain_settings(common)}
    with _progress(plain) as watch:
        made = compress_case(
            loaded, out, trainings, sources=sources, mesh=mesh, tolerances=wish, displacement=displacement,
            at_once=at_once, notes=notes, comm=comm, watch=watch,
        )  # fmt: skip
    say = Console(highlight=False, soft_wrap=True).print
    for training in made["training"]:
        took = "time not known" if training["seconds"] is None else f"{training['seconds']:.3g} s"
        checks = "".join(f", {name} {value:.1e}" for name, value in training["checks"].items())
        say(f"training: {training['source']}, {training['increments']} increments, {took}{checks}")
    say(f"{made['dofs']:,} dofs to {made['modes']} modes, {made['points']:,} points to {made['reduced_points']}, "
        f"cubature error {made['cubature_error']:.1e}, compressed in {made['compress_seconds']:.3g} s on "
        f"{made['cores']} rank{'s' * (made['cores'] > 1)}")  # fmt: skip
    say(f"wrote {out}; next: headrace rom run {out} --set NAME=VALUE")


def run(
    *,
    model: Model,
    settings: Settings = None,
    loading: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Table (.csv) of a new loading: time, and factors of named loads."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the run. Default: the next number.")] = None,
    viewer: Annotated[str, typer.Option(help="File for ParaView: vtkhdf or xdmf.")] = "vtkhdf",
    enrich: Annotated[
        bool, typer.Option("--enrich", help="Mend the model by full steps while the error indicator is beyond --limit.")
    ] = False,
    limit: Annotated[float, typer.Option(help="Of the error indicator, for --enrich.")] = 2e-3,
) -> None:
    """Answer one query with the reduced model, and write its full fields."""
    from headrace.rom.indicator import ErrorBound
    from headrace.rom.stages import run_query

    comm = world()
    case, asked = together(comm, lambda: _of_model(model, settings or []))
    done = run_query(
        case, model, asked, name=name, loading=loading, viewer=viewer, limit=limit if enrich else None, comm=comm
    )
    say = Console(highlight=False, soft_wrap=True).print
    say(f"{done['name']}: {len(done['times']) - 1} increments in {done['seconds']:.3g} s on one core, "
        f"fields written in {done['fields_seconds']:.3g} s")  # fmt: skip
    if (mended := done["enrichment"]) is not None:
        steps = f"{len(mended['full_steps'])} full step{'s' * (len(mended['full_steps']) > 1)}"
        say(f"error indicator {mended['before']:.2e} was beyond {mended['limit']:g}: {steps} of the full model, "
            f"{mended['iterations']} iterations in all, enriched {model} in {mended['seconds']:.3g} s")  # fmt: skip
        if mended["indicator"] > mended["limit"]:
            say("it still is; train on a run of this kind: headrace rom compress --train ...")
    say(f"largest p {done['largest_p']['value']:.4g}, error indicator {max(done['indicator']):.2e}")
    if done["bound"] is not None:
        bound = ErrorBound(**done["bound"])
        say(f"error of p at most {bound(max(done['indicator'])):.1e} with 95 % probability, if this run is like the "
            f"{bound.count} evaluated so far")  # fmt: skip
    say(f"wrote {model / 'runs' / done['name']}; next: headrace rom evaluate {model} --run {done['name']}")


def sample(
    *,
    model: Model,
    draw: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DISTRIBUTION", help="Setting that varies: 'pull=uniform(110,130)' or "
                     "'pull=normal(120,5)'. Repeat for several."),
    ] = None,
    draws: Annotated[int, typer.Option(min=2, help="How many.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    table: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table (.csv) of settings instead: a row for each draw.")
    ] = None,
    settings: Settings = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the sample. Default: the next number.")
    ] = None,
    plain: Plain = False,
) -> None:  # fmt: skip
    """Answer many queries whose settings vary: statistics of p at the critical point."""
    from headrace.rom.indicator import ErrorBound
    from headrace.rom.sampling import Distribution, drawn, sample_case, tabled

    comm = world()

    def prepare() -> tuple[RomCase, dict[str, Any], dict[str, Any], dict[str, Any]]:
        case, asked = _of_model(model, settings or [])
        if (draw is None) == (table is None):
            raise ValueError("A sample needs --draw NAME=DISTRIBUTION or --table FILE, and not both.")
        if table is not None:
            return case, asked, tabled(case, table), {"table": table.name}
        pairs = [text.partition("=") for text in draw]
        laws = {key.strip(): Distribution.parse(value) for key, _, value in pairs}
        return case, asked, drawn(case, laws, draws, seed), {"seed": seed, **{k: str(v) for k, v in laws.items()}}

    case, asked, varied, notes = together(comm, prepare)
    count = len(next(iter(varied.values())))
    with _progress(plain, "draw") as watch:
        told = sample_case(
            case, model, asked, varied, name=name, notes=notes, comm=comm,
            watch=lambda done: watch("draws", done=done, of=count),
        )  # fmt: skip
    say = Console(highlight=False, soft_wrap=True).print
    low, middle, high = told["quantiles"].values()
    cores = f"{told['cores']} core{'s' * (told['cores'] > 1)}"
    say(
        f"{told['name']}: {count} draws in {told['seconds']:.3g} s on {cores}, {count / told['seconds']:.3g} per second"
    )
    say(f"p at the critical point {told['point']} at the end: mean {told['mean']:.4g} ± {told['standard_error']:.1g}, "
        f"standard deviation {told['deviation']:.3g}; 5, 50, 95 %: {low:.4g}, {middle:.4g}, {high:.4g}")  # fmt: skip
    line = f"largest error indicator {told['largest_indicator']:.2e}"
    if told["bound"] is not None:
        line += f", by which p is off by at most {ErrorBound(**told['bound'])(told['largest_indicator']):.1e}"
    say(line)
    say(f"wrote {model / 'samples' / told['name']}; next: headrace rom report {model}")


def evaluate(
    *,
    model: Model,
    runs: Annotated[
        list[str] | None, typer.Option("--run", metavar="NAME", help="Which run; repeat for several. Default: all.")
    ] = None,
    solver: Solver = "embedded",
    from_: Annotated[
        str | None, typer.Option("--from", metavar="PATH", help="Results of the full model instead of a run of it.")
    ] = None,
    displacement: Displacement = "displacement",
    plain: Plain = False,
) -> None:
    """Compare runs with the full model: errors over time, and what was saved."""
    from headrace.rom.model_folder import ModelError, ModelFolder, read_description
    from headrace.rom.stages import costs, evaluate_run

    comm, where = world(), ModelFolder(model)

    def prepare() -> tuple[RomCase, list[str], str]:
        read_description(where.model)
        names = runs or where.runs()
        if not names:
            raise ModelError(f"{model} has no runs yet: headrace rom run {model} --set NAME=VALUE.")
        if from_ is not None and len(names) > 1:
            raise ModelError("--from belongs to one run: name it with --run.")
        return _of_model(model, [])[0], names, from_ or _full_model(solver)

    case, names, source = together(comm, prepare)
    say = Console(highlight=False, soft_wrap=True).print
    for name in names:
        with _progress(plain) as watch:
            found = evaluate_run(case, model, name, source=source, displacement=displacement, comm=comm, watch=watch)
        told = read_description(where.run(name) / "run.json")
        saved = costs(read_description(where.model), told, found)
        line = f"{name}: error of u {max(found['error_u']):.2e}, of p {max(found['error_p']):.2e}"
        if saved["wall"] is not None:
            cores = f"{found['cores']} core{'s' * (found['cores'] > 1)}"
            mended = told.get("enrichment")
            beside = f" and {mended['seconds']:.3g} s of enrichment" if mended else ""
            line += f"; {found['seconds']:.3g} s on {cores} against {told['seconds']:.3g} s on one{beside}: "
            line += f"{saved['wall']:.3g} times as fast, {saved['core']:.3g} times in core-seconds"
        if saved["break_even"] is not None:
            line += f"; training pays after {saved['break_even']:.2g} such runs"
        say(line)
    say(f"next: headrace rom report {model}")


def report(*, model: Model) -> None:
    """Write the report of a model: one HTML file that needs nothing else."""
    from .rom_report import write_report

    comm = world()
    path = together(comm, lambda: write_report(model) if comm is None or comm.rank == 0 else model / "report.html")
    Console(highlight=False, soft_wrap=True).print(f"report {path}")


STAGES: tuple[Callable[..., None], ...] = (compress, run, sample, evaluate, report)


def _full_model(solver: str) -> str:
    if solver not in ("embedded", "calculix"):
        raise ValueError(f"--solver {solver!r} is not allowed: embedded or calculix.")
    return solver


def _of_model(model: Path, settings: list[str]) -> tuple[RomCase, dict[str, Any]]:
    """Return the case of a model's folder, and settings: those of all training runs, and on top those given."""
    from headrace.rom.model_folder import ModelFolder, read_description, settings_of
    from headrace.solvers.case_file import CaseReference

    from .catalogue import load_rom_case

    notes = read_description(ModelFolder(model).model)["notes"]
    reference = CaseReference(file=model.resolve() / "case.py", name=notes["variable"], sha256=notes["sha256"])
    case = load_rom_case(reference)
    return case, {**settings_of(notes["settings"]), **case.parse(settings)}


@contextmanager
def _progress(plain: bool, unit: str = "increment") -> Iterator[Callable[..., None]]:
    """Yield what shows how many units are done, one bar after the other."""
    from .progress import StepProgress

    with ExitStack() as stack:
        bars: dict[str, StepProgress] = {}

        def watch(what: str, done: int, of: int) -> None:
            if what not in bars:
                stack.close()
                bar: AbstractContextManager[StepProgress] = StepProgress(what, of, plain=plain, unit=unit)
                bars[what] = stack.enter_context(bar)
            bars[what].show(done)

        yield watch
