"""The report of a reduced model: one HTML file with pictures, curves and tables, from the model's own files."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from headrace.rom.atomic import write_text
from headrace.rom.mesh import Mesh
from headrace.rom.model_folder import ModelFolder, installed_version, read_description
from headrace.rom.stages import costs
from headrace.rom.store import Store

from . import pictures, rom_pictures
from .catalogue import load_rom_case
from .pictures import Picture

MAX_PICTURED = 4
"""Runs that get a section with pictures: those with the largest errors, worst first."""


def write_report(model: str | Path) -> Path:
    """Write report.html and pictures/ into the folder of a model and return the path of the report.

    Works before anything was run or evaluated: what is not there yet is said to be missing.

    Raises
    ------
    ModelError, StoreError : no model there, or its files are damaged.
    OSError : the report cannot be written.
    """
    where = ModelFolder(Path(model))
    described = read_description(where.model)
    runs = [_Run(where, described, name) for name in where.runs()]
    folder = where.path / "pictures"
    folder.mkdir(exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True,
    )  # fmt: skip
    mesh, figures = _model_figures(where, folder)
    samples = [read_description(where.sample(name) / "sample.json") for name in where.samples()]
    html = environment.get_template("rom_report.html").render(
        title=f"Reduced model of {described['case']}",
        subtitle=_subtitle(where, described),
        numbers=_numbers(described, runs),
        notes=_notes(runs, len(described.get("enrichments", []))),
        model=figures,
        data=[_training_table(described), _run_table(runs)],
        runs=[_section(run, mesh, folder) for run in sorted(runs, key=lambda r: -r.worst)[:MAX_PICTURED] if run.found]
        + [_sample_section(where, sample, folder) for sample in samples],
        tables=_tables(described),
        version=installed_version("headrace"),
        date=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"),
    )
    path = where.path / "report.html"
    write_text(path, html)
    return path


class _Run:
    """One run: what was asked, what the full model says to it where it was evaluated, and what it saved."""

    def __init__(self, where: ModelFolder, model: Mapping[str, Any], name: str) -> None:
        self.name, self.place = name, where.run(name)
        self.asked = read_description(self.place / "run.json")
        evaluation = self.place / "evaluation.json"
        self.found = read_description(evaluation) if evaluation.exists() else None
        self.saved = costs(model, self.asked, self.found) if self.found else None

    @property
    def worst(self) -> float:
        """The largest error of p or u, -1 where it is not known."""
        return max(*self.found["error_p"], *self.found["error_u"]) if self.found else -1.0

    @property
    def settings(self) -> str:
        """What was asked, in words."""
        words = _settings_text(self.asked["settings"])
        words += ", loading of a table" if self.asked["loading"] else ""
        return words + (f"; {_steps_text(mended)}" if (mended := self.asked.get("enrichment")) else "")


def _settings_text(settings: Mapping[str, Any]) -> str:
    def one(value: Any) -> str:
        return ", ".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)

    return "; ".join(f"{name} = {one(value)}" for name, value in settings.items()) or "as in the case"


def _steps_text(enrichment: Mapping[str, Any]) -> str:
    count = len(enrichment["full_steps"])
    return f"enriched by {count} full step{'s' * (count > 1)}, {enrichment['iterations']} iterations in all"


def _subtitle(where: ModelFolder, described: Mapping[str, Any]) -> str:
    from headrace.solvers.case_file import CaseReference

    file = where.path.resolve() / "case.py"
    case = load_rom_case(CaseReference.of(file, described["notes"]["variable"]))
    law = " Its laws are the nearest that CalculiX has." if described["counterpart"] else ""
    return f"{case.description}{law} {described['dofs']:,} unknowns, {described['points']:,} quadrature points."


def _numbers(described: Mapping[str, Any], runs: list[_Run]) -> list[dict[str, str]]:
    numbers = [
        (f"{described['modes']}", f"modes for {described['dofs']:,} unknowns"),
        (f"{described['reduced_points']}", f"points of {described['points']:,}"),
    ]
    if seen := [run for run in runs if run.found]:
        worst = {name: max(max(run.found[f"error_{name}"]) for run in seen) for name in "up"}
        numbers += [
            (f"{worst['u']:.1e}", "largest error of the displacement u"),
            (f"{worst['p']:.1e}", "largest error of p, the accumulated viscoplastic strain"),
        ]
    if timed := [run for run in runs if run.saved and run.saved["wall"]]:
        median = sorted(timed, key=lambda run: run.saved["core"])[len(timed) // 2]
        numbers.append((f"{median.saved['core']:.3g} ×", "less core time than the full model (median run)"))
        if median.saved["break_even"] is not None:
            numbers.append((f"{median.saved['break_even']:.2g}", "such runs pay for training and compression"))
    return [{"value": value, "name": name} for value, name in numbers]


def _notes(runs: list[_Run], enrichments: int) -> list[str]:
    if not runs:
        return ["Nothing was asked of the model yet: `headrace rom run` does."]
    earlier = [run.name for run in runs if run.asked.get("enrichments", 0) < enrichments]
    missing = [run.name for run in runs if not run.found]
    notes = [f"Answered before the model was last enriched: {', '.join(earlier)}."] if earlier else []
    if missing:
        notes.append(f"Not compared with the full model: {', '.join(missing)}. `headrace rom evaluate` does.")
    return notes


def _model_figures(where: ModelFolder, folder: Path) -> tuple[Mesh, list[Picture]]:
    with Store(where.reduction) as store:
        mesh = store.mesh
        points, weights = store.get("model/points"), store.get("model/weights")
        names = [name.split("/")[-1] for name in store.names("spectrum")]
        spectra = {name: store.get(f"spectrum/{name}") for name in names}
    order = ["displacement", "p", "state", *sorted(n for n in names if n.startswith("stress_"))]
    lines = {}
    for name in [n for n in order if n in spectra and len(spectra[n]) and spectra[n][0] > 0]:
        decay = spectra[name] / spectra[name][0]
        decay = decay[decay > 1e-16]
        label = {"displacement": "u", "state": "all internal variables"}.get(name, name.replace("stress_", "stress "))
        lines[label] = (list(range(1, len(decay) + 1)), decay.tolist())
    unweighted = int(np.sum(weights == 0))
    few = dict(list(lines.items())[: len(pictures.COLOURS)])
    drawn = {
        "singular-values": (
            pictures.curves(few, x="mode", y="Singular values, over the first", logarithmic=True),
            "How fast the singular values of the snapshots fall: fields with a steep curve need few modes.",
        ),
        "points": (
            rom_pictures.points_on_mesh(mesh, points, weights),
            f"The {np.count_nonzero(weights)} cubature points at which the law is evaluated online"
            + (f", and {unweighted} more that serve the reconstruction of p." if unweighted else "."),
        ),
    }
    for name, (image, _) in drawn.items():
        (folder / f"{name}.png").write_bytes(image)
    return mesh, [Picture.of(image, caption) for image, caption in drawn.values()]


def _section(run: _Run, mesh: Mesh, folder: Path) -> dict[str, Any]:
    """Return the section of an evaluated run: p of both and their difference, errors, and p at one point over time."""
    found, asked = run.found, run.asked
    times, at_point, point = found["times"], found["p_at_point"], asked["largest_p"]["point"]
    seen = {"u": (times, found["error_u"]), "p": (times, found["error_p"]),
            "indicator": (asked["times"], asked["indicator"])}  # fmt: skip
    visible = {name: line for name, (x, y) in seen.items() if (line := _visible(x, y))[0]}
    curves = {}
    if visible:
        curves["errors"] = (
            pictures.curves(visible, x="time", y="Relative error", logarithmic=True),
            "Errors of displacement and p in L2, over the largest norm of the run; the indicator needs no full model.",
        )
    if any(at_point["full"]):
        history = {"full model": (times, at_point["full"]), "reduced": (times, at_point["reduced"])}
        curves["p-at-point"] = (
            pictures.curves(history, x="time", y="p where it is largest"),
            f"Accumulated viscoplastic strain at quadrature point {point}, where the reduced model has its largest.",
        )
    with Store(run.place / "truth") as truth, Store(run.place / "fields") as fields:
        full = truth.point_field("p", len(truth.times) - 1)
        at = int(np.argmin(np.abs(fields.times - truth.times[-1])))
        reduced = fields.point_field("p", at)
    fields = None
    if np.any(full):
        both = {"p, full model": full, "p, reduced model": reduced, "reduced minus full": reduced - full}
        image = rom_pictures.fields_on_mesh(mesh, both, errors=("reduced minus full",))
        (folder / f"{run.name}-p.png").write_bytes(image)
        caption = f"p at t = {times[-1]:.4g}, means of the elements. Both models share one colour scale."
        fields = Picture.of(image, caption)
    for name, (drawn, _) in curves.items():
        (folder / f"{run.name}-{name}.png").write_bytes(drawn)
    summary = f"{run.settings}. Largest error of u {max(found['error_u']):.2e}, of p {max(found['error_p']):.2e}."
    checks = ", ".join(f"{name} {value:.1e}" for name, value in found["checks"].items())
    if checks:
        summary += f" The full model's results were replayed from {found['source']}; worst checks: {checks}."
    return {
        "heading": f"Compared with the full model: {run.name}",
        "summary": summary, "fields": fields,
        "figures": [Picture.of(drawn, text) for drawn, text in curves.values()],
    }  # fmt: skip


def _sample_section(where: ModelFolder, told: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the section of a sample: p at the critical point over time, and its distribution at the end."""
    table = np.loadtxt(where.sample(told["name"]) / "table.csv", delimiter=",", skiprows=1, ndmin=2)
    ends = np.sort(table[:, len(told["varied"])])
    over = {"mean" if name == "mean" else f"{float(name):.0%}": (told["times"], values)
            for name, values in told["over_time"].items()}  # fmt: skip
    share = {"draws": (((np.arange(len(ends)) + 0.5) / len(ends)).tolist(), ends.tolist())}
    drawn = {
        "p-over-time": (
            pictures.curves(over, x="time", y="p at the critical point"),
            f"p at quadrature point {told['point']}: mean over all draws, and 5, 50 and 95 % of them lie below.",
        ),
        "p-distribution": (
            pictures.curves(share, x="share of draws", y="p at the critical point at the end"),
            "How p at the critical point is distributed at the end: so many draws lie below the curve.",
        ),
    }
    for name, (image, _) in drawn.items():
        (folder / f"{told['name']}-{name}.png").write_bytes(image)
    varied = {name: told["notes"].get(name, "of a table") for name in told["varied"]}
    summary = (
        f"{told['draws']} draws of {', '.join(f'{name} {of}' for name, of in varied.items())}, answered in "
        f"{_seconds(told['seconds'])} on {told['cores']} core{'s' * (told['cores'] > 1)}. p at the end: mean "
        f"{told['mean']:.4g} with a standard error of {told['standard_error']:.1g}, standard deviation "
        f"{told['deviation']:.3g}, largest error indicator {told['largest_indicator']:.1e}."
    )
    return {
        "heading": f"Many queries: {told['name']}", "summary": summary, "fields": None,
        "figures": [Picture.of(image, caption) for image, caption in drawn.values()],
    }  # fmt: skip


def _training_table(described: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [k + 1, _settings_text(t["settings"]), t["source"], t["increments"], _seconds(t["seconds"]), t["cores"],
         _seconds(t["replay_seconds"]) if t["replay_seconds"] else ""]
        for k, t in enumerate(described["training"])
    ]  # fmt: skip
    rows += [
        [k + 1, _settings_text(e["settings"]), f"{_steps_text(e)}, for {e['run']}", "", _seconds(e["seconds"]),
         e["cores"], ""]
        for k, e in enumerate(described.get("enrichments", []), start=len(rows))
    ]  # fmt: skip
    summary = (
        f"What the model was made of. Compression took {_seconds(described['compress_seconds'])} on "
        f"{described['cores']} core{'s' * (described['cores'] > 1)}; the cubature integrates all training integrands "
        f"to {described['cubature_error']:.1e}."
    )
    return {
        "heading": "Training", "summary": summary, "text_columns": (1, 2),
        "headings": ["number", "settings", "full model", "increments", "time", "cores", "replay"], "rows": rows,
    }  # fmt: skip


def _run_table(runs: list[_Run]) -> dict[str, Any]:
    rows = []
    for run in runs:
        asked, found, saved = run.asked, run.found, run.saved
        row = [run.name, run.settings, f"{max(asked['indicator']):.1e}"]
        row += [f"{max(found['error_u']):.1e}", f"{max(found['error_p']):.1e}"] if found else ["", ""]
        row += [_seconds(asked["seconds"]), _seconds(asked["fields_seconds"])]
        row += [_seconds(found["seconds"]), found["cores"]] if found else ["", ""]
        known = saved is not None and saved["wall"] is not None
        row += [f"{saved['wall']:.3g}", f"{saved['core']:.3g}"] if known else ["", ""]
        row += [f"{saved['break_even']:.2g}" if saved and saved["break_even"] is not None else ""]
        rows.append(row)
    offline = next((r.saved["offline_core_seconds"] for r in runs if r.saved), None)
    summary = "The reduced model answers on one core. Wall: ratio of wall times; core: ratio of core-seconds. Both "
    summary += "count the enrichment that a run asked for, but neither the writing of fields nor what was spent offline"
    summary += "." if offline is None else f": {offline:.3g} core-seconds, paid back after so many runs of the kind."
    return {
        "heading": "Runs", "summary": summary, "rows": rows, "text_columns": (0, 1),
        "headings": ["run", "settings", "indicator", "error u", "error p", "reduced", "fields", "full", "its cores",
                     "wall", "core", "pays after"],
    }  # fmt: skip


def _tables(described: Mapping[str, Any]) -> list[dict[str, Any]]:
    modes = {"u": described["modes"], **{n.replace("_", " "): m for n, m in described["dual_modes"].items()}}
    tolerances = [(name.replace("_", " "), value) for name, value in described["tolerances"].items()]
    return [
        {"heading": "Tolerances and modes",
         "rows": [*tolerances, *((f"modes of {name}", m) for name, m in modes.items()),
                  ("cubature points", described["cubature_points"])]},
        {"heading": "Versions and hardware of the training", "rows": sorted(described["origin"].items())},
    ]  # fmt: skip


def _visible(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """Return the part of a curve that a logarithmic axis shows: what is zero but for rounding is left out."""
    kept = [(a, b) for a, b in zip(x, y, strict=True) if b > 1e-10]
    return [a for a, _ in kept], [b for _, b in kept]


def _seconds(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3g} s"
