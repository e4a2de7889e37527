"""The layout of a stream: which fields, of which shape, over how many steps, in windows of which length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from headrace.solvers import Case


@dataclass(frozen=True, kw_only=True)
class StreamLayout:
    """What one simulation sends, step by step; all simulations of a study share it.

    fields : names of the fields, in the order of DECLARE.
    shape : points of the grid along each axis, the same for all fields.
    num_steps : snapshots of one simulation, the initial state included.
    window : consecutive steps that the trainer draws at once.
    parameters : names of the simulation's parameters, in the order of a draw's columns.
    dtype : of every value on the wire and in the reservoir.
    """

    fields: tuple[str, ...]
    shape: tuple[int, ...]
    num_steps: int
    window: int
    parameters: tuple[str, ...] = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.fields or len(set(self.fields)) != len(self.fields):
            raise ValueError(f"fields must be at least one name, each once; got {self.fields!r}.")
        if len(set(self.parameters)) != len(self.parameters):
            raise ValueError(f"Every parameter has a name of its own; got {self.parameters!r}.")
        if not 1 <= len(self.shape) <= 4 or min(self.shape) < 1:
            raise ValueError(f"shape must have one to four axes of at least one point; got {self.shape!r}.")
        if self.dtype != "float32":
            raise ValueError(f"The stream carries float32; got dtype {self.dtype!r}.")
        if not 1 <= self.window <= self.num_steps:
            raise ValueError(
                f"No trajectory of {self.num_steps} steps has a window of {self.window}: "
                f"window must lie in 1..{self.num_steps}. Use a shorter window or more snapshots."
            )

    @classmethod
    def of(cls, case: Case, window: int) -> StreamLayout:
        """Return the layout of a case's stream, drawn in windows of a number of steps.

        Raises
        ------
        ValueError : the window is longer than a trajectory.
        """
        return cls(
            fields=case.fields, shape=case.grid.shape, num_steps=len(case.times), window=window,
            parameters=tuple(case.parameters),
        )  # fmt: skip

    @property
    def step_shape(self) -> tuple[int, ...]:
        """Shape of one step with all its fields, (fields, *grid)."""
        return (len(self.fields), *self.shape)

    @property
    def field_bytes(self) -> int:
        """Bytes of one field at one step."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def step_bytes(self) -> int:
        """Bytes of one step with all its fields: the size of a slot."""
        return len(self.fields) * self.field_bytes

    @property
    def num_starts(self) -> int:
        """Window starts of one complete simulation."""
        return self.num_steps - self.window + 1

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain JSON-able values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StreamLayout:
        """Return the layout that `to_dict` wrote."""
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
