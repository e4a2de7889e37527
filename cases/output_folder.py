"""The folder that a verb writes into: made where it is not there."""

from __future__ import annotations

from pathlib import Path


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises
    ------
    OSError : it cannot be made, or something else is there; says which folder, and why.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise FileExistsError(f"Cannot write into {path}: it is no folder. Name one.") from None
    except OSError as error:
        raise OSError(f"Cannot make the folder {path}: {error.strerror}. Name another one.") from error
