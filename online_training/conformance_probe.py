"""Asks a solver which fields it streams: it is started, heard, and stopped before its first simulation."""

from __future__ import annotations

import itertools
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from .client import Kind
from .conformance_trial import STUDY, TrialEnded, last_words
from .intake_socket import IntakeSocket
from .launcher import Job
from .local_launcher import LocalLauncher
from .peers import Hello, read_json


def probe_fields(command: Sequence[str], seconds: float = 60.0) -> dict[str, tuple[int, ...]]:
    """Start a solver and return the fields that it declares.

    Raises
    ------
    TrialEnded : it ended, or declared nothing in time, or values of another type than float32.
    """
    token = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="headrace-certify-") as name:
        folder = Path(name)
        token_file = folder / "token"
        token_file.touch(0o600)
        token_file.write_text(token.hex())
        socket, launcher = IntakeSocket("127.0.0.1", 0, study=STUDY, token=token), LocalLauncher(grace=1.0)
        environment = {
            "HEADRACE_ADDRESS": socket.addresses[-1], "HEADRACE_TOKEN_FILE": str(token_file),
            "HEADRACE_STUDY": f"{STUDY:016x}", "HEADRACE_JOB": "probe",
        }  # fmt: skip
        log = folder / "job.log"
        try:
            job = Job(name="probe", command=command, ranks=1, environment=environment, log=log, own_mpirun=True)
            launcher.start(job)
            deadline, sessions = time.monotonic() + seconds, itertools.count(1)
            while time.monotonic() < deadline:
                ended = launcher.poll()
                if ended:
                    raise TrialEnded(f"{command[0]} ended with code {ended['probe']}. It said: {last_words(log)}")
                socket.wait(100)
                while (frames := socket.receive()) is not None:
                    identity, header, payload = socket.verify(frames)
                    content = bytes(payload)
                    if header.kind == Kind.HELLO:
                        welcome = {"nonce": Hello.parse(content).nonce, "lease": seconds, "strict": False}
                        socket.post(identity, Kind.WELCOME, welcome, session=next(sessions), sequence=1)
                    elif header.kind == Kind.DECLARE:
                        return _declared(content)
            raise TrialEnded(f"{command[0]} declared no fields within {seconds:g} s. It said: {last_words(log)}")
        finally:
            launcher.stop_all()
            socket.close()


def _declared(content: bytes) -> dict[str, tuple[int, ...]]:
    fields = read_json(content)["fields"]
    types = {one["dtype"] for one in fields}
    if types != {"float32"}:
        raise TrialEnded(f"The solver declares values of type {', '.join(sorted(types))}; a study takes float32.")
    return {one["name"]: tuple(one["shape"]) for one in fields}
