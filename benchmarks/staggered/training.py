"""Trainings without data of networks for the problems, resumable."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from lines import Figure
from safetensors import safe_open
from safetensors.torch import save_file

from headrace.surrogates.autoregressive import Channels
from headrace.surrogates.data_free import StatePool, train_without_data
from headrace.surrogates.fourier_network import FourierNetwork
from headrace.surrogates.stagger import Stagger
from headrace.surrogates.staggered_network import StaggeredNetwork
from headrace.surrogates.unet import UNet, UNetwork
from headrace.surrogates.unshuffled_network import UnshuffledNetwork

from .box import P6, Box, turned, without_divergence
from .cavity import CAVITIES, Cavity
from .channel import CHANNELS, Channel, young_of
from .channel_network import KeepsInflow, Projected, Unrolled
from .channel_pool import left_alone, mirrored_at_random, own_states
from .figures import timed, weights
from .planes import HELD_OUT, PLANES, Plane

Problem = Plane | Cavity | Box | Channel
PROBLEMS: dict[str, Problem] = {**PLANES, **CAVITIES, P6.name: P6, **CHANNELS}


@dataclass(frozen=True)
class Row:
    """A network to train: "network" as published, "corrected" (networks correct a spectral step of every part),
    "unshuffled" (one network that sees all parts as channels), or "projected" (past a block, what the parts give
    together is projected before they see it; `common`: channels of the layers in common before that).
    """

    problem: str
    factor: int
    kind: str = "network"
    loss: str = "differences"
    exchange: int = 0
    shared: bool = False
    gain: float = 1.0
    common: int = 0

    @property
    def frames(self) -> int:
        """The factor in time: that in space, but in the box and the channels there is none."""
        return self.factor if PROBLEMS[self.problem].in_time else 1

    @property
    def name(self) -> str:
        """What the figures are called by."""
        factors = [self.factor] * PROBLEMS[self.problem].ndim + [self.frames]
        extras = [self.kind] * (self.kind != "network") + ["shared"] * self.shared
        extras += [f"exchange {self.exchange}"] * (self.exchange > 0)
        extras += ["common layers"] * (self.common > 0)
        extras += [f"{self.loss} loss"] * (self.loss != "differences" and self.kind == "network")
        return ", ".join([f"{self.problem} ({','.join(map(str, factors))})", *extras])

    @property
    def short(self) -> str:
        """What files are called by."""
        problem = self.problem.replace(" ", "_").replace(",", "")
        owned = "shared" if self.shared else "own"
        parts = [problem, str(self.factor), self.kind, self.loss, f"x{self.exchange}", owned]
        return "-".join([*parts, *[f"c{self.common}"] * (self.common > 0)])


AWAY = 0.2
"""How far, as a share of the state, the errors of its steps may lead a flow past a block before it starts again."""
LARGEST = 5.0
"""A velocity or pressure, in units of the inflow, with which such a flow starts again."""
LOST = 0.1
"""Mean square error of a step over that of the state, with which a flow past a block is none any more."""
AWAY_IN_CHANGES, LOST_IN_CHANGES = 5.0, 1e3
"""The same two where errors are in units of what the flow changes by (`Channel.still`)."""
RENEWED, ALONE, ROLLED = 1000, 480, 2
"""Steps after which states of the network's own making are made anew, frames that it is left alone for, roll-outs."""
RISING = 500
"""Steps in which the learning rate rises, at most."""
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
INCREMENT = 0.3
"""What a flow past a block changes by in a frame, in units of what networks see of it."""
# Below ν = 1e-3 the implicit midpoint rule of the differences has no step as long as a frame.
S = "spectral"
ROWS = [
    Row("P1", 1), Row("P1", 2), Row("P1", 4), Row("P1", 2, shared=True), Row("P1", 2, exchange=3),
    Row("P1", 2, "unshuffled"), Row("P1", 2, "corrected", S, gain=0.02), Row("P1", 4, "corrected", S, gain=0.05),
    Row("P2", 1, loss=S), Row("P2", 2, loss=S), Row("P2", 4, loss=S), Row("P2", 2, "corrected", S, gain=0.02),
    Row("P2", 4, "corrected", S, gain=0.05),
    Row("P3", 1, loss=S), Row("P3", 2, loss=S), Row("P3", 4, loss=S), Row("P3", 2, loss=S, exchange=3),
    Row("P3", 2, "unshuffled", S), Row("P3", 2, "corrected", S, gain=0.1), Row("P3", 4, "corrected", S, gain=0.1),
    Row("P3", 2, "corrected", S, exchange=3, gain=0.1), Row("P3", 4, "corrected", S, exchange=15, gain=0.1),
    *(Row(f"P4 Re {reynolds}", factor, loss="steps", shared=factor > 1)
      for reynolds in (100, 400, 1000) for factor in (1, 2)),
    Row("P6", 1), Row("P6", 2, shared=True), Row("P6", 2, "corrected", shared=True, gain=0.02),
    Row("P0", 1), Row("P0", 2), Row("P4 Re 100, 24 x 24", 1), Row("P4 Re 100, 24 x 24", 2),
    *(Row(name, factor, loss="steps", shared=factor > 1) for name in CHANNELS for factor in (1, 2)),
    *(Row(name, factor, loss=S, shared=True) for name in ("P2", "P3") for factor in (2, 4)), Row("P1", 4, shared=True),
    Row("P1", 2, shared=True, exchange=3), Row("P2", 2, loss=S, shared=True, exchange=3), Row("P2", 2, "unshuffled", S),
    Row("P4 Re 100", 2, loss="steps"),
    *(Row(name, factor, "projected", "steps", shared=factor > 1) for name in CHANNELS for factor in (1, 2)),
    Row("P5", 2, "projected", "steps", exchange=3, shared=True),
    *(Row(name, 2, "projected", "steps", shared=True, common=16) for name in CHANNELS),
]  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """What a training may take.

    minutes : of training in all, over which the learning rate falls. until : `time.perf_counter` at which this call
    stops, to be resumed later. state : folder of the weights. beside : words on what else the device did. unroll :
    frames past a block that are graded as one roll-out, in batches of half as many. rate : of learning, where no time
    is spent.
    """

    minutes: float
    seed: int = 0
    rate: float = 2e-3
    until: float = math.inf
    state: Path | None = None
    resume: bool = False
    graph: bool = True
    streams: int = 0
    beside: str = ""
    unroll: int = 1


def fourier(
    width: int, grid: int, modes: int = 12, padding: float = 0.0, ndim: int = 2, fields: int = 1
) -> Callable[..., torch.nn.Module]:
    """Return a maker of Fourier networks with as many modes as the grid allows, at most `modes`."""
    modes = min(modes, grid // 2 - 1)

    def make(inputs: int, outputs: int = fields) -> torch.nn.Module:
        network = FourierNetwork(inputs, outputs, width, modes=(modes,) * ndim, periods=(1 + padding,) * ndim)
        torch.nn.init.zeros_(network.output.weight)
        return network

    return make


def unet(
    width: int, blocks: int, multipliers: Sequence[int], periodic: Sequence[bool], fields: int = 1
) -> Callable[[int], torch.nn.Module]:
    """Return a maker of U-Nets without norms, which would not be parallel at batch 1; their output is zero at first."""
    form = UNet(width=width, blocks=blocks, multipliers=multipliers, norm=False)

    def make(inputs: int) -> torch.nn.Module:
        network = UNetwork(Channels(inputs=inputs, states=fields, outputs=fields, conditions=0), form, periodic)
        torch.nn.init.zeros_(network.output.conv.weight)
        torch.nn.init.zeros_(network.output.conv.bias)
        return network

    return make


def network_of(
    row: Row, problem: Problem, seed: int, device: str, *, streams: int = 0
) -> torch.nn.Module:
    """Return the untrained network of a row."""
    s, options = row.factor, problem.network_options()
    stagger = Stagger((s,) * problem.ndim, row.frames)
    width = problem.width * (2 if row.kind == "unshuffled" else 1)
    torch.manual_seed(seed)
    if isinstance(problem, Channel):
        projected = row.kind == "projected"
        make = unet(problem.width, 1, problem.multipliers, (False,) * problem.ndim, problem.fields)
        network = StaggeredNetwork(
            make, stagger, fields=problem.fields, reading=problem.reading, shared=row.shared, exchange=row.exchange,
            streams=streams, **{**options, **({"gain": INCREMENT} if projected else {})},
        ).to(device)  # fmt: skip
        if row.shared or s == 1:  # the layout in which convolutions are fast on a GPU
            network = network.to(memory_format=LAST[problem.ndim])
        if not projected:
            return KeepsInflow(network)
        network = Projected(network, problem, row.common)
        if network.common is not None:
            network.common.to(memory_format=LAST[problem.ndim])
        return network.to(device)
    if isinstance(problem, Box):
        make = without_divergence(
            unet(width, 1, problem.multipliers, (True,) * problem.ndim, problem.fields), problem.points // s
        )
    else:
        make = fourier(width, problem.points // s, problem.modes, problem.padding, problem.ndim, problem.fields)
    if row.kind == "unshuffled":
        return UnshuffledNetwork(make, stagger, **options).to(device)
    guess = None
    if row.kind == "corrected":
        guess = problem.part_solver(stagger, device)
    return StaggeredNetwork(
        make, stagger, fields=problem.fields, shared=row.shared, exchange=row.exchange, guess=guess, gain=row.gain,
        reading=problem.reading, streams=streams, **options,
    ).to(device)  # fmt: skip


def end_of(problem: Problem) -> float:
    """Return the time to which roll-outs go."""
    return problem.rolled * problem.frame if isinstance(problem, Channel) else problem.end


def train(runs: Sequence[Run]) -> None:
    """Train runs to their ends, one after another, or on a GPU all at the same time, each on a stream of its own."""
    if runs[0].device != "cuda":
        for run in runs:
            deque(run.training(), maxlen=0)
        return
    # Recording allows nothing beside it: all are recorded first.
    loops = [(run.training(), torch.cuda.Stream()) for run in runs]
    torch.cuda.synchronize()
    for loop, stream in loops:
        with torch.cuda.stream(stream):
            next(loop)

    def go(loop: Iterator[None], stream: torch.cuda.Stream) -> None:
        with torch.cuda.stream(stream):
            deque(loop, maxlen=0)

    with ThreadPoolExecutor(len(loops)) as pool:
        for done in [pool.submit(go, *loop) for loop in loops]:
            done.result()
    torch.cuda.synchronize()


class Run:
    """One training with its weights on disk."""

    def __init__(self, row: Row, budget: Budget, device: str) -> None:
        self.row, self.problem, self.budget, self.device = row, PROBLEMS[row.problem], budget, device
        self.network = network_of(row, self.problem, budget.seed, device, streams=budget.streams)
        self.steps, self.spent, self.diverged = 0, 0.0, 0
        self.batch = self.problem.batch if device == "cuda" else max(1, self.problem.batch // 8)
        if budget.unroll > 1:
            if not isinstance(self.problem, Channel):
                raise ValueError(f"unroll={budget.unroll}: only flows past a block are unrolled, not {row.problem}.")
            self.batch = max(1, self.batch // 2)
        if budget.resume and self._file is not None and self._file.exists():
            self._load()

    @property
    def _file(self) -> Path | None:
        state = self.budget.state
        return None if state is None else state / f"{self.row.short}-{self.budget.seed}.safetensors"

    def _load(self) -> None:
        with safe_open(str(self._file), framework="pt") as file:
            told = json.loads(file.metadata()["run"])
            self.network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
        self.steps, self.spent, self.diverged = told["steps"], told["spent"], told["diverged"]

    def _save(self, diverged: int) -> None:
        if self._file is None:
            return
        told = {"steps": self.steps, "spent": self.spent, "diverged": diverged}
        state = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        part = self._file.with_suffix(".part")
        save_file(state, str(part), metadata={"run": json.dumps(told)})
        os.replace(part, self._file)

    def training(self) -> Iterator[None]:
        """Train until the budget is used or the call is over; the learning rate falls with the time spent.

        The first item comes when all is recorded, the others once a step.
        """
        row, budget, cuda = self.row, self.budget, self.device == "cuda"
        problem, limit = self.problem, 60 * budget.minutes
        if self.spent >= limit:  # what was trained before is only judged
            yield
            return
        torch.backends.cudnn.benchmark = True
        equation = problem.equation(row.loss, self.device)
        count = problem.pool if cuda else min(64, problem.pool)
        bank = problem.start_windows(row.loss, row.frames, count, self.device, 7 + self.steps)
        generator = torch.Generator().manual_seed(3 + self.steps)
        grows = isinstance(problem, Channel) and row.loss == "steps"
        rests, starts = grows and problem.still > 0, young_of(count)
        own = bank[:0]

        def fresh(count: int) -> torch.Tensor:
            places = torch.randint(len(bank), (count,), generator=generator)
            if rests:  # as often at the start, from a jerk, as at any age
                places = torch.where(torch.rand(count, generator=generator) < 0.5, places % starts, places)
            drawn = bank[places.to(bank.device)]
            if grows:
                if len(own):
                    mine = torch.rand(count, generator=generator) < 1 / 3
                    drawn[mine] = own[torch.randint(len(own), (int(mine.sum()),), generator=generator)]
                return mirrored_at_random(drawn, generator)
            return turned(drawn, generator) if isinstance(problem, Box) else drawn

        lifetime = math.ceil(1.2 * problem.end / problem.frame / row.frames / budget.unroll)
        jerked = isinstance(problem, Cavity) and row.loss == "steps"
        away, lost = (AWAY_IN_CHANGES, LOST_IN_CHANGES) if rests else (AWAY, LOST)
        windows = (1, budget.unroll, *[1] * (1 + problem.ndim))
        pool = StatePool((lambda count: bank[[0] * count]) if jerked else (lambda count: fresh(count).repeat(windows)),
                         min(len(bank), problem.pool), lifetime=1 if grows else lifetime,
                         largest=LARGEST if grows else 50.0, seed=self.steps, octaves=jerked or grows)  # fmt: skip
        if jerked:  # from rest, which is the first of the bank, but at first of all ages
            pool.feed(bank)
        rate = torch.tensor(1e-6, device=self.device) if cuda else 1e-6
        optimiser = torch.optim.Adam(self.network.parameters(), lr=rate, capturable=cuda)
        network = Unrolled(self.network, budget.unroll) if budget.unroll > 1 else self.network
        training = train_without_data(
            network, equation, pool, optimiser, dt=problem.frame, batch=self.batch, graph=cuda and budget.graph,
            **({"lost": lost} if grows else {}),
        )  # fmt: skip
        next(training)  # compiles and records
        alone = left_alone(self.network, fresh(ROLLED), graph=cuda and budget.graph) if grows else None
        yield
        first, before, here = time.perf_counter(), self.spent, 0
        saved, told, loss, error = first, self.spent / limit, math.nan, 1.0
        while self.spent < limit and time.perf_counter() < budget.until:
            # It rises for as long as Adam needs, but in a short training for no more than a twentieth of it. Past a
            # block it takes its time: states of a network that learns too fast are no flow, and it learns no more.
            rising = (here + 1) / RISING
            if not grows:
                rising = max(rising, 20 * (self.spent - before) / limit)
            value = budget.rate * min(1.0, rising) * 0.5 * (1 + math.cos(math.pi * self.spent / limit))
            if cuda:
                optimiser.param_groups[0]["lr"].fill_(value)
            else:
                optimiser.param_groups[0]["lr"] = value
            if grows:
                # States of a poor network are no flow: it leaves those of the solver as far as it has learned to step.
                # In the second half it has to learn what becomes of its own errors in the end.
                late = 2 * self.spent / limit - 1
                pool.lifetime = min(lifetime, max(1, round(away / error), round(late * lifetime)))
                if late > 0 and here % RENEWED == 0:
                    own = own_states(alone, fresh(ROLLED), ALONE, LARGEST)
            loss = next(training)
            error = 0.95 * error + 0.05 * math.sqrt(loss) if math.isfinite(loss) else 1.0
            self.steps, here, now = self.steps + 1, here + 1, time.perf_counter()
            self.spent = before + now - first
            if now - saved > 60:
                self._save(self.diverged + pool.diverged)
                saved = now
            if self.spent / limit >= told:
                print(f"# {row.name}, seed {budget.seed}: {self.steps} steps, {self.spent:.0f} s, loss {loss:.3g}, "
                      f"lifetime {pool.lifetime}, {pool.diverged} diverged", flush=True)  # fmt: skip
                told += 0.1
            yield
        self.diverged += pool.diverged
        self._save(self.diverged)

    @torch.no_grad()
    def seconds(self, batch: int = 1) -> float:
        """Return the time of each trajectory of a batch, all parts on one device, all calls in one CUDA graph."""
        problem, frames = self.problem, self.row.frames
        shape = (batch, frames, problem.fields, *problem.shape)
        start = torch.zeros(shape, device=self.device)

        windows = math.ceil(end_of(problem) / (problem.frame * frames))
        recorded = min(windows, 20)  # a graph of thousands of calls would take minutes to make

        def trajectory() -> torch.Tensor:
            window = start
            for _ in range(recorded):
                window = self.network(window)
            return window

        return timed(trajectory, self.device, 3) / batch * windows / recorded

    def figures(self, count: int = HELD_OUT) -> Iterator[Figure]:
        """Yield the errors of roll-outs from states that no training saw."""
        row, problem, budget = self.row, self.problem, self.budget
        how = [f"over {budget.unroll} frames each"] * (budget.unroll > 1)
        how += [f"at a rate from {budget.rate:g}"] * (budget.rate != Budget.rate)
        later = f", the last ones {' and '.join(how)}," if how else ""
        setup = (
            f"{'U-Net' if isinstance(problem, Channel | Box) else 'FNO'} width {problem.width}, "
            f"{weights(self.network):,} weights, {self.steps} steps of batch {self.batch}{later} "
            f"in {self.spent / 60:.2f} minutes{budget.beside}, {self.diverged} states diverged, seed {budget.seed}; "
        )
        yield (f"{row.name}, seed {budget.seed}: training", self.spent / 60, "min", None, None, setup)
        for what, value, goal, baseline, words in problem.errors(
            self.network.eval(), row.loss, row.frames, count, self.device
        ):
            yield (f"{row.name}, seed {budget.seed}: {what}", value, "1", goal, baseline, setup + words)
