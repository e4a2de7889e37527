"""Flow past a block in a channel, in a plane and in space, for networks that give potential and pressure.

Lengths are in heights of the block, velocities in those of the middle of the inflow, so a faster inflow is a larger
Reynolds number and a longer step: it is a field of the state, zero in the block, that networks see and do not change.
Scene and pool of states follow Wandel, Weinmann and Klein (2021).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch

from headrace.solvers import Case, Dirichlet, Grid, Neumann, Parameters, Snapshot
from headrace.solvers.mac import solve_mac
from headrace.solvers.mac_grid import MacGrid
from headrace.solvers.mac_operators import divergence
from headrace.solvers.mac_potential import PotentialResidual, flow_around
from headrace.surrogates.recorded import Recorded

from .channel_solver import distances, frequency, means, reference
from .figures import Point, timed
from .mac_steps import StaggeredSteps, potential_of
from .planes import Measured
from .potential_root import PotentialRoot

NONE = Parameters({})
WILD = 50.0
"""What no velocity or pressure comes to, in units of the inflow."""
AGES = 16
"""States of one simulation in a pool of all ages."""
OUT, LEVEL = Neumann(0.0), Dirichlet(0.0)


@dataclass(frozen=True, eq=False)
class Channel:
    """A channel (length, height, ...) around a block, at a Reynolds number of the block for inflow 1.

    frame : time of a step at inflow 1. steps : explicit ones of a frame, where these grade. inflows : between these the
    networks are trained. rolled : steps of the judged roll-out. solved : time to which our solver is run beside it;
    means are over its second half.
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
    judged: str = "largest distance of energy, drag and mean profile"

    @property
    def ndim(self) -> int:
        """Axes."""
        return len(self.shape)

    @property
    def fields(self) -> int:
        """Components of the potential (in a plane its root), pressure, inflow."""
        return 3 if self.ndim == 2 else 5

    def network_options(self) -> dict[str, Any]:
        """Return how networks see the channel."""
        return {"position": (False,) * self.ndim, "gain": 0.1}

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
        return PotentialResidual(
            self.case(), viscosity=1 / self.reynolds, p=NONE, solid=self.solid, base=self.base
        )  # fmt: skip

    @cached_property
    def root(self) -> PotentialRoot:
        """What states in a plane hold in place of the potential."""
        return PotentialRoot(self.potential.residual.grid)

    def opened(self, states: torch.Tensor) -> torch.Tensor:
        """Return potential and pressure (*lead, fields, *grid) of states without or with their inflow."""
        if self.ndim == 3:
            return states[..., : self.fields - 1, :, :, :]
        return torch.stack((self.root.potential(states[..., 0, :, :]), states[..., 1, :, :]), -3)

    def equation(self, loss: str, device: str) -> ChannelEquation | ChannelSteps:
        """Return what grades steps of states with their inflow."""
        return ChannelSteps(self, device, compiled=True) if loss == "steps" else ChannelEquation(self)

    def start_windows(
        self, loss: str, frames: int, count: int, device: str, seed: int, inflow: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return states of rest but for the base flow and some vortices behind the block; inflow: given ones.

        For a pool in a plane that is graded by explicit steps, many more states of these steps, of all ages.
        """
        if inflow is None:
            reference(self.name)
        if loss == "steps" and self.ndim == 2 and count > 1 and inflow is None:
            young = self.start_windows("", frames, count // 2, device, seed)
            return ChannelSteps(self, device).of_all_ages(young)
        rng = np.random.default_rng(seed)
        states = np.zeros((count, self.fields, *self.shape))
        x = [(np.arange(n) + 1.0) / self.cells for n in self.shape]
        for state in states:
            for potential in state[: self.fields - 2]:
                for _ in range(3):
                    place = [rng.uniform(self.centre[0], self.centre[0] + 4.0),
                             *(rng.uniform(0.3, 0.7) * line[-1] for line in x[1:])]  # fmt: skip
                    waves = [np.exp(-2 * (line - at) ** 2) for line, at in zip(x, place, strict=True)]
                    strength = rng.uniform(-0.2, 0.2)
                    for axis, wave in enumerate(waves):
                        waves[axis] = wave.reshape([-1 if a == axis else 1 for a in range(self.ndim)])
                    potential += strength * math.prod(waves[1:], start=waves[0])
            if self.ndim == 2:
                state[0] = self.root.root(torch.tensor(state[0]))
        low, high = self.inflows
        speed = rng.uniform(low, high, count) if inflow is None else inflow.cpu().numpy()
        fluid = ~np.broadcast_to(self.potential.residual.grid.solid, self.shape)
        states[:, -1] = speed.reshape(-1, *[1] * self.ndim) * fluid
        return torch.tensor(states[:, None], dtype=torch.float32, device=device)

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
        one = torch.ones(1)
        window = self.start_windows(loss, frames, 1, device, 1_000_000, one)
        equation = ChannelSteps(self, device) if loss == "steps" else ChannelEquation(self)
        found, lines, defects, number = [], [], [], self.rolled if count > 1 else 3

        def judged(old: torch.Tensor) -> tuple[torch.Tensor, ...]:
            new = network(old)
            flow, pressure = self._parts(new)
            numbers = torch.stack([s.reshape(()) for s in self.signals(flow, pressure)])
            return new, numbers, self.line(flow[0]).flatten()

        def graded(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            defect = equation.correction(old[:, -1:], new, 0.0, self.frame)
            return (defect.square().mean() / equation.size(new).square().mean()).sqrt()

        step = Recorded(judged, window) if device == "cuda" else judged
        for k in range(number):
            old = window
            window, numbers, line = (result.clone() for result in step(old))
            found.append(numbers)
            lines.append(line)
            if k % 25 == 0:
                defects.append(graded(old, window))
        finite = bool(torch.isfinite(torch.stack(found)).all()) and float(window.abs().max()) < 50
        flow, _ = self._parts(window.double())
        padded = self.potential.residual.padded(flow.cpu(), NONE, 0.0)
        leak = float(divergence(padded, self.potential.spacing).abs().max())
        words = f"{number} steps of {self.frame:g}, Re {self.reynolds:g}"
        yield "finite and bounded to the end", float(finite), None, None, words
        yield "largest divergence at the end, of the potential in float64", leak, self.goals.get("divergence"), None, ""
        defect = float(torch.stack(defects).mean())
        what = "error" if loss == "steps" else "defect"
        yield f"{what} of a step over the state, root mean square", defect, None, None, words
        series = torch.stack(found).double().cpu().numpy()
        solved = reference(self.name).result() if count > 1 else None
        if solved is not None:
            yield from self._compared(series, torch.stack(lines).double().cpu().numpy(), solved)

        def roll() -> torch.Tensor:
            moved = window
            for _ in range(10):
                moved = network(moved)
            return moved

        seconds = timed(roll, device, 3) / 10
        goal = self.goals.get("steps per second")
        yield "steps per second, batch 1", 1 / seconds, None, goal, f"goal {goal}" if goal else ""

    def velocity(self, window: torch.Tensor) -> torch.Tensor:
        """Return the velocities at the faces in units of the inflow, (ndim, batch, *grid), of windows."""
        return self._parts(window)[0]

    def _parts(self, window: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = self.potential.state(self.opened(window[:, -1]))
        return state[:-1], state[-1]

    @torch.no_grad()
    def rivals(self, device: str) -> Iterator[Point]:
        """Yield explicit steps on this and coarser grids on the same device, by the same error."""
        own = means(reference(self.name).result())
        for factor in (4, 2, 1):
            coarse = replace(self, shape=tuple(n // factor for n in self.shape), cells=self.cells // factor,
                             steps=math.ceil(self.steps / factor))  # fmt: skip
            found, seconds = coarse.solved_on(device)
            pairs = [size for n in coarse.shape[1:] for size in (n, factor)]
            line = own[2].reshape(pairs).mean(tuple(range(1, 2 * self.ndim - 2, 2))).ravel()
            seconds *= self.rolled * self.frame / self.solved
            name = f"explicit steps on {' x '.join(map(str, coarse.shape))}"
            yield Point(name, max(distances(means(found), (own[0], own[1], line))), seconds, seconds)

    def solved_on(self, device: str) -> tuple[dict[str, np.ndarray], float]:
        """Return the signals of explicit steps in float32 from the held-out start, and the time of it."""
        window = self.start_windows("", 1, 1, device, 1_000_000, torch.ones(1))
        solver = StaggeredSteps(self.potential.residual, p=NONE, device=device, compiled=True)
        viscosity = 1 / self.reynolds

        def frame(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            u = solver.advanced(u, self.frame / self.steps, viscosity, self.steps)
            numbers = self.signals(u, solver.slope(u, viscosity)[1])
            return u, torch.stack([s.reshape(()) for s in numbers]), self.line(u[0]).flatten()

        u = self.velocity(window)
        step = Recorded(frame, u) if device == "cuda" else frame
        rows, lines, start = [], [], time.perf_counter()
        for _ in range(round(self.solved / self.frame)):
            u, numbers, line = (result.clone() for result in step(u))
            rows.append(numbers)
            lines.append(line)
        series = torch.stack(rows).double().cpu().numpy()
        seconds, half = time.perf_counter() - start, len(rows) // 2
        line = torch.stack(lines[half:]).double().mean(0).cpu().numpy()
        return {"energy": series[:, 0], "drag": series[:, 1], "across": series[:, 2], "line": line}, seconds

    def _compared(self, series: np.ndarray, lines: np.ndarray, solved: dict[str, np.ndarray]) -> Iterator[Measured]:
        """Yield distances from our solver of the means over the second half of its time.

        Where vortices are shed, the network's are over the second half of its own; else over the same times.
        """
        half, interval = len(solved["energy"]) // 2, self.solved / (len(solved["energy"]) - 1)
        then = slice(round(self.solved / 2 / self.frame), round(self.solved / self.frame))
        last = slice(len(series) // 2, None) if "shedding" in self.goals else then
        words = (f"our solver to t = {self.solved:g}, means over its second half; network over steps {last.start} to "
                 f"{last.stop or len(series)}")  # fmt: skip
        mine, own = (series[last, 0].mean(), series[last, 1].mean(), lines[last].mean(0)), means(solved)
        apart, goal = distances(mine, own), self.goals.get("flow")
        for what, number in (("energy", 0), ("drag", 1)):
            yield f"{what} over our solver's, less 1", apart[number], goal, own[number], f"{mine[number]:.5g}; {words}"
        yield "mean profile three heights behind the block, distance from our solver's", apart[2], goal, None, words
        yield self.judged, max(apart), None, None, words
        if "shedding" in self.goals:
            mine, own = frequency(series[last, 2], self.frame), frequency(solved["across"][half:], interval)
            yield "shedding over our solver's, less 1", abs(mine / own - 1), self.goals["shedding"], own, (
                f"St {mine:.4f}; {words}"
            )


class ChannelEquation:
    """The defect of the staggered scheme for states (*lead, fields, *grid) of potential, pressure and inflow."""

    def __init__(self, channel: Channel) -> None:
        self._channel, self._potential = channel, channel.potential

    def correction(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the change of velocity that is missing, (*lead, ndim, *grid)."""
        channel = self._channel
        speed = old[(..., -1, *[slice(0, 1)] * channel.ndim)]
        return self._potential.correction(
            channel.opened(old), channel.opened(new), t, dt * speed, 1 / (channel.reynolds * speed)
        )

    def size(self, fields: Any) -> Any:
        """Return the velocities."""
        return self._potential.size(self._channel.opened(fields))


class ChannelSteps:
    """Explicit steps of a frame as an equation for velocity and pressure of such states; old ones carry no gradient."""

    def __init__(self, channel: Channel, device: str, *, compiled: bool = False) -> None:
        self._channel, self._potential = channel, channel.potential
        self._solver = StaggeredSteps(channel.potential.residual, p=NONE, device=device, compiled=compiled)

    def _split(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return velocities and pressure (ndim + 1, *lead, *grid), and inflows with the axes of (*lead, *grid)."""
        channel = self._channel
        return self._potential.state(channel.opened(states)), states[(..., -1, *[slice(0, 1)] * channel.ndim)]

    def _stepped(self, velocity: torch.Tensor, inflow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return velocity a frame later, and viscosity."""
        channel, viscosity = self._channel, 1 / (self._channel.reynolds * inflow)
        dt = channel.frame / channel.steps * inflow
        return self._solver.advanced(velocity, dt, viscosity, channel.steps), viscosity

    def correction(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the error of new velocities and pressures, (*lead, ndim + 1, *grid)."""
        with torch.no_grad():
            state, inflow = self._split(old)
            velocity, viscosity = self._stepped(state[:-1], inflow)
            wanted = torch.cat((velocity, self._solver.slope(velocity, viscosity)[1][None]))
        found = self._split(new)[0]
        # Steps that are too long for what a network has made of a flow say nothing: the pool starts such a flow again.
        error = torch.where(wanted.abs() < WILD, found - wanted, 0.0 * found.detach())
        return torch.movedim(error, 0, -1 - self._channel.ndim)

    def size(self, fields: Any) -> Any:
        """Return velocities and pressure."""
        return torch.movedim(self._split(fields)[0], 0, -1 - self._channel.ndim)

    @torch.no_grad()
    def of_all_ages(self, young: torch.Tensor) -> torch.Tensor:
        """Return windows (AGES * count, 1, fields, nx, ny) of simulations with starts (count, 1, fields, nx, ny)."""
        channel, kept = self._channel, []
        state, inflow = self._split(young)
        velocity, viscosity = state[:-1], 1 / (channel.reynolds * inflow)
        base = torch.as_tensor(channel.base[0]).to(young)
        quarter = round(channel.end / channel.frame) // AGES
        for number in range(AGES * quarter):
            # Every simulation is kept once a quarter, each at ages of its own.
            now = [k for k in range(len(young)) if (number - k * quarter // len(young)) % quarter == 0]
            if now:
                windows = young[now].clone()
                potential = potential_of(velocity[0][now] - base, channel.potential.spacing[1])
                windows[:, :, 0] = channel.root.root(potential)
                windows[:, :, 1] = self._solver.slope(velocity[:, now], viscosity[now])[1]
                kept.append(windows)
            velocity, viscosity = self._stepped(velocity, inflow)
        windows = torch.cat(kept)
        return windows[(windows.flatten(1).abs() < WILD).all(1)]


class KeepsInflow(torch.nn.Module):
    """A network of windows whose last field is given and stays."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.stagger = network, network.stagger

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the next window."""
        new = self.network(window)
        return torch.cat((new[:, :, :-1], window[:, :, -1:]), dim=2)


FLOW = {"flow": 0.1, "divergence": 1e-6}
CHANNELS = {
    one.name: one
    for one in (
        # 300 x 100 cells, a block of 10 x 20 at (50, 50); Re 400 is their μ = 0.1, ρ = 4 at an inflow of 0.5 cells.
        Channel("P5", (300, 100), 20, (0.5, 1.0), (2.5, 2.5), 400.0, 5000, 160.0, {**FLOW, "shedding": 0.05},
                frame=0.2, steps=8, batch=8, pool=128),
        Channel("P7", (128, 64, 64), 16, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0), 100.0, 1000, 6.0,
                {**FLOW, "steps per second": 20.0}, steps=3, end=20.0, inflows=(0.9, 1.1), width=8,
                multipliers=(1, 2, 2), batch=2, pool=16),
        # For CPUs: P5 on a ninth of the cells.
        Channel("P5, 96 x 32", (96, 32), 6, (0.5, 1.0), (2.5, 2.67), 100.0, 300, 20.0, {}, end=20.0, width=8,
                multipliers=(1, 2, 2), batch=32, pool=32),
    )
}  # fmt: skip
