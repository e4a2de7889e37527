"""The transport problems: their exact solutions are what the solver converges to."""

from dataclasses import replace

import numpy as np
import pytest

from headrace.cases import transport
from headrace.solvers import MemorySink
from headrace.solvers.simulate import simulate

PROBLEMS = [
    (transport.convection_diffusion, {"c": 3.0, "nu": 0.1}, 96),
    (transport.stretching, {"nu": 0.05, "rate": 0.7}, 128),
    (transport.reaction, {"c": 2.0, "rho": 3.0}, 128),
    (transport.burgers, {"nu": 0.1, "C": 2.0}, 128),
    (transport.standing_shock, {"nu": 0.1, "C": 1.0}, 128),
    (transport.breaking, {"C": 1.0}, 512),
    (transport.rotation, {"omega": 2.0}, 128),
]


@pytest.mark.parametrize("case,values,n", PROBLEMS, ids=[case.name for case, _, _ in PROBLEMS])
def test_the_solver_meets_the_exact_solution(case, values, n):
    case = replace(case.resized((n,) * case.grid.ndim), num_snapshots=2, duration=0.5)
    p, sink = case.accept(values), MemorySink()
    simulate(case, p, sink)
    axes = [case.grid.points(i, periodic=periodic) for i, periodic in enumerate(case.periodic)]
    truth = transport.exact(case.name, tuple(np.meshgrid(*axes, indexing="ij")), 0.5, p)
    offset = values.get("C", 0.0)
    found = np.asarray(sink.values)[-1, 0]
    assert np.linalg.norm(found - truth) < 2e-3 * np.linalg.norm(truth - offset)
