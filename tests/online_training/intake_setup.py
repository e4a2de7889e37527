"""An intake inside the test's process, with a buffer and a memory that a test can see through."""

import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from headrace.online_training.buffer import Buffer, StreamEnded, Window
from headrace.online_training.client import Connection, Kind, Link, Stream, checksum_of
from headrace.online_training.draws import batch_dtype
from headrace.online_training.intake import Assignment, Intake, IntakeSettings
from headrace.online_training.layout import StreamLayout
from headrace.online_training.ledger import RecordWriter, read_records
from headrace.online_training.reservoir import Reservoir
from headrace.online_training.slot_memory import SlotMemory

STUDY = 0x0123456789ABCDEF
TOKEN = bytes(range(32))
MPI_PROGRAM = str(Path(__file__).with_name("mpi_stream.py"))
PATIENCE = 120.0  # seconds after which what has not come will not come, also where many processes share two cores


class PlainMemory:
    """Slots in ordinary memory."""

    path = "/nowhere"

    def __init__(self, layout: StreamLayout, num_slots: int) -> None:
        self.array = np.full((num_slots, *layout.step_shape), np.nan, np.float32)

    def close(self) -> None:
        pass


class FirstInFirstOut(Buffer):
    """Each window once, in order of arrival; simple enough to be obviously right."""

    capacity = property(lambda self: self._num_slots)
    ready = True

    def __init__(self, num_slots: int, window: int) -> None:
        self._num_slots, self._window = num_slots, window
        self._free = list(range(num_slots))
        self._queue: list[Window] = []
        self.slots: dict[tuple[int, int], int] = {}
        self._needed_by: dict[tuple[int, int], int] = {}
        self._drawn: dict[int, Window] = {}
        self._used: dict[int, frozenset[int]] = {}
        self._ticket = 0
        self._closed = False

    @property
    def population(self) -> int:
        return len(self._queue)

    unseen = population

    def mark_used(self, simulation: int, starts: frozenset[int]) -> None:
        self._used[simulation] = starts

    def skip(self, simulation: int, step: int) -> None:
        raise NotImplementedError("too simple for gaps")

    def reserve(self, simulation: int) -> int | None:
        return self._free.pop() if self._free else None

    def put(self, simulation: int, attempt: int, step: int, slot: int) -> None:
        self.slots[simulation, step] = slot
        self._needed_by[simulation, step] = self._window
        start = step - self._window + 1
        steps = range(start, step + 1)
        if start in self._used.get(simulation, ()):
            self._forget(simulation, [t for t in steps if (simulation, t) in self.slots])
        elif start >= 0:
            self._ticket += 1
            slots = tuple(self.slots[simulation, t] for t in steps)
            self._queue.append(Window(self._ticket, simulation, attempt, start, slots, True))

    def _forget(self, simulation: int, steps: list[int]) -> None:
        for step in steps:
            first = min(step, self._window - 1) + 1  # the first steps belong to fewer windows
            self._needed_by[simulation, step] -= 1
            if self._needed_by[simulation, step] <= self._window - first:
                self._free.append(self.slots.pop((simulation, step)))

    def cancel(self, slot: int) -> None:
        self._free.append(slot)

    def end(self, simulation: int) -> None:
        waiting = {(w.simulation, t) for w in (*self._queue, *self._drawn.values()) for t in self._steps(w)}
        for key in [key for key in self.slots if key[0] == simulation and key not in waiting]:
            self._free.append(self.slots.pop(key))

    def _steps(self, window: Window) -> list[int]:
        return list(range(window.start, window.start + self._window))

    def sample(self, count: int) -> list[Window] | None:
        if not self._queue and self._closed:
            raise StreamEnded
        if len(self._queue) < count and not self._closed:
            return None
        drawn, self._queue = self._queue[:count], self._queue[count:]
        self._drawn.update({w.ticket: w for w in drawn})
        return drawn

    def release(self, tickets: list[int], *, used: bool = True) -> None:
        for ticket in tickets:
            window = self._drawn.pop(ticket)
            if used:
                self._forget(window.simulation, self._steps(window))
            else:
                self._queue.insert(0, window)

    def close(self) -> None:
        self._closed = True


def make_layout(**changes: Any) -> StreamLayout:
    return StreamLayout(**{
        "fields": ("u",), "shape": (7, 5), "num_steps": 6, "window": 2, "parameters": ("nu",), **changes
    })  # fmt: skip


@contextmanager
def running_intake(
    tmp_path: Path, layout: StreamLayout, *, slots: int = 64, session: int = 1, transport: str = "shm", **changes: Any
):
    """An intake that serves; `environment` on it is what its solvers need to send by a transport: shm, ipc or tcp."""
    (tmp_path / "ledger").mkdir(exist_ok=True)
    token_file = tmp_path / "token"
    if not token_file.exists():
        token_file.touch(0o600)
        token_file.write_text(TOKEN.hex())
    values = {
        "layout": layout, "buffer": FirstInFirstOut(slots, layout.window), "memory": PlainMemory(layout, slots),
        "views": 1.0, "batch_size": 4, "study": STUDY, "session": session, "token": TOKEN, "interface": "127.0.0.1",
        "port": 0, "run_dir": tmp_path, "max_running": 4,
        **({} if transport == "shm" else {"ring_bytes": 0}), **changes,
    }  # fmt: skip
    settings = IntakeSettings(**values)
    intake = Intake(settings)
    intake.start()
    intake.settings = settings
    address = intake.addresses.split(",")[-1] if transport == "tcp" else intake.addresses
    intake.environment = {
        "HEADRACE_ADDRESS": address, "HEADRACE_TOKEN_FILE": str(token_file),
        "HEADRACE_STUDY": f"{STUDY:016x}", "HEADRACE_JOB": "1-0001", "HEADRACE_LOG_DIR": str(tmp_path / "ledger"),
    }  # fmt: skip
    try:
        yield intake
    finally:
        intake.close()


def plan(intake: Intake, count: int, **changes: Any) -> None:
    """Plan `count` simulations with parameter nu = 0.5, 1.5, ... and say that these are all."""
    intake.plan([Assignment(simulation=i, parameters={"nu": i + 0.5}, seed=i, **changes) for i in range(count)])
    intake.all_planned()


@contextmanager
def real_intake(tmp_path: Path, layout, *, slots: int = 64, watermark: int = 1, **changes):
    """An intake with the reservoir and the shared memory of a real study."""
    name = f"test-{os.getpid()}-{tmp_path.name}"
    memory = SlotMemory.create(name, layout, slots * layout.step_bytes)
    buffer = Reservoir(slots, layout.window, watermark, seed=5)
    with running_intake(tmp_path, layout, slots=slots, memory=memory, buffer=buffer, **changes) as intake:
        yield intake


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE, what: str = "the condition") -> Any:
    """Wait for a condition and return its value; `what` says in the error what was waited for."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"Waited {seconds:g} s for {what}."
        time.sleep(0.01)
    return value


def field_of(simulation: int, step: int, shape: tuple[int, ...], field: int = 0) -> np.ndarray:
    """What the tests' solvers send: exact in float32 and different in every cell, step, field and simulation."""
    cells = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    return cells + 1000.0 * step + 100000.0 * simulation + 0.5 * field


def send_step(stream: Stream, step: int, shape: tuple[int, ...]) -> None:
    """Send a whole step of the one field, at time step / 2."""
    stream.send(step=step, time=0.5 * step, values=field_of(stream.simulation, step, shape)[None])


def run_all(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run whatever the study gives out, in this process; return the number of simulations."""
    layout, count = intake.settings.layout, 0
    use_environment(intake, monkeypatch)
    with Connection({"u": layout.shape}) as connection:
        for stream in connection.simulations():
            for step in range(layout.num_steps):
                send_step(stream, step, layout.shape)
            count += 1
    return count


def use_environment(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this very process be a solver of the intake."""
    for name, value in intake.environment.items():
        monkeypatch.setenv(name, value)


def train_all(intake: Intake, log: RecordWriter | None = None) -> list[tuple[int, int]]:
    """Draw windows of two to the end, look at their content, note their use, and return (simulation, start) of all."""
    trainer, seen, index = TrainerDouble(intake), [], 0
    memory, shape = intake.settings.memory.array, intake.settings.layout.shape
    while (records := trainer.draw(index, 2)) is not None:
        assert not isinstance(records, str), "no batch came in time"
        index += 1
        for record in records:
            number, start = int(record["simulation"]), int(record["start"])
            for step, slot, at in zip((start, start + 1), record["slots"], record["times"], strict=True):
                expected = field_of(number, step, shape).astype(np.float32)[None]
                assert np.array_equal(memory[slot], expected) and at == 0.5 * step
            seen.append((number, start))
            if log is not None:
                contents = [checksum_of(memory[slot], "xxh3") for slot in record["slots"]]
                log.append({"e": "used", "s": number, "t": start, "k": 2, "h": contents, "n": index})
        trainer.release(records)
    trainer.close()
    return seen


def audit_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: StreamLayout, *, simulations: int, **end: str
) -> Any:
    """The audit of what intakes, solvers and trainers left in ledger/, as if it were a finished study.

    end : early="why", where it finished before the last planned window.
    """
    from headrace.online_training.audit import audit  # imports torch, which most tests of the intake do without
    from headrace.online_training.run_directory import RunDirectory

    with RecordWriter(tmp_path / "ledger" / f"study-{simulations}.log") as log:
        for number in range(simulations):
            log.append({"e": "planned", "s": number, "held_out": False, "parameters": {}, "seed": 0})
        log.append({"e": "finished", **end})
    record = SimpleNamespace(
        settings=SimpleNamespace(offline=""),
        case=SimpleNamespace(load=lambda: SimpleNamespace(num_snapshots=layout.num_steps - 1)),
    )
    monkeypatch.setattr(RunDirectory, "read", lambda self: record)
    return audit(tmp_path)


class TrainerDouble:
    """One trainer worker on the wire, without a reservoir mapped."""

    def __init__(self, intake: Intake, *, rank: int = 0, ranks: int = 1, generation: int = 0) -> None:
        hello = {"role": "trainer", "job": "trainer", "rank": rank, "ranks": ranks, "generation": generation}
        self.link = Link(intake.addresses, TOKEN, STUDY, hello=hello, lease=30.0)
        self.welcome = self.link.join()
        self.rank, self.ranks = rank, ranks
        self._records = batch_dtype(self.welcome["window"], len(self.welcome["parameters"]))

    def ask(self, index: int, batch: int = 4) -> None:
        self.link.send(Kind.DRAW, {"batch": batch}, value=index, block=self.rank, num_blocks=self.ranks)

    def take(self, timeout: float = PATIENCE) -> np.ndarray | str | None:
        """The next BATCH's records; None at the stream's end; "nothing" after the timeout."""
        message = self.link.receive(timeout)
        if message is None:
            return "nothing"
        header, payload = message
        assert header.kind == Kind.BATCH
        return np.frombuffer(payload, self._records) if header.num_blocks else None

    def draw(self, index: int, batch: int = 4) -> np.ndarray | None:
        self.ask(index, batch)
        return self.take()

    def release(self, records: np.ndarray) -> None:
        self.link.send(Kind.RELEASE, np.ascontiguousarray(records["ticket"]).tobytes())

    def drain(self, start: int = 0, batch: int = 4) -> list[np.ndarray]:
        """Draw and release until the stream ends."""
        batches = []
        while (records := self.draw(start + len(batches), batch)) is not None:
            assert not isinstance(records, str), "no batch came in time"
            batches.append(records)
            self.release(records)
        return batches

    def close(self) -> None:
        self.link.close()


def solver_environment(intake: Intake, **changes: str) -> dict[str, str]:
    return {**os.environ, **intake.environment, **changes}


def environment_without_ray() -> dict[str, str]:
    """This process's environment for a study in a process of its own, which is to start a Ray of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def records_of(tmp_path: Path, event: str, session: int = 1) -> list[dict]:
    records = read_records(tmp_path / "ledger" / f"intake-{session}.log")
    return [record for record in records if record["e"] == event]


def send_all(stream, shape: tuple[int, ...], steps: range) -> None:
    for step in steps:
        stream.send(step=step, time=0.1 * step, values=field_of(stream.simulation, step, shape)[None])
