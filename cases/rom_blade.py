"""A blade-like body on an elastic foot: spun, heated and pressed in cycles; twisted, cambered, tapered; 15,000 dofs.

Each cycle (duration 1) starts up in 0.2, holds hot to 0.8 and shuts down. The profile is hot at its leading edge and in
the middle of its height, and cooled along a channel inside, so that the edge yields while the rest stays elastic.

Cost: about 6 seconds per cycle on one core with the default mesh; one cycle.
    mpirun -n 2 python cases/rom_blade.py
    python cases/rom_blade.py --calculix runs/blade     # by CalculiX, of a similar law
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, replace

import numpy as np

from headrace.rom.box import box_mesh
from headrace.rom.calculix_solver import chosen_solver
from headrace.rom.case import RomCase
from headrace.rom.elastic import IsotropicElasticity
from headrace.rom.law import Table
from headrace.rom.loads import Amplitude, Centrifugal, NodalTemperature, Pressure, Support
from headrace.rom.mesh import Mesh
from headrace.rom.problem import Problem
from headrace.rom.viscoplastic import KinematicHardening, NortonChaboche

COUNTS = (12, 3, 24)
"""Cells along the chord, through the thickness, along the height."""

STARTUP, SHUTDOWN = 0.2, 0.8
STEPS = np.concatenate([np.linspace(0, 0.2, 9), np.linspace(0.3, 0.8, 6), np.linspace(0.825, 1.0, 8)])
"""Times within one cycle: short steps where the loads move."""

ELASTIC = IsotropicElasticity(
    young=Table((20, 900), (210e3, 155e3)), poisson=0.3, expansion=Table((20, 900), (1.2e-5, 1.5e-5))
)
BLADE = NortonChaboche(
    elasticity=ELASTIC,
    yield_stress=Table((20, 600, 900), (350, 180, 30)),
    viscosity=Table((20, 600, 900), (700, 500, 300)),
    exponent=Table((20, 600, 900), (20, 12, 7)),
    kinematic=(KinematicHardening(modulus=120e3, recall=600.0), KinematicHardening(modulus=8e3, recall=20.0)),
)
"""Numbers of the order of a nickel alloy's, in MPa, mm, s, t/mm³; they stand for no particular one."""


@dataclass(frozen=True, kw_only=True)
class BladeShape:
    """Geometry in mm and degrees: the foot is a block of chord × foot_thickness, the profile stands on it."""

    chord: float = 30.0
    taper: float = 0.75
    thickness: float = 5.0
    foot_thickness: float = 12.0
    foot_height: float = 14.0
    height: float = 45.0
    camber: float = 3.0
    twist: float = 25.0


@functools.lru_cache(maxsize=4)  # many queries ask for the same
def blade_mesh(
    shape: BladeShape, kind: str = "hex20r", counts: tuple[int, int, int] = COUNTS
) -> tuple[Mesh, np.ndarray]:
    """Return the mesh, mapped from a box, and each node's place in that box: chord, thickness, height in [0, 1].

    Element sets foot and blade; face sets bottom, tip, pressure_side, suction_side, leading, trailing; node sets mid_x
    and mid_y, the lines of the bottom where x and y are zero: holding them leaves the foot free to expand.
    """
    box = box_mesh(kind, counts)
    xi, eta, s = 2 * box.points[:, 0] - 1, 2 * box.points[:, 1] - 1, box.points[:, 2]
    z = s * (shape.foot_height + shape.height)
    up = np.clip((z - shape.foot_height) / shape.height, 0, 1)
    rise = np.clip((z - 0.6 * shape.foot_height) / (0.8 * shape.foot_height), 0, 1)
    blend = rise**2 * (3 - 2 * rise)  # 0 in the foot, 1 in the profile, smooth between
    half_chord = shape.chord / 2 * (1 - (1 - shape.taper) * up)
    profile = shape.thickness / 2 * (0.35 + 0.65 * (1 - xi**2))
    half_thickness = (1 - blend) * shape.foot_thickness / 2 + blend * profile
    x, y = half_chord * xi, half_thickness * eta + blend * shape.camber * (1 - xi**2)
    angle = np.radians(shape.twist) * up
    points = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle), z], axis=1)
    names = {
        "leading": "x0",
        "trailing": "x1",
        "pressure_side": "y0",
        "suction_side": "y1",
        "bottom": "z0",
        "tip": "z1",
    }
    middle = box.points[box.cells[kind]].mean(axis=1)[:, 2] * (shape.foot_height + shape.height)
    bottom = box.nodes("z0")

    def near(nodes: np.ndarray, axis: int) -> np.ndarray:
        distance = np.abs(points[nodes, axis])
        return distance <= distance.min() + 1e-9

    mesh = Mesh(
        points=points,
        cells=box.cells,
        node_sets={"mid_x": bottom[near(bottom, 0)], "mid_y": bottom[near(bottom, 1)]},
        face_sets={name: box.face_sets[side] for name, side in names.items()},
        element_sets={
            "foot": np.flatnonzero(middle < shape.foot_height), "blade": np.flatnonzero(middle >= shape.foot_height)
        },
    )  # fmt: skip
    return mesh, box.points


def rom_blade(  # noqa: PLR0913  settings of a case, all with defaults
    *,
    cycles: int = 1,
    speed: float = 1200.0,
    pressure: float = 0.4,
    gas: float = 1000.0,
    cooling: float = 400.0,
    shape: BladeShape | None = None,
    kind: str = "hex20r",
    counts: tuple[int, int, int] = COUNTS,
    compiled: bool = False,
) -> Problem:
    """Return the blade under full load `cycles` times.

    speed : of rotation, rad/s; pressure : on the pressure side at the tip, MPa, half of it at the bottom;
    gas, cooling : hottest temperature and its fall along the inner channel, in °C.
    compiled : whether the blade's law is machine code.
    """
    shape = shape or BladeShape()
    mesh, place = blade_mesh(shape, kind, counts)
    knots = np.concatenate([[0.0], *(k + np.array([STARTUP, SHUTDOWN, 1.0]) for k in range(cycles))])
    levels = np.concatenate([[0.0], *[[1.0, 1.0, 0.0]] * cycles])
    load = Amplitude(tuple(knots), tuple(levels))
    chord, depth, s = place.T
    hot = np.exp(-((chord / 0.6) ** 2)) * np.sin(np.pi * np.clip((s - 0.15) / 0.85, 0, 1))
    channel = np.exp(-(((chord - 0.45) / 0.25) ** 2) - ((depth - 0.5) / 0.5) ** 2) * np.clip((s - 0.1) / 0.2, 0, 1)
    full = 450 + (gas - 450) * hot - cooling * channel
    height = shape.foot_height + shape.height
    return Problem(
        mesh=mesh,
        laws={"foot": ELASTIC, "blade": replace(BLADE, compiled=compiled)},
        supports=[Support(nodes=nodes, direction=d) for nodes, d in (("bottom", "z"), ("mid_x", "x"), ("mid_y", "y"))],
        loads=[
            Centrifugal(
                density=8.2e-9, origin=(0, 0, -300.0), axis=(1, 0, 0),
                amplitude=Amplitude(load.times, tuple(speed * v for v in load.values)),
            ),
            Pressure(faces="pressure_side", value=lambda x: pressure * (0.5 + 0.5 * x[:, 2] / height), amplitude=load),
        ],
        temperature=NodalTemperature(times=knots, values=20.0 + levels[:, None] * (full - 20.0)),
    )  # fmt: skip


def times(cycles: int = 1) -> np.ndarray:
    """Return the times of all steps, the start included."""
    return np.concatenate([[0.0], *(k + STEPS[1:] for k in range(cycles))])


case = RomCase(name="rom_blade", problem=rom_blade, times=times)


def main() -> None:
    """Solve one cycle on all ranks and check that the hot edge yields and the body keeps a set."""
    from mpi4py import MPI

    solver = chosen_solver(rom_blade(), sys.argv[1:], MPI.COMM_WORLD)
    for increment in solver.run(times()):
        p = solver.comm.maximum(float(solver.local.material.field("p", increment.state).max()))
        u = solver.comm.maximum(float(np.abs(increment.displacement).max()))
        if solver.comm.rank == 0:
            print(f"t = {increment.time:.3f}  iterations {increment.iterations}  max |u| {u:.4e} mm  max p {p:.4e}")
    assert 5e-4 < p < 2e-2 and u > 1e-3, (p, u)


if __name__ == "__main__":
    main()
