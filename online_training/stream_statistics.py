"""The field statistics of a study: kept by the intake, in statistics.h5 of the run directory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from headrace.solvers.parameters import Distribution

from .field_statistics import FieldStatistics
from .layout import StreamLayout

SAVE_SECONDS = 60.0
"""What a kill can lose. Simulations that are not run again then lack in the statistics, as their count says."""


class StreamStatistics:
    """Takes every step that the intake accepts for the training; goes on with what an earlier session left.

    distributions : of the case's parameters.

    Raises
    ------
    OSError : the earlier file is damaged.
    """

    def __init__(self, path: str | Path, layout: StreamLayout, distributions: Mapping[str, Distribution]) -> None:
        self.path, self._layout = Path(path), layout
        self._distributions = distributions
        if self.path.exists():
            self._statistics = FieldStatistics.read(self.path)
        else:
            self._statistics = FieldStatistics(layout.num_steps, layout.step_shape, layout.parameters)
        self._saved = time.monotonic()
        self._changed = False

    def take(self, simulation: int, step: int, parameters: Mapping[str, float], values: np.ndarray) -> None:
        """Take one step, values (fields, *grid); a step that was taken before changes nothing."""
        if not self._statistics.has(simulation, step):
            point = np.array([one.to_unit(parameters[name]) for name, one in self._distributions.items()])
            self._statistics.add(simulation, step, point, values)
            self._changed = True

    def save(self, *, at_most_every: float = 0.0) -> None:
        """Write the file where something is new, and the last time is long enough ago.

        Raises
        ------
        OSError : the disk is full or gone.
        """
        if self._changed and time.monotonic() - self._saved >= at_most_every:
            self._statistics.write(self.path, fields=self._layout.fields)
            self._saved, self._changed = time.monotonic(), False
