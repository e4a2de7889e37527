"""Published tables made again: Fourier neural operators and message passing, on data of our own solvers.

    python benchmarks/tables.py [--only PART] [--seeds 0 1 2] [--minutes M] [--device cpu|cuda] [--resume] [--quick]

Parts: `ns-1e-3`, `ns-1e-5` (Navier-Stokes on a torus, FNO-2D of Li et al. 2021: modes 8, width 20, ten frames to all
later ones, 64 x 64, trained through the roll-out on relative L2, batch 20, weight decay 1e-4); `burgers` (the
same paper's u(0) -> u(1), FNO-1D, modes 16, width 64); `e1`, `e2`, `e3` (message passing of Brandstetter et al. 2022,
nx = 100, bundles of 25 with pushforward; E3 with the range of alpha in the published program, up to 6). Sample counts
are the published ones: 1,000 and 200 (FNO), 2,048 and 128 (message passing).

Differences from the published runs: data of our own generators (benchmarks/published/data.py; `steps` lines give the
error of the time step against half of it), a rate that falls as a cosine within --minutes of training per seed instead
of 500 epochs (20 for message passing), TF32 products on CUDA, and for E1 to E3 batches of 32 instead of 16. `ns-1e-3`
trains on the change of the state and on roll-outs of ten frames that begin anywhere, where the published run goes
through all 40 from the first ten; `ns-1e-3-whole` does as published. Message passing sees the known states as rates of
change to the last one, and its loss is the mean of the windows' root mean squared errors, the published one the root of
a batch's sum of squares.
One line per seed with the error after quarters of the training, and one with the mean of all seeds. A training that
--until put aside lies beside the results, and the same command with --resume goes on with it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lines import Report, flags, processor
from published import data
from published.training import Plan, Run

from headrace.surrogates import FNO, MessagePassing, Problem, Stepping
from headrace.surrogates.autoregressive import Autoregressive
from headrace.surrogates.message_passing import PUBLISHED

CHECKS = 4
"""Errors per training, at equal distances."""

@dataclass(frozen=True, kw_only=True)
class Table:
    """One published number: its data, its network, and how both are made small for --quick.

    generate : (count, seed, device, quick) -> trajectories.
    step_error : (device, quick) -> relative error of the generator's time step against half of it.
    first : frames before those that the network is given in the test.
    unroll : steps of a training roll-out, from any frame on; 0 for all frames after the first ones. Not of bundles.
    accumulated : whether the error is the sum over time of squared errors, mean over points, or else the relative L2.
    compiled : whether a GPU runs encoder and decoder through PyTorch's compiler.
    """

    published: float
    source: str
    train: int
    test: int
    generate: Callable[[int, int, str, bool], data.Trajectories]
    step_error: Callable[[str, bool], float]
    network: Callable[[bool], Autoregressive]
    plan: Plan
    first: int = 0
    unroll: int = 0
    accumulated: bool = False
    compiled: bool = False


def relative_l2(found: torch.Tensor, truth: torch.Tensor, start: int) -> torch.Tensor:
    """Norm over space from axis `start`, one value for each entry before."""
    return (found - truth).flatten(start).norm(dim=-1) / truth.flatten(start).norm(dim=-1)


def roll_out(
    network: Autoregressive, known: torch.Tensor, parameters: torch.Tensor, times: torch.Tensor
) -> torch.Tensor:
    """Return states (batch, steps, fields, *grid) at times (batch, steps), with gradients through all of them."""
    states, begin = known, known.shape[1]
    for first in range(0, times.shape[1], network.stepping.bundle):
        new = network.step(states[:, -network.history :], parameters, times[:, first])
        states = torch.cat((states, new), 1)
    return states[:, begin : begin + times.shape[1]]


def losses(table: Table, network: Autoregressive, seen: data.Trajectories) -> tuple[list[Callable], int]:
    """Return the training losses and the number of windows.

    Roll-outs of single frames are graded by the relative L2 of every frame, as published; bundles by the root mean
    squared error of one bundle after no free one or one, from any frame on.
    """
    stepping, frames = network.stepping, seen.states.shape[1]

    def windows(index: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        begin = torch.randint(frames - length + 1, (len(index), 1), device=index.device)
        at = begin + torch.arange(length, device=index.device)
        return seen.states[index[:, None], at], seen.times[at], seen.parameters[index]

    if stepping.bundle == 1:

        def unrolled(index: torch.Tensor) -> torch.Tensor:
            known = network.history
            states, times, told = windows(index, known + table.unroll if table.unroll else frames)
            found = roll_out(network, states[:, :known], told, times[:, known:])
            return relative_l2(found, states[:, known:], 2).sum(1)

        return [unrolled], len(seen.states)

    def bundled(free: int) -> Callable[[torch.Tensor], torch.Tensor]:
        begin = stepping.history + stepping.bundle * free

        def one(index: torch.Tensor) -> torch.Tensor:
            states, times, told = windows(index, begin + stepping.bundle)
            known = states[:, : stepping.history]
            with torch.no_grad():
                own = roll_out(network, known, told, times[:, stepping.history : begin])
            known = torch.cat((known, own), 1)[:, -stepping.history :]
            found = network.step(known, told, times[:, begin])
            squares = ((found - states[:, begin:]) / network.normaliser.std).square().flatten(1).mean(1)
            return squares.clamp(min=1e-12).sqrt()  # the root has no slope at zero

        return one

    return [bundled(free) for free in range(stepping.pushforward + 1)], len(seen.states)


@torch.no_grad()
def error(table: Table, history: int, held_out: data.Trajectories, network: Autoregressive | None) -> float:
    """Return the error that the table reports, mean over the held-out simulations; without a network of persistence."""
    begin = table.first + history
    known, truth = held_out.states[:, table.first : begin], held_out.states[:, begin:]
    if network is None:
        found = known[:, -1:].expand_as(truth)
    else:
        times = held_out.times[begin:].expand(len(truth), -1)
        # To compile a network for the test's batch takes longer than the few tests of a training.
        with torch.compiler.set_stance("force_eager"):
            found = roll_out(network.eval(), known, held_out.parameters, times)
        network.train()
    if table.accumulated:
        return (found - truth).square().sum(1).mean((1, 2)).mean().item()
    return relative_l2(found, truth, 1).mean().item()


def prepared(table: Table, seen: data.Trajectories, seed: int, *, quick: bool) -> Autoregressive:
    """Return a network with weights and statistics."""
    network = table.network(quick)
    grid, frames = tuple(seen.states.shape[3:]), seen.states.shape[1]
    low, high = seen.parameters.amin(0).tolist(), seen.parameters.amax(0).tolist()
    problem = Problem(
        case="published", fields=("u",), shape=grid, extent=(1.0,) * len(grid), periodic=(True,) * len(grid),
        parameters={f"p{number}": pair for number, pair in enumerate(zip(low, high, strict=True))},
        duration=seen.times[-1].item() - seen.times[0].item(), num_snapshots=frames - 1,
    )  # fmt: skip
    network.setup(problem, seed=seed)
    network.set_statistics([seen.states.mean().item()], [seen.states.std().item()])
    network.to(seen.states.device)
    if table.compiled and seen.states.is_cuda:
        # The rounds have kernels of their own; before and after them a compiler puts pointwise work together.
        network.network.encoder.compile(dynamic=False)
        network.network.decode = torch.compile(network.network.decode, dynamic=False)
    return network


def trained(
    table: Table, seen: data.Trajectories, held_out: data.Trajectories, seed: int, seconds: float, *, quick: bool,
    kept: Path, until: float,
) -> dict[str, Any] | None:  # fmt: skip
    """Train one network for so many seconds; return its errors at the checks, and how long all took.

    kept : a file that holds the training where `until` came before its end; then None is returned. It goes on from
        there.
    """
    found: dict[str, Any] = {"errors": [], "seconds": []}
    network = prepared(table, seen, seed, quick=quick)
    torch.manual_seed(seed)
    options, windows = losses(table, network, seen)
    plan = replace(table.plan, batch=min(table.plan.batch, windows))
    training = Run(network, options, windows, plan, seed=seed)
    if kept.exists():
        state = torch.load(kept, weights_only=True)
        found = state["found"]
        training.go_on(state["run"])
    for check in range(1 + len(found["errors"]), CHECKS + 1):
        end = seconds * check / CHECKS
        training.train_until(min(end, training.seconds + until - (time.perf_counter() - BEGAN)), seconds)
        if training.seconds < end:
            torch.save({"found": found, "run": training.state()}, kept)
            return None
        found["errors"].append(error(table, network.history, held_out, network))
        found["seconds"].append(training.seconds)
    kept.unlink(missing_ok=True)
    found["steps"], found["epochs"] = training.step, training.step * plan.batch / len(seen.states)
    found["weights"] = sum(parameter.numel() for parameter in network.parameters())
    return found


def navier_stokes(
    viscosity: float, frames: int, published: float, points: int, steps: int, *, unroll: int = 0, target: str = "direct"
) -> Table:
    """Return FNO-2D on vorticity; points, steps : of the generator's grid and in a unit of time."""

    def generate(count: int, seed: int, device: str, quick: bool, finer: bool = False) -> data.Trajectories:
        own = {"points": 64, "steps": 10} if quick else {"points": points, "steps": steps}
        if finer:
            # The published grid has 256 x 256 points.
            own = {"points": max(own["points"], 64 if quick else 256), "steps": 2 * own["steps"]}
        return data.navier_stokes(viscosity, 20 if quick else frames, count, seed=seed, device=device, **own)

    def step_error(device: str, quick: bool) -> float:
        coarse, fine = (generate(1 if quick else 20, 3, device, quick, finer) for finer in (False, True))
        return relative_l2(coarse.states[:, -1], fine.states[:, -1], 1).mean().item()

    def network(quick: bool) -> Autoregressive:
        stepping = Stepping(history=10, inputs=("position",), target=target)
        return FNO(modes=8, width=8 if quick else 20, stepping=stepping)

    return Table(
        published=published, source="Li et al. 2021, Table 1, FNO-2D", train=1000, test=200, generate=generate,
        step_error=step_error, network=network, plan=Plan(batch=20, rate=1e-3, decay=1e-4),
        unroll=unroll,
    )  # fmt: skip


def burgers() -> Table:
    """Return FNO-1D on Burgers' equation, 2,048 points."""

    def generate(count: int, seed: int, device: str, quick: bool, finer: int = 1) -> data.Trajectories:
        own = {"points": 256, "steps": 100 * finer} if quick else {"points": 2048, "steps": 400 * finer}
        return data.burgers_line(count, seed=seed, device=device, **own)

    def step_error(device: str, quick: bool) -> float:
        coarse, fine = (generate(2 if quick else 20, 3, device, quick, finer) for finer in (1, 2))
        return relative_l2(coarse.states[:, -1], fine.states[:, -1], 1).mean().item()

    def network(quick: bool) -> Autoregressive:
        stepping = Stepping(inputs=("position",), target="direct")
        return FNO(modes=16, width=16 if quick else 64, stepping=stepping)

    return Table(
        published=0.0146, source="Li et al. 2021, Table 3, s = 2048 (0.0139 to 0.0160 over all s)", train=1000,
        test=200, generate=generate, step_error=step_error, network=network,
        plan=Plan(batch=20, rate=1e-3, decay=1e-4),
    )  # fmt: skip


def mixed(name: str, published: float) -> Table:
    """Return message passing on E1, E2 or E3."""

    def generate(count: int, seed: int, device: str, quick: bool) -> data.Trajectories:
        return data.mixed(name, count, seed=seed, device=device, frames=130 if quick else 250)

    def step_error(device: str, quick: bool) -> float:
        count, frames = (2, 20) if quick else (20, 250)
        coarse, fine = (data.mixed(name, count, seed=3, device=device, frames=frames, finer=n) for n in (1, 2))
        return relative_l2(coarse.states[:, -1], fine.states[:, -1], 1).mean().item()

    def network(quick: bool) -> Autoregressive:
        inputs = ("parameters", "time", "position") if data.MIXED[name] else ("time", "position")
        return MessagePassing(hidden=32 if quick else 128, layers=2 if quick else 6,
                              stepping=replace(PUBLISHED, inputs=inputs, rates=True))  # fmt: skip

    return Table(
        published=published, source="Brandstetter et al. 2022, Table 1, MP-PDE (250, 100)", train=2048, test=128,
        generate=generate, step_error=step_error, network=network, first=25, accumulated=True, compiled=True,
        plan=Plan(batch=32, rate=1e-3, warm=0.02, clip=1.0),
    )  # fmt: skip


TABLES = {
    "ns-1e-5": navier_stokes(1e-5, 20, 0.1556, 256, 125),
    "ns-1e-3": navier_stokes(1e-3, 50, 0.0128, 128, 64, unroll=10, target="delta"),
    "ns-1e-3-whole": navier_stokes(1e-3, 50, 0.0128, 128, 64),
    "burgers": burgers(),
    "e1": mixed("e1", 1.55),
    "e2": mixed("e2", 1.58),
    "e3": mixed("e3", 4.26),
}
QUICK = ("ns-1e-3", "burgers", "e1")
"""The small plane of a quick run does not resolve the smaller viscosity."""


def measure(name: str, options: Any, report: Report) -> Iterator[None]:
    """Report one table: the time step, every seed, the mean."""
    table, quick, device = TABLES[name], options.quick, options.device
    where = torch.cuda.get_device_name() if device == "cuda" else processor()
    common = {"device": where, "precision": "tf32" if device == "cuda" else "fp32", "cores": 1}
    missing = [seed for seed in options.seeds if not report.has(f"{name} seed {seed}")]
    if not report.has(f"{name} steps"):
        value = table.step_error(device, quick)
        report.add(f"{name} steps", value, "1", setup="last frame, against half the time step; "
                   "Navier-Stokes: on 256 x 256 points", **common)  # fmt: skip
    yield
    if missing:
        began = time.perf_counter()
        seen = table.generate(8 if quick else table.train, 1, device, quick)
        held_out = table.generate(2 if quick else table.test, 2, device, quick)
        value = error(table, table.network(quick).history, held_out, None)
        report.add(f"{name} persistence", value, "1", setup="the last known state for all later ones", **common)
        report.add(f"{name} generation", time.perf_counter() - began, "s", setup="all trajectories", **common)
    for seed in missing:
        yield
        kept = report.path.with_name(f"{report.path.stem}-{name}-{seed}.pt")
        found = trained(table, seen, held_out, seed, 60 * options.minutes, quick=quick, kept=kept, until=options.until)
        if found is None:
            return
        curve = [list(pair) for pair in zip(found["seconds"], found["errors"], strict=True)]
        after = ", ".join(f"{value:.4g} after {seconds:.0f} s" for seconds, value in curve)
        report.add(
            f"{name} seed {seed}", found["errors"][-1], "1", goal=table.published, baseline=table.published,
            met=found["errors"][-1] <= table.published, seeds=[seed], curve=curve,
            setup=f"{after}; {found['epochs']:.0f} epochs of {len(seen.states)}, {found['weights']} weights; "
            f"published: {table.source}", **common,
        )  # fmt: skip
    values = [line["value"] for line in report.lines if line["name"].startswith(f"{name} seed ")]
    if values:
        mean = statistics.fmean(values)
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        report.add(
            name, mean, "1", goal=table.published, baseline=table.published, met=mean <= table.published,
            seeds=len(values), setup=f"mean, deviation {spread:.2g}; published: {table.source}", **common,
        )  # fmt: skip


def main() -> None:
    """Make the tables that are asked for."""
    parser = flags(__doc__, TABLES, devices=("cpu", "cuda"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=2.0, help="of training, for each seed")
    parser.add_argument("--until", type=float, default=math.inf, help="put the training aside after so many seconds")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.minutes = options.seeds[:1], 0.01
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    report = Report("tables", device=options.device, quick=options.quick, resume=options.resume)
    wanted = [options.only] if options.only else QUICK if options.quick else TABLES
    for name in wanted:
        for _ in measure(name, options, report):
            if time.perf_counter() - BEGAN > options.until:
                return


BEGAN = time.perf_counter()

if __name__ == "__main__":
    main()
