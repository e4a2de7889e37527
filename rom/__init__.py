"""Nonintrusive, distributed reduced-order models for structural mechanics; nothing is built yet.

What will stand here: readers of foreign meshes and results, an embedded finite-element
solver, constitutive laws, distributed POD and empirical cubature, and the reduced online
stage. The package uses numpy, scipy, mpi4py, h5py and meshio, and none of the other
headrace folders.
"""

__all__: list[str] = []
