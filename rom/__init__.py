"""Nonintrusive, distributed reduced-order models for structural mechanics.

Here stand the data model (meshes, subdomains, readers, laws) and an embedded finite-element solver; docs/rom.md says
how the pieces fit. The package uses numpy, scipy, mpi4py, h5py and meshio, and none of the other headrace folders.
"""

from .law import ConstitutiveLaw, Table
from .mesh import Mesh
from .problem import Problem
from .reader import Reader, TimeSeries
from .solver import Solver, solve
from .subdomain import Subdomain, distribute

__all__ = [
    "ConstitutiveLaw",
    "Mesh",
    "Problem",
    "Reader",
    "Solver",
    "Subdomain",
    "Table",
    "TimeSeries",
    "distribute",
    "solve",
]
