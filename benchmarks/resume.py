"""A study that is killed and resumed on other numbers of workers, beside one that runs through: are the draws the same?

    python benchmarks/resume.py [--quick] [--device cpu] [--resume]

`headrace train heat2d --deterministic` whole, with Ray Train, as a user starts it: once from begin to end on one
worker; once on one worker, killed (SIGKILL, driver and all) after so many batches, resumed on two, killed, resumed on
four. The trainers' ledgers say in which batch each window was used for the first time, and what was in it (checksums);
batches behind the checkpoint of a killed session are drawn twice and count twice. The figure is the share of all these
records that the run without interruption has too, in the same batch and with the same content. One JSON line per
figure, also in benchmarks/results/resume-cpu.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lines import Report, flags, record

PATIENCE = 400.0
SETTINGS = (
    "heat2d", "--shape", "16x16", "--model", "mlp", "--deterministic", "--held-out", "1", "--ranks", "1", "--jobs", "2",
    "--batch-size", "8", "--views", "4", "--buffer", "400KB", "--checkpoint-every", "0.5", "--plain",
)  # fmt: skip


def start(run: Path, simulations: int, workers: int) -> subprocess.Popen:
    """Begin or resume the study with so many workers, in a session of its own."""
    command = [sys.executable, "-m", "headrace.cases", "train", *SETTINGS, "--simulations", str(simulations),
               "--workers", str(workers), "--run-dir", str(run), *(["--resume"] if run.exists() else [])]  # fmt: skip
    with open(run.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def batches_of(run: Path) -> int:
    """Return how many batches the newest report of the trainer counts."""
    path = run / "metrics.jsonl"
    rows = path.read_text().splitlines() if path.exists() else []
    return json.loads(rows[-1])["batch"] if rows else 0


def train(run: Path, simulations: int, workers: int, until: int | None = None) -> None:
    """Run the study to its end, or kill it after so many batches.

    Raises
    ------
    RuntimeError : it failed, ended before it was to be killed, or took too long.
    """
    study, deadline, reached = start(run, simulations, workers), time.monotonic() + PATIENCE, False
    try:
        while study.poll() is None and not reached and time.monotonic() < deadline:
            time.sleep(0.05)
            reached = until is not None and batches_of(run) >= until and any((run / "checkpoints").iterdir())
        if not reached and (until is not None or study.poll() != 0):
            said = run.with_suffix(".log").read_text()[-2000:]
            raise RuntimeError(f"The study on {workers} workers ended with {study.poll()} where it should not: {said}")
    finally:
        if study.poll() is None:
            os.killpg(study.pid, signal.SIGKILL)
            study.wait()


def first_uses(run: Path) -> dict[tuple[int, int], list[tuple[int, tuple[int, ...]]]]:
    """Return of each window (simulation, start) in which batch it was first used, and the checksums of its steps."""
    from headrace.online_training.ledger import read_records

    found: dict[tuple[int, int], list[tuple[int, tuple[int, ...]]]] = {}
    for path in sorted((run / "ledger").glob("trainer-*.log")):
        for one in read_records(path):
            if one["e"] == "used":
                found.setdefault((one["s"], one["t"]), []).append((one["n"], tuple(one["h"])))
    return found


def compare(quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the share of equal draws, and what it is a share of."""
    simulations, cuts = (4, ((1, 40), (2, None))) if quick else (10, ((1, 100), (2, 250), (4, None)))
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        train(whole, simulations, 1)
        for workers, until in cuts:
            train(parts, simulations, workers, until)
        one, other = first_uses(whole), first_uses(parts)
        last = batches_of(whole), batches_of(parts)
    records = [(window, use) for window, uses in other.items() for use in uses]
    same = sum(one.get(window) == [use] for window, use in records)
    workers = ", then ".join(str(workers) for workers, _ in cuts)
    setup = f"headrace train {' '.join(SETTINGS)}, {simulations} simulations; workers: {workers}, killed in between"
    yield record(("resume: equal first uses", same / len(records), "fraction", 1.0, None, setup), precision="fp32")
    for what, pair in (("windows used", (len(other), len(one))), ("batches", last[::-1])):
        setup = "of the study that was killed; the baseline ran through"
        yield record((f"resume: {what}", pair[0], "1", None, pair[1], setup), precision="fp32")
    yield record(("resume: records compared", len(records), "1", None, None, "of the study that was killed"))


def main() -> None:
    """Compare and print one JSON line per figure."""
    options = flags(__doc__, ()).parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    report = Report("resume", quick=options.quick, resume=options.resume)
    report.measure("resume:", compare(options.quick))


if __name__ == "__main__":
    main()
