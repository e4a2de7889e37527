"""Pictures of docs/neuralstagger.md: error against time on one GPU and roll-outs, the flow past a block.

    python benchmarks/neuralstagger_picture.py [--quick] [--block FOLDER]

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
Points = list[tuple[float, float]]
"""Seconds and errors."""


def read() -> dict[str, dict[str, Any]]:
    """Return the recorded lines on a GPU by name."""
    path = HERE / "results" / "neuralstagger-cuda.json"
    return {line["name"]: line for line in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def classical(lines: dict[str, dict[str, Any]], problem: str, who: str) -> Points:
    """Return the points of the classical solvers of a problem whose names begin with `who`, none slower and worse."""
    found = []
    for name, line in lines.items():
        match = re.match(rf"{re.escape(problem)}: ({who}[^:]*): (error|largest)", name)
        if match and line["value"] is not None:
            time = lines.get(f"{problem}: {match[1]}: time")
            found += [(time["value"], line["value"])] if time else []
    return [point for point in sorted(found) if all(other[1] > point[1] for other in found if other < point)]


def networks(lines: dict[str, dict[str, Any]], problem: str) -> dict[str, tuple[float, list[float]]]:
    """Return name -> time of a roll-out alone, and the errors of all seeds."""
    found = {}
    for name, line in lines.items():
        match = re.match(rf"({re.escape(problem)} \([\d,]+\)[^:]*), seed 0: time to t = \S+ alone", name)
        if match:
            judged = re.compile(rf"{re.escape(match[1])}, seed \d+: (error to truth|largest (error|distance))")
            errors = [one["value"] for other, one in lines.items() if judged.match(other) and one["value"] is not None]
            found[match[1].removeprefix(problem).strip()] = (line["value"], errors)
    return found


def training_free(lines: dict[str, dict[str, Any]], problem: str) -> list[tuple[str, float]]:
    """Return the classical lines part by part, without training."""
    pattern = rf"{re.escape(problem)}: spectral on each part of (\d+)"
    return [(match[1], line["value"]) for name, line in lines.items() if (match := re.match(pattern, name))]


def transients(lines: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """Return name -> errors to our solver at t = 1, 2, ... in the cavity."""
    found = {}
    for name, line in lines.items():
        match = re.search(r"errors at whole times: ([^;]*)", line["setup"])
        if match and name.startswith("P4") and "largest error" in name:
            found[name.split(", steps loss")[0]] = [float(e) for e in match[1].split(",")]
    return found


def draw(path: Path) -> None:
    """Draw a panel for every problem that has a network with a time, and one for the roll-outs in the cavity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read()
    problems = [problem for problem in PROBLEMS if networks(lines, problem)]
    rows = ceil((len(problems) + 1) / ACROSS)
    size = (4.8 * ACROSS, 3.8 * rows)
    figure, panels = pyplot.subplots(rows, ACROSS, figsize=size, layout="constrained", squeeze=False)
    cavity, *unused = panels.flat[len(problems) :]
    for axes in unused:
        axes.set_axis_off()
    for name, errors in transients(lines).items():
        cavity.plot(range(1, len(errors) + 1), errors, "-", label=name)
    cavity.axhline(0.03, color="grey", lw=0.8, ls=":")
    cavity.set(yscale="log", xlabel="t", ylabel="error to our solver", title="Cavity, 128 x 128")
    cavity.legend(fontsize=6)
    for axes, problem in zip(panels.flat, problems, strict=False):
        for who, style in (("spectral", "o-"), ("torch-cfd", "s-"), ("explicit", "o-")):
            if points := classical(lines, problem, who):
                axes.plot(*zip(*points, strict=True), style, ms=4, lw=1, label=who)
        for name, (seconds, errors) in networks(lines, problem).items():
            axes.plot([seconds] * len(errors), errors, "D", ms=6, label=f"network {name}")
        for number, error in training_free(lines, problem):
            axes.axhline(error, color="grey", lw=0.8, ls=":")
            axes.annotate(f"parts of {number}, no training", (0.02, error), xycoords=PLACE, fontsize=6)
        axes.set(xscale="log", yscale="log", xlabel="seconds of a trajectory, batch 1", ylabel="error", title=problem)
        axes.legend(fontsize=6)
    figure.savefig(path, dpi=110)


def draw_block(path: Path, folder: Path, frames: int = 500) -> None:
    """Draw the vorticity behind the block after so many frames, and the flow across there over time."""
    import matplotlib
    import torch

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from staggered.channel_solver import reference
    from staggered.training import ROWS, Budget, Run

    row = next(row for row in ROWS if row.name == "P5 (1,1,1), projected")
    run, across = Run(row, Budget(0.0, state=folder, resume=True), "cpu"), []
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
    words = f"network, {run.steps:,} steps of training"
    lower.plot([channel.frame * (k + 1) for k in range(frames)], across, label=words)
    lower.set(xlabel="t", ylabel="flow across behind the block")
    lower.legend(loc="upper left")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draw the picture, or say what it would hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="list what there is to draw")
    parser.add_argument("--block", type=Path, metavar="FOLDER", help="of weights, results/neuralstagger-states")
    options, pictures = parser.parse_args(), HERE.parent / "docs" / "pictures"
    if options.block:
        draw_block(pictures / "neuralstagger_block.png", options.block)
    elif options.quick:
        told = {problem: sorted(networks(read(), problem)) for problem in PROBLEMS}
        print(json.dumps(told | {"roll-outs": sorted(transients(read()))}))
    else:
        draw(pictures / "neuralstagger.png")


if __name__ == "__main__":
    main()
