"""What a surrogate must know of a PDE case, as data that goes into its file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Fields, grid, parameters and times of the case a surrogate is for.

    fields : names of the fields.
    shape, extent : of the grid; axis 0 is x.
    periodic : per axis.
    parameters : name -> (low, high); surrogates see them mapped to [-1, 1].
    duration, num_snapshots : snapshot k is at k·duration / num_snapshots, k = 0 included.
    logarithmic : names of the parameters that are mapped by their logarithm.

    Raises
    ------
    ValueError : what cannot be of one problem.
    """

    case: str
    fields: tuple[str, ...]
    shape: tuple[int, ...]
    extent: tuple[float, ...]
    periodic: tuple[bool, ...]
    parameters: Mapping[str, tuple[float, float]]
    duration: float
    num_snapshots: int
    logarithmic: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.fields or isinstance(self.fields, str):
            raise ValueError(f"Problem {self.case}: fields {self.fields!r} must be a tuple of one or more names.")
        if not len(self.shape) == len(self.extent) == len(self.periodic) >= 1:
            raise ValueError(
                f"Problem {self.case}: shape {self.shape}, extent {self.extent} and periodic {self.periodic} must name "
                "the same axes."
            )
        if not (0 < self.duration < math.inf and self.num_snapshots >= 1):
            raise ValueError(
                f"Problem {self.case}: duration {self.duration} must be positive and finite, num_snapshots "
                f"{self.num_snapshots} at least 1."
            )
        for name in self.logarithmic:
            if not min(self.parameters.get(name, (0.0,))) > 0:
                raise ValueError(f"Problem {self.case}: logarithmic {name!r} must be a parameter with positive bounds.")

    @property
    def num_steps(self) -> int:
        """Steps of one trajectory, the initial state included."""
        return self.num_snapshots + 1

    @property
    def interval(self) -> float:
        """Time between two snapshots."""
        return self.duration / self.num_snapshots

    @classmethod
    def of(cls, case: Any) -> Problem:
        """Return the problem of a `headrace.solvers.Case`."""
        # Here and not above: a surrogate is loaded and used without the solvers.
        from headrace.solvers.parameters import LogUniform

        logarithmic = tuple(name for name, d in case.parameters.items() if isinstance(d, LogUniform))
        bounds = {name: (float(d.from_unit(0.0)), float(d.from_unit(1.0))) for name, d in case.parameters.items()}
        return cls(
            case=case.name, fields=case.fields, shape=case.grid.shape, extent=case.grid.extent,
            periodic=case.periodic, parameters=bounds, duration=case.duration, num_snapshots=case.num_snapshots,
            logarithmic=logarithmic,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """Return the problem that `to_dict` described."""
        tuples = {name: tuple(data[name]) for name in ("fields", "shape", "extent", "periodic", "logarithmic")}
        bounds = {name: (float(low), float(high)) for name, (low, high) in data["parameters"].items()}
        return cls(**{**data, **tuples, "parameters": bounds})


@dataclass(frozen=True, kw_only=True)
class WindowBatch:
    """Training windows in physical units.

    states : (batch, window, fields, *grid) float32.
    times : (batch, window) float32.
    parameters : (batch, parameters) float32, in the order of `Problem.parameters`.
    """

    states: torch.Tensor
    times: torch.Tensor
    parameters: torch.Tensor

    def check(self, problem: Problem, window: int) -> None:
        """Raise ValueError unless the shapes are those of a problem's windows; any grid of its dimension will do."""
        batch, ndim = self.states.shape[0], len(problem.shape)
        head = (batch, window, len(problem.fields))
        if tuple(self.states.shape[:3]) != head or self.states.ndim != 3 + ndim:
            raise ValueError(
                f"States have shape {tuple(self.states.shape)}; case {problem.case} needs (batch, {window} steps, "
                f"{len(problem.fields)} fields {', '.join(problem.fields)}, {ndim} grid axes)."
            )
        if tuple(self.times.shape) != (batch, window):
            raise ValueError(f"Times have shape {tuple(self.times.shape)}; these states need {(batch, window)}.")
        if tuple(self.parameters.shape) != (batch, len(problem.parameters)):
            raise ValueError(
                f"Parameters have shape {tuple(self.parameters.shape)}; case {problem.case} needs "
                f"{(batch, len(problem.parameters))}: {', '.join(problem.parameters) or 'none'}."
            )

    def matching(self, like: torch.Tensor) -> WindowBatch:
        """Return the windows with the dtype and device of a tensor of the model, themselves where they agree."""
        parts = (self.states, self.times, self.parameters)
        if all(part.dtype == like.dtype and part.device == like.device for part in parts):
            return self
        states, times, parameters = (part.to(like) for part in parts)
        return WindowBatch(states=states, times=times, parameters=parameters)
