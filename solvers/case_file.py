"""How a case travels between processes: as a file, a name in it, and the hash of what was in it."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .case import Case

Kind = TypeVar("Kind")

MODULE_PREFIX = "headrace_case_"
"""What the names of modules that are made of case files begin with."""


@dataclass(frozen=True, kw_only=True)
class CaseReference:
    """A case as (file, variable, hash), so that every process runs the same one.

    file : the Python file, absolute; self-contained but for installed packages.
    name : the module-level variable in it that holds the `Case`.
    sha256 : of the file's bytes, 64 hexadecimal digits.
    shape : grid shape in place of the one in the file; None keeps it.
    """

    file: Path
    name: str = "case"
    sha256: str
    shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, path: str | Path, name: str = "case", *, shape: tuple[int, ...] | None = None) -> CaseReference:
        """Return the reference to a case in a file as it is now.

        Raises
        ------
        ValueError : there is no such file.
        """
        file = Path(path).resolve()
        return cls(file=file, name=name, sha256=hashlib.sha256(_bytes_of(file)).hexdigest(), shape=shape)

    def load_module(self) -> types.ModuleType:
        """Import the file under a name of its own and return the module.

        Raises
        ------
        ValueError : the file changed since the reference was made, or does not run.
        """
        source = self._checked_source()
        module_name = f"{MODULE_PREFIX}{self.sha256[:16]}"
        module = types.ModuleType(module_name)
        module.__file__ = str(self.file)
        # The bytes that were hashed are the ones that run: the file is not read twice, no cache is written beside it.
        sys.modules[module_name] = module
        try:
            with _without_neighbours(self.file.parent):
                exec(compile(source, str(self.file), "exec"), module.__dict__)
        except (Exception, SystemExit) as error:  # run(case) outside of `if __name__ == "__main__"` ends so
            del sys.modules[module_name]
            raise ValueError(
                f"Case file {self.file} does not run: {type(error).__name__}: {error}. A case is one "
                "self-contained file; it may import installed packages only, not what lies beside it."
            ) from error
        return module

    def load(self) -> Case:
        """Import the file as `load_module` does and return its case.

        Raises
        ------
        ValueError : the file changed since the reference was made, does not run, or has no such case.
        """
        case = self.load_as(Case)
        return case if self.shape is None else case.resized(self.shape)

    def load_as(self, kind: type[Kind]) -> Kind:
        """Import the file as `load_module` does and return what it defines under the reference's name.

        Raises
        ------
        ValueError : the file changed since the reference was made, does not run, or has no such variable of this kind.
        """
        module = self.load_module()
        case = getattr(module, self.name, None)
        if not isinstance(case, kind):
            found = ", ".join(name for name, value in vars(module).items() if isinstance(value, kind))
            raise ValueError(
                f"Case file {self.file} has no {kind.__name__} named {self.name!r}; it has {found or 'none'}. "
                f"Write case = {kind.__name__}(...) at the top level of the file, not under "
                '`if __name__ == "__main__"`.'
            )
        return case

    def copied_to(self, folder: str | Path) -> CaseReference:
        """Copy the file into a folder as case.py, atomically, and return the reference to the copy.

        Raises
        ------
        ValueError : the file changed since the reference was made.
        """
        source = self._checked_source()
        target = Path(folder).resolve() / "case.py"
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".case-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(source)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return replace(self, file=target)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; `shape` is left out where the file's own grid is used."""
        data: dict[str, Any] = {"file": str(self.file), "name": self.name, "sha256": self.sha256}
        return data if self.shape is None else {**data, "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, folder: str | Path = ".") -> CaseReference:
        """Return the reference that `to_dict` described; a relative file is looked up in folder."""
        shape = data.get("shape")
        return cls(
            file=(Path(folder) / data["file"]).resolve(), name=data["name"], sha256=data["sha256"],
            shape=None if shape is None else tuple(int(n) for n in shape),
        )  # fmt: skip

    def _checked_source(self) -> bytes:
        source = _bytes_of(self.file)
        found = hashlib.sha256(source).hexdigest()
        if found != self.sha256:
            raise ValueError(
                f"Case file {self.file} has changed: its SHA-256 is {found[:16]}..., {self.sha256[:16]}... was "
                "expected. Restore the file, or start a new run with the new one."
            )
        return source


@contextmanager
def _without_neighbours(folder: Path) -> Iterator[None]:
    """Hide the modules of a folder that Python searches because the script lies there, or was started there.

    A run directory has the case's file alone, so that what it imports from beside it would be missed later. What every
    process finds, by PYTHONPATH or as an installed package, is no such thing, and stays.
    """
    library = os.path.dirname(os.__file__)  # installed packages come after it
    before = sys.path[: sys.path.index(library)] if library in sys.path else sys.path[:1]
    own = [(n, entry) for n, entry in enumerate(before) if _resolved(entry) == folder]
    given = os.environ.get("PYTHONPATH")
    if not own or (given and folder in map(_resolved, given.split(os.pathsep))):
        yield
        return
    for n, _ in reversed(own):
        del sys.path[n]
    modules = list(sys.modules.items())
    tops = {name for name, module in modules if _lies_in(folder, name, module) and not _found_in(folder, name)}
    hidden = {name: sys.modules.pop(name) for name, _ in modules if name.partition(".")[0] in tops}
    try:
        yield
    finally:
        for n, entry in own:
            sys.path.insert(n, entry)
        sys.modules.update(hidden)


def _lies_in(folder: Path, name: str, module: types.ModuleType) -> bool:
    if "." in name or name == "__main__" or name.startswith(MODULE_PREFIX):
        return False
    return _folder_of(getattr(module, "__file__", None)) == folder


def _found_in(folder: Path, name: str) -> bool:
    """Whether Python would find a module in that folder now; what is imported already is of no account."""
    specs = (finder.find_spec(name, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    spec = next((spec for spec in specs if spec is not None), None)
    return spec is not None and _folder_of(spec.origin) == folder


def _folder_of(file: str | None) -> Path | None:
    """Return the folder in which a module, or the folder of a package, lies; nothing where it is in no file."""
    if not file or not os.path.isabs(file):
        return None
    path = Path(file)
    return _resolved(path.parent.parent if path.name == "__init__.py" else path.parent)


def _resolved(place: str | Path) -> Path | None:
    """Return the folder that an entry of the search path means; nothing where it is the current one and is gone."""
    try:
        return Path(place).resolve()
    except OSError:
        return None


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ValueError(f"Case file {file} cannot be read: {error.strerror}.") from error
