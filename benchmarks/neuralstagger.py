"""NeuralStagger: speed of staggered networks, errors without data, and classical solvers on the same device.

    python benchmarks/neuralstagger.py [--quick] [--only speed|classical|training] [--device cpu|cuda] [--minutes M]
                                       [--form N]

Parts: `speed`, 256 x 256 points, time per simulated frame of all parts batched, one after another, and of one part
alone, over the plain network, all as CUDA graphs on a GPU, and beside them the time that launching alone takes
(`floor`, the same network on the smallest grid it allows); `classical`, error and time of a pseudo-spectral solver
with integrating factor and RK4, and of that solver run on each part by itself, without training; `training`, problem
P1 (64 x 64, ν = 1e-3, t = 10) trained without data for M minutes a network, or only the Nth of `FORMS`. Errors are
relative L2 norms of the vorticity of five simulations that no training saw, to our discrete solution and to truth
(spectral, 128 x 128). One JSON line per figure, also in benchmarks/results/neuralstagger-DEVICE.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headrace.cases.navier_stokes2d import case as spectral
from headrace.cases.navier_stokes2d import differences, random_vorticity, stirring
from headrace.solvers import MemorySink
from headrace.solvers.simulate import simulate
from headrace.solvers.vorticity_residual import VorticityResidual
from headrace.surrogates.autoregressive import Channels
from headrace.surrogates.data_free import StatePool, train_without_data
from headrace.surrogates.fourier_network import FourierNetwork
from headrace.surrogates.low_rank_mixer import LowRankMixer
from headrace.surrogates.stagger import Stagger
from headrace.surrogates.staggered_network import StaggeredNetwork
from headrace.surrogates.unet import UNet, UNetwork

RESULTS = Path(os.environ.get("OUT", Path(__file__).parent / "results"))
VISCOSITY, END, FRAME, POINTS, HELD_OUT = 1e-3, 10.0, 0.25, 64, 5
PERIODIC = (True, True)
FORMS = [(1, 1, False, 0, 0.01), (2, 2, False, 0, 0.015), (4, 4, False, 0, 0.03), (2, 2, True, 0, None),
         (2, 2, False, 3, None)]  # fmt: skip
"""Factor per axis, factor in time, shared weights, exchanged channels, goal: the networks that are trained."""
BATCH = {"cpu": 4, "cuda": 32}
Make = Callable[[int], torch.nn.Module]
Figure = tuple[str, float, str, float | None, Any, str]
"""Name, value, unit, goal, baseline, setup."""


def timed(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the median seconds of one call, replayed as a CUDA graph on a GPU."""
    call = run
    if device == "cuda":
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        call = graph.replay
    times: list[float] = []
    while len(times) < repeats + (20 if device == "cuda" else 1):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[-repeats:])


def unet(width: int, blocks: int) -> Callable[[int], Make]:
    """Return grid -> a maker of U-Nets without norms, which would not be parallel at batch 1."""

    def of_grid(_: int) -> Make:
        form = UNet(width=width, blocks=blocks, norm=False)
        return lambda inputs: UNetwork(Channels(inputs=inputs, states=1, outputs=1, conditions=0), form, PERIODIC)

    return of_grid


def fno(grid: int) -> Make:
    """Return a maker of Fourier networks with as many modes as the grid allows, at most 12."""
    modes = min(12, grid // 2 - 1)

    def make(inputs: int) -> torch.nn.Module:
        network = FourierNetwork(inputs, 1, 24, modes=(modes, modes), periods=(1.0, 1.0))
        torch.nn.init.zeros_(network.output.weight)
        return network

    return make


def mixer(grid: int) -> Make:
    """Return a maker of low-rank mixers."""
    return lambda inputs: LowRankMixer(inputs, 1, shape=(grid, grid))


def weights(network: torch.nn.Module) -> int:
    """Return the number of weights."""
    return sum(p.numel() for p in network.parameters())


@torch.no_grad()
def measure_speed(quick: bool, device: str, _: float) -> Iterator[Figure]:
    """Yield times of a frame, and their ratios to the plain network's."""
    # TF32 and tuned convolutions for all networks, the plain one as well.
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    points, repeats = (64, 3) if quick else (256, 50)
    kinds = [("FNO 1 M", fno), ("mixer", mixer)]
    if quick:
        kinds = [("U-Net 1 M", unet(6, 1)), ("mixer", mixer)]
    else:
        kinds = [("U-Net 36 M", unet(32, 2)), ("U-Net 1 M", unet(6, 1)), *kinds]
    for name, of_grid in kinds:
        torch.manual_seed(0)
        plain = of_grid(points)(1).to(device)
        for batch in (1,) if quick else (1, 16):
            x = torch.randn(batch, 1, points, points, device=device)
            whole = timed(lambda: plain(x), device, repeats)  # noqa: B023
            small = of_grid(16)(1).to(device)
            y = x[..., :16, :16].contiguous()
            floor = timed(lambda: small(y), device, repeats)  # noqa: B023
            setup = f"{name} ({weights(plain):,} weights), {points} x {points}, batch {batch}"
            yield (f"{setup}: plain, a frame", 1e3 * whole, "ms", None, None, setup)
            yield (f"{setup}: floor of launches", 1e3 * floor, "ms", None, None, f"{name} on 16 x 16")
            for factor in (2,) if quick else (2, 4):
                yield from staggered_speed(of_grid, x, setup, factor, (whole, floor), repeats)


def staggered_speed(
    of_grid: Callable[[int], Make], x: torch.Tensor, setup: str, factor: int, plain: tuple[float, float], repeats: int
) -> Iterator[Figure]:
    """Yield ratios for factors (s, s) in space, and with s in time."""
    device, (whole, floor) = x.device.type, plain
    stagger = Stagger((factor, factor), factor)
    # Own weights for all 8 parts; 64 networks of 31 M weights share theirs, with the same work.
    shared = factor > 2
    network = StaggeredNetwork(of_grid(x.shape[-1] // factor), stagger, shared=shared, embedding=0).to(device)
    window = x[:, None].expand(-1, factor, -1, -1, -1).contiguous()
    part = stagger.part(window, 0)[:, 0].contiguous()
    together = timed(lambda: network(window), device, repeats)
    alone = timed(lambda: network.alone(0, part), device, repeats)
    spatial = StaggeredNetwork(of_grid(x.shape[-1] // factor), Stagger((factor, factor)), shared=shared, embedding=0)
    spatial = spatial.to(device)
    in_space = timed(lambda: spatial(window[:, :1]), device, repeats)
    name = f"{setup}, ({factor},{factor},{factor})"
    fair = whole >= 5 * floor  # else the launches are measured, not the network
    large, mixing = "U-Net 36" in setup, "mixer" in setup
    goal = {2: 6.0, 4: 25.0}[factor] if large else {2: 8.0, 4: 50.0}[factor] if mixing else None
    note = f"plain is {whole / floor:.1f} x the floor; weights {'shared' if shared else 'own'} {weights(network):,}"
    yield (f"{name}: slowest part alone, speed-up", factor * whole / alone, "x", goal if fair else None, whole, note)
    yield (f"{name}: of it from space", whole / alone, "x", None, whole, note)
    yield (f"{name}: batched on one device, speed-up", factor * whole / together, "x", 1.0, whole, note)
    yield (f"{name}: one after another, speed-up", factor * whole / (alone * stagger.parts), "x", None, whole, note)
    space = f"{setup}, ({factor},{factor},1)"
    yield (f"{space}: batched on one device, speed-up", whole / in_space, "x", 1.0, whole, note)


class Spectral:
    """Vorticity on a torus by a pseudo-spectral method, 2/3 rule, RK4 with integrating factor; float32 or 64."""

    def __init__(self, forcing: torch.Tensor, dt: float) -> None:
        n, self.dt = forcing.shape[-1], dt
        like = {"dtype": forcing.dtype, "device": forcing.device}
        kx = 2 * math.pi * torch.fft.fftfreq(n, 1 / n, **like)[:, None]
        ky = 2 * math.pi * torch.fft.rfftfreq(n, 1 / n, **like)[None]
        squared = kx**2 + ky**2
        keep = (kx.abs() < 2 * math.pi * n / 3) & (ky < 2 * math.pi * n / 3)
        over = torch.where(squared > 0, 1 / squared.clamp(min=1e-9), 0.0)
        # One batched transform each way: u, v, and the two slopes of ω.
        self.factors = torch.stack([1j * ky * over, -1j * kx * over, 1j * kx.expand_as(over), 1j * ky.expand_as(over)])
        self.keep, self.half = keep, torch.exp(-VISCOSITY * squared * dt / 2)
        self.forcing = torch.fft.rfft2(forcing)

    def slope(self, w: torch.Tensor) -> torch.Tensor:
        """Return -u·∇ω + f of a spectrum (batch, nx, ny // 2 + 1)."""
        u, v, wx, wy = torch.fft.irfft2(self.factors[:, None] * (w * self.keep)).unbind(0)
        return self.forcing - torch.fft.rfft2(u * wx + v * wy) * self.keep

    def step(self, w: torch.Tensor) -> torch.Tensor:
        """Return the spectrum a step later."""
        e, dt = self.half, self.dt
        a = self.slope(w)
        b = self.slope(e * (w + dt / 2 * a))
        c = self.slope(e * w + dt / 2 * b)
        d = self.slope(e * (e * w + dt * c))
        return e * (e * (w + dt / 6 * a) + dt / 3 * (b + c)) + dt / 6 * d


def held_out(quick: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return initial states and truth at the end, both on the fine grid."""
    case = replace(spectral.resized((2 * POINTS, 2 * POINTS)), duration=END, num_snapshots=1)
    starts, ends = [], []
    for number in range(1 if quick else HELD_OUT):
        sink = MemorySink()
        simulate(case, case.accept({"nu": VISCOSITY}), sink, simulation=1_000_000 + number)
        starts.append(sink.values[0, 0])
        ends.append(sink.values[-1, 0])
    return np.array(starts), np.array(ends)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the mean over samples of the relative L2 norm of the difference."""
    difference = (found - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    return float(difference.mean())


@torch.no_grad()
def measure_classical(quick: bool, device: str, _: float) -> Iterator[Figure]:
    """Yield error and time to t = 10 of coarse spectral solvers, plain and one for each part of the fine grid."""
    starts, ends = (torch.tensor(a, device=device) for a in held_out(quick))
    fine = torch.tensor(np.stack(np.meshgrid(*[np.arange(POINTS) / POINTS] * 2, indexing="ij")), device=device)
    forcing = torch.tensor(stirring(tuple(fine.cpu().numpy())), device=device)
    start, truth = starts[:, ::2, ::2], ends[:, ::2, ::2]
    for n, dt in ((8, 0.1), (16, 0.1), (32, 0.05)):
        factor, steps = POINTS // n, round(END / dt)
        stagger = Stagger((factor, factor))
        parts = stagger.split(start[:, None, None]).flatten(0, 1)[:, 0, 0]
        source = stagger.split(forcing[None, None, None]).flatten(0, 1)[:, 0, 0]
        staggered = Spectral(source.repeat_interleave(len(start), 0), dt)
        coarse, w, plain = Spectral(source[:1], dt), torch.fft.rfft2(parts), None
        cut = torch.fft.rfft2(starts)  # the exact truncation, which favours the plain solver
        rows = torch.cat((cut[:, : n // 2, : n // 2 + 1], cut[:, -n // 2 :, : n // 2 + 1]), 1)
        plain = rows * (n / starts.shape[-1]) ** 2
        first = plain[:1].clone()
        for _step in range(steps):
            w, plain = staggered.step(w), coarse.step(plain)
        joined = torch.fft.irfft2(w).unflatten(0, (stagger.parts, -1))[:, :, None, None]
        full = torch.zeros_like(torch.fft.rfft2(truth))
        full[:, : n // 2, : n // 2], full[:, -n // 2 + 1 :, : n // 2] = (
            plain[:, : n // 2, : n // 2], plain[:, -n // 2 + 1 :, : n // 2],
        )  # fmt: skip
        interpolated = torch.fft.irfft2(full * factor**2)
        one = timed(lambda: coarse.step(first), device, 20)  # noqa: B023
        setup = f"float64, dt {dt:g}, {steps} steps"
        yield (f"spectral {n} x {n}: error to truth at t = 10", relative(interpolated, truth), "1", None, None, setup)
        yield (f"spectral {n} x {n}: time to t = 10, batch 1", steps * one, "s", None, None, setup)
        yield (f"spectral on each part of {n} x {n}: error to truth at t = 10",
               relative(stagger.join(joined)[:, 0, 0], truth), "1", None, None, f"{setup}, no training")  # fmt: skip


def start_windows(count: int, frames: int, equation: VorticityResidual, device: str) -> torch.Tensor:
    """Return windows at the start of simulations, the frames after the first one by the solver's own steps."""
    rng = np.random.default_rng(7)
    x = np.meshgrid(*[np.arange(POINTS) / POINTS] * 2, indexing="ij")
    states = [torch.tensor(np.stack([random_vorticity(x, None, rng) for _ in range(count)]), device=device)]
    while len(states) < frames:
        states.append(equation.step(states[-1], 0.0, FRAME))
    return torch.stack(states, 1)[:, :, None].float()


def measure_training(quick: bool, device: str, minutes: float) -> Iterator[Figure]:
    """Yield errors at t = 10 after so many minutes of training without data."""
    equation = VorticityResidual(
        differences.resized((POINTS, POINTS)), viscosity=VISCOSITY, forcing=stirring
    )
    starts, ends = held_out(quick)
    start, truth = torch.tensor(starts[:, ::2, ::2], device=device), torch.tensor(ends[:, ::2, ::2], device=device)
    frames = round(END / FRAME)
    discrete = [start]
    while len(discrete) <= frames:
        discrete.append(equation.step(discrete[-1], 0.0, FRAME))
    yield ("P1: discrete solution, error to truth", relative(discrete[-1], truth), "1", None, None, f"dt {FRAME:g}")
    for space, s_t, shared, exchange, goal in FORMS[:2] if quick else FORMS:
        stagger = Stagger((space, space), s_t)
        torch.manual_seed(0)
        network = StaggeredNetwork(
            fno(POINTS // space), stagger, shared=shared, exchange=exchange, position=PERIODIC, scale=0.5
        ).to(device)
        name = f"P1 ({space},{space},{s_t}){', shared' if shared else ''}{f', exchange {exchange}' if exchange else ''}"
        steps, pool = train(network, equation, s_t, device, minutes, name)
        # Frame 0 is the start; the windows' frames follow it, the first s_t - 1 by the solver.
        window = torch.stack(discrete[:s_t], 1)[:, :, None].float()
        states = list(window.unbind(1))
        network.eval()
        with torch.no_grad():
            while len(states) <= frames:
                window = network(window)
                states += window.unbind(1)
        last = states[frames][:, 0].double()
        setup = (f"FNO width 24, {min(12, POINTS // space // 2 - 1)} modes, "
                 f"{weights(network):,} weights, {steps} steps of batch {BATCH[device]} in "
                 f"{minutes:g} minutes{os.environ.get('BESIDE', '')}, {pool.diverged} states diverged")  # fmt: skip
        yield (f"{name}: error to truth at t = 10", relative(last, truth), "1", goal, None, setup)
        yield (f"{name}: error to the discrete solution at t = 10",
               relative(last, discrete[-1]), "1", None, None, setup)  # fmt: skip


def train(
    network: StaggeredNetwork, equation: VorticityResidual, frames: int, device: str, minutes: float, name: str
) -> tuple[int, StatePool]:
    """Train for so many minutes; the learning rate falls with the time spent."""
    bank = start_windows(64 if device == "cpu" else 512, frames, equation, device)
    generator = torch.Generator().manual_seed(3)

    def fresh(count: int) -> torch.Tensor:
        return bank[torch.randint(len(bank), (count,), generator=generator).to(device)].clone()

    pool = StatePool(fresh, len(bank), lifetime=math.ceil(1.2 * END / FRAME / frames), largest=50.0)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    training = train_without_data(network, equation, pool, optimiser, dt=FRAME, batch=BATCH[device])
    begin, steps, share, told = time.perf_counter(), 0, 0.0, 0.0
    while share < 1:
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1.0, (steps + 1) / 200) * 0.5 * (1 + math.cos(math.pi * share))
        loss = next(training)
        steps, share = steps + 1, (time.perf_counter() - begin) / (60 * minutes)
        if share >= told:
            print(f"# {name}: {steps} steps, loss {loss:.3g}", flush=True)
            told += 0.1
    return steps, pool


PRECISION = {"classical": "float64", "speed": "TF32 on a GPU, else float32", "training": "float32"}
PARTS = {"classical": measure_classical, "speed": measure_speed, "training": measure_training}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--form", type=int, choices=range(len(FORMS)))
    options = parser.parse_args()
    if options.form is not None:
        FORMS[:] = [FORMS[options.form]]
    path = RESULTS / f"neuralstagger-{options.device}.json"
    kept = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or "cpu"
    minutes = options.minutes or (0.1 if options.quick else 1.0)
    for part in [options.only] if options.only else PARTS:
        for name, value, unit, goal, baseline, setup in PARTS[part](options.quick, options.device, minutes):
            met = None if goal is None else value >= goal if unit == "x" else value <= goal
            line = {"name": name, "value": value, "unit": unit, "goal": goal, "met": met, "baseline": baseline,
                    "seeds": 1, "cores": os.cpu_count(), "device": hardware, "precision": PRECISION[part],
                    "quick": options.quick, "setup": setup}  # fmt: skip
            print(json.dumps(line), flush=True)
            kept = [old for old in kept if old["name"] != name] + [line]
            path.write_text("".join(json.dumps(entry) + "\n" for entry in kept))


if __name__ == "__main__":
    main()
