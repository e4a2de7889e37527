"""PDE cases as data, grids, operators, MPI blocks and solvers."""

from .boundary import Dirichlet, Neumann, Periodic
from .case import Case
from .grid import Grid
from .parameters import LogUniform, Parameters, Uniform
from .sink import MemorySink, Sink, Snapshot

__all__ = [
    "Case", "Grid", "Periodic", "Dirichlet", "Neumann",
    "Uniform", "LogUniform", "Parameters",
    "Snapshot", "Sink", "MemorySink",
]  # fmt: skip
