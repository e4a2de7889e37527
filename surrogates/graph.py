"""Which points of a state exchange messages: neighbours on a grid, or the edges of a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Graph:
    """Points in space and directed edges between them.

    positions : (points, dimension).
    edges : (2, edges) whole numbers, senders and receivers.
    """

    positions: torch.Tensor
    edges: torch.Tensor

    def __post_init__(self) -> None:
        positions = torch.as_tensor(self.positions, dtype=torch.float32)
        edges = torch.as_tensor(self.edges, dtype=torch.int64)
        if positions.ndim != 2 or edges.ndim != 2 or len(edges) != 2:
            raise ValueError(
                f"Graph positions {tuple(positions.shape)} and edges {tuple(edges.shape)} must have the shapes "
                "(points, dimension) and (2, edges)."
            )
        if len(positions) == 0 or not positions.isfinite().all():
            raise ValueError("Graph positions must be those of one point or more, and finite.")
        if edges.numel() and not (0 <= int(edges.min()) and int(edges.max()) < len(positions)):
            raise ValueError(
                f"Graph edges name points {int(edges.min())} to {int(edges.max())}; there are {len(positions)}, "
                "counted from 0."
            )
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "edges", edges)

    @classmethod
    def of_mesh(cls, positions: Any, cells: Any) -> Graph:
        """Return the graph of a mesh: every two corners of a cell exchange messages, in both directions.

        positions : (points, dimension).
        cells : (cells, corners) whole numbers.
        """
        corners = torch.as_tensor(cells, dtype=torch.int64)
        if corners.ndim != 2 or corners.shape[1] < 2:
            raise ValueError(f"Cells have shape {tuple(corners.shape)}; they must be (cells, two corners or more).")
        pairs = torch.cat([corners[:, [a, b]] for a, b in combinations(range(corners.shape[1]), 2)])
        both = torch.unique(torch.cat((pairs, pairs.flip(1))), dim=0)
        return cls(positions=positions, edges=both[both[:, 0] != both[:, 1]].T)

    @classmethod
    def of(cls, value: Graph | Mapping[str, int] | None) -> Graph | None:
        """Return a graph, or an empty one of the sizes that `sizes` gave, to be filled from a file."""
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"graph {value!r} is not allowed: it is a Graph, made in Python by Graph.of_mesh.")
        positions = torch.zeros(value["points"], value["dimension"])
        return cls(positions=positions, edges=torch.zeros(2, value["edges"], dtype=torch.int64))

    def sizes(self) -> dict[str, int]:
        """Return what config.json says of a graph, whose content lies among the weights."""
        points, dimension = self.positions.shape
        return {"points": points, "dimension": dimension, "edges": self.edges.shape[1]}


def offsets_within(radius: float, ndim: int) -> list[tuple[int, ...]]:
    """Return the whole-number vectors, all but zero, no longer than a radius, in lexicographic order."""
    reach = range(-int(radius), int(radius) + 1)
    return [o for o in product(reach, repeat=ndim) if 0 < sum(k * k for k in o) <= radius**2]
