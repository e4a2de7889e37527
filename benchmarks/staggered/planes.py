"""The problems on a periodic plane: their equation for a physics loss, their starts and their truth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from headrace.cases.navier_stokes2d import differences, random_vorticity, stirring
from headrace.solvers.vorticity_residual import VorticityResidual

from .figures import relative
from .spectra import OwnSteps, SpectralSolver

END, HELD_OUT, TIMES = 10.0, 5, (1.0, 5.0, 10.0)
Measured = tuple[str, float, float | None, float | None, str]
"""What, value, goal, baseline, words."""


@dataclass(frozen=True, eq=False)
class Plane:
    """Vorticity on the unit torus with the forcing of Li et al. (2021), to t = 10.

    frame : time between two frames. truth : points and step of the spectral solver that makes the truth.
    goals : factor (space, time) -> largest relative error at the end.
    loss : "differences" (Arakawa's J, implicit midpoint) or "spectral", with steps of at most `step`.
    """

    name: str
    viscosity: float
    points: int
    truth: tuple[int, float]
    goals: dict[int, float]
    frame: float = 0.25
    end: float = END
    reading: str = "phase"
    width: int = 24
    modes: int = 12
    padding: float = 0.0
    batch: int = 8
    pool: int = 512
    ndim: int = 2
    fields: int = 1
    in_time: bool = True
    judged: str = "error to truth at t = 10"
    step: float = 0.05

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return (self.points,) * self.ndim

    def grid(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the coordinates of n x n points."""
        x, y = np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij")
        return x, y

    def forcing(self, n: int, device: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Return the source on n x n points."""
        return torch.tensor(stirring(self.grid(n)), device=device, dtype=dtype)

    def starts(self, count: int, n: int, seed: int, device: str) -> torch.Tensor:
        """Return initial vorticities (count, n, n)."""
        rng = np.random.default_rng(seed)
        return torch.tensor(np.stack([random_vorticity(self.grid(n), None, rng) for _ in range(count)]), device=device)

    def equation(self, loss: str, device: str) -> VorticityResidual | OwnSteps:
        """Return the discrete equation on the full grid."""
        if loss == "spectral":
            steps = math.ceil(self.frame / self.step)
            forcing = self.forcing(self.points, device)
            return OwnSteps(lambda kind: Spectral(forcing.to(kind), self.viscosity, self.frame / steps), steps)
        shape = (self.points, self.points)
        return VorticityResidual(differences.resized(shape), viscosity=self.viscosity, forcing=stirring)

    def part_solver(self, stagger: Any, device: str) -> PartSolver:
        """Return the classical step of every part by itself."""
        return PartSolver(self, stagger, 0.1 if self.points // stagger.space[0] <= 16 else self.step, device)

    def network_options(self) -> dict[str, Any]:
        """Return how networks see the plane."""
        return {"position": (True, True), "scale": 0.5}

    def start_windows(self, loss: str, frames: int, count: int, device: str, seed: int) -> torch.Tensor:
        """Return windows at the start of simulations, the frames after the first one by the solver's own steps."""
        equation = self.equation(loss, device)
        states = [self.starts(count, self.points, seed, device)]
        while len(states) < frames:
            states.append(equation.step(states[-1], 0.0, self.frame))
        return torch.stack(states, 1)[:, :, None].float()

    @torch.no_grad()
    def errors(self, network: torch.nn.Module, loss: str, frames: int, count: int, device: str) -> Iterator[Measured]:
        """Yield the errors of roll-outs from states that no training saw."""
        start, truth = self.held_out(TIMES, count, device)
        number, equation = round(END / self.frame), self.equation(loss, device)
        discrete = [start]
        while len(discrete) <= number:
            discrete.append(equation.step(discrete[-1], 0.0, self.frame))
        # Frame 0 is the start; the first window's further frames are the solver's.
        window = torch.stack(discrete[:frames], 1)[:, :, None].float()
        states = list(window.unbind(1))
        while len(states) <= number:
            window = network(window)
            states += window.unbind(1)
        at = [round(t / self.frame) for t in TIMES]
        found = [relative(states[k][:, 0].double(), w) for k, w in zip(at, truth, strict=True)]
        floors = [relative(discrete[k], w) for k, w in zip(at, truth, strict=True)]
        words = (f"errors at t = 1, 5, 10: {', '.join(f'{e:.3g}' for e in found)}; of the discrete solution ({loss}): "
                 f"{', '.join(f'{e:.3g}' for e in floors)}")  # fmt: skip
        yield self.judged, found[-1], self.goals.get(network.stagger.space[0]), floors[-1], words
        own = relative(states[at[-1]][:, 0].double(), discrete[at[-1]])
        yield "error to the discrete solution at t = 10", own, None, None, words

    @cache  # noqa: B019, planes are constants of this module
    @torch.no_grad()
    def held_out(self, times: tuple[float, ...], count: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return starts (count, n, n) and truth (times, count, n, n) at the problem's points, of a finer solver."""
        fine, dt = self.truth
        starts = self.starts(count, fine, 1_000_000, device)
        solver, w, states = Spectral(self.forcing(fine, device), self.viscosity, dt), torch.fft.rfft2(starts), []
        for number in range(round(max(times) / dt) + 1):
            if any(abs(number * dt - t) < dt / 2 for t in times):
                states.append(torch.fft.irfft2(w))
            w = solver.step(w)
        every = fine // self.points
        return starts[:, ::every, ::every], torch.stack(states)[..., ::every, ::every]


# P1 on a quarter of the points, for CPUs.
P0 = Plane("P0", 1e-3, 32, (128, 0.05), {}, width=16, modes=7, batch=64)
P1 = Plane("P1", 1e-3, 64, (128, 0.05), {1: 0.01, 2: 0.015, 4: 0.03})
P2 = Plane("P2", 1e-4, 128, (256, 0.025), {1: 0.03, 2: 0.03, 4: 0.05}, step=0.025, modes=20, pool=256)
P3 = Plane("P3", 1e-5, 64, (256, 0.00625), {2: 0.1, 4: 0.2})
PLANES = {plane.name: plane for plane in (P0, P1, P2, P3)}


class Spectral(SpectralSolver):
    """Vorticity on a torus by a pseudo-spectral method, 2/3 rule, RK4 with integrating factor; float32 or 64.

    forcing : (*lead, n, n); lead axes broadcast against those of the states.
    """

    def __init__(self, forcing: torch.Tensor, viscosity: float, dt: float) -> None:
        super().__init__(forcing.shape[-1], 2, viscosity, dt, side=1.0, dtype=forcing.dtype, device=forcing.device)
        (kx, ky), over = self.k, self.over
        # One batched transform each way: u, v, and the two slopes of ω. What it is divided by is in the factors.
        self.factors = 1j * torch.stack([ky * over, -kx * over, kx, ky]) * self.keep / math.prod(self.shape)
        self.forcing, self.kept = torch.fft.rfft2(forcing), self.keep.to(self.kind)

    def slope(self, w: torch.Tensor) -> torch.Tensor:
        """Return -u·∇ω + f of a spectrum (*batch, nx, ny // 2 + 1)."""
        factors = self.factors.reshape(4, *(1,) * (w.ndim - 2), *w.shape[-2:])
        u, v, wx, wy = torch.fft.irfft2(factors * w, norm="forward").unbind(0)
        return torch.addcmul(self.forcing, torch.fft.rfft2(torch.addcmul(u * wx, v, wy)), self.kept, value=-1)


class PartSolver:
    """The same solver on the coarse grid of every part by itself, with the forcing at its own points."""

    def __init__(self, plane: Plane, stagger: Any, step: float, device: str) -> None:
        interval = plane.frame * stagger.time
        self.steps = math.ceil(interval / step)
        kind = torch.float32
        source = stagger.split(plane.forcing(plane.points, device, kind).expand(1, stagger.time, 1, -1, -1))[:, :, 0]
        self._all = Spectral(source, plane.viscosity, interval / self.steps)
        self._one = [Spectral(part[None], plane.viscosity, interval / self.steps) for part in source]

    def __call__(self, parts: torch.Tensor, index: int | None) -> torch.Tensor:
        """Return the parts an interval later, (parts, batch, fields, *coarse)."""
        return (self._all if index is None else self._one[index]).advanced(parts, self.steps)
