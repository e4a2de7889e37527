"""The data of published tables, made by the solvers of this project on tensors, all simulations side by side.

Steps in time are larger than the published ones and of a higher order; `tables.py` measures their error against half
of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from headrace.cases import burgers, mixed1d, navier_stokes2d
from headrace.solvers import Case
from headrace.solvers.navier_stokes_residual import SpectralResidual
from headrace.solvers.right_hand_side import TensorRightHandSide

SIDE_BY_SIDE = 400
"""Planes that run at once: more are no faster, and take memory."""


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """States (simulations, frames, 1, *grid), their times (frames,) and parameters (simulations, parameters)."""

    states: torch.Tensor
    times: torch.Tensor
    parameters: torch.Tensor


@torch.no_grad()
def navier_stokes(
    viscosity: float, frames: int, count: int, *, seed: int, device: str, points: int = 256, steps: int = 100
) -> Trajectories:
    """Return vorticities at t = 1, 2, .. frames on 64 x 64 of `points` x `points` points, ETDRK4, `steps` to a frame.

    ∂ω/∂t + u·∇ω = ν ∇²ω + f on the unit torus, random ω0 and f of Li et al. (2021), appendix A.3.3.
    """
    equation = SpectralResidual(
        navier_stokes2d.case.resized((points, points)), forcing=navier_stokes2d.stirring
    )
    stride, found = points // 64, []
    x = np.meshgrid(*(np.arange(points) / points,) * 2, indexing="ij")
    for first in range(0, count, SIDE_BY_SIDE):
        draws = [np.random.default_rng((seed, number)) for number in range(first, min(first + SIDE_BY_SIDE, count))]
        starts = np.stack([navier_stokes2d.random_vorticity(tuple(x), None, rng) for rng in draws])
        w = torch.tensor(starts, dtype=torch.float32, device=device)
        kept = []
        for _ in range(frames):
            # The residual of a step to nothing is the step itself.
            w = -equation(w, torch.zeros_like(w), 1.0, viscosity=viscosity, steps=steps)
            kept.append(w[:, None, ::stride, ::stride].clone())
        found.append(torch.stack(kept, 1))
    states = torch.cat(found)
    times = torch.arange(1.0, frames + 1, device=device)
    return Trajectories(states=states, times=times, parameters=states.new_zeros(count, 0))


@torch.no_grad()
def burgers_line(count: int, *, seed: int, device: str, points: int = 2048, steps: int = 400) -> Trajectories:
    """Return u(x, 0) and u(x, 1) of ∂u/∂t + u ∂u/∂x = ν ∂²u/∂x², ν = 0.1, u0 ~ N(0, 625 (-∇² + 25)^-2).

    float64, fourth order in space, ETDRK4; Li et al. (2021), section 5.1.
    """
    case = burgers.case.resized((points,))
    x = (np.arange(points) / points,)
    starts = [burgers.random_line(x, None, np.random.default_rng((seed, number))) for number in range(count)]
    u = torch.tensor(np.stack(starts), device=device)[None]
    rows = torch.tensor([[0.1]], device=device, dtype=torch.float64)
    states = _march(case, u, rows, 1, steps, 1 / steps)[:, :, None].float()
    return Trajectories(states=states, times=torch.tensor([0.0, 1.0], device=device),
                        parameters=states.new_zeros(count, 0))  # fmt: skip


MIXED = {"e1": (), "e2": ("beta",), "e3": ("alpha", "beta", "gamma")}
"""The coefficients that the published networks are told, per problem."""


@torch.no_grad()
def mixed(name: str, count: int, *, seed: int, device: str, frames: int = 250, finer: int = 1) -> Trajectories:
    """Return the first frames of 250 on 100 points of E1, E2 or E3 (Brandstetter et al. 2022).

    Solved on 200 points in float64; as in the published program, a value is the mean of five neighbouring ones.

    finer : divides the solver's own step.
    """
    case = getattr(mixed1d, name)
    (points,) = case.grid.shape
    x = (np.arange(points) * case.grid.spacing[0],)
    rng = np.random.default_rng(seed)
    drawn = [case.draw(rng.random(len(case.parameters))) for _ in range(count)]
    u = torch.tensor(np.stack([case.initial(x, p, None) for p in drawn]), device=device)[None]
    rows = torch.tensor([[float(p[key]) for key in case.parameters] for p in drawn], device=device)
    step = case.duration / (case.num_snapshots * case.steps_per_snapshot * finer)
    fine = _march(case, u, rows.double(), frames - 1, case.steps_per_snapshot * finer, step)
    around = torch.cat((fine[..., -2:], fine, fine[..., :2]), -1)
    states = around.unfold(-1, 5, points // 100).mean(-1)[:, :, None].float()
    told = torch.tensor([[float(p[key]) for key in MIXED[name]] for p in drawn], device=device)
    times = torch.arange(float(frames), device=device) * (case.duration / case.num_snapshots)
    return Trajectories(states=states, times=times, parameters=told.reshape(count, -1))


def _march(case: Case, u: torch.Tensor, rows: torch.Tensor, frames: int, steps: int, dt: float) -> torch.Tensor:
    """Return the states (simulations, frames + 1, *grid) of a case with one field, u (1, simulations, *grid)."""
    f, kept = TensorRightHandSide(case, rows), [u[0]]
    for number in range(frames * steps):
        u = case.scheme.step([u], f, number * dt, dt)
        if (number + 1) % steps == 0:
            kept.append(u[0])
    return torch.stack(kept, 1)
