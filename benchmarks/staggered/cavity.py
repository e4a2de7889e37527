"""The lid-driven cavity from rest, for networks that give its potential: equation, transient and centre lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from ghia import from_ghia
from scipy.interpolate import CubicSpline

from headrace.cases.cavity import case as cavity
from headrace.solvers import MemorySink, Parameters
from headrace.solvers.mac_circulation import CirculationResidual
from headrace.solvers.simulate import simulate

from .figures import Rival, repeated, solved_beside, timed
from .mac_steps import StaggeredSteps, potential_of
from .planes import Measured
from .potential_root import PotentialRoot

SPEED = 0.2
"""What the mean square of errors is measured by, a velocity of the flow."""
GRADED = 128
"""Points for which the explicit steps that grade are as many as a cavity says."""
LEAST = 0.04
"""The least of it where explicit steps grade: that of the velocity after a frame from rest at Re 1000."""


def own_solver(reynolds: int, points: int, end: float) -> dict[str, np.ndarray]:
    """Return u and v of our MAC solver at every whole time, "velocity" (times, 2, points, points)."""
    sink = MemorySink()
    case = replace(cavity.resized((points, points)), duration=end, num_snapshots=round(end))
    simulate(case, case.accept({"reynolds": reynolds}), sink)
    return {"velocity": np.asarray(sink.values)[:, :2]}


@cache
def reference(reynolds: int, points: int, end: float) -> Future[dict[str, np.ndarray]]:
    """Return `own_solver`, known from before or on its way."""
    return solved_beside(f"cavity-{reynolds}-{points}", own_solver, reynolds, points, end)


def restricted(velocity: np.ndarray, n: int) -> np.ndarray:
    """Return velocities (times, 2, m, m) at the upper faces of a coarser grid (times, 2, n, n): means over its faces
    where n divides m, else by cubic splines.
    """
    *lead, _, m, _ = velocity.shape
    if m % n == 0:
        factor = m // n
        u = velocity[..., 0, factor - 1 :: factor, :].reshape(*lead, n, n, factor).mean(-1)
        v = velocity[..., 1, :, factor - 1 :: factor].reshape(*lead, n, factor, n).mean(-2)
        return np.stack([u, v], axis=-3)
    faces, centres = ((np.arange(k) + 1.0) / k for k in (m, n)), ((np.arange(k) + 0.5) / k for k in (m, n))
    across, along = tuple(faces), tuple(centres)
    # u is at faces along x and between them along y, v the other way round.
    u = _splined(_splined(velocity[..., 0, :, :], -2, *across), -1, *along)
    v = _splined(_splined(velocity[..., 1, :, :], -2, *along), -1, *across)
    return np.stack([u, v], axis=-3)


def _splined(values: np.ndarray, axis: int, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return CubicSpline(source, values, axis=axis)(target)


@dataclass(frozen=True, eq=False)
class Cavity:
    """Reynolds number, time to the steady state, and the goal for the extremes of the centre lines.

    steps : explicit ones of a frame, and the stages of each, None for the four of Runge and Kutta.

    The lid starts with a jerk, at which the midpoint rule rings for some 20 ν dt / h² frames. Graded by the midpoint
    rule ("differences") frames must be short therefore; graded by explicit steps ("steps") they need not.
    """

    reynolds: int
    end: float
    goal: float | None
    frame: float
    steps: tuple[int, int | None] = (1, None)
    points: int = 128
    batch: int = 8
    pool: int = 64
    ndim: int = 2
    fields: int = 1
    in_time: bool = True
    reading: str = "offset"
    judged: str = "largest error to our solver at whole times"
    width: int = 24
    modes: int = 16
    padding: float = 0.25
    scale: float = 0.3

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return (self.points,) * self.ndim

    @property
    def name(self) -> str:
        """What figures are called by."""
        return f"P4 Re {self.reynolds}" + (f", {self.points} x {self.points}" if self.points != 128 else "")

    def network_options(self) -> dict[str, Any]:
        """Return how networks see the box."""
        return {"position": (False, False), "scale": self.scale}

    @property
    def parameters(self) -> Parameters:
        """Of the case."""
        return Parameters({"reynolds": float(self.reynolds)})

    def velocity(self, loss: str, states: torch.Tensor) -> torch.Tensor:
        """Return the velocities at the faces of states (*lead, 1, n, n), (2, *lead, n, n).

        States are potentials, or their roots where explicit steps grade.
        """
        circulation = self.circulation()
        if loss == "steps":
            states = PotentialRoot(circulation.potential.residual.grid).potential(states)
        return circulation.velocity(states)

    def circulation(self) -> CirculationResidual:
        """Return the circulation of the midpoint rule."""
        case = cavity.resized((self.points, self.points))
        return CirculationResidual(case, viscosity=1 / self.reynolds, p=self.parameters, speed=SPEED)

    def equation(self, loss: str, device: str) -> CirculationResidual | CavitySteps:
        """Return what grades a step."""
        return CavitySteps(self, device, compiled=True) if loss == "steps" else self.circulation()

    def start_windows(self, loss: str, frames: int, count: int, device: str, seed: int) -> torch.Tensor:
        """Return states of rest; for a pool graded by explicit steps, states of these steps of all ages."""
        reference(self.reynolds, self.points, self.end)
        states = CavitySteps(self, device).of_all_ages(count if loss == "steps" else 1)
        return states[:, None].expand(count, frames, -1, -1, -1).contiguous()

    @torch.no_grad()
    def errors(self, network: torch.nn.Module, loss: str, frames: int, count: int, device: str) -> Iterator[Measured]:
        """Yield the largest error of the transient at whole times, and distances of the extremes from Ghia's."""
        window = self.start_windows(loss, frames, 1, device, 0)
        number = round(self.end / self.frame)
        fields = [window[:, -1]]
        while len(fields) <= number:
            window = network(window)
            fields += window.unbind(1)
        every = round(1 / self.frame)
        found = self.velocity(loss, torch.cat(fields[: number + 1 : every]).double())
        found = found.movedim(0, 1).cpu().numpy()
        yield from self.extremes("", found[-1], self.goal)
        truth = reference(self.reynolds, self.points, self.end).result()["velocity"]
        yield from self.extremes("our solver's ", truth[-1], None)
        errors = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found[1:], truth[1:], strict=True)]
        words = "errors at whole times: " + ", ".join(f"{e:.3g}" for e in errors)
        yield self.judged, max(errors), 0.03 if self.goal else None, None, words
        yield "error to our solver at the end", errors[-1], None, None, words

    def rivals(self, device: str) -> Iterator[Rival]:
        """Yield explicit steps on coarser grids on the same device, by the same error."""
        for share in (0.25, 0.375, 0.5, 0.75, 0.875, 0.9375, 1.0):
            coarse = replace(self, points=round(share * self.points))
            for steps, stages in coarse.steppings():

                def error(coarse: Cavity = coarse, steps: int = steps, stages: int | None = stages) -> float:
                    truth = reference(self.reynolds, self.points, self.end).result()["velocity"]
                    found = coarse.solved_on(device, steps, stages)[1:]
                    pairs = zip(found, restricted(truth, coarse.points)[1:], strict=True)
                    return float(np.max([np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]))  # NaN stays

                name = f"explicit steps on {coarse.points} x {coarse.points}, dt {self.frame / steps:g}"
                name += f" of {stages} stages" if stages else ""
                yield Rival(name, error, partial(coarse.seconds, device, steps, stages))

    def steppings(self, paces: Sequence[float] = (0.3, 0.45, 0.6, 0.8, 1.0)) -> list[tuple[int, int | None]]:
        """Return steps of a frame and stages of each, None for Runge-Kutta, cheapest first; pace 1 is surely stable."""
        # Diffusion takes half of the method's real extent and the lid three quarters of its imaginary one.
        most = self.frame * max(8 / self.reynolds * self.points**2 / 2.6, self.points / 2.1)
        found: set[tuple[int, int | None]] = {(math.ceil(pace * most), None) for pace in paces}
        count, stages = self.steps
        if stages is not None:  # those that grade, on fewer points: steps as long as a cell, stages as its root
            share = self.points / GRADED
            for pace in paces:
                found.add((math.ceil(pace * count * share), max(2, math.ceil(stages * (share / pace) ** 0.5))))
        return sorted(found, key=lambda stepping: (stepping[0] * (stepping[1] or 4), stepping[0]))

    @cache  # noqa: B019, cavities are constants of this module
    def _compiled(self, device: str) -> StaggeredSteps:
        residual = self.circulation().potential.residual
        return StaggeredSteps(residual, p=self.parameters, device=device).compiled()

    def _stepper(self, device: str, steps: int, stages: int | None) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return a frame of explicit steps in float32."""
        solver = self._compiled(device).of_stages(stages)
        return lambda u: solver.advanced(u, self.frame / steps, 1 / self.reynolds, steps)

    @torch.no_grad()
    def solved_on(self, device: str, steps: int, stages: int | None) -> np.ndarray:
        """Return velocities at whole times (times, 2, n, n)."""
        frame, u = self._stepper(device, steps, stages), torch.zeros(2, 1, *self.shape, device=device)
        later = [new for (new,) in repeated(lambda u: (frame(u),), u, round(self.end / self.frame), device)]
        every = round(1 / self.frame)
        return torch.stack([u, *later[every - 1 :: every]])[:, :, 0].cpu().numpy()

    @torch.no_grad()
    def seconds(self, device: str, steps: int, stages: int | None, batch: int) -> float:
        """Return the time of each of a batch of it, as CUDA graphs on a GPU."""
        frame, u = self._stepper(device, steps, stages), torch.zeros(2, batch, *self.shape, device=device)
        return self.end / self.frame * timed(lambda: frame(u), device, 20) / batch

    def extremes(self, who: str, velocity: np.ndarray, goal: float | None) -> Iterator[Measured]:
        """Yield the distances of the extremes of the centre lines from Ghia's."""
        for name, distance, found, published in from_ghia(velocity, self.reynolds):
            yield f"{who}{name} from Ghia", distance, goal, published, f"found {found:.5f}"


class CavitySteps:
    """Explicit steps of a frame as an equation for roots of potentials (*lead, 1, n, n).

    Old states carry no gradient.
    """

    def __init__(self, one: Cavity, device: str, *, compiled: bool = False) -> None:
        self._one, self._circulation = one, one.circulation()
        self._count, stages = one.steps
        residual = self._circulation.potential.residual
        self._root = PotentialRoot(residual.grid)
        self._solver = StaggeredSteps(residual, p=one.parameters, device=device, stages=stages)
        if compiled:
            self._solver = self._solver.compiled()

    def _stepped(self, velocity: torch.Tensor) -> torch.Tensor:
        one = self._one
        return self._solver.advanced(velocity, one.frame / self._count, 1 / one.reynolds, self._count)

    def correction(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the error of the new velocities at the faces, (*lead, 2, nx, ny)."""
        with torch.no_grad():
            wanted = self._stepped(self._circulation.velocity(self._root.potential(old)))
        return torch.movedim(self._circulation.velocity(self._root.potential(new)) - wanted, 0, -3)

    def size(self, fields: Any) -> Any:
        """Return the root mean square of the flow's own velocity, (*lead, 1, 1, 1), that errors are measured by.

        Beside the whole flow's the thin layer of the first frames is small, and would be learned last.
        """
        square = self._circulation.velocity(self._root.potential(fields)).square().mean((0, -2, -1))
        return (square + LEAST**2).sqrt()[..., None, None, None]

    @torch.no_grad()
    def of_all_ages(self, count: int) -> torch.Tensor:
        """Return states (count, 1, n, n) at frames from rest on, through the transient and beyond."""
        u, states = torch.zeros(2, 1, *self._one.shape, device=self._solver.fluid.device), []
        while len(states) < count:
            states.append(self._root.root(potential_of(u[0], 1 / self._one.points)))
            u = self._stepped(u)
        return torch.stack(states)


CAVITIES = {
    one.name: one
    for one in (
        Cavity(100, 15.0, 0.02, 0.25, (5, 15)), Cavity(400, 30.0, 0.03, 0.25, (14, 5), pool=124),
        Cavity(1000, 40.0, 0.05, 0.25, (22, 3), pool=164),
        # For CPUs. There is no goal on so few points, on which our solver is 4 % from Ghia too.
        Cavity(100, 8.0, None, 0.1, (4, None), points=24, modes=8, width=16, batch=32, scale=0.1),
    )
}  # fmt: skip
