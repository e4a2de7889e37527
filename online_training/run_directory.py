"""A run directory: what a study leaves on disk, and how it is found again."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import platform
import secrets
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from headrace.solvers.case_file import CaseReference

from .settings import StudySettings

if TYPE_CHECKING:
    from headrace.surrogates import Surrogate

FORMAT = 1

_FIRST_ITEMS = {"ledger", "logs", "held_out", "checkpoints", "secrets", "case.py", "model-initial"}
"""What `create` makes before study.toml: a folder with nothing else is a creation that was cut short."""

FIXED_SETTINGS = (
    "simulations", "held_out", "sampler", "seed", "batch_size", "views", "buffer_kind", "learning_rate", "offline",
    "shards", "deterministic", "durability",
)  # fmt: skip
"""Settings that a resumed study must keep, since its past depends on them; the others may change."""

FIXED_ORDER_SETTINGS = ("jobs", "buffer", "watermark", "nan_policy")
"""Further ones where the draws have a fixed order, which these decide."""


class StudyError(Exception):
    """A study cannot start, go on or be read; the message says what is wrong and what to do."""


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """The content of study.toml.

    study : identity, 64 bits, chosen at random when the run directory is made.
    case : the case as (file, name, hash); the file is the copy inside the run directory.
    model : class name of the surrogate.
    window : consecutive steps of one training window.
    settings : the study's settings.
    """

    study: int
    case: CaseReference
    model: str
    window: int
    settings: StudySettings

    def total_uses(self, num_steps: int) -> int:
        """Return how many windows the training draws in all: simulations x starts x views."""
        starts = max(num_steps - self.window + 1, 0)
        return round(self.settings.simulations * starts * self.settings.views)

    def to_toml(self) -> str:
        """Return the text of study.toml."""
        case = {name: value for name, value in self.case.to_dict().items() if value is not None}
        data = {
            "format": FORMAT,
            "study": f"{self.study:016x}",
            "case": {**case, "file": "case.py"},
            "model": {"class": self.model, "window": self.window},
            "settings": self.settings.model_dump(),
            "versions": _versions(),
        }
        return tomli_w.dumps(data)

    @classmethod
    def from_toml(cls, text: str, folder: Path) -> StudyRecord:
        """Return the record that `to_toml` wrote into a folder."""
        data = tomllib.loads(text)
        if data["format"] > FORMAT:
            raise StudyError(f"{folder} has format {data['format']}; this version reads up to {FORMAT}: update it.")
        case = CaseReference.from_dict({**data["case"], "file": str(folder / data["case"]["file"])})
        model = data["model"]
        return cls(
            study=int(data["study"], 16), case=case, model=model["class"], window=model["window"],
            settings=StudySettings(**data["settings"]),
        )  # fmt: skip


class RunDirectory:
    """Paths and first files of a run; see docs/run_directory.md."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.ledger = self.path / "ledger"
        self.logs = self.path / "logs"
        self.held_out = self.path / "held_out"
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"
        self.model_initial = self.path / "model-initial"
        self.secrets = self.path / "secrets"
        self.token_file = self.secrets / "token"

    @property
    def exists(self) -> bool:
        """Whether a study was started here."""
        return (self.path / "study.toml").exists()

    def create(self, case: CaseReference, surrogate: Surrogate, settings: StudySettings) -> StudyRecord:
        """Make the folders, copy the case, save the model, draw identity and token; study.toml comes last.

        Raises
        ------
        StudyError : the folder holds something else, or cannot be written. A new one is removed again.
        """
        if self.exists:
            raise StudyError(
                f"{self.path} already holds a study. Continue it with --resume, or choose another run directory."
            )
        if self.path.exists() and not self.path.is_dir():
            raise StudyError(f"{self.path} is a file. Choose another run directory.")
        if self.path.exists() and any(item.name not in _FIRST_ITEMS for item in self.path.iterdir()):
            raise StudyError(f"{self.path} is not empty and holds no study. Choose another run directory.")
        try:
            is_new = False
            with contextlib.suppress(FileExistsError):  # it may be another's, who has begun a moment ago
                self.path.mkdir(parents=True)
                is_new = True
            for folder in (self.ledger, self.logs, self.held_out, self.checkpoints):
                folder.mkdir(parents=True, exist_ok=True)
            self.secrets.mkdir(mode=0o700, exist_ok=True)
            write_secret(self.token_file, secrets.token_hex(32))
            copy = case.copied_to(self.path)
            surrogate.use_case(copy.load())
            surrogate.save(self.model_initial)
            record = StudyRecord(
                study=secrets.randbits(63), case=copy, model=type(surrogate).__name__, window=surrogate.window,
                settings=settings,
            )  # fmt: skip
            write_text(self.path / "study.toml", record.to_toml())
        except BaseException as error:
            if is_new:
                shutil.rmtree(self.path, ignore_errors=True)
            if not isinstance(error, OSError):  # e.g. a model that refuses the case
                raise
            raise StudyError(f"Cannot make the run directory {self.path}: {error}. Check space and rights.") from error
        return record

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers away from this run for the length of a block; the lock ends with the process.

        Raises
        ------
        StudyError : another process runs this study now.
        """
        with open(self.path / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StudyError(
                    f"Another process runs the study in {self.path} now. Wait for it, or stop it, before resuming."
                ) from error
            yield

    def update(self, record: StudyRecord) -> StudyRecord:
        """Write study.toml anew, for a resumed study whose free settings changed, and return the record."""
        write_text(self.path / "study.toml", record.to_toml())
        return record

    def read(self) -> StudyRecord:
        """Return the record of the study in this folder.

        Raises
        ------
        StudyError : there is none, or study.toml is damaged.
        """
        try:
            text = (self.path / "study.toml").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(f"{self.path} holds no study (no readable study.toml).") from error
        try:
            return StudyRecord.from_toml(text, self.path)
        except (KeyError, TypeError, ValueError) as error:
            raise StudyError(f"{self.path / 'study.toml'} is damaged: {error}") from error

    def load_model(self, folder: Path) -> Surrogate:
        """Load a surrogate of this run; a class that stands in the run's own case file is known too.

        Raises
        ------
        ValueError, OSError : as `headrace.surrogates.load_surrogate`.
        """
        from headrace.surrogates import load_surrogate  # torch: an intake and the commands that only look do without

        if not self.exists:
            return load_surrogate(folder)
        reference = self.read().case
        surrogate = load_surrogate(folder, modules=[reference.load_module()])
        surrogate.use_case(reference.load())
        return surrogate

    def require_same(self, record: StudyRecord, case: CaseReference, settings: StudySettings) -> None:
        """Check that a study to be resumed is the one in this folder.

        Raises
        ------
        StudyError : another case, or another value of a setting that the past depends on.
        """
        mine, theirs = (record.case.name, record.case.sha256, record.case.shape), (case.name, case.sha256, case.shape)
        if mine != theirs:
            raise StudyError(
                f"{self.path} is the run directory of another study: its case is {_told(record.case)}, "
                f"not {_told(case)}. Choose another run directory, or take the case back."
            )
        for name in FIXED_SETTINGS + (FIXED_ORDER_SETTINGS if record.settings.deterministic else ()):
            old, new = getattr(record.settings, name), getattr(settings, name)
            if old != new:
                raise StudyError(f"{self.path} was started with {name} = {old}; it cannot go on with {new}.")


def _told(case: CaseReference) -> str:
    loaded = case.load()
    return f"{loaded.name!r} ({case.sha256[:8]}, {' x '.join(map(str, loaded.grid.shape))} points)"


def write_secret(path: Path, text: str) -> None:
    """Write a file that only its owner can read (mode 0600), in place of an older one."""
    path.unlink(missing_ok=True)
    with _named(path), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all: temporary name of this process, fsync, rename.

    Raises
    ------
    OSError : the folder is not there or not writable, or the disk is full; it names the file, and nothing is left.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with _named(path), open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in errors of writing, which on a full disk name none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, f"cannot write ({error.strerror}); make room", str(path)) from error


def _versions() -> Mapping[str, Any]:
    versions = {"python": platform.python_version()}
    for name in ("headrace", "numpy", "scipy", "mpi4py", "pyzmq", "torch", "ray"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
