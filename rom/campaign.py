"""Campaigns of CalculiX: many decks, several at once, resumable, with the reason where one fails."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .atomic import write_text


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """How one case of a campaign ended: `error` is empty where it finished, `reused` where it had before."""

    name: str
    deck: Path
    seconds: float
    error: str = ""
    reused: bool = False


def run_calculix(deck: str | Path, *, threads: int = 1, timeout: float | None = None, program: str = "ccx") -> float:
    """Run CalculiX on a deck in the deck's folder and return its wall time in seconds.

    Raises
    ------
    FileNotFoundError : no such program; says how to get it.
    RuntimeError : CalculiX reported an error, or did not reach the end; with its own words.
    """
    deck = Path(deck)
    found = shutil.which(program)
    if found is None:
        raise FileNotFoundError(f"There is no program {program!r}: apt-get install calculix-ccx, or pass its path.")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    with open(deck.with_suffix(".log"), "w", encoding="utf-8") as log:
        try:
            done = subprocess.run(
                [found, deck.stem], cwd=deck.parent, stdout=log, stderr=subprocess.STDOUT, timeout=timeout,
                env=environment, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"CalculiX on {deck} did not end within {timeout:g} s.") from error
    seconds = time.perf_counter() - begin
    text = deck.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    errors = [part.strip() for part in text.split("*ERROR")[1:]]
    if done.returncode or errors or "Job finished" not in text:
        why = " ".join(errors[0].split()[:40]) if errors else "it did not say 'Job finished'"
        raise RuntimeError(f"CalculiX on {deck} failed (exit status {done.returncode}): {why}. See {deck.stem}.log.")
    return seconds


def run_campaign(
    decks: Mapping[str, str | Path], *, at_once: int = 1, threads: int = 1, timeout: float | None = None,
    program: str = "ccx",
) -> dict[str, CaseResult]:  # fmt: skip
    """Run every deck, `at_once` of them at a time, and return how each ended; a failed case does not stop the others.

    A case that finished before with the same deck is not run again: STEM.done holds the deck's checksum.
    """

    def one(item: tuple[str, str | Path]) -> CaseResult:
        name, deck = item[0], Path(item[1])
        mark = deck.with_suffix(".done")
        try:
            digest = hashlib.sha256(deck.read_bytes()).hexdigest()
            before = _mark(mark)
            if before.get("sha256") == digest:
                return CaseResult(name=name, deck=deck, seconds=float(before["seconds"]), reused=True)
            mark.unlink(missing_ok=True)
            seconds = run_calculix(deck, threads=threads, timeout=timeout, program=program)
            write_text(mark, json.dumps({"sha256": digest, "seconds": seconds}))
        except (OSError, RuntimeError) as error:
            return CaseResult(name=name, deck=deck, seconds=0.0, error=str(error))
        return CaseResult(name=name, deck=deck, seconds=seconds)

    stems = [str(Path(deck).with_suffix("").resolve()) for deck in decks.values()]
    if len(set(stems)) < len(stems) or at_once < 1:
        raise ValueError(f"A campaign needs decks of different names and at_once >= 1; it has {stems}, {at_once}.")
    with ThreadPoolExecutor(max_workers=at_once) as pool:
        return {result.name: result for result in pool.map(one, decks.items())}


def finished_seconds(deck: str | Path) -> float | None:
    """Return the wall time of the finished run of a campaign's deck, None where it is not known."""
    seconds = _mark(Path(deck).with_suffix(".done")).get("seconds")
    return None if seconds is None else float(seconds)


def _mark(path: Path) -> dict[str, str | float]:
    """Return what a finished case left, or nothing."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
