"""Text files that are either whole or not there; as online_training/ has them, from which this folder stands apart."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name of this process, see it on the disk, then rename it.

    Raises
    ------
    OSError : the folder is not there or not writable, or the disk is full; it names the file, and nothing is left.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"cannot write ({error.strerror}); make room", str(path)) from error
    finally:
        part.unlink(missing_ok=True)
