"""The lines that benchmarks report: one JSON line per figure, on standard output and in benchmarks/results.

A module, not a benchmark: solvers.py, flows.py, fno.py, rom.py, stream.py, scaling.py, buffers.py and others use it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Figure = tuple[str, float | None, str, float | None, Any, str]
"""Name, value (None or NaN: there is none), unit, goal (upper bound; lower bound where the unit is x or a fraction),
baseline, setup.
"""

Part = Callable[[bool], Iterator[Figure]]
"""Measures one part of a benchmark; takes whether quickly. Names of its figures begin with the part's name."""


def record(figure: Figure, *, device: str = "", precision: str = "fp64", cores: int | None = None) -> dict[str, Any]:
    """Return the line of one figure; device : what it ran on, this processor if empty."""
    name, value, unit, goal, baseline, setup = figure
    value = None if value is None or math.isnan(value) else float(value)
    known = goal is not None and value is not None
    met = bool(value >= goal if unit in ("x", "fraction") else value <= goal) if known else None
    return {
        "name": name, "value": value, "unit": unit, "goal": goal, "met": met, "baseline": baseline,
        "seeds": [int(seed) for seed in re.findall(r"\bseed (\d+)", name)] or [0],
        "cores": cores or len(os.sched_getaffinity(0)), "device": device or processor(), "precision": precision,
        "setup": setup,
    }  # fmt: skip


class Report:
    """The lines of one benchmark, in results/NAME-DEVICE.json, of quick runs in results/NAME-quick-DEVICE.json.

    A line replaces an earlier one of the same name; all others stay, so that parts can be measured one by one.
    A number that is not finite becomes null. HEADRACE_RESULTS : another folder for the results, where it is set.
    """

    def __init__(self, name: str, *, device: str = "cpu", quick: bool = False, resume: bool = False) -> None:
        folder = Path(os.environ.get("HEADRACE_RESULTS", Path(__file__).parent / "results"))
        self.path = folder / f"{name}{'-quick' * quick}-{device}.json"
        self.resume = resume
        self.lines: list[dict[str, Any]] = []
        if self.path.exists():
            self.lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.strip()]

    def has(self, name: str) -> bool:
        """Whether a figure need not be measured again: it is there, and the run goes on with an earlier one."""
        return self.resume and any(line["name"] == name for line in self.lines)

    def add(self, name: str, value: float | None, unit: str, **more: Any) -> None:
        """Print and keep one figure of a training in float32."""
        line = {
            "name": name, "value": value, "unit": unit, "goal": None, "met": None, "baseline": None, "seeds": 1,
            "cores": None, "device": "cpu", "precision": "float32", "setup": "", **more,
        }  # fmt: skip
        self.lines = [one for one in self.lines if one["name"] != name]
        self._print(line)
        self._write()

    def measure(self, prefix: str, lines: Iterable[dict[str, Any]]) -> None:
        """Print and keep the lines of a group, in place of all whose names begin with `prefix`.

        With resume, a group that is there is not measured.
        """
        if self.resume and any(line["name"].startswith(prefix) for line in self.lines):
            return
        kept, self.lines = [line for line in self.lines if not line["name"].startswith(prefix)], []
        for line in lines:
            self._print(line)
        self.lines = kept + self.lines
        self._write()

    def _print(self, line: dict[str, Any]) -> None:
        # JSON knows no number that is not finite.
        line = {
            key: None if isinstance(item, float) and not math.isfinite(item) else item for key, item in line.items()
        }  # fmt: skip
        self.lines.append(line)
        print(json.dumps({key: item for key, item in line.items() if key != "curve"}), flush=True)

    def _write(self) -> None:
        self.path.parent.mkdir(exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(one) + "\n" for one in self.lines))
        os.replace(part, self.path)


def flags(
    description: str | None, parts: Iterable[str], *, devices: tuple[str, ...] = ("cpu",)
) -> argparse.ArgumentParser:
    """Return the flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a reduced version, under 55 s on 2 cores")
    parser.add_argument("--only", choices=sorted(parts), help="measure this part; the others keep their lines")
    parser.add_argument("--device", choices=devices, default="cpu")
    parser.add_argument("--resume", action="store_true", help="leave out what an earlier call has measured")
    return parser


def run_parts(name: str, parts: Mapping[str, Part], options: argparse.Namespace) -> None:
    """Measure the parts that are asked for, one after the other."""
    report = Report(name, quick=options.quick, resume=options.resume)
    for part, measure in parts.items():
        if options.only in (None, part):
            report.measure(part, map(record, measure(options.quick)))


def median_seconds(work: Callable[[], None], repetitions: int) -> float:
    """Return the median seconds of some work, done once before it counts."""
    work()
    seconds = []
    for _ in range(repetitions):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
