"""The proof that nothing was lost or counted twice: three independent logs are compared, with content hashes."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from .client import COMPLETED, Word
from .ledger import read_records
from .run_directory import RunDirectory, StudyError

Step = tuple[int, int]
"""(simulation, step)."""

_MISSING = "steps not yet there"
_FATES = (
    "steps accepted", "steps of simulations in quarantine", "steps left out for lack of room",
    "steps of simulations that the trainer stopped", "steps that solvers ended without", _MISSING,
)  # fmt: skip
"""What can become of a planned step: one of these."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What the comparison found.

    ok : every planned step is accounted for, nothing is double, all hashes agree, and (for a finished study)
        every accepted training window was used.
    counts : the numbers behind it, by name.
    problems : one sentence for each finding; empty where ok.
    """

    ok: bool
    counts: dict[str, int]
    problems: list[str]

    @property
    def lines(self) -> list[str]:
        """The report for people."""
        width = max(map(len, self.counts))
        table = [f"{name:{width}}  {value}" for name, value in self.counts.items()]
        return [*table, *self.problems, "audit clean" if self.ok else f"audit found {len(self.problems)} problem(s)"]


@dataclass
class _Sides:
    """What the logs say, side by side."""

    planned: dict[int, bool] = field(default_factory=dict)  # simulation -> held out
    finished: bool = False
    sent: dict[tuple, int] = field(default_factory=dict)  # (s, a, f, t, offset, owner) -> checksum
    received: dict[tuple, int] = field(default_factory=dict)
    accepted: dict[Step, list[tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    kept: dict[Step, set[tuple[int, int]]] = field(default_factory=lambda: defaultdict(set))  # -> (session, checksum)
    quarantined: set[int] = field(default_factory=set)
    cut_short: set[int] = field(default_factory=set)
    left_out: set[Step] = field(default_factory=set)
    num_sent: dict[int, int] = field(default_factory=dict)  # steps of the attempt that ended in order
    lost_attempts: set[tuple[int, int]] = field(default_factory=set)
    # (s, start) -> (session, trainer generation, checksum of each step), one entry for every "first" use
    first_uses: dict[Step, list[tuple[int, int, list[int]]]] = field(default_factory=lambda: defaultdict(list))


def audit(run_dir: str | Path) -> AuditReport:
    """Compare what solvers sent, what the intake received and what the trainer used.

    Raises
    ------
    StudyError : there is no study in this folder, or one that was trained from a data set.
    LedgerDamage : a log is damaged elsewhere than at its torn end; names file and line.
    """
    directory = RunDirectory(run_dir)
    record = directory.read()
    if record.settings.offline:
        raise StudyError(f"{directory.path} was trained from {record.settings.offline}: there was no stream to audit.")
    num_steps = record.case.load().num_snapshots + 1
    sides = _read(directory.ledger)
    problems = [*_compare_bytes(sides), *_check_acceptance(sides), *_check_uses(sides)]
    unused = _unused_windows(sides)
    if sides.finished:
        problems += [f"{count} windows of simulation {s} were accepted but never used." for s, count in unused.items()]

    fates = Counter(_fate(sides, s, t) for s in sides.planned for t in range(num_steps))
    if fates[_MISSING] and sides.finished:
        problems.append(f"{fates[_MISSING]} planned steps are unaccounted for, though the study finished.")
    # Of held-out simulations nothing is kept in slots, and a trainer uses none.
    again: Counter[bool] = Counter()
    for (s, _), times in sides.accepted.items():
        again[sides.planned.get(s, False)] += len(times) - 1
    counts = {
        "simulations planned": len(sides.planned),
        "steps planned": len(sides.planned) * num_steps,
        **{fate: fates[fate] for fate in _FATES},
        "steps lost before use and run again": again[False],
        "steps of held-out simulations lost and run again": again[True],
        "steps kept for a later session": len(sides.kept),
        "blocks sent": len(sides.sent),
        "blocks received": len(sides.received),
        "windows first used": len(sides.first_uses),
        # How long a window is, only a first use tells.
        **({"windows not used, or not yet": sum(unused.values())} if sides.first_uses else {}),
        "windows used again after a trainer restart": sum(len(uses) - 1 for uses in sides.first_uses.values()),
        "double": sum("twice" in problem for problem in problems),
    }
    return AuditReport(ok=not problems, counts=counts, problems=problems)


def _fate(sides: _Sides, s: int, t: int) -> str:
    """Return the one of _FATES that became of a planned step."""
    if s in sides.quarantined:
        return "steps of simulations in quarantine"
    if (s, t) in sides.accepted:
        return "steps accepted"
    if (s, t) in sides.left_out:
        return "steps left out for lack of room"
    if s in sides.cut_short:
        return "steps of simulations that the trainer stopped"
    return "steps that solvers ended without" if t >= sides.num_sent.get(s, t + 1) else _MISSING


def _read(ledger: Path) -> _Sides:
    sides = _Sides()
    for path in sorted(ledger.glob("*.log")):
        writer, *rest = path.stem.split("-")
        # trainer-SESSION-GENERATION-RANK, intake-SESSION, study-SESSION; a solver's file carries its job's name.
        numbers = rest[:2] if writer == "trainer" else rest[:1]
        epoch = tuple(map(int, numbers)) if writer != "solver" else ()
        for record in read_records(path):
            _READERS[writer](sides, record, epoch)
    return sides


def _read_study(sides: _Sides, record: dict, epoch: tuple[int, ...]) -> None:
    if record["e"] == "planned":
        sides.planned[record["s"]] = record["held_out"]
    elif record["e"] == "finished":
        sides.finished = "early" not in record  # a training that ended early leaves plans and windows unused


def _read_solver(sides: _Sides, record: dict, epoch: tuple[int, ...]) -> None:
    if record["e"] == "block":
        sides.sent.update(dict.fromkeys(_block_keys(record), record["c"]))


def _read_intake(sides: _Sides, record: dict, epoch: tuple[int, ...]) -> None:
    event = record["e"]
    if event == "block":
        sides.received.update(dict.fromkeys(_block_keys(record), record["c"]))
    elif event == "step":
        sides.accepted[record["s"], record["t"]].append((epoch[0], record["a"], record["h"]))
    elif event == "left_out":
        sides.left_out.add((record["s"], record["t"]))
    elif event == "ended" and record["status"] == COMPLETED:
        sides.num_sent[record["s"]] = record["steps"]
    elif event == "kept":
        sides.kept[record["s"], record["t"]].add((epoch[0], record["h"]))
    elif event == "quarantined":
        sides.quarantined.add(record["s"])
    elif event == "steered" and record["word"] == Word.STOP:
        sides.cut_short.add(record["s"])
    elif event == "lost":
        sides.lost_attempts.add((record["s"], record["a"]))


def _read_trainer(sides: _Sides, record: dict, epoch: tuple[int, ...]) -> None:
    if record["e"] == "used":
        sides.first_uses[record["s"], record["t"]].append((epoch[0], epoch[1], record["h"]))


_READERS = {"study": _read_study, "solver": _read_solver, "intake": _read_intake, "trainer": _read_trainer}


def _block_keys(record: dict) -> list[tuple]:
    """Return the key of each step of a block: several steps that came in one message have one checksum."""
    first, place = record["t"], (tuple(record["o"]), record.get("r"))
    return [(record["s"], record["a"], record["f"], step, *place) for step in range(first, first + record.get("m", 1))]


def _compare_bytes(sides: _Sides) -> list[str]:
    """Every block that was received was sent, with the same content."""
    problems = []
    for key, crc in sides.received.items():
        s, a, f, t, offset, _ = key
        block = f"block {list(offset)} of field {f}, simulation {s} attempt {a} step {t}"
        if key not in sides.sent:
            problems.append(f"The intake received {block}, which no solver says it sent.")
        elif sides.sent[key] != crc:
            problems.append(f"The content of {block} changed on the way: {sides.sent[key]:08x} -> {crc:08x}.")
    return problems


def _check_acceptance(sides: _Sides) -> list[str]:
    """A step is accepted once; again only in a later session, after its first copy was lost before use."""
    problems = []
    for (s, t), times in sides.accepted.items():
        if s not in sides.planned:
            problems.append(f"Simulation {s} was accepted but never planned.")
        doubles = [n for session, n in Counter(session for session, _, _ in times).items() if n > 1]
        if doubles:
            problems.append(f"Simulation {s} step {t} was accepted twice in one session.")
    return problems


def _check_uses(sides: _Sides) -> list[str]:
    """A window is first used once, with the bytes that the intake accepted."""
    problems = []
    for (s, start), uses in sides.first_uses.items():
        if len({use[:2] for use in uses}) < len(uses):
            problems.append(f"The window of simulation {s} at step {start} was first used twice by one trainer.")
        for session, _, hashes in uses:
            for t, content in enumerate(hashes, start):
                accepted = {h for accepted_in, _, h in sides.accepted.get((s, t), ()) if accepted_in == session}
                accepted |= {h for kept_in, h in sides.kept.get((s, t), ()) if kept_in == session}
                if content not in accepted:
                    problems.append(f"The trainer used simulation {s} step {t} with bytes the intake never accepted.")
    return problems


def _unused_windows(sides: _Sides) -> dict[int, int]:
    """How many windows of each simulation had all their steps accepted and were not used; of those with any.

    In a study that ran to its end there are none; steps may have been left out.
    """
    if not sides.first_uses:
        return {}
    window = len(next(iter(sides.first_uses.values()))[0][2])
    last_step: dict[int, int] = {}
    for s, t in sides.accepted:
        last_step[s] = max(t, last_step.get(s, -1))
    unused = {}
    for s, held_out in sides.planned.items():
        if not held_out and s not in sides.quarantined:
            starts = range(last_step.get(s, -1) - window + 2)
            unused[s] = sum(
                (s, start) not in sides.first_uses
                and all((s, step) in sides.accepted for step in range(start, start + window))
                for start in starts
            )
    return {s: count for s, count in unused.items() if count}
