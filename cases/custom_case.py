"""A pollutant that the wind carries from a chimney: a case of your own to copy, with every line explained.

Copy this file, change it, and run it; no other file is needed. docs/custom_case.md walks through it.
    python custom_case.py solve --set source=2 --output one.h5 --plot one.png
    mpirun -n 4 python custom_case.py solve
    python custom_case.py train --model fno --simulations 200 --ranks 2
"""

import numpy as np

from headrace.cases import run
from headrace.solvers import Case, Dirichlet, Grid, LogUniform, Neumann, Uniform
from headrace.solvers.parameters import Vector


# The equation, ∂u/∂t = ... . Its docstring is shown wherever the case is listed. u is the unknown, d has the
# derivatives, p the parameters of this simulation, t is the time. Solvers and losses call this one function.
def carried(u, d, p, t):
    """∂u/∂t + w·∇u = κ ∇²u - λ u + source near the chimney."""
    # d.x holds the coordinates. Numpy functions work on fields; `if`, slices and loops over points do not.
    chimney = np.exp(-((d.x[0] - p.chimney[0]) ** 2 + (d.x[1] - p.chimney[1]) ** 2) / 0.01)
    # v·∇u from where the wind comes, ∇²u, and a term without derivatives. Other operators: docs/custom_case.md.
    return -d.upwind(p.wind, u) + p.kappa * d.laplacian(u) - p.decay * u + p.source * chimney


# The state at t = 0 at the points x[0], x[1], which are plain arrays here: one array, or one per field. Draw random
# numbers from rng only, and declare a Seed() among the parameters then.
def clean_air(x, p, rng):
    """u = 0."""
    return np.zeros(x[0].shape)


# Everything about the problem in one object. It must be a variable at the top level of the file: each solver process
# imports the file.
case = Case(
    name="custom_case",  # letters, digits and _
    fields=("u",),  # names of the unknowns; with several, rhs returns a tuple, and `a, b = u` unpacks
    grid=Grid(shape=(64, 48), extent=(2.0, 1.5)),  # points along each axis, and the size of the box
    # Per axis the two walls, low and high: clean air blows in on the left, nothing changes on the way out. A number
    # may be a function (x, p, t). Without `boundary` every axis is periodic.
    boundary={"x": (Dirichlet(0.0), Neumann(0.0)), "y": Neumann(0.0)},
    # What varies from simulation to simulation, and within which limits; rhs reads p.kappa, p.wind[1] and so on.
    parameters={
        "wind": Vector((Uniform(0.5, 1.0), Uniform(-0.3, 0.3))),
        "chimney": Vector((Uniform(0.3, 0.6), Uniform(0.5, 1.0))),
        "kappa": LogUniform(1e-3, 1e-2),
        "decay": Uniform(0.0, 1.0),
        "source": Uniform(1.0, 3.0),
    },
    initial=clean_air,
    rhs=carried,
    duration=2.0,
    num_snapshots=40,  # states recorded, equally spaced; solvers choose their time steps between them
    description="Pollution from a chimney in the wind: wind, place and strength of the source, mixing, decay. "
    "Cost: about 0.6 s on one core.",
)

# Makes this file a program with the verbs of the command line.
if __name__ == "__main__":
    run(case)
