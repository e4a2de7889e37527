"""The academic cube of reduced-order modelling: 216 hex8, elastoviscoplastic, spinning, heated and pressed, one cycle.

Material as published for the academic example of Casenave et al. (2020): E = 200 GPa, ν = 0.3, Norton K = 300, n = 30,
yield stress 10 MPa, kinematic hardening C = 100 GPa, D = 1000, α = 2e-5 / K.

Cost: about half a second on one core; 10 steps.
    mpirun -n 2 python cases/rom_cube.py
    python cases/rom_cube.py --calculix runs/cube     # by CalculiX, of a similar law
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from headrace.rom.box import box_mesh
from headrace.rom.calculix_solver import chosen_solver
from headrace.rom.case import RomCase
from headrace.rom.elastic import IsotropicElasticity
from headrace.rom.loads import Amplitude, Centrifugal, Pressure, Support
from headrace.rom.problem import Problem
from headrace.rom.viscoplastic import KinematicHardening, NortonChaboche

STEPS_PER_CYCLE = 10
LAW = NortonChaboche(
    elasticity=IsotropicElasticity(young=200e3, poisson=0.3, expansion=2e-5, reference_temperature=20.0),
    yield_stress=10.0,
    viscosity=300.0,
    exponent=30.0,
    kinematic=(KinematicHardening(modulus=100e3, recall=1000.0),),
)
"""Stresses in MPa, lengths in mm, times in s, densities in t/mm³."""


def rom_cube(
    *, cycles: int = 1, hot_spot: tuple[float, float, float] = (10.0, 10.0, 10.0), peak: float = 200.0,
    compiled: bool = False,
) -> Problem:  # fmt: skip
    """Return the cube of 10 mm: spun about an axis at a distance, pressed on top, with a hot spot, all up and down.

    cycles : of duration 1, each from rest to full load at half time and back.
    hot_spot, peak : where the temperature is highest, and how many degrees above 20.
    compiled : whether the law is machine code.
    """
    mesh = box_mesh("hex8", (6, 6, 6), (10.0, 10.0, 10.0))
    times = np.arange(2 * cycles + 1) / 2
    rise = Amplitude(tuple(times), tuple(float(k % 2) for k in range(len(times))))
    speed = Amplitude(rise.times, tuple(5000.0 * v for v in rise.values))

    def temperature(points: np.ndarray, time: float) -> np.ndarray:
        distance = np.linalg.norm(points - np.array(hot_spot), axis=1)
        return 20.0 + peak * rise(time) * np.exp(-((distance / 8.0) ** 2))

    return Problem(
        mesh=mesh,
        laws={"all": replace(LAW, compiled=compiled)},
        supports=[Support(nodes="x0", direction=d) for d in "xyz"],
        loads=[
            Centrifugal(density=8e-9, amplitude=speed, origin=(-30.0, 5.0, 5.0), axis=(0.0, 0.0, 1.0)),
            Pressure(faces="z1", value=lambda x: 300.0 * x[:, 0] / 10.0, amplitude=rise),
        ],
        temperature=temperature,
    )


def times(cycles: int = 1) -> np.ndarray:
    """Return the times of all steps, the start included."""
    return np.linspace(0.0, cycles, STEPS_PER_CYCLE * cycles + 1)


case = RomCase(name="rom_cube", problem=rom_cube, times=times)


def main() -> None:
    """Solve one cycle on all ranks and check that the body yields and keeps a permanent set."""
    from mpi4py import MPI

    solver = chosen_solver(rom_cube(), sys.argv[1:], MPI.COMM_WORLD)
    for increment in solver.run(times()):
        u = solver.comm.maximum(float(np.abs(increment.displacement).max()))
        p = solver.comm.maximum(float(solver.local.material.field("p", increment.state).max()))
        if solver.comm.rank == 0:
            print(f"t = {increment.time:.1f}  iterations {increment.iterations}  max |u| {u:.4e} mm  max p {p:.4e}")
    assert 1e-3 < p < 5e-2 and u > 1e-2, (u, p)


if __name__ == "__main__":
    main()
