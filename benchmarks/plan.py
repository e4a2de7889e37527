"""What `headrace plan` says of a study beside what the study then takes: memory, storage, network and time.

    python benchmarks/plan.py [--quick] [--only trainer|solvers] [--device cpu] [--resume]

A whole study for each part, on this node: `trainer` is limited by training, `solvers` by its simulations. Both figures
stand in one line: the value is measured, the baseline is the forecast. Memory: the largest sum over the processes of a
part, looked at twice a second; pages that several processes share count once, by their shares (PSS), shared memory
apart from the rest. Time: from the first step that the intake accepted to the last word of the trainer; what comes
before is the start, whose length is a figure without a forecast. Storage: files of the run directory when the study has
ended. One JSON line per figure, also in benchmarks/results/plan-cpu.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from lines import Report, flags, record

_LOOK_SECONDS = 0.5
_SHARED = "shared memory"
_PARTS = (
    ("RayTrainWorker", "trainer"), ("IntakeActor", "intake"), ("validator", "validator"), ("supervisor", "supervisor"),
    ("solver_job", "solvers"), ("headrace.cases", "driver"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A study: case, model and settings."""

    case: str
    shape: tuple[int, int]
    model: str
    settings: dict[str, Any]

    @property
    def words(self) -> list[str]:
        """The study on the command line of `headrace train`."""
        words = [self.case, "--shape", "x".join(map(str, self.shape)), "--model", self.model]
        for name, value in self.settings.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        return words


STUDIES = {
    "trainer": Subject(
        case="heat2d", shape=(64, 64), model="fno", settings={"simulations": 20, "held_out": 2, "ranks": 2, "views": 4},
    ),
    "solvers": Subject(
        case="heat2d", shape=(128, 128), model="mlp",
        settings={"simulations": 24, "held_out": 2, "ranks": 2, "views": 1},
    ),
}  # fmt: skip
QUICK = Subject(
    case="heat2d", shape=(32, 32), model="mlp", settings={"simulations": 4, "held_out": 1, "ranks": 2, "views": 2}
)


def part_of(words: list[str]) -> str:
    """Return which part of a study a process with this command line is."""
    text, program = " ".join(words), Path(words[0]).name if words else ""
    if program.startswith(("mpi", "hydra", "orte", "prte")):
        return "mpirun"
    return next((part for mark, part in _PARTS if mark in text), "Ray")


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """Return the memory of a process by its shares, in bytes: its own and files', and what lies in shared memory."""
    sizes = {}
    for row in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size, *_ = row.split()
        sizes[name] = 1024 * int(size)
    return sizes["Pss_Anon:"] + sizes["Pss_File:"], sizes["Pss_Shmem:"]


def watch(study: subprocess.Popen) -> dict[str, float]:
    """Return the most memory that each part of a study held, in bytes, until it ended."""
    most: Counter[str] = Counter()
    driver = psutil.Process(study.pid)
    while study.poll() is None:
        now: Counter[str] = Counter()
        for process in (driver, *driver.children(recursive=True)):
            try:
                own, shared = memory_of(process)
                now[part_of(process.cmdline())] += own
            except (psutil.Error, OSError, KeyError, IndexError):
                continue  # it ended while we looked
            now[_SHARED] += shared
        most |= now
        time.sleep(_LOOK_SECONDS)
    return dict(most)


def size_of(folder: Path, *names: str) -> int:
    """Return the bytes of all files in some folders of a folder."""
    return sum(path.stat().st_size for name in names for path in (folder / name).rglob("*") if path.is_file())


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the records of a log of JSON lines."""
    return [json.loads(row) for row in path.read_text().splitlines()]


def compare(name: str, subject: Subject) -> Iterator[dict[str, Any]]:
    """Yield what was forecast and measured of a study."""
    from headrace.cases.catalogue import find_case
    from headrace.cases.plan_command import forecast_study

    reference = find_case(subject.case, subject.shape)
    needs, *_ = forecast_study(reference, model=subject.model, architecture=[], given=subject.settings)
    with tempfile.TemporaryDirectory() as top:
        run, log = Path(top) / "run", Path(top) / "log"
        with open(log, "wb") as file:
            study = subprocess.Popen(
                [sys.executable, "-m", "headrace.cases", "train", *subject.words, "--run-dir", str(run), "--plain"],
                stdout=file, stderr=file,
            )  # fmt: skip
        try:
            began = time.time()
            most = watch(study)
        finally:
            study.terminate()
            study.wait()
        if study.returncode:
            raise RuntimeError(f"The study of part {name} failed: {log.read_text()[-2000:]}")
        intake, trainer = rows_of(run / "intake.jsonl"), rows_of(run / "metrics.jsonl")
        storage = {
            "held-out simulations": size_of(run, "held_out"),
            "checkpoints and model": size_of(run, "checkpoints", "model"), "ledger": size_of(run, "ledger"),
        }  # fmt: skip
    first = next(row["time"] for row in intake if row["steps_accepted"])
    setup = f"{' '.join(subject.words)}; the baseline is the forecast"

    def line(what: str, value: float, unit: str, baseline: float | None) -> dict[str, Any]:
        return record((f"{name}: {what}", value, unit, None, baseline, setup), precision="fp32")

    yield line("time", trainer[-1]["time"] - first, "s", needs.total_seconds)
    yield line("start, before the first step", first - began, "s", None)
    solved = [row["time"] for row in intake if not row["queued"] and not row["running"]]
    yield line("time of the solvers", (solved or [intake[-1]["time"]])[0] - first, "s", needs.seconds["solvers"])
    yield line("network, solvers to intake", intake[-1]["bytes_received"] / 1e6, "MB", needs.streamed / 1e6)
    forecast_shared = sum(size for part, size in needs.memory.items() if "shared" in part)
    for part, size in sorted(most.items()):
        expected = forecast_shared if part == _SHARED else needs.memory.get(part)
        yield line(f"memory, {part}", size / 1e6, "MB", None if expected is None else expected / 1e6)
    yield line("memory in all", sum(most.values()) / 1e6, "MB", sum(needs.memory.values()) / 1e6)
    for part, size in storage.items():
        yield line(f"storage, {part}", size / 1e6, "MB", needs.storage[part] / 1e6)
    yield line("storage in all", sum(storage.values()) / 1e6, "MB", sum(needs.storage.values()) / 1e6)


def main() -> None:
    """Compare what is asked for and print one JSON line per figure."""
    options = flags(__doc__, STUDIES).parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    report = Report("plan", quick=options.quick, resume=options.resume)
    for name, subject in {"quick": QUICK}.items() if options.quick else STUDIES.items():
        if options.only in (None, name):
            report.measure(f"{name}:", compare(name, subject))


if __name__ == "__main__":
    main()
