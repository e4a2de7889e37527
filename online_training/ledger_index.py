"""An index of the ledger for queries: one SQLite file, rebuilt from the logs, never the truth itself."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from .ledger import Ledger

_SCHEMA = """
CREATE TABLE simulations (
    simulation INTEGER PRIMARY KEY, held_out INTEGER NOT NULL, status TEXT NOT NULL, parameters TEXT NOT NULL,
    seed INTEGER NOT NULL, attempts INTEGER NOT NULL, steps_accepted INTEGER NOT NULL, windows_used INTEGER NOT NULL,
    quarantine TEXT
);
CREATE TABLE attempts (
    simulation INTEGER NOT NULL REFERENCES simulations, attempt INTEGER NOT NULL, session INTEGER NOT NULL,
    job TEXT NOT NULL, status TEXT NOT NULL, steps INTEGER NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (simulation, attempt)
);
CREATE TABLE sessions (session INTEGER PRIMARY KEY, status TEXT NOT NULL);
"""


def rebuild_index(folder: str | Path) -> Path:
    """Write index.sqlite from the logs of a ledger, as a whole or not at all, and return its path.

    Tables: simulations, attempts, sessions; parameters are JSON (`json_extract(parameters, '$.nu')`).

    Raises
    ------
    LedgerDamage : a log is damaged elsewhere than at its torn end.
    """
    ledger = Ledger(folder)
    path = ledger.folder / "index.sqlite"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(temporary)) as connection:
            # Readers only ever see the finished file: no journal, and one fsync at the end.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            _fill(connection, ledger)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _fill(connection: sqlite3.Connection, ledger: Ledger) -> None:
    connection.executescript(_SCHEMA)
    with connection:
        connection.executemany(
            "INSERT INTO simulations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (one.number, one.held_out, one.status, json.dumps(one.parameters), one.seed, one.attempts,
                 len(one.accepted), len(one.used), one.quarantine)
                for one in ledger.simulations.values()
            ),
        )  # fmt: skip
        connection.executemany(
            "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (one.number, a.number, a.session, a.job, a.status, a.steps, a.reason)
                for one in ledger.simulations.values()
                for a in one.log.values()
            ),
        )
        connection.executemany("INSERT INTO sessions VALUES (?, ?)", ledger.sessions.items())
