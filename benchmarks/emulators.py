"""Our surrogates on APEBench (Koehler et al. 2024), a judge of others: its data, its metric, its networks and training.

    python benchmarks/emulators.py FOLDER [--only choice|final|networks] [--scenarios NAME ...] [--device cpu|cuda]
                                   [--steps N] [--seeds ..] [--resume] [--quick]

FOLDER holds the data that `rivals/apebench_side.py data` wrote in APEBench's own environment, one file a scenario;
--quick makes its own waves instead. The budget is APEBench's for all: about 32,000 weights, 10,000 steps of Adam on 20
windows of two states, a rate that rises for 2,000 steps and falls as a cosine. Its networks are rewritten in PyTorch
(rivals/apebench_networks.py), checked by `--only networks` with its weights. Metric: the mean over test runs of the
nRMSE of each step, its geometric mean over steps 1 to 100 (the same as APEBench's, which `apebench_side.py score`
gives).

`choice`: of our CANDIDATES one is taken per scenario by the same metric on training trajectories that are held out: the
last fifth, where the others train. `final`: it, and APEBench's networks, on all training trajectories, median of the
seeds. `rank`: mean rank over scenarios, and the geometric mean of the error over the best one's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lines import Report, flags, processor
from published.side_by_side import SideBySide
from rivals import apebench_networks

from headrace.surrogates import FNO, ConvNet, Problem, Stepping
from headrace.surrogates.autoregressive import Autoregressive

STEPS, WARM, BATCH, RATE, SEEDS, GRADED = 10_000, 2_000, 20, 1e-3, (0, 1, 2), 100
RIVALS = {
    1: ("Conv;34;10;relu", "Res;26;8;relu", "UNet;12;2;relu", "Dil;2;32;2;relu", "FNO;12;18;4;gelu"),
    2: ("Conv;20;10;relu", "Res;15;8;relu", "UNet;7;2;relu", "Dil;2;19;2;relu", "FNO;4;11;4;gelu"),
}
"""APEBench's reference networks; in two dimensions with the widths that give as many weights."""
PLAIN = Stepping(inputs=())
CANDIDATES: dict[int, dict[str, Callable[[], Autoregressive]]] = {
    1: {
        "residual": lambda: ConvNet(width=26, blocks=8, stepping=PLAIN),
        "residual, kernel 5": lambda: ConvNet(width=20, blocks=8, kernel=5, stepping=PLAIN),
        "dilated": lambda: ConvNet(width=32, blocks=2, dilations=(1, 2, 4, 2, 1), stepping=PLAIN),
        "dilated, kernel 5": lambda: ConvNet(width=25, blocks=2, dilations=(1, 2, 4, 2, 1), kernel=5, stepping=PLAIN),
        "Fourier": lambda: FNO(modes=12, width=17, stepping=PLAIN),
    },
    2: {
        "residual": lambda: ConvNet(width=15, blocks=8, stepping=PLAIN),
        "residual, kernel 5": lambda: ConvNet(width=11, blocks=5, kernel=5, stepping=PLAIN),
        "dilated": lambda: ConvNet(width=19, blocks=2, dilations=(1, 2, 4, 2, 1), stepping=PLAIN),
        "Fourier": lambda: FNO(modes=4, width=11, stepping=PLAIN),
    },
}
"""Ours, of about as many weights; all give the change of the state and have gelu or silu."""
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


def ours(make: Callable[[], Autoregressive], data: torch.Tensor, seed: int) -> tuple[Autoregressive, Emulator]:
    """Return one of our surrogates with weights and statistics, and its step."""
    surrogate, grid = make(), tuple(data.shape[3:])
    problem = Problem(
        case="apebench", fields=tuple(f"u{n}" for n in range(data.shape[2])), shape=grid, extent=(1.0,) * len(grid),
        periodic=(True,) * len(grid), parameters={}, duration=1.0, num_snapshots=data.shape[1] - 1,
    )  # fmt: skip
    surrogate.setup(problem, seed=seed)
    axes = (0, 1, *range(3, data.ndim))
    surrogate.set_statistics(data.mean(axes).tolist(), data.std(axes).tolist())
    surrogate.to(data.device)
    none = torch.zeros(1, 0, device=data.device)

    def step(state: torch.Tensor) -> torch.Tensor:
        count = len(state)
        return surrogate.step(state[:, None], none.expand(count, -1), none.new_zeros(count))[:, 0]

    return surrogate, step


def one_step(emulator: Emulator, data: torch.Tensor, scale: float = 1.0) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the loss of windows of two states: the mean squared error, over scale."""
    before, after = data[:, :-1].flatten(0, 1), data[:, 1:].flatten(0, 1)
    return lambda index: (emulator(before[index]) - after[index]).square().mean() / scale


def change(data: torch.Tensor) -> float:
    """Return the mean square of the change in a step, the loss of doing nothing."""
    return (data[:, 1:] - data[:, :-1]).square().mean().item()


def rising_and_falling(steps: int) -> Callable[[int], float]:
    """Return APEBench's schedule: linear over the first fifth, then half a cosine."""
    warm = steps * WARM // STEPS

    def fraction(step: int) -> float:
        if step < warm:
            return step / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))

    return fraction


def train_all(trainings: list, windows: int, steps: int) -> None:
    """Train networks side by side."""
    SideBySide(trainings, windows=windows, batch=BATCH, schedule=rising_and_falling(steps)).train(steps)


def choose(scenario: Scenario, steps: int) -> dict[str, Any]:
    """Return our candidates' errors on held-out training trajectories, and the best one."""
    part = len(scenario.train) * 4 // 5
    data, held_out = scenario.train[:part], scenario.train[part:]
    names, trainings, emulators, scale = [], [], [], change(data)
    for name, make in CANDIDATES[scenario.ndim].items():
        surrogate, step = ours(make, data, 0)
        names.append(name)
        emulators.append(step)
        trainings.append((surrogate, one_step(step, data, scale), 0, RATE))
    train_all(trainings, part * (data.shape[1] - 1), steps)
    errors = {name: graded(step, held_out) for name, step in zip(names, emulators, strict=True)}
    return {"chosen": min(errors, key=errors.get), "errors": errors}


def finish(scenario: Scenario, chosen: str, steps: int, seeds: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Train APEBench's networks and our choice with all seeds; return the test error of each, by seed, and weights."""
    data, names, trainings, emulators = scenario.train, [], [], []
    fields, scale = data.shape[2], change(data)
    for seed in seeds:
        for config in RIVALS[scenario.ndim]:
            torch.manual_seed(seed)
            network = apebench_networks.network(config, fields, scenario.ndim).to(data.device)
            names.append(config)
            emulators.append(network)
            trainings.append((network, one_step(network, data), seed, RATE))
        surrogate, step = ours(CANDIDATES[scenario.ndim][chosen], data, seed)
        names.append("ours")
        emulators.append(step)
        trainings.append((surrogate, one_step(step, data, scale), seed, RATE))
    train_all(trainings, len(data) * (data.shape[1] - 1), steps)
    found: dict[str, dict[str, Any]] = {}
    for name, emulator, (network, *_) in zip(names, emulators, trainings, strict=True):
        entry = found.setdefault(name, {"errors": [], "weights": sum(p.numel() for p in network.parameters())})
        entry["errors"].append(graded(emulator, scenario.test))
    return found


def ranks(errors: dict[str, dict[str, float]]) -> dict[str, tuple[float, float]]:
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


def check_networks(folder: Path, report: Report) -> None:
    """Report how far the rewritten networks are from the originals with the same weights."""
    for path in sorted(folder.glob("*_[rg]elu.npz")):
        config = path.stem.split("d-", 1)[1].replace("_", ";")
        with np.load(path, allow_pickle=False) as file:
            x, y = torch.from_numpy(file["x"]), file["y"]
            network = apebench_networks.network(config, x.shape[1], x.ndim - 2)
            apebench_networks.load(network, [file[key] for key in sorted(file.files) if key.startswith("weight")])
        with torch.no_grad():
            value = float(np.abs(network(x).numpy() - y).max() / np.abs(y).max())
        report.add(f"network {config} {x.ndim - 2}-D", value, "1", goal=1e-5, met=value <= 1e-5, device=processor(),
                   setup="largest difference from APEBench's network with its weights, over the largest output")


def report_ranks(report: Report) -> None:
    """Report the aggregate over all scenarios that are there."""
    errors: dict[str, dict[str, float]] = {}
    for line in report.lines:
        if line["name"].startswith("final "):
            _, scenario, who = line["name"].split(" ", 2)
            value = math.inf if line["value"] is None else line["value"]
            # In two dimensions widths differ, not kinds.
            errors.setdefault(scenario, {})[who.split(";")[0]] = value
    if not errors:
        return
    for who, (place, ratio) in sorted(ranks(errors).items(), key=lambda item: item[1]):
        report.add(f"rank {who}", place, "1", ratio=ratio if math.isfinite(ratio) else None,
                   setup=f"mean rank of {len(errors)} scenarios; error over the best one's {ratio:.3g}")  # fmt: skip


def judged(scenario: Scenario, options: argparse.Namespace, report: Report) -> None:
    """Report one scenario: the choice, then the final errors."""
    steps, name = 8 if options.quick else options.steps, scenario.name
    common = {"device": torch.cuda.get_device_name() if options.device == "cuda" else processor(), "cores": 1}
    if options.only in (None, "choice") and not report.has(f"choice {name}"):
        began, found = time.perf_counter(), choose(scenario, steps)
        best = min(found["errors"].values())
        listed = ", ".join(f"{key} {value:.4g}" for key, value in found["errors"].items())
        report.add(f"choice {name}", best if math.isfinite(best) else None, "1", chosen=found["chosen"],
                   setup=f"{listed}; {steps} steps, {time.perf_counter() - began:.0f} s", **common)  # fmt: skip
    choice = next((line["chosen"] for line in report.lines if line["name"] == f"choice {name}"), None)
    if options.only in (None, "final") and choice and not report.has(f"final {name} ours"):
        for who, entry in finish(scenario, choice, steps, options.seeds).items():
            value = statistics.median(entry["errors"])
            what = choice if who == "ours" else who
            seeds = ", ".join(f"{e:.4g}" for e in entry["errors"])
            report.add(f"final {name} {who}", value if math.isfinite(value) else None, "1", seeds=options.seeds,
                       setup=f"{what}, {entry['weights']} weights; {steps} steps; seeds {seeds}", **common)  # fmt: skip


def main() -> None:
    """Judge the scenarios that are asked for."""
    began = time.perf_counter()
    parser = flags(__doc__, ("choice", "final", "networks"), devices=("cpu", "cuda"))
    parser.add_argument("folder", type=Path, nargs="?", help="what apebench_side.py wrote")
    parser.add_argument("--scenarios", nargs="+", help="names of files in it; all if left out")
    parser.add_argument("--steps", type=int, default=STEPS, help="of every training; APEBench's are the default")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--until", type=float, default=math.inf, help="begin nothing new after so many seconds")
    options = parser.parse_args()
    if options.folder is None and not options.quick:
        parser.error("name the folder of data that benchmarks/rivals/apebench_side.py wrote, or give --quick")
    torch.backends.cudnn.benchmark = True
    # APEBench trains in float32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report = Report("emulators", device=options.device, quick=options.quick, resume=options.resume)
    if options.quick:
        judged(wave_scenario(), options, report)
    else:
        if options.only in (None, "networks"):
            check_networks(options.folder, report)
        known = sorted(path.stem for path in options.folder.glob("*-?d.npz"))
        for name in options.scenarios or known if options.only != "networks" else ():
            if time.perf_counter() - began < options.until:
                judged(Scenario.read(options.folder / f"{name}.npz", options.device), options, report)
    report_ranks(report)


if __name__ == "__main__":
    main()
