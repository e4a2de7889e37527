"""Ray for one study: started with a token of the run, in a short temporary folder, and stopped again."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .run_directory import RunDirectory, write_secret

_OBJECT_STORE_BYTES = 128 * 2**20  # samples never pass through Ray; its smallest useful store is enough


@contextlib.contextmanager
def ray_session(directory: RunDirectory, num_cpus: int) -> Iterator[None]:
    """Bring up a local Ray for the length of a block, or use the one this process is already connected to."""
    prepare_environment(directory)
    import ray

    if ray.is_initialized():
        yield
        return
    _remove_left_over(directory)
    # Unix sockets live below this folder, and their paths may not exceed 107 bytes: run directories can be too deep.
    folder = tempfile.mkdtemp(prefix="hr-")
    (directory.secrets / "ray-folder").write_text(folder)
    try:
        ray.init(
            num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
            object_store_memory=_OBJECT_STORE_BYTES, _temp_dir=folder,
        )  # fmt: skip
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def prepare_environment(directory: RunDirectory) -> None:
    """Set what Ray reads from the environment when it is imported: a token per run, no statistics sent home.

    In a process that imported Ray earlier its own default holds: a token in the user's home.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        token = directory.secrets / "ray"
        write_secret(token, secrets.token_hex(32))
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    defaults = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        # The controller looks at its workers this often; the default of 2 s delays every restart.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _remove_left_over(directory: RunDirectory) -> None:
    """Remove the folder of a Ray whose driver was killed."""
    note = directory.secrets / "ray-folder"
    if note.exists():
        folder = Path(note.read_text().strip())
        if folder.name.startswith("hr-") and folder.parent == Path(tempfile.gettempdir()):
            shutil.rmtree(folder, ignore_errors=True)
        note.unlink()
