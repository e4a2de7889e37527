"""What a surrogate must know of a PDE case, as data that goes into its file."""

from __future__ import annotations

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
    """

    case: str
    fields: tuple[str, ...]
    shape: tuple[int, ...]
    extent: tuple[float, ...]
    periodic: tuple[bool, ...]
    parameters: Mapping[str, tuple[float, float]]
    duration: float
    num_snapshots: int

    @classmethod
    def of(cls, case: Any) -> Problem:
        """Return the problem of a `headrace.solvers.Case`."""
        bounds = {name: (float(d.from_unit(0.0)), float(d.from_unit(1.0))) for name, d in case.parameters.items()}
        return cls(
            case=case.name, fields=case.fields, shape=case.grid.shape, extent=case.grid.extent,
            periodic=case.periodic, parameters=bounds, duration=case.duration, num_snapshots=case.num_snapshots,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Problem:
        """Return the problem that `to_dict` described."""
        tuples = {name: tuple(data[name]) for name in ("fields", "shape", "extent", "periodic")}
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
