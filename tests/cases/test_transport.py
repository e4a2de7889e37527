"""The transport problems: their exact solutions are what the solver converges to, and all can be learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from headrace.cases import transport
from headrace.solvers import MemorySink
from headrace.solvers.simulate import simulate
from headrace.surrogates import LPINN, Problem, WindowBatch

torch.set_num_threads(1)

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


@pytest.mark.parametrize("case", [case for case, _, _ in PROBLEMS], ids=[case.name for case, _, _ in PROBLEMS])
def test_every_case_can_be_learned_from_its_equation(case):
    """Adam brings the residual down for random parameters, and predictions keep the initial state."""
    # What turns is not compressed: there the limited frame is no help.
    frame = "lagrangian" if case.grid.ndim == 2 else "auto"
    model = LPINN(hidden=(16, 16), points=16, data_weight=0.0, frame=frame, open_walls=not any(case.periodic))
    model.setup(Problem.of(case), seed=0)
    model.use_case(case)
    model.set_statistics([0.0], [0.5])
    grid, count = case.grid.shape, 32
    batch = WindowBatch(states=torch.zeros(count, 1, 1, *grid), times=torch.zeros(count, 1),
                        parameters=torch.zeros(count, len(case.parameters)))  # fmt: skip

    def loss_on_the_same_points():
        torch.manual_seed(7)
        with torch.no_grad():
            return float(np.mean([float(model(batch).mean()) for _ in range(4)]))

    before = loss_on_the_same_points()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        model(batch).mean().backward()
        optimizer.step()
    assert loss_on_the_same_points() < 0.8 * before
    p = case.accept({})
    row = torch.tensor([[float(p[name]) for name in case.parameters]])
    axes = [case.grid.points(i, periodic=periodic) for i, periodic in enumerate(case.periodic)]
    start = transport.exact(case.name, tuple(np.meshgrid(*axes, indexing="ij")), 0.0, p)
    found = model.predict(None, row, torch.tensor([0.0, 0.5 * case.duration]))[0, :, 0].numpy()
    assert np.abs(found[0] - start).max() < 1e-4 and np.isfinite(found).all()
