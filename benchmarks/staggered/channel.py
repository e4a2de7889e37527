"""Flow past a block in a channel, in a plane and in space, for networks that give velocity and pressure.

Lengths are in heights of the block, velocities in those of the middle of the inflow, so a faster inflow is a larger
Reynolds number and a longer step: it is a field of the state, zero in the block, that networks see and do not change.
Scene and pool of states follow Wandel, Weinmann and Klein (2021). Networks carry the velocity less the base flow, and
what is read of it is its projection: without divergence, and at rest on the block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from headrace.solvers import Case, Dirichlet, Grid, Neumann, Parameters, Snapshot
from headrace.solvers.mac import solve_mac
from headrace.solvers.mac_grid import MacGrid
from headrace.solvers.mac_operators import divergence
from headrace.solvers.mac_potential import PotentialResidual, flow_around

from .channel_grading import ChannelSteps
from .channel_solver import compared, distances, frequency, means, means_over, named, reference
from .figures import Rival, repeated, stored, timed
from .mac_steps import StaggeredSteps, TensorPressure
from .planes import Measured

NONE = Parameters({})
YOUNG = 32  # simulations, at most, that a pool of states of all ages comes from
OUT, LEVEL = Neumann(0.0), Dirichlet(0.0)


def young_of(count: int) -> int:
    """Return of how many simulations a pool of so many states is made; their starts come first."""
    return min(YOUNG, count // 2)


@dataclass(frozen=True, eq=False)
class Channel:
    """A channel (length, height, ...) around a block, at a Reynolds number of the block for inflow 1.

    frame : time of a step at inflow 1. steps : explicit ones of a frame, where these grade. inflows : between these the
    networks are trained. rolled : steps of the judged roll-out. solved : time to which our solver is run beside it;
    means are over its second half. still : 0, or the share of the flow that errors are measured by besides its change.
    coarser : cells of the coarser grids on which classical solvers are tried; the block has the same size there, as its
    faces are faces of these grids too.
    """

    name: str
    shape: tuple[int, ...]
    cells: int
    block: tuple[float, ...]
    centre: tuple[float, ...]
    reynolds: float
    rolled: int
    solved: float
    goals: dict[str, float]
    frame: float = 0.1
    steps: int = 2
    end: float = 60.0
    inflows: tuple[float, float] = (0.4, 1.2)
    width: int = 16
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    batch: int = 16
    pool: int = 64
    reading: str = "phase"
    in_time: bool = False
    still: float = 0.0
    coarser: tuple[int, ...] = ()
    judged: str = "largest distance of energy, drag and mean profile"

    def __deepcopy__(self, memo: dict[int, Any]) -> Channel:
        """Return the channel itself: copies of a network share it, with the solvers that it keeps."""
        return self

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    @property
    def fields(self) -> int:
        """Velocities less the base flow, pressure, inflow."""
        return self.ndim + 2

    def network_options(self) -> dict[str, Any]:
        """Return how networks see the channel."""
        return {"position": (False,) * self.ndim, "scale": 0.2, "gain": 2.0}

    def profile(self, x: tuple[Any, ...], p: Any, t: Any) -> Any:
        """The velocity of the inflow: a parabola across every other axis, 1 in the middle."""
        u = 1.0 + 0 * x[0]
        for axis in range(1, self.ndim):
            height = self.shape[axis] / self.cells
            u = u * 4 * x[axis] * (height - x[axis]) / height**2
        return u

    def solid(self, x: tuple[np.ndarray, ...]) -> np.ndarray:
        """Return which points lie in the block."""
        inside = True
        for line, middle, size in zip(x, self.centre, self.block, strict=True):
            inside = inside & (np.abs(line - middle) < 0.5 * size)
        return inside

    def case(self, *, inflow: float = 1.0, duration: float = 1.0, start: np.ndarray | None = None) -> Case:
        """Return the problem for our solver, with a snapshot every frame.

        inflow : velocity of the inflow; times are in units of it. start : velocities, the base flow if None.
        """
        axes = "xyz"[: self.ndim]
        walls = {axis: LEVEL for axis in axes[1:]}
        boundary: dict[str, Any] = {"u": {"x": (Dirichlet(self.profile), OUT), **walls}}
        for name in ("v", "w")[: self.ndim - 1]:
            boundary[name] = {"x": (LEVEL, OUT), **walls}
        boundary["pressure"] = {"x": (OUT, LEVEL), **{axis: OUT for axis in axes[1:]}}
        viscosity = 1 / (self.reynolds * inflow)

        def flow(case: Case, p: Parameters, comm: Any, rng: np.random.Generator) -> Iterator[Snapshot]:
            """∂u/∂t + ∇·(u u) = -∇p + ∇²u / Re,  ∇·u = 0."""
            return solve_mac(case, p, comm, rng, viscosity=viscosity, solid=self.solid)

        def initial(x: Any, p: Any, rng: Any) -> Any:
            return (*(self.base if start is None else start), np.zeros(self.shape))

        extent = tuple(n / self.cells for n in self.shape)
        frames = max(1, round(duration / (self.frame * inflow)))
        return Case(
            name="channel", fields=tuple(boundary), grid=Grid(shape=self.shape, extent=extent), boundary=boundary,
            initial=initial, solver=flow, duration=frames * self.frame * inflow, num_snapshots=frames,
        )  # fmt: skip

    @cached_property
    def base(self) -> np.ndarray:
        """The profile led around the block, (ndim, *grid), at rest on its faces."""
        grid = Grid(shape=self.shape, extent=tuple(n / self.cells for n in self.shape))
        x = np.ix_(*(grid.points(axis, periodic=False) for axis in range(self.ndim)))
        base = np.zeros((self.ndim, *self.shape))
        base[0] = self.profile(tuple(np.broadcast_to(line, self.shape) for line in x), None, 0.0)
        return flow_around(self.case(start=base), base, p=NONE, solid=self.solid)

    @cached_property
    def potential(self) -> PotentialResidual:
        """The discrete equation at inflow 1."""
        viscosity = 1 / self.reynolds
        return PotentialResidual(self.case(), viscosity=viscosity, p=NONE, solid=self.solid, base=self.base)

    @cache  # noqa: B019, channels are constants of this module
    def solver(self, device: str, dtype: torch.dtype) -> StaggeredSteps:
        """Return explicit steps of flows past the block."""
        return StaggeredSteps(self.potential.residual, p=NONE, device=device, dtype=dtype, pressure=self._exact(device))

    @cache  # noqa: B019
    def compiled(self, device: str) -> StaggeredSteps:
        """Return the same in float32, compiled on a GPU."""
        return self.solver(device, torch.float32).compiled()

    @cache  # noqa: B019
    def _exact(self, device: str) -> TensorPressure:
        return TensorPressure(self.potential.residual.grid, device)

    def equation(self, loss: str, device: str) -> ChannelSteps:
        """Return what grades steps of states with their inflow: explicit steps, whatever the loss is called."""
        return ChannelSteps(self, device, compiled=True)

    def start_windows(
        self, loss: str, frames: int, count: int, device: str, seed: int, inflow: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return states of rest but for the base flow and some vortices behind the block; inflow: given ones.

        For a pool that is graded by explicit steps, many more states of these steps, of all ages.
        """
        if inflow is None:
            reference(self.name)
        if loss == "steps" and count > 1 and inflow is None:
            young = self.start_windows("", frames, young_of(count), device, seed)
            return ChannelSteps(self, device).of_all_ages(young)
        rng = np.random.default_rng(seed)
        states = np.zeros((count, self.fields, *self.shape))
        x = [(np.arange(n) + 1.0) / self.cells for n in self.shape]
        for state in states:
            potentials = np.zeros((1 if self.ndim == 2 else 3, *self.shape))
            for potential in potentials:
                for _ in range(3):
                    place = [rng.uniform(self.centre[0], self.centre[0] + 4.0),
                             *(rng.uniform(0.3, 0.7) * line[-1] for line in x[1:])]  # fmt: skip
                    waves = [np.exp(-2 * (line - at) ** 2) for line, at in zip(x, place, strict=True)]
                    strength = rng.uniform(-0.2, 0.2)
                    for axis, wave in enumerate(waves):
                        waves[axis] = wave.reshape([-1 if a == axis else 1 for a in range(self.ndim)])
                    potential += strength * math.prod(waves[1:], start=waves[0])
            state[: self.ndim] = self.potential.velocity(potentials) - self.base
        low, high = self.inflows
        speed = rng.uniform(low, high, count) if inflow is None else inflow.cpu().numpy()
        fluid = ~np.broadcast_to(self.potential.residual.grid.solid, self.shape)
        states[:, -1] = speed.reshape(-1, *[1] * self.ndim) * fluid
        return torch.tensor(states[:, None], dtype=torch.float32, device=device)

    def pressure(self, flow: torch.Tensor, inflow: torch.Tensor, *, compiled: bool = False) -> torch.Tensor:
        """Return the pressure of velocities less the base flow, (ndim, *lead, *grid), with inflows (*lead, *grid)."""
        speed, device = inflow[(..., *[slice(0, 1)] * self.ndim)], flow.device.type
        solver = self.compiled(device) if compiled else self.solver(device, flow.dtype)
        return solver.pressure(flow + self.base_like(flow), 1 / (self.reynolds * speed))

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What pressure and u are multiplied by for the drag of the block, and v for its mean behind the block.

        The drag is at inflow 1, per square of the inflow.
        """
        grid: MacGrid = self.potential.residual.grid
        pressure, cell = np.zeros(math.prod(self.shape)), (1 / self.cells) ** self.ndim
        for lower, upper, axis in grid.cut_faces():
            if axis == 0:
                blocked = grid.solid.reshape(-1)[upper]
                pressure[lower if blocked else upper] += (1 if blocked else -1) * cell * self.cells
        # The surface is half a cell away from the face: its shear is 2 u / h.
        friction, behind = 2 * grid.friction[0] * cell / self.reynolds, np.zeros(self.shape)
        place = [slice(round((self.centre[0] + 1.5) * self.cells), round((self.centre[0] + 2.5) * self.cells))]
        place += [slice(round((m - 0.5) * self.cells), round((m + 0.5) * self.cells)) for m in self.centre[1:]]
        behind[tuple(place)] = 1
        return pressure.reshape(self.shape), friction, behind / behind.sum()

    def signals(self, velocity: Any, pressure: Any, speed: Any = 1.0, where: tuple[slice, ...] = (...,)) -> list[Any]:
        """Return kinetic energy, drag and the flow across behind the block, of (ndim, *lead, *grid) and (*lead, *grid).

        Numbers are in units of the inflow, whose velocity is `speed`. where : the block of the grid that is given;
        the numbers of all blocks add up.
        """
        axes = tuple(range(-self.ndim, 0))
        on, friction, behind = self._weights_like(pressure.dtype, getattr(pressure, "device", None))
        energy = 0.5 / math.prod(self.shape) * (velocity**2).sum(0).sum(axes)
        drag = (pressure * on[where]).sum(axes) + (velocity[0] * friction[where]).sum(axes) / speed
        return [energy, drag, (velocity[1] * behind[where]).sum(axes)]

    @cache  # noqa: B019, channels are constants of this module
    def _weights_like(self, dtype: Any, device: Any) -> tuple[Any, ...]:
        if device is None or device == "cpu":
            return self.weights
        return tuple(torch.as_tensor(a, dtype=dtype, device=device) for a in self.weights)

    @property
    def station(self) -> int:
        """Cell along the channel three heights behind the block."""
        return round((self.centre[0] + 3.0) * self.cells)

    def line(self, u: Any) -> Any:
        """Return u across the channel three heights behind the block, (*lead, *grid) -> (*lead, ny, ...)."""
        return u[(..., self.station, *[slice(None)] * (self.ndim - 1))]

    @torch.no_grad()
    def errors(self, network: torch.nn.Module, loss: str, frames: int, count: int, device: str) -> Iterator[Measured]:
        """Yield how far the flow of a long roll-out is from our solver's, its divergence, defect and speed."""
        window = self.start_windows(loss, frames, 1, device, 1_000_000, torch.ones(1))
        window[:, :, -2] = self.pressure(torch.movedim(window[:, :, : self.ndim], 2, 0), window[:, :, -1])
        equation = ChannelSteps(self, device, weighed=False)
        found, lines, defects, number = [], [], [], self.rolled if count > 1 else 3

        def judged(old: torch.Tensor) -> tuple[torch.Tensor, ...]:
            new = network(old)
            flow = self.velocity(new)
            numbers = torch.stack([s.reshape(()) for s in self.signals(flow, new[:, -1, -2])])
            return new, numbers, self.line(flow[0]).flatten()

        def graded(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            defect = equation.correction(old[:, -1:], new, 0.0, self.frame)
            return (defect.square().mean() / equation.size(new).square().mean()).sqrt()

        for k, (new, numbers, line) in enumerate(repeated(judged, window, number, device)):
            found.append(numbers)
            lines.append(line)
            if k % 25 == 0:
                defects.append(graded(window, new))
            window = new
        finite = bool(torch.isfinite(torch.stack(found)).all()) and float(window.abs().max()) < 50
        padded = self.potential.residual.padded(self.velocity(window.double()).cpu(), NONE, 0.0)
        leak = float(divergence(padded, self.potential.spacing).abs().max())
        words = f"{number} steps of {self.frame:g}, Re {self.reynolds:g}"
        yield "finite and bounded to the end", float(finite), None, None, words
        yield "largest divergence at the end, read in float64", leak, self.goals.get("divergence"), None, ""
        defect = float(torch.stack(defects).mean())
        yield "error of a step over the state, root mean square", defect, None, None, words
        if count > 1:
            series, rows = torch.stack(found).double().cpu().numpy(), torch.stack(lines).double().cpu().numpy()
            yield from self._compared(named(series, rows), device)

        seconds = timed(lambda: network(window), device, 30)
        goal = self.goals.get("steps per second")
        yield "steps per second, batch 1", 1 / seconds, None, goal, f"goal {goal}" if goal else ""

    def velocity(self, window: torch.Tensor) -> torch.Tensor:
        """Return the velocities at the faces in units of the inflow, (ndim, batch, *grid), of windows."""
        return self.read(window[:, -1])[: self.ndim]

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """Return velocities without divergence and pressure, (ndim + 1, *lead, *grid), of (*lead, fields, *grid)."""
        fields = torch.movedim(states, -1 - self.ndim, 0)
        flow = self.solver(states.device.type, states.dtype).projected(fields[: self.ndim])[0]
        return torch.cat((flow + self.base_like(states), fields[self.ndim : -1]))

    @cache  # noqa: B019
    def _base_of(self, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.as_tensor(self.base, dtype=dtype, device=device)

    def base_like(self, states: torch.Tensor) -> torch.Tensor:
        """Return the base flow (ndim, 1, ..., *grid) for states (*lead, fields, *grid), or flows with ndim first."""
        base = self._base_of(states.dtype, states.device)
        return base.reshape(self.ndim, *[1] * (states.ndim - self.ndim - 1), *self.shape)

    def rivals(self, device: str) -> Iterator[Rival]:
        """Yield explicit steps on this and coarser grids on the same device, by the same error."""
        for cells in (*self.coarser, self.cells):
            coarse = replace(self, shape=tuple(n * cells // self.cells for n in self.shape), cells=cells)
            # As long as they are stable, and no shorter than those that grade.
            grading = self.steps * cells / self.cells
            for steps in sorted({math.ceil(share * grading) for share in (0.5, 0.625, 0.75, 1.0)}):
                rival = replace(coarse, steps=steps)

                def error(rival: Channel = rival) -> float:
                    spans = self._spans(device)
                    found, off = rival.solved_on(device, spans[-1][2].stop), []
                    for _, own, where, _ in spans:
                        line = on_coarser(own[2].reshape(self.shape[1:]), rival.shape[1:]).ravel()
                        off += distances(means_over(found, where), (own[0], own[1], line))
                    return max(off) if all(map(math.isfinite, off)) else math.nan

                def seconds(batch: int, rival: Channel = rival) -> float:
                    return self.rolled * rival.seconds_of_frame(device, batch)

                name = f"explicit steps on {' x '.join(map(str, rival.shape))}, dt {self.frame / steps:g}"
                yield Rival(name, error, seconds)

    def _spans(self, device: str) -> list[tuple[str, tuple[float, float, np.ndarray], slice, str]]:
        """Return for every span of frames that is judged when it is, our solver's means over it, the span, and words.

        Vortices come and go irregularly: where they are shed, means are over the second half of the roll-out, and made
        by our solver's explicit steps on the device. Elsewhere they are over the second half of our solver's time, and
        over that of the roll-out too, when the flow is steady.
        """
        shed, late = "shedding" in self.goals, slice(self.rolled // 2, self.rolled)
        told = f"both over steps {late.start} to {late.stop}, our solver's explicit ones"
        end = ("" if shed else " in the second half", means_over(self._long(device), late), late, told)
        if shed:
            return [end]
        half = round(self.solved / 2 / self.frame)
        words = f"both over steps {half} to {2 * half}"
        return [("", means(reference(self.name).result()), slice(half, 2 * half), words), end]

    @cache  # noqa: B019
    def _long(self, device: str) -> dict[str, np.ndarray]:
        return stored(f"{self.name} long") or self.solved_on(device, self.rolled)

    @torch.no_grad()
    def seconds_of_frame(self, device: str, batch: int = 1) -> float:
        """Return the time of the explicit steps of a frame of each of a batch, as a CUDA graph on a GPU."""
        velocity = self.velocity(self.start_windows("", 1, 1, device, 1_000_000, torch.ones(1)))
        velocity = velocity.repeat(1, batch, *[1] * self.ndim)
        dt, viscosity = self.frame / self.steps, 1 / self.reynolds
        return timed(lambda: self.compiled(device).advanced(velocity, dt, viscosity, self.steps), device, 20) / batch

    @torch.no_grad()
    def runs_on(self, device: str, frames: int, starts: torch.Tensor) -> list[dict[str, np.ndarray]]:
        """Return the signals of frames of explicit steps in float32 from each of some starts at inflow 1."""
        solver, viscosity = self.compiled(device), 1 / self.reynolds

        def frame(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            u = solver.advanced(u, self.frame / self.steps, viscosity, self.steps)
            numbers = self.signals(u, solver.slope(u, viscosity)[1])
            return u, torch.stack(numbers), self.line(u[0]).flatten(1)

        rows, lines = [], []
        for _, numbers, line in repeated(frame, self.velocity(starts), frames, device):
            rows.append(numbers)
            lines.append(line)
        series, profiles = torch.stack(rows).double().cpu().numpy(), torch.stack(lines).double().cpu().numpy()
        return [named(series[..., k], profiles[:, k]) for k in range(len(starts))]

    def solved_on(self, device: str, frames: int) -> dict[str, np.ndarray]:
        """Return the same from the held-out start."""
        return self.runs_on(device, frames, self.start_windows("", 1, 1, device, 1_000_000, torch.ones(1)))[0]

    def _compared(self, found: dict[str, np.ndarray], device: str) -> Iterator[Measured]:
        """Yield distances from our solver of the means of a roll-out, and what our solver's own are worth."""
        spans = self._spans(device)
        lines = [line for when, wanted, span, told in spans
                 for line in compared(found, wanted, span, when, self.goals.get("flow"), told)]  # fmt: skip
        yield from lines
        _, own, where, words = spans[0]
        yield self.judged, max(line[1] for line in lines), None, None, words
        if "shedding" not in self.goals:
            return
        long, quarter = self._long(device), (where.stop - where.start) // 2
        early, late = (means_over(long, slice(n, n + quarter)) for n in (where.start, where.start + quarter))
        pairs = {"the two halves of these steps": distances(late, early),
                 f"a run to t = {self.solved:g}": distances(means(reference(self.name).result()), own)}  # fmt: skip
        for what, off in pairs.items():
            told = f"energy {off[0]:.3g}, drag {off[1]:.3g}; {words}"
            yield f"our solver's own mean profile, distance of {what}", off[2], None, None, told
        here, there = (frequency(signals["across"][where], self.frame) for signals in (found, long))
        told = f"St {here:.4f}; {words}"
        yield "shedding over our solver's, less 1", abs(here / there - 1), self.goals["shedding"], there, told


def on_coarser(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return values in the cells of a section in coarser ones: means of whole cells, else by cubic splines."""
    for axis, (n, m) in enumerate(zip(values.shape, shape, strict=True)):
        if n % m == 0:
            values = np.add.reduceat(values, np.arange(0, n, n // m), axis=axis) * (m / n)
        else:
            centres, places = ((np.arange(k) + 0.5) / k for k in (n, m))
            values = CubicSpline(centres, values, axis=axis)(places)
    return values


FLOW = {"flow": 0.1, "divergence": 1e-6}
CHANNELS = {
    one.name: one
    for one in (
        # 300 x 100 cells, a block of 10 x 20 at (50, 50); Re 400 is their μ = 0.1, ρ = 4 at an inflow of 0.5 cells.
        Channel("P5", (300, 100), 20, (0.5, 1.0), (2.5, 2.5), 400.0, 5000, 160.0,
                {**FLOW, "shedding": 0.05, "residual": 1.5}, frame=0.2, steps=8, batch=8, pool=128,
                coarser=(8, 12, 16)),
        Channel("P7", (128, 64, 64), 16, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), 100.0, 1000, 6.0,
                {**FLOW, "steps per second": 20.0}, frame=0.2, steps=3, end=20.0, inflows=(0.9, 1.1), width=8,
                multipliers=(1, 2, 2), batch=2, pool=16, still=3e-3, coarser=(4, 6, 8)),
        # For CPUs: P5 on a twenty-fifth of the cells.
        Channel("P5, 60 x 20", (60, 20), 4, (0.5, 1.0), (2.5, 2.5), 400.0, 1000, 160.0, {**FLOW, "shedding": 0.05},
                frame=0.2, steps=2, end=40.0, width=8, multipliers=(1, 2, 2), batch=64, pool=32),
    )
}  # fmt: skip
