"""Metrics of a run: one JSON line per record, and the same numbers as TensorBoard events."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_TAIL_BYTES = 1 << 16


class MetricsLog:
    """The one writer of RUN/NAME.jsonl and RUN/tensorboard/NAME; not thread-safe.

    A log that exists is continued: a line that a killed writer left unfinished is cut off first.
    Every record is handed to the operating system before `append` returns. Numbers of a nested
    mapping become the scalar "outer/inner"; what is no number stands in the JSON lines only.

    Raises
    ------
    OSError : the files cannot be written.
    """

    def __init__(self, run_dir: str | Path, name: str) -> None:
        self.path = Path(run_dir) / f"{name}.jsonl"
        self._name = name
        self._lines: BinaryIO = open(self.path, "ab", buffering=0)
        self._num_records = _mend(self.path)
        self._events = _EventFile(Path(run_dir) / "tensorboard" / name)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record; "time" (seconds since 1970) is added. NaN and infinity become null.

        The step of its TensorBoard events is record["batch"], else the number of the record.

        Raises
        ------
        OSError : the disk is full; names the file.
        TypeError : a value that JSON has no word for.
        """
        now = time.time()
        plain = _without_nan({"time": now, **record})
        line = json.dumps(plain, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        step = int(record.get("batch", self._num_records))
        try:
            if self._lines.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._events.write(now, step, {f"{self._name}/{key}": value for key, value in _numbers(record)})
        except OSError as error:
            raise OSError(
                error.errno, f"cannot append metrics ({error.strerror}); make room and resume", str(self.path)
            ) from error
        self._num_records += 1

    def close(self) -> None:
        """Close the files; closing twice is allowed."""
        self._lines.close()
        self._events.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return all records of a metrics file in order; none where it is missing, without an unfinished last line.

    Raises
    ------
    ValueError : a line is damaged; names the file.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    return [_record_of(line, path) for line in data.split(b"\n")[:-1] if line]


def last_record(path: str | Path) -> dict[str, Any] | None:
    """Return the newest record of a metrics file, None where there is none yet; reads only the file's end.

    Raises
    ------
    ValueError : its line is damaged; names the file.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return _record_of(lines[-1], path) if lines else None


def _record_of(line: bytes, path: str | Path) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError as error:
        begin = line[:40].decode("utf-8", "replace")
        raise ValueError(f"{path} is damaged: {error}. Remove the line that begins with {begin}.") from error


class _EventFile:
    """A TensorBoard event file, written without its queue and thread, which would lose the last records of a kill."""

    def __init__(self, folder: Path) -> None:
        # Only these two modules: the package's own writers would import TensorFlow where it is installed.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "ab")
        self._records = RecordWriter(self._file)
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self._file.flush()

    def write(self, wall_time: float, step: int, scalars: Mapping[str, float]) -> None:
        """Add one event with all scalars."""
        event = self._event(wall_time=wall_time, step=step)
        for tag, value in scalars.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._records.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _numbers(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and key not in ("time", "batch"):
            yield prefix + key, float(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value


def _mend(path: Path) -> int:
    """Cut off an unfinished last line; return the number of complete ones."""
    with open(path, "r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)
    return data.count(b"\n")
