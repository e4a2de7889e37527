"""Our surrogates on APEBench (Koehler et al. 2024), a judge of others: its data, its metric, its networks and training.

    python benchmarks/emulators.py FOLDER [--only choice|final] [--scenarios NAME ...] [--device cpu|cuda]
                                   [--steps N] [--seeds ..] [--until SECONDS] [--resume] [--quick]

FOLDER holds what `rivals/apebench_side.py` made in APEBench's own environment: the data of each scenario (`data`), and
the errors that its own trainer and metric find for its own networks (`train`). --quick makes its own waves instead. The
budget is APEBench's for all: about 32,000 weights, 10,000 steps of Adam on 20 windows of two states, a rate that rises
for 2,000 steps and falls as a cosine. Metric: the mean over test runs of the nRMSE of each step, its geometric mean
over steps 1 to 100 (ours agrees with APEBench's, `apebench_side.py score`).

`choice`: of our CANDIDATES one is taken per scenario by the same metric on training trajectories that are held out: the
last fifth, where the others train. `final`: it on all training trajectories, and APEBench's networks; one line a
network and seed, one with the median of the seeds, and `rank`: mean rank over scenarios, and the geometric mean of the
error over the best one's.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lines import Report, flags, processor
from published.training import Plan, Run, SideBySide

from headrace.surrogates import FNO, ConvNet, Problem, Stepping
from headrace.surrogates.autoregressive import Autoregressive

STEPS, WARM, BATCH, RATE, SEEDS, GRADED = 10_000, 0.2, 20, 1e-3, (0, 1, 2), 100
FAR = (1, 2, 4, 2, 1)
DELTA, LINEAR = Stepping(inputs=()), Stepping(inputs=(), target="linear")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of our networks and the largest rate that it is trained with."""

    make: Callable[[], Autoregressive]
    rate: float = RATE


CANDIDATES: dict[int, dict[str, Candidate]] = {
    1: {
        "residual": Candidate(make=lambda: ConvNet(width=25, blocks=8, stepping=LINEAR)),
        "residual, kernel 5": Candidate(make=lambda: ConvNet(width=20, blocks=8, kernel=5, stepping=LINEAR)),
        "dilated": Candidate(make=lambda: ConvNet(width=32, blocks=2, dilations=FAR, stepping=LINEAR)),
        "Fourier": Candidate(make=lambda: FNO(modes=12, width=17, stepping=LINEAR)),
        "dilated, no linear step": Candidate(make=lambda: ConvNet(width=32, blocks=2, dilations=FAR, stepping=DELTA)),
        "dilated, no linear step, faster": Candidate(
            make=lambda: ConvNet(width=32, blocks=2, dilations=FAR, stepping=DELTA), rate=3 * RATE
        ),
        "dilated, kernel 5, no linear step": Candidate(
            make=lambda: ConvNet(width=25, blocks=2, dilations=FAR, kernel=5, stepping=DELTA)
        ),
        "residual, no linear step": Candidate(make=lambda: ConvNet(width=25, blocks=8, stepping=DELTA)),
    },
    2: {
        "residual": Candidate(make=lambda: ConvNet(width=14, blocks=8, stepping=LINEAR)),
        "residual, kernel 5": Candidate(make=lambda: ConvNet(width=10, blocks=5, kernel=5, stepping=LINEAR)),
        "dilated": Candidate(make=lambda: ConvNet(width=17, blocks=2, dilations=FAR, stepping=LINEAR)),
        "dilated, no linear step": Candidate(make=lambda: ConvNet(width=18, blocks=2, dilations=FAR, stepping=DELTA)),
        "residual, no linear step": Candidate(make=lambda: ConvNet(width=15, blocks=8, stepping=DELTA)),
    },
}
"""Ours, by the dimensions of space: with the numbers of the linear step about as many weights as APEBench's."""
Emulator = Callable[[torch.Tensor], torch.Tensor]
"""(batch, fields, *grid) -> the next state."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Trajectories (samples, steps, fields, *grid) of one scenario."""

    name: str
    train: torch.Tensor
    test: torch.Tensor

    @classmethod
    def read(cls, path: Path, device: str) -> Scenario:
        """Read what `apebench_side.py data` wrote; nothing in it is executed."""
        with np.load(path, allow_pickle=False) as file:
            train, test = (torch.from_numpy(file[key]).to(device) for key in ("train", "test"))
        return cls(name=path.stem, train=train, test=test[:, : GRADED + 1])

    @property
    def ndim(self) -> int:
        """Dimensions of space."""
        return self.train.ndim - 3


def wave_scenario() -> Scenario:
    """Return waves that travel by two points in a step, for --quick."""
    x = torch.arange(32) / 32

    def waves(count: int, seed: int) -> torch.Tensor:
        phase = torch.rand(count, 1, 1, generator=torch.Generator().manual_seed(seed))
        return torch.sin(2 * math.pi * (x - torch.arange(12.0)[:, None] / 16 + phase))[:, :, None]

    return Scenario(name="waves-1d", train=waves(10, 0), test=waves(4, 1))


def mean_nrmse(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return each step's nRMSE, (samples, steps, fields, *grid) -> (steps,): summed over fields, mean of samples."""
    error = (found - truth).flatten(3).norm(dim=-1) / truth.flatten(3).norm(dim=-1)
    return error.sum(2).mean(0)


def aggregate(errors: torch.Tensor) -> float:
    """Return the geometric mean over steps 1 to 100; infinite where a roll-out blew up."""
    return errors[:GRADED].double().log().mean().exp().nan_to_num(nan=math.inf).item()


@torch.no_grad()
def rolled_out(emulator: Emulator, start: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the states after a start (samples, fields, *grid)."""
    states = [start]
    while len(states) <= steps:
        states.append(emulator(states[-1]))
    return torch.stack(states[1:], 1)


def graded(emulator: Emulator, truth: torch.Tensor) -> float:
    """Return the aggregate error of roll-outs from the first states."""
    return aggregate(mean_nrmse(rolled_out(emulator, truth[:, 0], truth.shape[1] - 1), truth[:, 1:]))


def prepared(candidate: Candidate, data: torch.Tensor, seed: int) -> tuple[Autoregressive, Emulator]:
    """Return one of our surrogates with weights and statistics, and its step."""
    surrogate, grid = candidate.make(), tuple(data.shape[3:])
    problem = Problem(
        case="apebench", fields=tuple(f"u{n}" for n in range(data.shape[2])), shape=grid, extent=(1.0,) * len(grid),
        periodic=(True,) * len(grid), parameters={}, duration=1.0, num_snapshots=data.shape[1] - 1,
    )  # fmt: skip
    surrogate.setup(problem, seed=seed)
    axes = (0, 1, *range(3, data.ndim))
    surrogate.set_statistics(data.mean(axes).tolist(), data.std(axes).tolist())
    surrogate.to(data.device)
    if surrogate.stepping.linear:
        surrogate.fit_linear_step(data[:, :-1].flatten(0, 1), data[:, 1:].flatten(0, 1))
    none = torch.zeros(1, 0, device=data.device)

    def step(state: torch.Tensor) -> torch.Tensor:
        count = len(state)
        return surrogate.step(state[:, None], none.expand(count, -1), none.new_zeros(count))[:, 0]

    return surrogate, step


@torch.no_grad()
def one_step(step: Emulator, data: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the loss of windows of two states: the squared error over that of the network before its training."""
    before, after = data[:, :-1].flatten(0, 1), data[:, 1:].flatten(0, 1)
    parts = zip(before.split(256), after.split(256), strict=True)
    scale = torch.stack([(step(x) - y).square().mean() for x, y in parts]).mean()
    return lambda index: (step(before[index]) - after[index]).square().mean() / scale


def trained(
    wanted: Sequence[tuple[Candidate, int]], data: torch.Tensor, truth: torch.Tensor, steps: int
) -> Iterator[tuple[float, int]]:
    """Train candidates with seeds side by side; yield the error of each and how many numbers it has learned."""
    runs, emulators = [], []
    for candidate, seed in wanted:
        surrogate, step = prepared(candidate, data, seed)
        plan = Plan(batch=BATCH, rate=candidate.rate, warm=WARM)
        windows = len(data) * (data.shape[1] - 1)
        runs.append(Run(surrogate, [one_step(step, data)], windows, plan, seed=seed, recorded=False))
        emulators.append((surrogate, step))
    SideBySide(runs).train(steps)
    for surrogate, step in emulators:
        fitted = 2 * surrogate.linear_step.real.numel() if surrogate.stepping.linear else 0
        yield graded(step, truth), fitted + sum(parameter.numel() for parameter in surrogate.parameters())


def ranks(errors: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return {name: (mean rank, geometric mean of the error over the best one's)} of errors {scenario: {name: error}}.

    Equal errors share the mean of their ranks.
    """
    places: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    for row in errors.values():
        best = min(row.values())
        for name, error in row.items():
            below, equal = sum(e < error for e in row.values()), sum(e == error for e in row.values())
            places.setdefault(name, []).append(below + (equal + 1) / 2)
            ratios.setdefault(name, []).append(error / best)
    return {name: (statistics.fmean(places[name]), statistics.geometric_mean(ratios[name])) for name in places}


class Judge:
    """The lines of all scenarios, and what is still to be measured."""

    def __init__(self, options: argparse.Namespace, report: Report) -> None:
        self._options, self._report = options, report
        self._steps = 8 if options.quick else options.steps
        device = torch.cuda.get_device_name() if options.device == "cuda" else processor()
        self._common = {"device": device, "cores": 1}

    def _add(self, name: str, value: float, setup: str, **more: object) -> None:
        self._report.add(name, value, "1", **{**self._common, "setup": setup, **more})

    def _errors(self, prefix: str) -> dict[str, float]:
        """Return {rest of the name: error} of the lines that begin so."""
        return {
            line["name"].removeprefix(prefix): math.inf if line["value"] is None else line["value"]
            for line in self._report.lines if line["name"].startswith(prefix)
        }  # fmt: skip

    def _measure(
        self, wanted: Mapping[str, tuple[str, Candidate, int]], data: torch.Tensor, truth: torch.Tensor
    ) -> None:
        """Report those of {line: (what, candidate, seed)} that are missing."""
        missing = {line: entry for line, entry in wanted.items() if not self._report.has(line)}
        if not missing:
            return
        began = time.perf_counter()
        found = list(trained([(one, seed) for _, one, seed in missing.values()], data, truth, self._steps))
        spent = f"{self._steps} steps, {len(missing)} side by side in {time.perf_counter() - began:.0f} s"
        for (line, (what, _, seed)), (error, weights) in zip(missing.items(), found, strict=True):
            self._add(line, error, f"{what}, {weights} weights; {spent}", seeds=[seed])

    def choose(self, scenario: Scenario) -> None:
        """Grade our candidates on held-out training trajectories."""
        part = len(scenario.train) * 4 // 5
        names = {
            f"choice {scenario.name} {what}": (what, candidate, 0)
            for what, candidate in CANDIDATES[scenario.ndim].items()
        }  # fmt: skip
        self._measure(names, scenario.train[:part], scenario.train[part:])

    def finish(self, scenario: Scenario) -> None:
        """Grade the chosen one on the test runs."""
        errors = self._errors(f"choice {scenario.name} ")
        if set(errors) != set(CANDIDATES[scenario.ndim]):
            return
        chosen = min(errors, key=errors.__getitem__)
        candidate = CANDIDATES[scenario.ndim][chosen]
        names = {f"final {scenario.name} ours seed {seed}": (chosen, candidate, seed) for seed in self._options.seeds}
        self._measure(names, scenario.train, scenario.test)

    def read_rivals(self, folder: Path) -> None:
        """Report what APEBench found for its own networks."""
        for path in sorted(folder.glob("*.score.json")):
            score = json.loads(path.read_text())
            # In two dimensions widths differ, not kinds.
            kind = score["network"].split(";")[0]
            own = f"{score['steps']} steps of APEBench's own trainer in {score['seconds']:.0f} s, JAX {score['jax']}"
            self._add(
                f"final {score['scenario']} {kind} seed {score['seed']}", aggregate(torch.tensor(score["errors"])),
                f"{score['network']}, {score['weights']} weights; {own}", seeds=[score["seed"]], device=score["device"],
            )  # fmt: skip

    def conclude(self) -> None:
        """Report the medians of the seeds and the ranks over all scenarios."""
        seeds: dict[tuple[str, str], list[float]] = {}
        for rest, error in self._errors("final ").items():
            scenario, who, _, _ = rest.split(" ")
            seeds.setdefault((scenario, who), []).append(error)
        errors: dict[str, dict[str, float]] = {}
        for (scenario, who), values in seeds.items():
            errors.setdefault(scenario, {})[who] = statistics.median(values)
            self._add(f"median {scenario} {who}", statistics.median(values), "of the seeds", seeds=len(values))
        everybody = {who for row in errors.values() for who in row}
        whole = {scenario: row for scenario, row in errors.items() if set(row) == everybody}
        for who, (place, ratio) in sorted(ranks(whole).items(), key=lambda item: item[1]):
            self._add(
                f"rank {who}", place, f"mean rank of {len(whole)} scenarios; error over the best one's {ratio:.3g}",
                ratio=ratio,
            )  # fmt: skip


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = flags(__doc__, ("choice", "final"), devices=("cpu", "cuda"))
    parser.add_argument("folder", type=Path, nargs="?", help="what apebench_side.py wrote")
    parser.add_argument("--scenarios", nargs="+", help="names of files in it; all if left out")
    parser.add_argument("--steps", type=int, default=STEPS, help="of every training; APEBench's are the default")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--until", type=float, default=math.inf, help="begin nothing new after so many seconds")
    options = parser.parse_args(arguments)
    if options.folder is None and not options.quick:
        parser.error("name the folder that benchmarks/rivals/apebench_side.py wrote, or give --quick")
    return options


def main() -> None:
    """Judge the scenarios that are asked for."""
    began, options = time.perf_counter(), parsed()
    torch.backends.cudnn.benchmark = True
    # APEBench trains in float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    judge = Judge(options, Report("emulators", device=options.device, quick=options.quick, resume=options.resume))
    names = [] if options.quick else options.scenarios or sorted(path.stem for path in options.folder.glob("*-?d.npz"))
    scenarios = (Scenario.read(options.folder / f"{name}.npz", options.device) for name in names)
    for scenario in [wave_scenario()] if options.quick else scenarios:
        for part, work in {"choice": judge.choose, "final": judge.finish}.items():
            if options.only in (None, part) and time.perf_counter() - began < options.until:
                work(scenario)
    if options.folder:
        judge.read_rivals(options.folder)
    judge.conclude()


if __name__ == "__main__":
    main()
