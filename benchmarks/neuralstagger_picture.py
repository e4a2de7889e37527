"""The picture of docs/neuralstagger.md, from the lines of neuralstagger.py: error against time on one GPU, roll-outs.

    python benchmarks/neuralstagger_picture.py [--quick]

Writes docs/pictures/neuralstagger.png; with --quick nothing but what it would draw.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROBLEMS = ("P1", "P2", "P3", "P4 Re 100", "P5", "P6")
PLACE = ("axes fraction", "data")
Points = list[tuple[float, float]]
"""Seconds and errors."""


def read() -> dict[str, dict[str, Any]]:
    """Return the recorded lines on a GPU by name."""
    path = HERE / "results" / "neuralstagger-cuda.json"
    return {line["name"]: line for line in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def classical(lines: dict[str, dict[str, Any]], problem: str, who: str) -> Points:
    """Return the points of the classical solvers of a problem whose names begin with `who`."""
    found = []
    for name, line in lines.items():
        match = re.match(rf"{re.escape(problem)}: ({who}[^:]*): (error|largest)", name)
        if match and line["value"] is not None:
            times = [f"{problem}: {match[1]}: {words}" for words in ("time to t = 10, batch 1", "time")]
            found += [(lines[time]["value"], line["value"]) for time in times if time in lines]
    return sorted(found)


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
    number = len(problems) + 1
    figure, panels = pyplot.subplots(1, number, figsize=(4.8 * number, 3.8), layout="constrained", squeeze=False)
    for name, errors in transients(lines).items():
        panels[0, -1].plot(range(1, len(errors) + 1), errors, "-", label=name)
    panels[0, -1].axhline(0.03, color="grey", lw=0.8, ls=":")
    panels[0, -1].set(yscale="log", xlabel="t", ylabel="error to our solver", title="Cavity, 128 x 128")
    panels[0, -1].legend(fontsize=6)
    for axes, problem in zip(panels[0], problems, strict=False):
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


def main() -> None:
    """Draw the picture, or say what it would hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="list what there is to draw")
    if parser.parse_args().quick:
        told = {problem: sorted(networks(read(), problem)) for problem in PROBLEMS}
        print(json.dumps(told | {"roll-outs": sorted(transients(read()))}))
    else:
        draw(HERE.parent / "docs" / "pictures" / "neuralstagger.png")


if __name__ == "__main__":
    main()
