"""Append-only checksummed logs: the truth about what a study planned, received and used."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_FLUSH_BYTES = 1 << 16


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
        self._lock = threading.Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one record.

        Raises
        ------
        TypeError, ValueError : the record holds something that JSON has no word for (numpy scalars, NaN).
        OSError : as in `flush`.
        """
        text = _ENCODER.encode(record).encode("ascii")
        with self._lock:
            self._require_open()
            self._pending += b"%08x %s\n" % (zlib.crc32(text), text)
            if len(self._pending) >= _FLUSH_BYTES:
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
    LedgerDamage : a line before the last is cut short or does not match its checksum.
    """
    with open(path, "rb") as file:
        damaged = 0
        for number, line in enumerate(file, start=1):
            if damaged:
                raise LedgerDamage(
                    f"Ledger file {path}, line {damaged}: the record does not match its checksum and is not the "
                    "last one, so the file was damaged after it was written. Restore it from a copy."
                )
            record = _decoded(line)
            if record is None:
                damaged = number
            else:
                yield record


def _decoded(line: bytes) -> dict[str, Any] | None:
    digits, text = line[:8], line[9:-1]
    if line[-1:] != b"\n" or line[8:9] != b" " or digits != b"%08x" % zlib.crc32(text):
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
