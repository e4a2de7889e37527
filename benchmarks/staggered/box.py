"""Decaying flow in a periodic box: its pseudo-spectral equation, starts and truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from .figures import Rival, relative, timed
from .planes import Measured
from .spectra import OwnSteps, SpectralSolver


class BoxSolver(SpectralSolver):
    """Velocities (*batch, 3, n, n, n) on [0, 2π]³: rotational form, 2/3 rule, RK4 with integrating factor."""

    def __init__(self, n: int, viscosity: float, dt: float, dtype: torch.dtype, device: str) -> None:
        super().__init__(n, 3, viscosity, dt, side=2 * math.pi, dtype=dtype, device=device)

    def projected(self, f: torch.Tensor) -> torch.Tensor:
        """Return spectra without divergence."""
        return f - self.k * (self.k * f).sum(-4, keepdim=True) * self.over

    def slope(self, u: torch.Tensor) -> torch.Tensor:
        """Return the projection of u × ω."""
        kept = u * self.keep
        k, (x, y, z) = self.k, kept.unbind(-4)
        curl = 1j * torch.stack((k[1] * z - k[2] * y, k[2] * x - k[0] * z, k[0] * y - k[1] * x), -4)
        v, w = torch.fft.irfftn(torch.stack((kept, curl)), self.shape, dim=(-3, -2, -1)).unbind(0)
        return self.projected(torch.fft.rfftn(torch.linalg.cross(v, w, dim=-4), dim=(-3, -2, -1)) * self.keep)


class WithoutDivergence(torch.nn.Module):
    """A network of changes of velocity on a cubic periodic grid, of whose output the divergence is taken away there.

    It has no weights and sees no more than the grid of the part, so parts still run alone.
    """

    def __init__(self, network: torch.nn.Module, n: int) -> None:
        super().__init__()
        self.network = network
        lines = [torch.fft.fftfreq(n, 1 / n)] * 2 + [torch.fft.rfftfreq(n, 1 / n)]
        k = torch.stack(torch.meshgrid(*(torch.where(m.abs() == n / 2, 0.0, m) for m in lines), indexing="ij"))
        self.register_buffer("_direction", k / k.norm(dim=0).clamp(min=1.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return changes (batch, 3, n, n, n)."""
        change = self.network(x)
        axes, k = (-3, -2, -1), self._direction
        spectrum = torch.fft.rfftn(change, dim=axes)
        spectrum = spectrum - k * (k * spectrum).sum(-4, keepdim=True)
        return torch.fft.irfftn(spectrum, change.shape[-3:], dim=axes)


def without_divergence(make: Callable[[int], torch.nn.Module], n: int) -> Callable[[int], torch.nn.Module]:
    """Return a maker of such networks on n x n x n points, in the layout in which convolutions are fast on a GPU."""
    return lambda inputs: WithoutDivergence(make(inputs).to(memory_format=torch.channels_last_3d), n)


def turned(fields: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return velocities (..., 3, n, n, n) turned and mirrored at random, as a cube can be."""
    order = torch.randperm(3, generator=generator).tolist()
    fields = fields.movedim([-3 + axis for axis in order], [-3, -2, -1])[..., order, :, :, :]
    signs = torch.randint(2, (3,), generator=generator) * 2 - 1
    for axis in (-3, -2, -1):
        if signs[axis] < 0:  # mirrored about the point 0, which stays
            fields = fields.flip(axis).roll(1, axis)
    return fields * signs.to(fields).reshape(3, 1, 1, 1)


@dataclass(frozen=True, eq=False)
class Box:
    """P6: a random field of mean square speed 1 with most energy near wave number 3, to t = 1."""

    name: str = "P6"
    viscosity: float = 0.05
    points: int = 64
    frame: float = 0.1
    step: float = 0.034
    end: float = 1.0
    reading: str = "phase"
    width: int = 16
    multipliers: tuple[int, ...] = (1, 2, 2)
    batch: int = 4
    pool: int = 64
    ndim: int = 3
    fields: int = 3
    in_time: bool = False
    judged: str = "error to truth at t = 1"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return (self.points,) * self.ndim

    def network_options(self) -> dict[str, Any]:
        """Return how networks see the box: no place differs from another."""
        return {"scale": 0.5, "embedding": 0}

    def solver(self, n: int, interval: float, device: str, dtype: torch.dtype = torch.float32) -> tuple[BoxSolver, int]:
        """Return the solver on n³ points and its steps in an interval."""
        steps = math.ceil(interval / self.step)
        return BoxSolver(n, self.viscosity, interval / steps, dtype, device), steps

    def starts(self, count: int, seed: int, device: str) -> torch.Tensor:
        """Return initial velocities (count, 3, n, n, n)."""
        n, generator = self.points, torch.Generator().manual_seed(seed)
        solver, _ = self.solver(n, self.frame, device)
        fields = []
        for _ in range(count):
            noise = torch.fft.rfftn(torch.randn(3, n, n, n, generator=generator).to(device), dim=(-3, -2, -1))
            size = solver.k.square().sum(0).sqrt()
            shaped = solver.projected(noise * size * torch.exp(-(size**2) / 9))
            u = torch.fft.irfftn(shaped, (n, n, n), dim=(-3, -2, -1))
            fields.append(u / u.square().sum(0).mean().sqrt())
        return torch.stack(fields)

    def start_windows(self, loss: str, frames: int, count: int, device: str, seed: int) -> torch.Tensor:
        """Return windows at the start."""
        return self.starts(count, seed, device)[:, None]

    def equation(self, loss: str, device: str) -> OwnSteps:
        """Return the full grid's own steps."""
        _, steps = self.solver(self.points, self.frame, device)
        return OwnSteps(lambda kind: self.solver(self.points, self.frame, device, kind)[0], steps)

    def part_solver(self, stagger: Any, device: str) -> BoxPartSolver:
        """Return the classical step of every part by itself."""
        return BoxPartSolver(self, stagger, device)

    @torch.no_grad()
    def errors(self, network: torch.nn.Module, loss: str, frames: int, count: int, device: str) -> Iterator[Measured]:
        """Yield the error of velocities at the end, of networks and of the solver part by part without any."""
        start, number = self.starts(count, 1_000_000, device), round(self.end / self.frame)
        solver, steps = self.solver(self.points, self.end, device, torch.float64)
        truth = solver.advanced(start.double(), steps)
        window = start[:, None]
        for _ in range(number):
            window = network(window)
        goal = 0.05 if network.stagger.space[0] == 2 else None
        words = "truth: spectral 64 x 64 x 64"
        yield self.judged, relative(window[:, 0].double(), truth), goal, None, words
        parts = network.stagger.split(start[:, None])[:, :, 0]
        alone, steps = self.solver(self.points // network.stagger.space[0], self.end, device)
        joined = network.stagger.join(alone.advanced(parts, steps)[:, :, None])[:, 0]
        yield "spectral on each part, no training: error at t = 1", relative(joined.double(), truth), None, None, ""

    @torch.no_grad()
    def rivals(self, device: str, count: int) -> Iterator[Rival]:
        """Yield the solver on coarser grids, in longer and shorter steps, by the same error."""

        @cache
        def start_and_truth() -> tuple[torch.Tensor, torch.Tensor]:
            start = self.starts(count, 1_000_000, device).double()
            truth, steps = self.solver(self.points, self.end, device, torch.float64)
            return start, truth.advanced(start, steps)

        for n in (8, 12, 16, 24, 32, 48):
            for dt in (0.25, 0.2, 0.1, 0.05):
                steps, make = round(self.end / dt), partial(BoxSolver, n, self.viscosity, dt, torch.float64, device)

                def error(make: Callable[[], BoxSolver] = make, steps: int = steps, n: int = n) -> float:
                    start, truth = start_and_truth()
                    return relative(resampled(make().advanced(resampled(start, n), steps), self.points), truth)

                def seconds(batch: int, make: Callable[[], BoxSolver] = make, steps: int = steps, n: int = n) -> float:
                    many, solver = self.starts(1, 1_000_000, device).double(), make()
                    many = resampled(many, n).repeat(batch, 1, 1, 1, 1)
                    return timed(lambda: solver.advanced(many, steps), device, 3) / batch

                yield Rival(f"spectral {n} x {n} x {n}, dt {dt:g}", error, seconds)


def resampled(u: torch.Tensor, n: int) -> torch.Tensor:
    """Return fields (*lead, m, m, m) on n x n x n points by their spectrum, up or down; n and m are even."""
    axes, m = (-3, -2, -1), u.shape[-1]
    spectrum = torch.fft.fftshift(torch.fft.fftn(u, dim=axes), dim=axes)
    kept, half = torch.zeros(*u.shape[:-3], n, n, n, dtype=spectrum.dtype, device=u.device), min(n, m) // 2
    # Without the highest wave number, which has no partner.
    source, target = (slice(k // 2 - half + 1, k // 2 + half) for k in (m, n))
    kept[..., target, target, target] = spectrum[..., source, source, source]
    return torch.fft.ifftn(torch.fft.ifftshift(kept, dim=axes), dim=axes).real * (n / m) ** 3


class BoxPartSolver:
    """The same solver on the coarse grid of every part by itself."""

    def __init__(self, box: Box, stagger: Any, device: str) -> None:
        self._solver, self._steps = box.solver(box.points // stagger.space[0], box.frame * stagger.time, device)

    def __call__(self, parts: torch.Tensor, index: int | None) -> torch.Tensor:
        """Return the parts an interval later."""
        return self._solver.advanced(parts, self._steps)


P6 = Box()
