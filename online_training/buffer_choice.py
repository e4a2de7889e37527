"""Which buffer a study takes, as Python says it: `Study(case, model, buffer=Reservoir("512MB"), ...)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar


@dataclass(frozen=True)
class BufferChoice:
    """A kind of buffer and its size.

    size : bytes, e.g. "512MB" or 2**30.
    watermark : training starts when this fraction of it, or of all steps, is there.
    """

    size: str | int
    watermark: float = 0.1
    kind: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Values of other settings where they are not given."""

    def settings(self) -> dict[str, Any]:
        """Return what it means in the settings of a study."""
        return {"buffer": self.size, "buffer_kind": self.kind, "watermark": self.watermark}


class Reservoir(BufferChoice):
    """Windows are drawn uniformly, again and again; new steps replace windows that were used."""

    kind = "reservoir"


class FIFO(BufferChoice):
    """Every window is used once, in the order in which they came."""

    kind = "fifo"
    defaults = MappingProxyType({"views": 1.0})


class FIRO(BufferChoice):
    """Every window is used once, at random among those that wait."""

    kind = "firo"
    defaults = MappingProxyType({"views": 1.0})
