"""The picture of docs/accuracy.md, from the lines of tables.py and emulators.py.

    python benchmarks/accuracy_picture.py [--quick]

Writes docs/pictures/accuracy.png; with --quick nothing but what it would draw.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COLOURS = ("#1f5f8b", "#c0504d", "#5b8c3e", "#8064a2", "#b8860b", "#4bacc6", "#7f7f7f", "#d1478c", "#1a1a1a",
           "#e07b39", "#2e8b7a", "#b39ddb")


def read(name: str) -> list[dict[str, Any]]:
    """Return the recorded lines of a benchmark on a GPU."""
    path = HERE / "results" / f"{name}-cuda.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curves(lines: list[dict[str, Any]]) -> dict[str, list[list[list[float]]]]:
    """Return {table: curves of (seconds, error over the published one), one a seed}."""
    found: dict[str, list[list[list[float]]]] = {}
    for line in lines:
        if " seed " in line["name"]:
            curve = [[seconds, error / line["goal"]] for seconds, error in line["curve"]]
            found.setdefault(line["name"].split(" ")[0], []).append(curve)
    return found


def errors(lines: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return {scenario: {network: error}} of APEBench; roll-outs that blew up are left out."""
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        if line["name"].startswith("median ") and line["value"] is not None:
            _, scenario, who = line["name"].split(" ")
            found.setdefault(scenario, {})[who] = line["value"]
    return found


def draw_curves(axes: Any, runs_of: dict[str, list[list[list[float]]]]) -> None:
    """Draw the errors along the training."""
    for number, (name, runs) in enumerate(runs_of.items()):
        for seed, curve in enumerate(runs):
            axes.plot(*zip(*curve, strict=True), "o-", ms=3, color=COLOURS[number % len(COLOURS)],
                      label=None if seed else name)  # fmt: skip
    axes.axhline(1.0, color="black", lw=1)
    axes.set(yscale="log", xlabel="seconds of training on an H100 or H200", ylabel="error / published error",
             title="Published tables")  # fmt: skip
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # within it would hide runs


def draw_errors(axes: Any, table: dict[str, dict[str, float]]) -> None:
    """Draw the errors of all networks, a column for each scenario."""
    names = sorted({who for row in table.values() for who in row}, key=lambda who: (who == "ours", who))
    for number, who in enumerate(names):
        points = [(place, row[who]) for place, row in enumerate(table.values()) if who in row]
        axes.plot(*zip(*points, strict=True), "D" if who == "ours" else "o", ms=7 if who == "ours" else 5,
                  color="black" if who == "ours" else COLOURS[number % len(COLOURS)], label=who)  # fmt: skip
    axes.set(yscale="log", ylabel="geometric mean nRMSE, 100 steps", title="APEBench, test runs")
    axes.set_xticks(range(len(table)), [name.removeprefix("diff_") for name in table], rotation=30, ha="right")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw(path: Path) -> None:
    """Draw both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    runs_of, table = curves(read("tables")), errors(read("emulators"))
    figure, axes = pyplot.subplots(1, 2 if table else 1, figsize=(13 if table else 6.5, 4.2), layout="constrained",
                                   squeeze=False)  # fmt: skip
    draw_curves(axes[0, 0], runs_of)
    if table:
        draw_errors(axes[0, 1], table)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Draw the picture, or say what it would hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="list what there is to draw")
    if parser.parse_args().quick:
        print(json.dumps({"tables": sorted(curves(read("tables"))), "scenarios": sorted(errors(read("emulators")))}))
    else:
        draw(HERE.parent / "docs" / "pictures" / "accuracy.png")


if __name__ == "__main__":
    main()
