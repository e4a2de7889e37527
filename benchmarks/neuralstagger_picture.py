"""Pictures of docs/neuralstagger.md: error against time on one GPU and roll-outs, the flow past a block.

    python benchmarks/neuralstagger_picture.py [--quick] [--block FOLDER [--seed S]]

Writes docs/pictures/neuralstagger.png from the lines of neuralstagger.py; with --quick nothing but what it would draw.
With --block it rolls out the network of P5 whose weights are in a folder: docs/pictures/neuralstagger_block.png.
"""

from __future__ import annotations

import argparse
import json
import re
from math import ceil
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROBLEMS = ("P1", "P2", "P3", "P4 Re 100", "P4 Re 400", "P4 Re 1000", "P5", "P6", "P7")
ACROSS = 4
"""Panels side by side."""
PLACE = ("axes fraction", "data")
BATCHES = {"": "", " of each of 64": ", each of 64"}
"""What the name of a time ends with, and what the legend says of it."""
COLOURS = {
    "1": "C3", "2, shared": "C4", "4, shared": "C5", "2": "C6", "4": "C8", "2, shared, common layers": "C9",
}  # fmt: skip
"""Of the networks in all panels, by their factor and what else they are."""
SOLVERS = {"spectral": "C0", "torch-cfd": "C1", "explicit": "C2"}
STUDIES = {"states of the stream": "black", "states of its own making": "C7"}
LINES = ("-", "--", ":")
Points = list[tuple[float, float]]
"""Milliseconds and errors."""


def read(device: str = "cuda") -> dict[str, dict[str, Any]]:
    """Return the recorded lines on a GPU, or on a CPU, by name."""
    path = HERE / "results" / f"neuralstagger-{device}.json"
    return {line["name"]: line for line in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def classical(lines: dict[str, dict[str, Any]], problem: str, who: str, batch: str) -> Points:
    """Return the points of the classical solvers of a problem whose names begin with `who`, none slower and worse.

    Lines over one span of frames of two are left out: what is drawn of a network is the larger of both.
    """
    found = []
    for name, line in lines.items():
        match = re.match(rf"{re.escape(problem)}: ({who}[^:]*): (error|largest)(?!.* over )", name)
        if match and line["value"]:  # that of the truth itself is 0
            time = lines.get(f"{problem}: {match[1]}: time{batch}")
            found += [(1e3 * time["value"], line["value"])] if time else []
    return [point for point in sorted(found) if all(other[1] > point[1] for other in found if other < point)]


def networks(lines: dict[str, dict[str, Any]], problem: str, batch: str) -> dict[str, tuple[float, list[float]]]:
    """Return name -> time of a roll-out alone or of each of a batch, and the errors of all seeds."""
    found, which = {}, "in a batch" if batch else "alone"
    for name, line in lines.items():
        match = re.match(rf"({re.escape(problem)} \([\d,]+\)[^:]*), seed 0: time to t = \S+ {which}", name)
        if match:
            judged = re.compile(rf"{re.escape(match[1])}, seed \d+: (error to truth|largest (error|distance))")
            errors = [one["value"] for other, one in lines.items() if judged.match(other) and one["value"] is not None]
            short = match[1].removeprefix(problem).replace(", steps loss", "").replace(", spectral loss", "").strip()
            found[short] = (1e3 * line["value"], errors)
    return found


def training_free(lines: dict[str, dict[str, Any]], problem: str) -> dict[str, float]:
    """Return the classical lines without training: part by part, or else on a grid as coarse as a part of two."""
    found = {}
    for name, line in lines.items():
        if line["value"] is None:
            continue
        if match := re.match(rf"{re.escape(problem)}: spectral on each part of (\d+)", name):
            found[f"parts of {match[1]}"] = line["value"]
        elif re.match(rf"{re.escape(problem)} \(2,.*, seed 0: spectral on each part, no training", name):
            found["parts"] = line["value"]
    grids = {}
    for name, line in lines.items():
        match = re.match(rf"{re.escape(problem)}: explicit steps on ([\d x]+)(, dt [^:]+)?: largest(?!.* over )", name)
        if match and line["value"] is not None:
            grid = tuple(map(int, match[1].split(" x ")))
            grids[grid] = min(line["value"], grids.get(grid, 1.0))
    coarse = max((grid for grid in grids if 2 * grid[0] <= max(grids)[0]), default=None)
    return found | ({f"grid of {' x '.join(map(str, coarse))}": grids[coarse]} if coarse else {})


def colour(name: str) -> str:
    """Return the colour of a network, by a name such as "(2,2,2), shared"."""
    match = re.search(r"\((\d+)[\d,]*\)(.*)", name)
    return COLOURS[match[1] + match[2].replace(", projected", "")]


def transients(lines: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Return name -> errors to our solver at t = 1, 2, ... in the cavity."""
    found = {}
    for name, line in lines.items():
        match = re.search(r"errors at whole times: ([^;]*)", line["setup"])
        if match and name.startswith("P4") and "largest error" in name:
            found[name.split(", steps loss")[0]] = [float(e) for e in match[1].split(",")]
    return found


def streamed(lines: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Return name -> errors at t = 1, 2, ... of the studies with and without the states of the stream."""
    found = {}
    for name, line in lines.items():
        match = re.match(r"navier_stokes2d, (states [^:]*): error at t = 1$", name)
        curve = re.search(r" on (\d+ x \d+),.*errors at t = 1, 2, ...: ([^;]*)", line["setup"])
        if match and curve:
            found[f"{match[1]}, {curve[1]}"] = [float(e) for e in curve[2].split(",")]
    return found


def plain_ticks(axes: Any, *which: str) -> None:
    """Write ticks of logarithmic axes as plain numbers, at 1, 2 and 5 where there are few decades, else at 1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for name in which:
        axis = getattr(axes, f"{name}axis")
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def above_line(axes: Any, words: str, height: float) -> None:
    """Write what a line across a panel is, over its left end, legibly where curves pass."""
    box = {"fc": "white", "ec": "none", "alpha": 0.7, "pad": 0.3}
    axes.annotate(words, (0.02, height), (0, 2), xycoords=PLACE, textcoords="offset points", fontsize=7, bbox=box)


def legend_below(axes: Any) -> None:
    """Put the legend under a panel: of up to eight lines, none has a corner of the panel to spare."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17), "borderaxespad": 0, "frameon": False}
    axes.legend(fontsize=6.5, ncols=2, handlelength=1.5, columnspacing=1, **place)


def draw(path: Path) -> None:
    """Draw a panel for every problem that has a network with a time, and those of errors over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read()
    problems = [problem for problem in PROBLEMS if networks(lines, problem, "")]
    rows = ceil((len(problems) + 2) / ACROSS)
    size = (4.8 * ACROSS, 4.2 * rows)
    figure, panels = pyplot.subplots(rows, ACROSS, figsize=size, layout="constrained", squeeze=False)
    cavity, study, *unused = panels.flat[len(problems) :]
    for axes in unused:
        axes.set_axis_off()
    studies = streamed(lines) | streamed(read("cpu"))
    reynolds = ("P4 Re 1000", "P4 Re 400", "P4 Re 100")
    for axes, curves, title in ((cavity, transients(lines), "cavity, 128 x 128: error to our solver"),
                                (study, studies, "online study, (2,2,1): error to our solver")):  # fmt: skip
        for name, errors in sorted(curves.items()):
            flow = axes is cavity
            style = LINES[reynolds.index(name.split(" (")[0]) if flow else "32 x 32" in name]
            axes.plot(range(1, len(errors) + 1), errors, style, label=name,
                      color=colour(name) if flow else STUDIES[name.split(",")[0]])  # fmt: skip
        axes.set(yscale="log", xlabel="t", ylabel="error", title=title)
        plain_ticks(axes, "y")
        legend_below(axes)
    cavity.axhline(0.03, color="grey", lw=0.8, ls=":")
    above_line(cavity, "goal of the largest", 0.03)
    cavity.margins(y=0.1)
    for axes, problem in zip(panels.flat, problems, strict=False):
        for batch, words in BATCHES.items():
            style = {"ls": "--", "mfc": "none"} if batch else {"ls": "-"}
            for who, paint in SOLVERS.items():
                if points := classical(lines, problem, who, batch):
                    marker = "s" if who == "torch-cfd" else "o"
                    axes.plot(*zip(*points, strict=True), marker, color=paint, ms=4, lw=1, label=who + words, **style)
            for name, (time, errors) in networks(lines, problem, batch).items():
                label = name.replace(", projected", "") + words  # those past a block that have a time all are
                axes.plot([time] * len(errors), errors, "D", color=colour(name), ms=6, label=label,
                          mfc=style.get("mfc"))  # fmt: skip
        for name, error in training_free(lines, problem).items():
            axes.axhline(error, color="grey", lw=0.8, ls=":")
            above_line(axes, f"{name}, no training", error)
        axes.set(xscale="log", yscale="log", xlabel="milliseconds of a trajectory", ylabel="error", title=problem)
        plain_ticks(axes, "x", "y")
        legend_below(axes)
    figure.savefig(path, dpi=110)


def draw_block(path: Path, folder: Path, seed: int, frames: int = 500) -> None:
    """Draw the vorticity behind the block after so many frames, and the flow across there over time."""
    import matplotlib
    import torch

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from staggered.channel_solver import reference
    from staggered.training import ROWS, Budget, Run

    row = next(row for row in ROWS if row.name == "P5 (1,1,1), projected")
    run, across = Run(row, Budget(0.0, seed=seed, state=folder, resume=True), "cpu"), []
    channel, network = run.problem, run.network.eval()
    window = channel.start_windows("", 1, 1, "cpu", 1_000_000, torch.ones(1))
    with torch.no_grad():
        for _ in range(frames):
            window = network(window)
            across.append(float(channel.signals(channel.velocity(window), window[:, -1, -2])[2]))
    u, v = channel.velocity(window)[:, 0]
    vorticity = (v.diff(dim=0)[:, :-1] - u.diff(dim=1)[:-1]) * channel.cells
    solved = reference("P5").result()["across"]
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(9, 5.2), layout="constrained")
    extent = (0, channel.shape[0] / channel.cells, 0, channel.shape[1] / channel.cells)
    upper.imshow(vorticity.T, origin="lower", extent=extent, cmap="RdBu_r", vmin=-6, vmax=6)
    upper.set(title=f"vorticity, network, t = {frames * channel.frame:g}", xlabel="x", ylabel="y")
    times = [channel.solved * k / (len(solved) - 1) for k in range(len(solved))]
    seen = [(t, a) for t, a in zip(times, solved, strict=True) if t <= frames * channel.frame]
    lower.plot(*zip(*seen, strict=True), label="our solver")
    words = f"network, seed {seed}, {run.steps:,} steps of training"
    lower.plot([channel.frame * (k + 1) for k in range(frames)], across, label=words)
    lower.set(xlabel="t", ylabel="flow across behind the block")
    lower.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draw the picture, or say what it would hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="list what there is to draw")
    parser.add_argument("--block", type=Path, metavar="FOLDER", help="of weights, results/neuralstagger-states")
    parser.add_argument("--seed", type=int, default=0, help="of these weights")
    options, pictures = parser.parse_args(), HERE.parent / "docs" / "pictures"
    if options.block:
        draw_block(pictures / "neuralstagger_block.png", options.block, options.seed)
    elif options.quick:
        told = {problem: sorted(networks(read(), problem, "")) for problem in PROBLEMS}
        print(json.dumps(told | {"roll-outs": sorted(transients(read()))}))
    else:
        draw(pictures / "neuralstagger.png")


if __name__ == "__main__":
    main()
