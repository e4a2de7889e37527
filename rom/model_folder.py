"""The folder of a reduced model: its name for every file, and the descriptions in JSON that stages leave each other.

model.json says what the model was made of, runs/NAME/run.json what was asked, runs/NAME/evaluation.json what the full
model says to it, samples/NAME/sample.json what many runs together say. Every description has a format, a version and a
checksum.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .atomic import write_text

FORMAT, VERSION = "headrace-rom-description", 1
LARGEST = 64 * 2**20  # bytes of a description


class ModelError(ValueError):
    """A folder that holds no model, or a description that is damaged or of a newer version; names the file."""


@dataclass(frozen=True)
class ModelFolder:
    """Where everything of a model lies."""

    path: Path

    @property
    def model(self) -> Path:
        """The description of the model; written last, so that a folder with it is complete."""
        return self.path / "model.json"

    @property
    def reduction(self) -> Path:
        """The store of the reduced model, as the last enrichment left it."""
        count = len(read_description(self.model).get("enrichments", [])) if self.model.exists() else 0
        return self.reduction_after(count)

    def reduction_after(self, enrichments: int) -> Path:
        """Return the store of the reduced model after so many enrichments; each leaves those before as they are."""
        return self.path / (f"reduction-{enrichments:03d}" if enrichments else "reduction")

    def enrichment(self, number: int) -> Path:
        """Return the store of what an enrichment learned from; the first has number 1."""
        return self.path / f"enrichment-{number:03d}"

    def training(self, number: int) -> Path:
        """Return the store of a training run."""
        return self.path / f"training-{number:03d}"

    def run(self, name: str) -> Path:
        """Return the folder of a run.

        Raises
        ------
        ModelError : a name that is none of a folder.
        """
        return self.path / "runs" / _checked(name)

    def runs(self) -> list[str]:
        """Return the names of all finished runs, sorted."""
        return sorted(p.parent.name for p in self.path.glob("runs/*/run.json"))

    def next_run(self) -> str:
        """Return a name that no run has: run-001, run-002, ..."""
        return self._next("run")

    def sample(self, name: str) -> Path:
        """Return the folder of a sample of many runs.

        Raises
        ------
        ModelError : a name that is none of a folder.
        """
        return self.path / "samples" / _checked(name)

    def samples(self) -> list[str]:
        """Return the names of all finished samples, sorted."""
        return sorted(p.parent.name for p in self.path.glob("samples/*/sample.json"))

    def next_sample(self) -> str:
        """Return a name that no sample has: sample-001, sample-002, ..."""
        return self._next("sample")

    def _next(self, kind: str) -> str:
        taken = {p.name for p in self.path.glob(f"{kind}s/*")}
        return next(name for k in range(1, len(taken) + 2) if (name := f"{kind}-{k:03d}") not in taken)


def _checked(name: str) -> str:
    if not name or Path(name).name != name or name.startswith("."):
        raise ModelError(f"A run cannot be named {name!r}: use letters, digits, - and _.")
    return name


def write_description(path: Path, content: Mapping[str, Any]) -> None:
    """Write a description under a temporary name, with format, version and checksum, and rename it."""
    data = {"format": FORMAT, "version": VERSION, **content}
    data["sha256"] = _digest(data)
    write_text(path, json.dumps(data, indent=1))


def read_description(path: Path) -> dict[str, Any]:
    """Return what `write_description` wrote.

    Raises
    ------
    ModelError : missing, too large, damaged, edited, or newer.
    """
    if not path.is_file():
        raise ModelError(f"There is no {path}; `headrace rom compress CASE --out {path.parent}` makes a model.")
    if path.stat().st_size > LARGEST:
        raise ModelError(f"{path} has {path.stat().st_size} bytes; a description has at most {LARGEST}.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        digest = data.pop("sha256")
        known = (data["format"], data["version"] <= VERSION)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {type(error).__name__}: {error}.") from error
    if digest != _digest(data):
        raise ModelError(f"{path} is damaged or was edited: its checksum does not fit.")
    if known != (FORMAT, True):
        raise ModelError(f"{path} has format {data['format']} {data['version']}; this Headrace reads {FORMAT} up to "
                         f"version {VERSION}. Update Headrace.")  # fmt: skip
    return data


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON keeps them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def settings_of(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as the case takes them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}


def installed_version(package: str) -> str:
    """Return the version of a package, or "not installed": a package that lies on the path alone has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def origin() -> dict[str, str]:
    """Return versions and processor, for descriptions: a time means nothing without them."""
    packages = {name: installed_version(name) for name in ("headrace", "numpy", "scipy", "mpi4py", "h5py")}
    return {**packages, "python": platform.python_version(), "processor": processor()}


def processor() -> str:
    """Return the name of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
