"""One rank's share of a mesh: its elements, their nodes, and the interfaces to its neighbours.

Elements belong to one rank and there is no halo; nodes on an interface exist on every rank that touches them. A nodal
field is *consistent* when all copies of an interface node agree (displacements), and *split* when the copies add up to
the value (internal forces of the own elements). `assemble` turns split into consistent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from .communicator import Communicator, communicator
from .mesh import Mesh
from .partition import partition

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, kw_only=True, eq=False)
class Subdomain:
    """One rank's elements and how they hang together with those of the others. Made by `distribute`.

    Attributes
    ----------
    mesh : the own elements and their nodes, with the sets restricted to them.
    comm : the communicator.
    nodes, elements, points : numbers in the whole mesh of the local nodes, elements and quadrature points, increasing
        within each element type.
    neighbours : rank -> local numbers of the nodes shared with it, in the order of their global numbers.
    num_nodes, num_elements, num_points : sizes of the whole mesh.
    copies : number of ranks that have each local node.
    owned : whether this rank is the lowest of them, so that sums over owned nodes count every node once.
    """

    mesh: Mesh
    comm: Communicator
    nodes: np.ndarray
    elements: np.ndarray
    points: np.ndarray
    neighbours: Mapping[int, np.ndarray]
    num_nodes: int
    num_elements: int
    num_points: int
    copies: np.ndarray = field(init=False)
    owned: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        copies = np.ones(self.mesh.num_nodes, dtype=int)
        owner = np.full(self.mesh.num_nodes, self.comm.rank)
        for rank, shared in self.neighbours.items():
            copies[shared] += 1
            owner[shared] = np.minimum(owner[shared], rank)
        object.__setattr__(self, "copies", copies)
        object.__setattr__(self, "owned", owner == self.comm.rank)

    def assemble(self, values: np.ndarray) -> np.ndarray:
        """Return a split nodal field as a consistent one, (num_local_nodes, ...). Collective.

        Contributions are added in the order of ranks, so that all copies agree to the last bit.
        """
        if not self.neighbours:
            return values
        values = np.asarray(values, dtype=float)
        incoming = self.comm.exchange({rank: values[shared] for rank, shared in self.neighbours.items()})
        total = np.where((self.copies > 1).reshape(-1, *[1] * (values.ndim - 1)), 0.0, values)
        interface = np.flatnonzero(self.copies > 1)
        for rank in sorted([*self.neighbours, self.comm.rank]):
            if rank == self.comm.rank:
                total[interface] += values[interface]
            else:
                total[self.neighbours[rank]] += incoming[rank]
        return total

    def dot(self, a: np.ndarray, b: np.ndarray) -> float:
        """Return the Euclidean inner product of two consistent nodal fields over the whole mesh. Collective."""
        return float(self.products([a], b)[0])

    def products(self, fields: Sequence[np.ndarray], b: np.ndarray) -> np.ndarray:
        """Return the inner products of several consistent fields with one, by a single sum over ranks. Collective."""
        b = b[self.owned] if self.neighbours else b
        local = [np.vdot(a[self.owned] if self.neighbours else a, b) for a in fields]
        return self.comm.sum(np.array(local))

    def norm(self, a: np.ndarray) -> float:
        """Return the Euclidean norm of a consistent nodal field over the whole mesh. Collective."""
        return float(np.sqrt(self.dot(a, a)))

    def gather(self, values: np.ndarray, *, at: str = "nodes") -> np.ndarray:
        """Return the field of the whole mesh on every rank; at : "nodes", "elements" or "points". Collective."""
        numbers = {"nodes": self.nodes, "elements": self.elements, "points": self.points}[at]
        size = {"nodes": self.num_nodes, "elements": self.num_elements, "points": self.num_points}[at]
        whole = np.zeros((size, *values.shape[1:]), dtype=values.dtype)
        for where, piece in zip(self.comm.gather(numbers), self.comm.gather(values), strict=True):
            whole[where] = piece
        return whole


def distribute(mesh: Mesh, comm: MPI.Comm | Communicator | None = None, parts: np.ndarray | None = None) -> Subdomain:
    """Return this rank's subdomain; every rank passes the same mesh and, if any, the same parts. Collective.

    parts : part of each element, 0 to size - 1, each at least once; default `partition`. Nothing is communicated.

    Raises
    ------
    ValueError : parts that do not fit mesh and communicator.
    """
    ranks = communicator(comm)
    parts = partition(mesh, ranks.size) if parts is None else np.asarray(parts)
    if parts.shape != (mesh.num_elements,) or not np.array_equal(np.unique(parts), np.arange(ranks.size)):
        raise ValueError(
            f"parts has shape {parts.shape} and values {np.unique(parts)}; {mesh.num_elements} elements on "
            f"{ranks.size} ranks ask for shape ({mesh.num_elements},) and all of 0 to {ranks.size - 1}."
        )
    elements = np.flatnonzero(parts == ranks.rank)
    local, nodes = mesh.submesh(elements)
    # An interface node may belong to a face or element set through an element that only a neighbour has.
    named = {name: mesh.nodes(name) for name in (*mesh.element_sets, *mesh.face_sets, *mesh.node_sets)}
    local = replace(local, node_sets={name: np.flatnonzero(np.isin(nodes, s)) for name, s in named.items()})
    here = np.zeros(mesh.num_nodes, dtype=bool)
    here[nodes] = True
    neighbours = {}
    for rank in range(ranks.size):
        if rank == ranks.rank:
            continue
        there = np.zeros(mesh.num_nodes, dtype=bool)
        for kind, first, block in mesh.blocks():
            there[block[parts[first : first + len(block)] == rank, : kind.num_nodes]] = True
        shared = np.flatnonzero(here & there)
        if shared.size:
            neighbours[rank] = np.searchsorted(nodes, shared)
    starts = mesh.element_points()
    points = np.concatenate([np.arange(starts[e], starts[e + 1]) for e in elements])
    return Subdomain(
        mesh=local, comm=ranks, nodes=nodes, elements=elements, points=points, neighbours=neighbours,
        num_nodes=mesh.num_nodes, num_elements=mesh.num_elements, num_points=mesh.num_points,
    )  # fmt: skip
