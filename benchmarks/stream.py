"""Speed of the stream from MPI solvers into the reservoir, beside raw ZeroMQ and a plain copy of the same bytes.

    python benchmarks/stream.py [--quick] [--only fields|messages] [--device cpu] [--resume]

Parts: `fields`, fields of 64 KiB to 32 MiB from 1 and 2 ranks under mpirun, through shared memory, tcp and ipc, two of
them encrypted over tcp;
`messages`, blocks of at most 1 KiB: 32 fields in each step, which travel together, and a single one; `ray`, the same
fields as arguments of calls of a Ray actor, eight on the way. Ours is the whole path: client, authentication,
checksums on both sides, credits and acknowledgements, finite check, ledgers of
both sides, assembly in shared memory; solver and intake are processes of their own. Raw pyzmq is PUSH/PULL of the
same pieces through the same transport (beside shared memory: ipc) into the same kind of memory and nothing else; over
tcp also with the checks of ours, a checksum before sending, and checksum and finite check where a piece is copied to.
"Checksums and copies alone" is what ours does to each byte outside ZeroMQ, by the same functions, timed in one process:
copy into shared memory (not over tcp and ipc) and checksum of the sender; copy into the slot, checksum and finite check
of the intake. Solver and intake share this work, so that ours can be faster where each has a core. A rank has two
steps on the way, so that small fields measure the round trip. The load of the machine at the end is part of each line.
Medians of three rounds, in which ours and the raw transfers run in turn, the smallest and the largest beside; ratios
are those of a round. One JSON line per figure, also in benchmarks/results/stream-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from lines import Report, flags, median_seconds, processor
from rivals.ray_calls import ray_calls

STUDY, TOKEN = 0x5EED, bytes(range(32))
PATIENCE = 120
SLOT_BYTES = 256 * 2**20
"""Of the reservoir, and of the memory that raw transfers and copies walk through: far more than any cache."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One transfer: fields of (rows, columns) float32 in `steps` steps, cut along the rows over the ranks."""

    part: str
    fields: int
    rows: int
    columns: int
    steps: int
    ranks: int
    transport: str
    grid: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Points of a field: `grid`, of cases that have other than two axes."""
        return tuple(self.grid) or (self.rows, self.columns)

    @property
    def step_bytes(self) -> int:
        """Bytes of one step over all ranks."""
        return 4 * self.fields * math.prod(self.shape)

    def __str__(self) -> str:
        size = self.step_bytes // self.fields
        text = f"{size // 2**20} MiB" if size >= 2**20 else f"{size // 2**10} KiB"
        fields = "" if self.fields == 1 else f"{self.fields} x "
        return f"{fields}{text}, {self.ranks} rank{'s' * (self.ranks > 1)}, {self.transport}"


def shapes(quick: bool) -> Iterator[Shape]:
    """Yield what is to be measured."""
    for transport in ("shm", "tcp", "ipc"):
        for ranks in (1, 2):
            for rows, columns in ((128, 128), (512, 512), (1024, 1024), (4096, 2048)):
                size = 4 * rows * columns
                if quick and (size not in (2**20, 2**22) or (size != 2**20 and (ranks == 2 or transport == "ipc"))):
                    continue
                total = (128 if quick else 1024) * 2**20
                steps = min(max(4, total // size), 500 if quick else 4000)
                yield Shape(part="fields", fields=1, rows=rows, columns=columns, steps=steps, ranks=ranks,
                            transport=transport)  # fmt: skip
    for rows, steps in () if quick else ((512, 256), (1024, 64)):
        yield Shape(part="fields", fields=1, rows=rows, columns=rows, steps=steps, ranks=1, transport="curve")
    for ranks in (1, 2):
        for fields, steps in ((32, 1000), (1, 4000)):
            yield Shape(part="messages", fields=fields, rows=16, columns=16, steps=steps // 6 if quick else steps,
                        ranks=ranks, transport="tcp")  # fmt: skip


# -- the other processes -------------------------------------------------------------------------------------------


def serve_intake(shape: Shape, folder: str, repetitions: int) -> None:
    """Be the intake until stdin ends; print its address, at the end its status."""
    from headrace.online_training.fifo import FIFO
    from headrace.online_training.intake import Intake
    from headrace.online_training.intake_settings import IntakeSettings
    from headrace.online_training.layout import StreamLayout
    from headrace.online_training.simulation_run import Assignment
    from headrace.online_training.slot_memory import SlotMemory

    class UsedAtOnce(FIFO):
        """Half full; the oldest steps make room for new ones, batch by batch, so that all slots are written in turn."""

        def put(self, simulation: int, attempt: int, step: int, slot: int) -> None:
            super().put(simulation, attempt, step, slot)
            batch = max(1, min(32, self.capacity // 8))
            if self.population >= self.capacity // 2 + batch:
                self.release([window.ticket for window in self.sample(batch)])

    layout = StreamLayout(fields=tuple(f"f{i}" for i in range(shape.fields)), shape=shape.shape,
                          num_steps=shape.steps, window=1)  # fmt: skip
    memory = SlotMemory.create(f"benchmark-{os.getpid()}", layout, SLOT_BYTES)
    memory.array.fill(0)
    (Path(folder) / "ledger").mkdir()
    intake = Intake(
        IntakeSettings(
            layout=layout, buffer=UsedAtOnce(len(memory.array), 1), memory=memory, views=1e-9, batch_size=1,
            study=STUDY, session=1, token=TOKEN, interface="127.0.0.1", port=0, run_dir=Path(folder), max_running=1,
            encrypt=shape.transport == "curve", **({} if shape.transport == "shm" else {"ring_bytes": 0}),
        )
    )  # fmt: skip
    intake.plan([Assignment(simulation=number, parameters={}) for number in range(repetitions + 1)])
    intake.all_planned()
    intake.start()
    print(json.dumps(intake.addresses), flush=True)
    sys.stdin.read()
    print(json.dumps(intake.status()), flush=True)
    intake.close()


def rows_of(shape: Shape, rank: int) -> slice:
    """Return the rows of one rank."""
    return slice(rank * shape.rows // shape.ranks, (rank + 1) * shape.rows // shape.ranks)


def block_of(shape: Shape, rank: int) -> np.ndarray:
    """Return one rank's values, (fields, rows, columns)."""
    rows = rows_of(shape, rank)
    return np.random.default_rng(rank).random((shape.fields, rows.stop - rows.start, shape.columns), np.float32)


def run_solver(shape: Shape) -> None:
    """Be one rank of the solver; rank 0 prints the seconds of each simulation."""
    from mpi4py import MPI

    from headrace.online_training.client import Connection

    comm = MPI.COMM_WORLD
    values, where = block_of(shape, comm.rank), (rows_of(shape, comm.rank), slice(0, shape.columns))
    fields = {f"f{i}": (shape.rows, shape.columns) for i in range(shape.fields)}
    seconds = []
    with Connection(fields, comm) as connection:
        for stream in connection.simulations():
            began = time.perf_counter()
            with stream:
                for step in range(shape.steps):
                    stream.send(step=step, time=float(step), values=values, where=where)
            seconds.append(time.perf_counter() - began)
    if comm.rank == 0:
        print(json.dumps(seconds[1:]), flush=True)


def pieces_of(shape: Shape, rank: int) -> list[np.ndarray]:
    """Return one rank's step as the wire cuts it."""
    from headrace.online_training.client import pieces

    return [field[cut] for field in block_of(shape, rank) for cut in pieces(field.shape, 4)]


def raw_socket(context: zmq.Context, kind: int, shape: Shape) -> zmq.Socket:
    """Return an end of a raw transfer, encrypted as ours where ours is."""
    from headrace.online_training.client import curve_keys

    socket = context.socket(kind)
    if shape.transport == "curve":
        socket.curve_server = kind == zmq.PULL
        socket.curve_publickey, socket.curve_secretkey = curve_keys(TOKEN, "intake" if kind == zmq.PULL else "client")
        if kind == zmq.PUSH:
            socket.curve_serverkey, _ = curve_keys(TOKEN, "intake")
    return socket


def receive_raw(shape: Shape, repetitions: int, address: str, checked: bool) -> None:
    """Be the end of a raw transfer; print its address, then the seconds of each repetition."""
    from headrace.online_training.assembly import Box, StepAssembly
    from headrace.online_training.client import CHECKSUMS

    memory = np.zeros(SLOT_BYTES, np.uint8)
    floats = memory.view(np.float32)
    count = shape.steps * sum(len(pieces_of(shape, rank)) for rank in range(shape.ranks))
    with zmq.Context() as context, raw_socket(context, zmq.PULL, shape) as pull, context.socket(zmq.PUB) as go:
        pull.setsockopt(zmq.RCVHWM, 64)
        pull.bind(address)
        port = go.bind_to_random_port("tcp://127.0.0.1")
        print(json.dumps([pull.getsockopt_string(zmq.LAST_ENDPOINT), f"tcp://127.0.0.1:{port}"]), flush=True)
        for _ in range(shape.ranks):
            pull.recv()
        seconds = []
        for _ in range(repetitions + 1):
            began, place = time.perf_counter(), 0
            go.send(b"go")
            for _ in range(count):
                frame = pull.recv(copy=False).buffer
                size = len(frame)
                place = place if place + size <= len(memory) else 0
                if checked:
                    place_in = floats[place // 4 : (place + size) // 4]
                    assembly = StepAssembly(place_in[None], size // 4, 0.0)
                    assembly.place(Box(0, 1, (0,), place_in.shape), np.frombuffer(frame, np.float32), CHECKSUMS[0])
                else:
                    memory[place : place + size] = frame
                place += size
            seconds.append(time.perf_counter() - began)
        print(json.dumps(seconds[1:]), flush=True)


def send_raw(shape: Shape, repetitions: int, addresses: list[str], checked: bool) -> None:
    """Be one rank of a raw transfer."""
    from mpi4py import MPI

    from headrace.online_training.client import CHECKSUMS, checksum_of

    parts = [np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data for piece in
             pieces_of(shape, MPI.COMM_WORLD.rank)]  # fmt: skip
    with zmq.Context() as context, raw_socket(context, zmq.PUSH, shape) as push, context.socket(zmq.SUB) as go:
        push.setsockopt(zmq.SNDHWM, 64)
        push.connect(addresses[0])
        go.connect(addresses[1])
        go.subscribe(b"")
        time.sleep(0.3)  # a subscription takes effect some time after its call
        push.send(b"ready")
        for _ in range(repetitions + 1):
            go.recv()
            for _ in range(shape.steps):
                for part in parts:
                    if checked:
                        checksum_of(part, CHECKSUMS[0])
                    push.send(part, copy=len(part) < 65536)


ROLES: dict[str, Callable[..., None]] = {
    "intake": serve_intake, "solver": run_solver, "raw-receiver": receive_raw, "raw-sender": send_raw
}  # fmt: skip


def arguments(role: str, shape: Shape, *rest: Any) -> list[str]:
    """Return the command line that plays a role."""
    return [sys.executable, sys.argv[0], "--role", json.dumps([role, asdict(shape), *rest])]


def play(role: list[Any]) -> None:
    """Be the process that `arguments` asks for."""
    name, shape, *rest = role
    ROLES[name](Shape(**shape), *rest)


def mpirun(ranks: int) -> list[str]:
    """Return the beginning of a command for MPI ranks."""
    from headrace.online_training.local_launcher import find_mpirun

    program = find_mpirun()
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return [program, *(["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in version else []), "-n", str(ranks)]


# -- measurements --------------------------------------------------------------------------------------------------


@contextmanager
def process(command: list[str]) -> Iterator[subprocess.Popen]:
    """Run a process whose first line of output says that it is ready."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def run_ranks(shape: Shape, role: str, *rest: Any, **environment: str) -> str:
    """Run the ranks of a role to their end and return their output."""
    done = subprocess.run(
        mpirun(shape.ranks) + arguments(role, shape, *rest), env={**os.environ, **environment},
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{role} of {shape} ended with code {done.returncode}:\n{done.stderr}")
    return done.stdout


@contextmanager
def study_of(shape: Shape, repetitions: int) -> Iterator[tuple[dict[str, str], Callable[[], dict[str, Any]]]]:
    """Serve repetitions + 1 simulations; yield the environment of solvers, and what ends the intake with its status."""
    with tempfile.TemporaryDirectory() as folder, process(arguments("intake", shape, folder, repetitions)) as intake:
        addresses = json.loads(intake.stdout.readline()).split(",")
        token = Path(folder) / "token"
        token.touch(0o600)
        token.write_text(TOKEN.hex())
        kind = {"tcp": "tcp", "curve": "curve+tcp"}.get(shape.transport, "ipc")
        environment = {
            "HEADRACE_TOKEN_FILE": str(token), "HEADRACE_STUDY": f"{STUDY:016x}", "HEADRACE_JOB": "1-0001",
            "HEADRACE_ADDRESS": next(address for address in addresses if address.startswith(kind)),
            "HEADRACE_LOG_DIR": str(Path(folder) / "ledger"),
        }  # fmt: skip
        yield environment, lambda: json.loads(intake.communicate("", timeout=PATIENCE)[0])


def time_ours(shape: Shape, repetitions: int) -> float:
    """Return the median seconds of a simulation."""
    with study_of(shape, repetitions) as (environment, end):
        output = run_ranks(shape, "solver", **environment)
        status = end()
    wanted = (repetitions + 1) * shape.steps
    if status["steps_accepted"] != wanted or status["rejected"] or status["error"]:
        raise RuntimeError(f"{shape}: the intake took {status['steps_accepted']} of {wanted} steps: {status}")
    return statistics.median(json.loads(output))


def time_raw(shape: Shape, repetitions: int, *, checked: bool = False) -> float:
    """Return the median seconds of the raw transfer of the same pieces; checked : as ours are."""
    with tempfile.TemporaryDirectory() as folder:
        address = "tcp://127.0.0.1:*" if shape.transport in ("tcp", "curve") else f"ipc://{folder}/raw"
        with process(arguments("raw-receiver", shape, repetitions, address, checked)) as receiver:
            run_ranks(shape, "raw-sender", repetitions, json.loads(receiver.stdout.readline()), checked)
            return statistics.median(json.loads(receiver.communicate("", timeout=PATIENCE)[0]))


def time_in_place(shape: Shape, repetitions: int) -> tuple[float, float]:
    """Return the median seconds of copying all steps in one process, plainly and with all that ours does to a byte."""
    from headrace.online_training.assembly import Box, StepAssembly
    from headrace.online_training.client import CHECKSUMS, Digest, copy_checked

    slots = np.zeros((max(2, SLOT_BYTES // shape.step_bytes), shape.step_bytes // 4), np.float32)
    source = np.random.default_rng(0).random(shape.step_bytes // 4, np.float32)
    cuts = np.array_split(np.arange(len(source)), max(1, math.ceil(shape.step_bytes / (4 * 2**20)), shape.fields))
    parts = [slice(int(cut[0]), int(cut[-1]) + 1) for cut in cuts]
    ring = np.zeros(4 * 2**20, np.float32)
    boxes = [Box(0, 1, (part.start,), (part.stop - part.start,)) for part in parts]

    def plain() -> None:
        for step in range(shape.steps):
            slots[step % len(slots)] = source

    def checked() -> None:
        for step in range(shape.steps):
            assembly = StepAssembly(slots[step % len(slots)][None], shape.step_bytes // 4, 0.0)
            for number, (part, box) in enumerate(zip(parts, boxes, strict=True)):
                values, digest = source[part], Digest(CHECKSUMS[0])
                if shape.transport == "shm":
                    first = number % max(1, len(ring) // len(values)) * len(values)
                    copy_checked(values, ring[first : first + len(values)], digest)
                    values = ring[first : first + len(values)]
                else:
                    digest.update(values)
                assembly.place(box, values, CHECKSUMS[0])
            assembly.checksum()

    return tuple(median_seconds(work, repetitions) for work in (plain, checked))


def measure(shape: Shape, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield the figures of one shape; ours and raw transfers in turn, for a machine has slower moments."""
    rounds, repetitions = (1, 2) if quick else (3, 2)
    ways = [time_ours, time_raw]
    if shape.part == "fields" and shape.transport == "tcp":
        ways.append(partial(time_raw, checked=True))
    times = np.array([[way(shape, repetitions) for way in ways] for _ in range(rounds)])
    ours, raw = np.median(times[:, :2], axis=0)
    if shape.part == "messages":
        count = shape.ranks * shape.fields * shape.steps
        yield figure(shape, "blocks of 1 KiB", count / ours, "1/s", count / raw, goal=20_000)
        return
    plain, checked = time_in_place(shape, repetitions)
    megabytes = shape.steps * shape.step_bytes / 1e6
    goal, fraction, shared = {"shm": (3000, None, 0.8), "tcp": (1000, 0.75, None)}.get(shape.transport, (None,) * 3)
    yield figure(shape, "solver to reservoir", megabytes / times[:, 0], "MB/s", megabytes / raw, goal=goal)
    yield figure(shape, "fraction of raw pyzmq", times[:, 1] / times[:, 0], "1", 1.0, goal=fraction)
    if shape.transport == "tcp":
        yield figure(shape, "raw pyzmq with our checks", megabytes / times[:, 2], "MB/s", megabytes / raw)
        yield figure(shape, "fraction of raw pyzmq with our checks", times[:, 2] / times[:, 0], "1", 1.0)
    yield figure(shape, "plain copy", megabytes / plain, "MB/s", None)
    yield figure(shape, "checksums and copies alone", megabytes / checked, "MB/s", megabytes / plain)
    yield figure(shape, "fraction of checksums and copies", checked / ours, "1", 1.0, goal=shared)


def figure(
    shape: Shape, name: str, values: Any, unit: str, baseline: float | None, *, goal: float | None = None
) -> dict[str, Any]:
    """Return the line of one figure: of the median where it was measured in turn with others."""
    value = float(np.median(values))
    spread = {"spread": [float(np.min(values)), float(np.max(values))]} if np.size(values) > 1 else {}
    setup = f"{shape.steps} steps, authentication on, baseline: raw pyzmq PUSH/PULL of the same pieces (for checksums:"
    return line_of(
        f"{shape.part} {shape}: {name}", value, unit, baseline, goal=goal, met=None if goal is None else value >= goal,
        **spread, setup=f"{setup} plain copy)",
    )  # fmt: skip


def line_of(name: str, value: float, unit: str, baseline: float | None, **more: Any) -> dict[str, Any]:
    """Return a line with what all lines of this machine share."""
    return {
        "name": name, "value": value, "unit": unit, "goal": None, "met": None, "baseline": baseline, "seeds": [0],
        "cores": len(os.sched_getaffinity(0)), "device": processor(),
        "precision": "fp32",
        "load": round(os.getloadavg()[0], 2),
        **more, "setup": f"pyzmq {zmq.__version__}, libzmq {zmq.zmq_version()}, {more.get('setup', '')}",
    }  # fmt: skip


def main() -> None:
    """Measure what is asked for and print one JSON line per figure."""
    parser = flags(__doc__, ("fields", "messages", "ray"))
    parser.add_argument("--role", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play(options.role)
        return
    report = Report("stream", quick=options.quick, resume=options.resume)
    for shape in shapes(options.quick):
        if options.only in (None, shape.part):
            report.measure(f"{shape.part} {shape}:", measure(shape, options.quick))
    if options.only in (None, "ray"):
        report.measure("ray", (line_of(**figure) for figure in ray_calls(options.quick, SLOT_BYTES)))


if __name__ == "__main__":
    main()
