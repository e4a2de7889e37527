"""Flow solvers against published figures. Their speed is in benchmarks/solvers.py.

    python benchmarks/flows.py [--quick] [--only cavity|street] [--resume]

Parts: `cavity`, extremes on the centre lines of the lid-driven cavity (Ghia, Ghia and Shin 1982); `street`, the
Strouhal number of the vortex street at Re = 100 (0.1643 without side walls, Williamson 1989). One JSON line per figure,
also in benchmarks/results/flows-cpu.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from ghia import from_ghia
from lines import Figure, flags, run_parts

from headrace.cases.cavity import case as cavity
from headrace.cases.karman import case as karman
from headrace.solvers import Case, Grid, MemorySink
from headrace.solvers.simulate import simulate

WILLIAMSON = -3.3265 / 100 + 0.1816 + 1.6e-4 * 100
"""Strouhal number of parallel shedding at Re = 100, from his fit to measurements: -3.3265/Re + 0.1816 + 1.6e-4 Re."""


def trajectory(case: Case, values: dict[str, float]) -> np.ndarray:
    """Return all snapshots of one simulation."""
    sink = MemorySink()
    simulate(case, case.accept(values), sink)
    return sink.values


def measure_cavity(quick: bool) -> Iterator[Figure]:
    """Yield how far the extremes are from Ghia's, relative."""
    runs = [(100, 32, 12.0)] if quick else [(100, 64, 20.0), (400, 128, 40.0), (1000, 128, 60.0)]
    for reynolds, points, duration in runs:
        case = replace(cavity.resized((points, points)), duration=duration, num_snapshots=4)
        last = trajectory(case, {"reynolds": reynolds})[-1]
        for name, distance, value, published in from_ghia(last[:2], reynolds):
            yield (
                f"cavity Re {reynolds}: {name} from Ghia", distance, "1", 0.03, published,
                f"{points} x {points} points, t = {duration:g}, found {value:.5f}",
            )  # fmt: skip


def measure_street(quick: bool) -> Iterator[Figure]:
    """Yield the distance of the Strouhal number from Williamson's, relative."""
    shape, extent, duration = ((96, 48), (16.0, 8.0), 50.0) if quick else ((512, 256), (32.0, 16.0), 100.0)
    h = extent[0] / shape[0]
    # The cylinder stays at (4, 4): the box grows around it. An inflow nearer than ten diameters raises the frequency:
    # four give 0.178 with the other sides as far away.
    upstream = 0.0 if quick else -8.0
    grid = Grid(shape=shape, extent=extent, origin=(upstream, 4.0 - extent[1] / 2))
    case = replace(karman, grid=grid, duration=duration, num_snapshots=int(5 * duration))
    states = trajectory(case, {"reynolds": 100.0})
    signal = states[len(states) // 2 :, 1, int((6.5 - upstream) / h), shape[1] // 2 - 1]
    rises = np.flatnonzero((signal[:-1] <= 0) & (signal[1:] > 0))
    crossings = rises - signal[rises] / (signal[rises + 1] - signal[rises])
    strouhal = (len(crossings) - 1) / (crossings[-1] - crossings[0]) * 5
    setup = f"{shape[0]} x {shape[1]} points, {extent[1]:g} diameters wide, inflow {4 - upstream:g} ahead"
    yield (
        "street Re 100: Strouhal number from Williamson", abs(strouhal / WILLIAMSON - 1), "1",
        0.12 if quick else 0.05, WILLIAMSON, f"{setup}, found {strouhal:.4f}",
    )  # fmt: skip


PARTS = {"cavity": measure_cavity, "street": measure_street}


if __name__ == "__main__":
    run_parts("flows", PARTS, flags(__doc__, PARTS).parse_args())
