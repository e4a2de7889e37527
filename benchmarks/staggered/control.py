"""Control through trained networks: the first vorticity is chosen so that a dye is mixed best, then replayed.

The dye c starts as sin 2πx and is carried by the flow to t = 10; what is made small is its mix-norm ‖∇⁻¹c‖, relative to
that of the start (Mathew, Mezic and Petzold 2005). The control is the vorticity at t = 0, all Fourier modes up to wave
number 3 at a fixed mean square. Gradients go back through dye and network; the chosen vorticity then runs in the
pseudo-spectral solver on the full grid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from lines import Figure

from .planes import Plane, Spectral

HIGHEST, SPEED, SUBSTEPS, DIFFUSION = 3, 0.5, 5, 1e-4
"""Wave number, root mean square of the vorticity, steps of the dye in a frame, diffusivity of the dye."""
RollOut = Callable[[torch.Tensor, int], list[torch.Tensor]]
"""Vorticities (batch, n, n) and frames -> the vorticities of so many frames, the first one among them."""


class Dye:
    """The dye on n x n points, carried pseudo-spectrally with the velocity of vorticities at both ends of a frame."""

    def __init__(self, n: int, frame: float, like: torch.Tensor) -> None:
        kinds = {"dtype": like.dtype, "device": like.device}
        kx = 2 * math.pi * torch.fft.fftfreq(n, 1 / n, **kinds)[:, None]
        ky = 2 * math.pi * torch.fft.rfftfreq(n, 1 / n, **kinds)[None]
        squared = kx**2 + ky**2
        self.keep = ((kx.abs() < 2 * math.pi * n / 3) & (ky < 2 * math.pi * n / 3)).to(like.dtype)
        self.inverse = torch.where(squared > 0, 1 / squared.clamp(min=1e-9), 0.0)
        self.kx, self.ky, self.dt = 1j * kx, 1j * ky, frame / SUBSTEPS
        self.decay = torch.exp(-DIFFUSION * squared * self.dt)
        # Parseval's weights of the half spectrum.
        self.twice = torch.full_like(squared, 2.0)
        self.twice[:, 0] = 1.0
        self.start = torch.sin(2 * math.pi * torch.arange(n, **kinds) / n)[:, None].expand(n, n)

    def velocity(self, w: torch.Tensor) -> torch.Tensor:
        """Return (2, batch, n, n)."""
        psi = torch.fft.rfft2(w) * self.inverse
        return torch.fft.irfft2(torch.stack((self.ky * psi, -self.kx * psi)))

    def mixed(self, vorticities: list[torch.Tensor]) -> torch.Tensor:
        """Return the mix-norm at the end over that at the start, (batch,)."""
        c = torch.fft.rfft2(self.start.expand_as(vorticities[0]))
        first, before = self._norm(c), self.velocity(vorticities[0])
        for w in vorticities[1:]:
            after = self.velocity(w)
            for k in range(SUBSTEPS):
                at = [before + (k + share) / SUBSTEPS * (after - before) for share in (0.0, 0.5, 1.0)]
                a = self._slope(c, at[0])
                b = self._slope(c + self.dt / 2 * a, at[1])
                d = self._slope(c + self.dt / 2 * b, at[1])
                e = self._slope(c + self.dt * d, at[2])
                c = (c + self.dt / 6 * (a + 2 * b + 2 * d + e)) * self.decay
            before = after
        return self._norm(c) / first

    def _slope(self, c: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        u, v = velocity
        cx, cy = torch.fft.irfft2(torch.stack((self.kx * c * self.keep, self.ky * c * self.keep)))
        return -torch.fft.rfft2(u * cx + v * cy) * self.keep

    def _norm(self, c: torch.Tensor) -> torch.Tensor:
        return (self.twice * self.inverse * (c.real**2 + c.imag**2)).sum((-2, -1)).sqrt()


def waves(n: int, like: torch.Tensor) -> torch.Tensor:
    """Return cosines and sines of all modes up to `HIGHEST`, (modes, n, n)."""
    x, y = np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij")
    modes = []
    for k in range(HIGHEST + 1):
        for m in range(-HIGHEST, HIGHEST + 1):
            if k > 0 or m > 0:
                phase = 2 * np.pi * (k * x + m * y)
                modes += [np.cos(phase), np.sin(phase)]
    return torch.tensor(np.stack(modes), dtype=like.dtype, device=like.device)


def vorticity_of(control: torch.Tensor, modes: torch.Tensor) -> torch.Tensor:
    """Return vorticities (batch, n, n) of controls (batch, modes), all of one root mean square."""
    w = torch.einsum("bm,mij->bij", control, modes)
    return SPEED * w / w.square().mean((-2, -1), keepdim=True).sqrt()


def by_network(network: torch.nn.Module, solver: Callable[[torch.Tensor], torch.Tensor], frames: int) -> RollOut:
    """Return roll-outs by a network of windows; the frames of the first window are the solver's, with gradients."""

    def roll_out(w: torch.Tensor, count: int) -> list[torch.Tensor]:
        states = [w]
        while len(states) < frames:
            states.append(solver(states[-1]))
        window = torch.stack(states, 1)[:, :, None]
        while len(states) <= count:
            window = network(window)
            states += window[:, :, 0].unbind(1)
        return states[: count + 1]

    return roll_out


def classical(plane: Plane, like: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the pseudo-spectral solver's step of a frame."""
    steps = math.ceil(plane.frame / plane.step)
    solver = Spectral(plane.forcing(plane.points, like.device.type, like.dtype), plane.viscosity, plane.frame / steps)
    return lambda w: solver.advanced(w, steps)


def gradient_check(
    objective: Callable[[torch.Tensor], torch.Tensor], control: torch.Tensor, directions: int = 8
) -> tuple[float, float]:
    """Return relative distance and cosine of the gradient's and differences' slopes along so many directions."""
    at = control.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(at).sum(), at)
    generator, found, wanted = torch.Generator().manual_seed(5), [], []
    with torch.no_grad():
        for _ in range(directions):
            direction = torch.randn(control.shape, generator=generator, dtype=torch.float64).to(control)
            found.append(float((gradient * direction).sum()))
            ends = [float(objective(control + h * direction).sum()) for h in (1e-5, -1e-5)]
            wanted.append((ends[0] - ends[1]) / 2e-5)
    a, b = np.array(found), np.array(wanted)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b)), float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def measure_control(
    name: str, network: torch.nn.Module, plane: Plane, frames: int, device: str, *, until: float = math.inf,
    quick: bool = False,
) -> Iterator[Figure]:  # fmt: skip
    """Yield checks of the gradient, and the mix-norms before, after, and in the replay, of several starts.

    until : `time.perf_counter` at which the search ends.
    """
    starts, steps, horizons = (1, 1, (1,)) if quick else (5, 100, (1, 10, 50))
    like = torch.zeros((), dtype=torch.float64, device=device)
    network = network.double().requires_grad_(False)
    solver, dye, modes = classical(plane, like), Dye(plane.points, plane.frame, like), waves(plane.points, like)
    roll_out, last = by_network(network, solver, frames), round(plane.end / plane.frame)
    generator = torch.Generator().manual_seed(11)
    control = torch.randn(starts, len(modes), generator=generator, dtype=torch.float64).to(device)
    for horizon in horizons:
        def objective(at: torch.Tensor, horizon: int = horizon) -> torch.Tensor:
            return dye.mixed(roll_out(vorticity_of(at, modes), horizon))

        distance, cosine = gradient_check(objective, control[:1])
        yield (f"{name}: gradient against differences, {horizon} frames", distance, "1", 1e-3, None,
               f"float64, eight directions, cosine {cosine:.6f}")  # fmt: skip
    with torch.no_grad():
        before = dye.mixed(roll_out(vorticity_of(control, modes), last))
    control.requires_grad_(True)
    optimiser = torch.optim.Adam([control], lr=0.1)
    taken = 0
    while taken < steps and time.perf_counter() < until:
        optimiser.zero_grad()
        dye.mixed(roll_out(vorticity_of(control, modes), last)).sum().backward()
        optimiser.step()
        taken += 1
    with torch.no_grad():
        w = vorticity_of(control, modes)
        after = dye.mixed(roll_out(w, last))
        states = [w]
        while len(states) <= last:
            states.append(solver(states[-1]))
        replay = dye.mixed(states)
    told = {"before": before, "after": after, "replayed": replay}
    setup = f"{taken} steps of Adam from {starts} random starts, t = {plane.end:g}; " + "; ".join(
        f"{words} {', '.join(f'{v:.3f}' for v in values.tolist())}" for words, values in told.items()
    )
    yield (f"{name}: mix-norm after control over before, replayed in our solver", float((replay / before).max()), "1",
           None, float(before.mean()), setup)  # fmt: skip
    yield (f"{name}: largest distance of the replay from what the network promised",
           float((replay / after - 1).abs().max()), "1", None, None, setup)  # fmt: skip
