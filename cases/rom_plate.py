"""A plate with a hole under cyclic tension, elastoviscoplastic: an eighth of it, about 15,000 dofs.

Cost: about 20 seconds per cycle on one core with the default mesh; two cycles.
    mpirun -n 2 python cases/rom_plate.py
    python cases/rom_plate.py --calculix runs/plate     # by CalculiX, of a similar law
"""

from __future__ import annotations

import functools
import sys
from dataclasses import replace

import numpy as np

from headrace.rom.box import box_mesh
from headrace.rom.calculix_solver import chosen_solver
from headrace.rom.case import RomCase
from headrace.rom.elastic import IsotropicElasticity
from headrace.rom.loads import Amplitude, Pressure, Support
from headrace.rom.mesh import Mesh
from headrace.rom.problem import Problem
from headrace.rom.viscoplastic import KinematicHardening, NortonChaboche

HALF_WIDTH, HOLE, HALF_THICKNESS = 20.0, 5.0, 2.0
"""Half the width of the square plate, radius of the hole, half the thickness, in mm."""

STRESS = 130.0
"""The traction of amplitude 1, in MPa."""

STEPS_PER_CYCLE = 20
MESHES = {"hex20r": (16, 30, 2), "tet10": (12, 18, 2)}
"""Cells along the radius, around the quarter (even) and through half the thickness, by element type."""

LAW = NortonChaboche(
    elasticity=IsotropicElasticity(young=200e3, poisson=0.3),
    yield_stress=10.0,
    viscosity=300.0,
    exponent=30.0,
    kinematic=(KinematicHardening(modulus=100e3, recall=1000.0),),
)


@functools.lru_cache(maxsize=4)  # many queries ask for the same
def plate_mesh(kind: str = "hex20r", counts: tuple[int, int, int] | None = None) -> Mesh:
    """Return the mesh: a box mapped from (radius, angle, thickness) to the quarter between hole and edge.

    Face sets: hole, right (x = 20), top (y = 20), and the planes of symmetry sx (x = 0), sy (y = 0), sz (z = 0).

    Raises
    ------
    ValueError : an odd number of cells around, whose elements would straddle the plate's corner.
    """
    counts = counts or MESHES[kind]
    if counts[1] % 2:
        raise ValueError(f"The plate needs an even number of cells around the quarter, not {counts[1]}.")
    box = box_mesh(kind, counts)
    s, angle = box.points[:, 0] ** 1.3, box.points[:, 1] * np.pi / 2  # finer at the hole
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    edge = HALF_WIDTH / direction.max(axis=1)
    radius = (1 - s) * HOLE + s * edge
    points = np.column_stack([radius[:, None] * direction, HALF_THICKNESS * box.points[:, 2]])
    outer = box.face_sets["x1"]
    middle = np.array([points[nodes[0]].mean(axis=0) for pair in outer for _, nodes in box.face_nodes(pair[None])])
    right = middle[:, 0] > middle[:, 1]
    names = {"hole": "x0", "sy": "y0", "sx": "y1", "sz": "z0"}
    faces = {name: box.face_sets[side] for name, side in names.items()}
    return Mesh(points=points, cells=box.cells, face_sets={**faces, "right": outer[right], "top": outer[~right]})


def rom_plate(
    *, kind: str = "hex20r", counts: tuple[int, int, int] | None = None, cycles: int = 2, pull: float = 130.0,
    push: float = 130.0, compiled: bool = False,
) -> Problem:  # fmt: skip
    """Return the plate pulled and pushed along x, by so many MPa, once per unit of time; its law as machine code."""
    quarters = np.arange(4 * cycles + 1)
    cycle = np.array([0.0, pull, 0.0, -push]) / STRESS
    amplitude = Amplitude(tuple(quarters / 4), tuple(cycle[quarters % 4]))
    return Problem(
        mesh=plate_mesh(kind, counts),
        laws={"all": replace(LAW, compiled=compiled)},
        supports=[Support(nodes=f"s{d}", direction=d) for d in "xyz"],
        loads=[Pressure(faces="right", value=-STRESS, amplitude=amplitude)],
    )


def times(cycles: int = 2) -> np.ndarray:
    """Return the times of all steps, the start included."""
    return np.linspace(0.0, cycles, STEPS_PER_CYCLE * cycles + 1)


case = RomCase(name="rom_plate", problem=rom_plate, times=times)


def main() -> None:
    """Solve two cycles on all ranks and check that the hole's edge goes on yielding in the second."""
    from mpi4py import MPI

    solver = chosen_solver(rom_plate(), sys.argv[1:], MPI.COMM_WORLD)
    seen = []
    for increment in solver.run(times()):
        seen.append(solver.comm.maximum(float(solver.local.material.field("p", increment.state).max())))
        if solver.comm.rank == 0:
            print(f"t = {increment.time:.2f}  iterations {increment.iterations}  max p {seen[-1]:.4e}")
    first, last = seen[len(seen) // 2], seen[-1]
    assert 1e-3 < first and 1.2 * first < last < 3 * first, (first, last)


if __name__ == "__main__":
    main()
