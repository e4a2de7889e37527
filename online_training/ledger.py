"""Append-only checksummed logs: the truth about what a study planned, received and used."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .simulation_run import Assignment

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_FLUSH_BYTES = 1 << 16
_STOP = 1  # of the wire's words
_END_STATUS = {0: "completed", 1: "failed", 2: "stopped"}  # of the wire's END


class LedgerDamage(Exception):
    """A record in the middle of a ledger file does not match its checksum."""


class RecordWriter:
    """The one writer of one ledger file; thread-safe.

    A record is a line: eight hexadecimal digits (CRC-32 of the JSON's bytes), a space, a JSON object.
    Records are kept in memory until `flush` (or until 64 KiB have gathered): a killed process loses
    at most those. What `flush` wrote survives the process, what `sync` wrote survives the machine.

    Raises
    ------
    FileExistsError : the file is there already. A process that starts again opens a new file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._descriptor: int | None = os.open(self.path, flags, 0o644)
        except FileExistsError:
            raise FileExistsError(
                f"Ledger file {self.path} exists: it has, or had, another writer. Start a new session."
            ) from None
        self._pending = bytearray()
        self._texts: list[str] = []
        self._texts_length = 0
        self._lock = threading.Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record.

        Raises
        ------
        TypeError, ValueError : the record holds something that JSON has no word for (numpy scalars, NaN).
        OSError : as in `flush`.
        """
        self.append_text(_ENCODER.encode(record))

    def append_text(self, record: str) -> None:
        """Add one record that is a JSON object already, in ASCII: for those of every block, which cost half as much.

        Raises
        ------
        OSError : as in `flush`.
        """
        with self._lock:
            self._require_open()
            self._texts.append(record)
            self._texts_length += len(record)
            if self._texts_length >= _FLUSH_BYTES:
                self._write()

    def flush(self) -> None:
        """Hand all records to the operating system.

        Raises
        ------
        OSError : names the file. The records stay in memory: a later `flush` goes on where this one stopped.
        """
        with self._lock:
            self._require_open()
            self._write()

    def sync(self) -> None:
        """Flush, and return when the records are on the disk."""
        with self._lock:
            descriptor = self._require_open()
            self._write()
            os.fsync(descriptor)

    def close(self) -> None:
        """Flush and close; closing twice is allowed."""
        with self._lock:
            if self._descriptor is None:
                return
            try:
                self._write()
            finally:
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _require_open(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"Ledger file {self.path} is closed.")
        return self._descriptor

    def _write(self) -> None:
        descriptor = self._require_open()
        records = [text.encode("ascii") for text in self._texts]
        self._pending += b"".join([b"%08x %s\n" % (zlib.crc32(record), record) for record in records])
        self._texts.clear()
        self._texts_length = 0
        while self._pending:
            try:
                written = os.write(descriptor, self._pending)
            except OSError as error:
                raise OSError(
                    error.errno, f"cannot append to the ledger ({error.strerror}); make room and resume", str(self.path)
                ) from error
            del self._pending[:written]


def read_records(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the records of one ledger file in order; the torn last line of a killed writer is dropped.

    Raises
    ------
    LedgerDamage : a line does not match its checksum, and is not the torn end of the file.
    """
    with open(path, "rb") as file:
        lines = enumerate(file, start=1)
        for number, line in lines:
            record = decoded(line)
            if record is None:
                if _torn(line) and next(lines, None) is None:
                    return
                raise LedgerDamage(
                    f"Ledger file {path}, line {number}: the record does not match its checksum, so the file was "
                    "damaged after it was written. Restore it from a copy."
                )
            yield record


def intake_records(ledger: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of all intakes of a study, one session after the other.

    Raises
    ------
    LedgerDamage : as `read_records`.
    """
    for path in sorted(ledger.glob("intake-*.log"), key=lambda path: int(path.stem.split("-")[1])):
        yield from read_records(path)


def _torn(line: bytes) -> bool:
    """Whether a bad line can be an interrupted write: cut short, or with a page that never reached the disk."""
    return not line.endswith(b"\n") or b"\0" in line


def decoded(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line; None where it does not match its checksum."""
    digits, text = line[:8], line[9:-1]
    if line[-1:] != b"\n" or line[8:9] != b" " or digits != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


@dataclass
class Attempt:
    """One attempt at a simulation.

    status : "running", "completed", "failed", "stopped" or "lost".
    steps : how many steps the intake accepted from it.
    """

    number: int
    session: int
    job: str = ""
    status: str = "running"
    steps: int = 0
    reason: str = ""


@dataclass
class SimulationHistory:
    """What became of one planned simulation, over all sessions.

    log : its attempts by number.
    accepted : steps that an intake accepted, in whatever attempt, into the reservoir or the spool.
    used : window starts that a trainer used.
    window : steps of a window; 0 while none was used.
    quarantine : why it will not be run again; None where it is not in quarantine.
    cut_short : whether the trainer had it stopped before its end.
    """

    number: int
    held_out: bool
    parameters: dict[str, float]
    seed: int
    log: dict[int, Attempt] = field(default_factory=dict)
    accepted: set[int] = field(default_factory=set)
    used: set[int] = field(default_factory=set)
    window: int = 0
    quarantine: str | None = None
    cut_short: bool = False

    @property
    def attempts(self) -> int:
        """Number of attempts so far."""
        return len(self.log)

    @property
    def next_attempt(self) -> int:
        """Number of the next attempt, larger than all before."""
        return max(self.log, default=0) + 1

    @property
    def status(self) -> str:
        """One of "planned", "quarantined", "completed", or the last attempt's status."""
        if self.quarantine is not None:
            return "quarantined"
        if any(attempt.status == "completed" for attempt in self.log.values()):
            return "completed"
        return self.log[max(self.log)].status if self.log else "planned"

    @property
    def exhausted(self) -> bool:
        """Whether nothing of it is needed any more: it ran to its end, or was cut short, and all windows were used."""
        if not (self.status == "completed" or self.cut_short) or not self.window:
            return False
        starts = range(max(self.accepted, default=-1) + 2 - self.window)
        missing = (start for start in starts if start not in self.used)
        # A window with a step that was left out, for lack of room, never was.
        return not any(self.accepted.issuperset(range(start, start + self.window)) for start in missing)


class Ledger:
    """All logs of a study, read together: a view of the moment at which it is first looked at.

    folder : `ledger/` of the run directory.

    Raises
    ------
    LedgerDamage : on first look, where a log is damaged elsewhere than at its torn end.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def next_session(self) -> int:
        """Return a session number that no log carries yet."""
        return max(self._log_names, default=0) + 1

    @property
    def planned(self) -> int:
        """Number of planned simulations."""
        return len(self.simulations)

    @property
    def finished(self) -> bool:
        """Whether a session brought the study to its end."""
        return any(end.startswith("finished") for end in self.sessions.values())

    @property
    def simulations(self) -> dict[int, SimulationHistory]:
        """The history of every planned simulation, by number."""
        return self._read[0]

    @property
    def sessions(self) -> dict[int, str]:
        """How each session ended: "finished", "finished early: why", "stopped: why"; "open": it runs or was killed."""
        return self._read[1]

    @property
    def lacking_files(self) -> list[SimulationHistory]:
        """The held-out simulations whose file could not be written; what is not finished early runs them again."""
        waiting = (self.simulations[one.simulation] for one in self.assignments() if one.held_out)
        return [one for one in waiting if one.status == "failed"]

    @property
    def finished_early(self) -> bool:
        """Whether a session ended the study before everything was trained on, as it was asked to."""
        return any(end.startswith("finished early") for end in self.sessions.values())

    def assignments(self) -> list[Assignment]:
        """Return what is still to be run, in the order of the plan, with the window starts that were used already.

        What a reservoir held died with its session. So a simulation is run again, under a new attempt,
        unless it is in quarantine, or all of its windows were used, or its file lies in held_out/. One whose file
        could not be written is run again too.
        """
        files = self.folder.parent / "held_out"
        return [
            replace(assignment, used=frozenset(one.used))
            for assignment, one in zip(self.whole_plan(), self.simulations.values(), strict=True)
            if one.quarantine is None
            and not one.exhausted
            and not (one.held_out and (files / f"sim-{one.number:06d}.h5").exists())
        ]

    def whole_plan(self) -> list[Assignment]:
        """Return all planned simulations, each with the number of its next attempt, as if no window had been used."""
        from .simulation_run import Assignment

        return [
            Assignment(
                simulation=one.number, parameters=one.parameters, seed=one.seed, held_out=one.held_out,
                attempt=one.next_attempt,
            )
            for one in self.simulations.values()
        ]  # fmt: skip

    def extents(self) -> tuple[dict[int, int], dict[int, int]]:
        """Return how many steps were ever accepted, from the first on, of each simulation; and of those that ended."""
        arrived = {number: max(one.accepted, default=-1) + 1 for number, one in self.simulations.items()}
        over = ("completed", "quarantined")
        return arrived, {number: arrived[number] for number, one in self.simulations.items() if one.status in over}

    @property
    def _log_names(self) -> dict[int, list[Path]]:
        """The files of the controller, intakes and trainers by session, in this order."""
        found: dict[int, list[Path]] = {}
        for writer in ("study", "intake", "trainer"):
            for path in sorted(self.folder.glob(f"{writer}-*.log")):
                session = path.stem.split("-")[1]
                if session.isdigit():
                    found.setdefault(int(session), []).append(path)
        return found

    @cached_property
    def _read(self) -> tuple[dict[int, SimulationHistory], dict[int, str]]:
        simulations: dict[int, SimulationHistory] = {}
        sessions: dict[int, str] = {}
        for session, paths in sorted(self._log_names.items()):
            sessions[session] = "open"
            for attempt in (attempt for one in simulations.values() for attempt in one.log.values()):
                if attempt.status == "running":  # its session is over
                    attempt.status = "lost"
            for path in paths:
                for record in read_records(path):
                    _fold(record, session, simulations, sessions)
        return dict(sorted(simulations.items())), sessions


def _fold(
    record: dict[str, Any], session: int, simulations: dict[int, SimulationHistory], sessions: dict[int, str]
) -> None:
    """Take one record into account; those of simulations that were never planned are the audit's business."""
    event = record["e"]
    if event == "planned":
        simulations[record["s"]] = SimulationHistory(
            number=record["s"], held_out=record["held_out"], parameters=record["parameters"], seed=record["seed"]
        )
    elif event == "finished":
        sessions[session] = f"finished early: {record['early']}" if "early" in record else "finished"
    elif event == "stopped":
        sessions[session] = f"stopped: {record['reason']}"
    elif record.get("s") in simulations and event in _FOLDS:
        _FOLDS[event](simulations[record["s"]], record, session)


def _attempt(one: SimulationHistory, record: dict[str, Any], session: int) -> Attempt:
    return one.log.setdefault(record["a"], Attempt(number=record["a"], session=session))


def _fold_assigned(one: SimulationHistory, record: dict[str, Any], session: int) -> None:
    _attempt(one, record, session).job = record["job"]


def _fold_step(one: SimulationHistory, record: dict[str, Any], session: int) -> None:
    _attempt(one, record, session).steps += 1
    one.accepted.add(record["t"])


def _fold_spooled(one: SimulationHistory, record: dict[str, Any], session: int) -> None:
    one.accepted.add(record["t"])


def _fold_ended(one: SimulationHistory, record: dict[str, Any], session: int) -> None:
    _attempt(one, record, session).status = _END_STATUS.get(record["status"], str(record["status"]))


def _fold_lost(one: SimulationHistory, record: dict[str, Any], session: int) -> None:
    attempt = _attempt(one, record, session)
    if attempt.status != "completed":
        attempt.status, attempt.reason = "lost", record["reason"]


def _fold_quarantined(one: SimulationHistory, record: dict[str, Any], session: int) -> None:
    one.quarantine = record["reason"]
    attempt = _attempt(one, record, session)
    attempt.reason = record["reason"]
    if attempt.status == "running":
        attempt.status = "failed"


def _fold_unwritten(one: SimulationHistory, record: dict[str, Any], session: int) -> None:
    attempt = _attempt(one, record, session)
    attempt.status, attempt.reason = "failed", record["reason"]


def _fold_steered(one: SimulationHistory, record: dict[str, Any], session: int) -> None:
    one.cut_short |= record["word"] == _STOP


def _fold_used(one: SimulationHistory, record: dict[str, Any], session: int) -> None:
    one.used.add(record["t"])
    one.window = record["k"]


_FOLDS = {
    "assigned": _fold_assigned, "step": _fold_step, "spooled": _fold_spooled, "ended": _fold_ended, "lost": _fold_lost,
    "quarantined": _fold_quarantined, "unwritten": _fold_unwritten, "steered": _fold_steered, "used": _fold_used,
}  # fmt: skip
