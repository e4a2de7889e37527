"""Online training: the stream, the buffers, the study, its launchers and its trainer.

The names below are loaded when they are first used, so that a solver that imports
`headrace.online_training.client` gets numpy, pyzmq and the standard library only.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .audit import AuditReport, audit
    from .buffer_choice import FIFO, FIRO, Reservoir
    from .client import connect
    from .run_directory import RunDirectory, StudyError
    from .settings import StudySettings
    from .study import Study, StudyResult

__all__ = [
    "Study", "StudyResult", "StudySettings", "StudyError", "RunDirectory", "Reservoir", "FIFO", "FIRO", "audit",
    "AuditReport", "connect",
]  # fmt: skip

_HOMES = {
    "Study": "study", "StudyResult": "study", "StudySettings": "settings", "StudyError": "run_directory",
    "RunDirectory": "run_directory", "Reservoir": "buffer_choice", "FIFO": "buffer_choice", "FIRO": "buffer_choice",
    "audit": "audit", "AuditReport": "audit", "connect": "client",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public name from the module it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
