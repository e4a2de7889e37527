"""The report of a run: one HTML file with pictures, curves and tables, made from the run's own logs."""

from __future__ import annotations

import datetime
import inspect
import json
import os
import platform
import tomllib
from pathlib import Path
from typing import Any

import jinja2
import psutil

from headrace.online_training.run_directory import write_text
from headrace.rom.model_folder import installed_version, processor
from headrace.surrogates import LPINN

from . import pictures
from .error_pictures import error_pictures
from .evaluation import Evaluation, evaluate_held_out, parameters_text, ranked
from .frame_pictures import frame_pictures
from .pictures import Picture
from .run_data import RunData, figures_of

MAX_ROWS = 40
"""Rows of the simulations table; larger studies show the held-out ones, the troubled ones and the first others."""

LARGE_DRIFT = 0.5
"""In standard deviations of the field; the report names what moved further than this."""


def write_report(run_dir: str | Path) -> Path:
    """Write report.html and pictures/ into a run directory and return the path of the report.

    Works on a run that is not finished: what is not there yet is said to be missing.

    Raises
    ------
    StudyError, ValueError : no study there, or its files are damaged.
    OSError : the report cannot be written.
    """
    data = RunData.read(run_dir)
    evaluation = evaluate_held_out(data)
    folder = data.directory.path / "pictures"
    folder.mkdir(exist_ok=True)
    path = data.directory.path / "report.html"
    write_text(path, render(data, evaluation, folder))
    return path


def render(data: RunData, evaluation: Evaluation | None, folder: Path) -> str:
    """Return the report as HTML; its pictures are also left as files in the folder."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True,
    )  # fmt: skip
    case = data.case
    equation = (inspect.getdoc(case.rhs or case.solver) or "").split("\n")[0]
    grid = " × ".join(map(str, case.grid.shape))
    nothing = "No held-out simulation is complete yet." if data.record.settings.held_out else "None were asked for."
    if evaluation is None and data.record.settings.held_out and any(data.directory.held_out.glob("*.h5")):
        nothing = "There is no trained model yet."
    return environment.get_template("report.html").render(
        title=f"{case.name}, surrogate {data.record.model}",
        equation=equation,
        subtitle=f"{case.description} {grid} points, {case.num_snapshots} recorded steps up to t = {case.duration:g}; "
        f"parameters: {', '.join(f'{name} {d}' for name, d in case.parameters.items())}.",
        numbers=_numbers(data, evaluation),
        baseline=evaluation.baseline_sentence() if evaluation else "",
        notes=_notes(data),
        nothing_held_out=nothing,
        comparisons=_comparisons(data, evaluation, folder) if evaluation else [],
        sections=_sections(data, evaluation, folder),
        simulations=None if data.record.settings.offline else _simulations(data, evaluation),
        tables=_tables(data),
        version=installed_version("headrace"),
        date=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
    )


def _numbers(data: RunData, evaluation: Evaluation | None) -> list[dict[str, str]]:
    """Return the headline numbers that are known."""
    last = figures_of({"intake": (data.intake or [None])[-1]})
    times, _ = data.column(data.intake, "elapsed")
    numbers: list[tuple[str, str]] = []
    if evaluation is not None:
        errors = evaluation.errors
        numbers += [(f"{100 * errors['nrmse']:.3g} %", f"nRMSE on {len(evaluation.files)} held-out simulations")]
        numbers += [(f"{errors['vrmse']:#.4g}", "VRMSE (1 predicts the mean)")]
        numbers += [(f"{errors['max_error']:.3g}", f"largest error of {', '.join(data.case.fields)}")]
    if data.record.settings.offline:
        numbers.append((f"{data.record.settings.simulations}", "simulations of a data set"))
    elif data.simulations_completed:
        numbers.append((f"{data.simulations_completed}", f"simulations, {data.steps_accepted:,} steps streamed"))
    if times:
        numbers.append((_duration(times[-1] - times[0]), "wall-clock time"))
    if data.samples_per_second is not None:
        numbers.append((f"{data.samples_per_second:,.0f}", "training samples per second (median)"))
    if last.blocked is not None:
        numbers.append((f"{last.blocked:.0%}", "of the solvers' time blocked"))
    if data.starved is not None:
        numbers.append((f"{data.starved:.0%}", "of the trainer's time starved"))
    return [{"value": value, "name": name} for value, name in numbers]


def _notes(data: RunData) -> list[str]:
    notes = []
    if not data.ledger.finished:
        notes.append("This study has not finished: `headrace train ... --resume` goes on with it.")
    notes += [f"This study {end}." for end in data.ledger.sessions.values() if end.startswith("finished early")]
    troubled = [one for one in data.ledger.simulations.values() if one.quarantine is not None]
    notes += [f"Simulation {one.number} is in quarantine and was not trained on: {one.quarantine}" for one in troubled]
    remedy = "" if data.ledger.finished_early else " `headrace train ... --resume` makes it."
    notes += [
        f"Held-out simulation {one.number} has no file: {one.log[max(one.log)].reason}.{remedy}"
        for one in data.ledger.lacking_files
    ]
    again = sum(one.attempts - 1 for one in data.ledger.simulations.values() if one.attempts > 1)
    if again:
        notes.append(f"{again} further attempt{'s' * (again > 1)} at simulations that were lost or had to run again.")
    return [*notes, *_drift(data)]


def _drift(data: RunData) -> list[str]:
    """Return a sentence for every field that moved away from what the normaliser was frozen at."""
    drift = next((record["drift"] for record in reversed(data.intake) if record.get("drift")), None)
    if drift is None:
        return []
    return [
        f"{field} moved after the normaliser was frozen: its mean by {mean:+.2f} standard deviations, its standard "
        f"deviation by a factor of {std:.2f}. A larger --watermark freezes it later."
        for field, mean, std in zip(data.case.fields, drift["mean"], drift["std"], strict=True)
        if abs(mean) > LARGE_DRIFT or not 1 / (1 + LARGE_DRIFT) < std < 1 + LARGE_DRIFT
    ]


def _comparisons(data: RunData, evaluation: Evaluation, folder: Path) -> list[dict[str, Any]]:
    """Return pictures of the held-out simulations with median and largest error."""
    middle, worst = _middle(evaluation), ranked(evaluation.errors)[-1]
    chosen = {"Held out": worst} if len(evaluation.files) == 1 else {"Median error": middle, "Largest error": worst}
    items = []
    for word, errors in chosen.items():
        number = errors["simulation"]
        one, predicted = evaluation.compare(number)
        images = []
        for index, field in enumerate(data.case.fields):
            png = pictures.comparison(
                one.states[:, index], predicted[:, index], one.times, field=field, extent=data.case.grid.extent
            )
            (folder / f"held_out-{number:06d}-{field}.png").write_bytes(png)
            images.append(Picture.of(png, f"Simulation {number}, field {field}: solver, surrogate, difference"))
        heading = f"{word}: simulation {number}, nRMSE {100 * errors['nrmse']:.3g} %"
        caption = f"Parameters: {parameters_text(one.parameters, evaluation.surrogate.problem)}. "
        caption += f"Largest difference anywhere: {errors['max_error']:.3g}. Early times are shown more densely."
        items.append({"heading": heading, "pictures": images, "caption": caption})
    return items


def _middle(evaluation: Evaluation) -> dict[str, Any]:
    """Return the errors of the held-out simulation in the middle."""
    order = ranked(evaluation.errors)
    return order[(len(order) - 1) // 2]


def _sections(data: RunData, evaluation: Evaluation | None, folder: Path) -> list[dict[str, Any]]:
    """Return the sections with curves; a curve without records is left out."""
    x = "seconds since the start"
    source, waits = (
        ("Data set", "The trainer is starved by batches that are not read yet.")
        if data.record.settings.offline
        else ("Stream", "A full reservoir blocks solvers; the trainer waits for windows that still want uses.")
    )
    errors = error_pictures(evaluation) if evaluation else []
    training = [
        ("loss", "Training loss", pictures.curves, {"loss": data.column(data.metrics, "loss")},
         {"logarithmic": True}, "Training loss: mean squared error in units of the fields' variances."),
        ("validation", "Validation error", pictures.curves,
         {"nRMSE": data.column(data.validation, "nrmse"), "VRMSE": data.column(data.validation, "vrmse")},
         {"logarithmic": True}, "Error on the held-out simulations known at the time, at every checkpoint."),
    ]  # fmt: skip
    stream = [
        ("buffer", "Windows in the reservoir", pictures.curves,
         {"population": data.column(data.intake, "population"), "never used": data.column(data.intake, "unseen")}, {},
         "Population of the reservoir, and the part of it that no batch has used yet."),
        ("waiting", "Time spent waiting", pictures.curves,
         {"solvers blocked": _blocked(data), "trainer starved": data.column(data.metrics, "starved")},
         {"percent": True}, waits),
        ("steps", "Steps accepted", pictures.curves, {"steps": data.column(data.intake, "steps_accepted")}, {},
         "Time steps received from the solvers."),
        ("speed", "Samples per second", pictures.curves,
         {"samples/s": data.column(data.metrics, "samples_per_second")}, {}, "Training windows used per second."),
    ]  # fmt: skip
    sections = [("error-over-time", "Error over time", errors)]
    if evaluation is not None and isinstance(evaluation.surrogate, LPINN):
        number = _middle(evaluation)["simulation"]
        one, _ = evaluation.compare(number)
        heading = f"The moving frame, at the parameters of simulation {number}"
        sections.append(("frame", heading, frame_pictures(evaluation.surrogate, one.parameters)))
    for identity, heading, rows in (("training", "Training", training), ("stream", source, stream)):
        drawn = []
        for name, title, draw, lines, options, caption in rows:
            lines = {label: line for label, line in lines.items() if line[0]}
            if lines:
                drawn.append((name, draw(lines, x=x, y=title, **options), caption))
        sections.append((identity, heading, drawn))
    result = []
    for identity, heading, drawn in sections:
        for name, png, _ in drawn:
            (folder / f"{name}.png").write_bytes(png)
        figures = [Picture.of(png, caption) for _, png, caption in drawn]
        result.append({"id": identity, "heading": heading, "figures": figures})
    return result


def _blocked(data: RunData) -> tuple[list[float], list[float]]:
    records = [{**r, "blocked": figures_of({"intake": r}).blocked} for r in data.intake]
    return data.column(records, "blocked")


def _simulations(data: RunData, evaluation: Evaluation | None) -> dict[str, Any]:
    """Return the table of simulations: the held-out ones, those with trouble, then the first others."""
    errors = {one["simulation"]: one["nrmse"] for one in evaluation.errors["simulations"]} if evaluation else {}
    history = data.ledger.simulations
    names = list(data.case.parameters)
    ordered = sorted(
        history.values(),
        key=lambda one: (not one.held_out, one.attempts < 2 and one.status != "quarantined", one.number),
    )
    rows = [
        [
            one.number, "held out" if one.held_out else "training", one.status, one.attempts,
            f"{100 * errors[one.number]:.3g} %" if one.number in errors else "",
            *(f"{one.parameters[name]:.4g}" for name in names),
        ]
        for one in ordered[:MAX_ROWS]
    ]  # fmt: skip
    summary = f"{len(ordered)} planned"
    if len(ordered) > MAX_ROWS:
        summary += f"; shown are {MAX_ROWS}: the held-out ones, those with trouble, then the first others"
    return {
        "summary": summary + ".", "headings": ["number", "use", "status", "attempts", "nRMSE", *names], "rows": rows,
        "text_columns": (1, 2),
    }  # fmt: skip


def _tables(data: RunData) -> list[dict[str, Any]]:
    """Return settings, versions and hardware as tables."""
    study = tomllib.loads((data.directory.path / "study.toml").read_text(encoding="utf-8"))
    settings = [(name.replace("_", " "), value) for name, value in study["settings"].items()]
    model = [("class", study["model"]["class"]), *_architecture(data)]
    case = [("case", data.case.name), ("SHA-256 of its file", study["case"]["sha256"][:16] + "…")]
    hardware = [
        ("processor", processor()),
        ("cores", os.cpu_count()),
        ("memory", f"{psutil.virtual_memory().total / 2**30:.1f} GiB"),
        ("system", f"{platform.system()} {platform.release()}"),
    ]
    return [
        {"heading": "Study", "rows": [("identity", study["study"]), *case, *settings]},
        {
            "heading": "Surrogate, versions, hardware of this report",
            "rows": [*model, *sorted(study["versions"].items()), *hardware],
        },
    ]


def _architecture(data: RunData) -> list[tuple[str, Any]]:
    config = data.directory.model_initial / "config.json"
    if not config.is_file():
        return []
    content = json.loads(config.read_text(encoding="utf-8"))
    return [*content["architecture"].items(), ("weights", f"{content['num_weights']:,}")]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
