"""The trainer: recorded steps, batches from a live reservoir beside a resident tensor, and the memory of it all.

    python benchmarks/trainer.py [--quick] [--only PART] [--device cpu|cuda] [--resume]

Parts: `graph` (with --device cuda), windows per second of the training step alone, eager and recorded as a CUDA
graph, and by how much losses and weights differ after the same batches; `batches`, the training loop fed by an intake
while solvers stream into it, over the same loop fed from a tensor that lies on the device, medians of its own
reports, beside them the ratio of each pair of runs; `draws`, bytes per second that a worker draws where it maps the
reservoir, and where it fetches from another node (here tcp within one host), while a producer streams; `memory`,
resident memory of intake and trainer (proportional set sizes: what they share counts once) while producers are faster
than the trainer, over the memory that was configured. Everything is real but Ray and MPI (live.py).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import psutil
import torch
from lines import Report, flags, processor
from live import (
    SPAWN,
    STUDY,
    TOKEN,
    IntakeProcess,
    LiveSettings,
    plan_of,
    prepare,
    solvers,
    train_online,
    trainer_settings,
    windows_per_second,
)

from headrace.cases.catalogue import find_case
from headrace.online_training import training_loop
from headrace.online_training.client import Connection
from headrace.online_training.feed import Feed
from headrace.online_training.supply import Supply
from headrace.online_training.training_step import TrainingStep
from headrace.surrogates import FNO, MLP, Problem, Surrogate, UNet

HEAT = ("heat2d", (64, 64))
MODELS = {
    "fno": lambda: FNO(modes=12, width=32, layers=4),
    "unet": lambda: UNet(width=16, multipliers=(1, 2, 2), blocks=1),
    "mlp": lambda: MLP(hidden=(256, 256)),
}


def line(name: str, value: float, unit: str, device: str, **more: Any) -> dict[str, Any]:
    """Return the line of a figure."""
    goal, limit = more.pop("goal", None), more.pop("limit", None)
    met = None if goal is None and limit is None else bool(value >= goal if limit is None else value <= limit)
    return {
        "name": name, "value": value, "unit": unit, "goal": goal if limit is None else limit, "met": met,
        "baseline": None, "seeds": [0], "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if device == "cuda" else processor(), "precision": "float32", **more,
    }  # fmt: skip


# -- recorded steps ------------------------------------------------------------------------------------------------


def graph(quick: bool, device: str) -> Iterator[dict[str, Any]]:
    """Yield the speed of recorded steps over eager ones, and how far they differ."""
    for name, make in MODELS.items():
        speeds = {record: windows_per_second(HEAT, make, 20, 1, device, record=record) for record in (False, True)}
        yield line(f"graph {name}: recorded", speeds[True], "windows/s", device, setup="batch 20, heat2d 64 x 64")
        yield line(f"graph {name}: eager", speeds[False], "windows/s", device, setup="the same")
        yield line(f"graph {name}: recorded over eager", speeds[True] / speeds[False], "x", device, setup="the same")
        difference, recorded = compare(make, device, 10 if quick else 100)
        yield line(f"graph {name}: largest relative difference of losses", difference, "1", device,
                   recorded=recorded, limit=1e-3, setup="on the same batches")  # fmt: skip


def compare(make: Any, device: str, steps: int) -> tuple[float, bool]:
    """Train two copies on the same batches, eagerly and recorded; return how far their losses differ."""
    problem, losses, recorded = Problem.of(find_case(*HEAT).load()), [], False
    for record in (False, True):
        model = make()
        model.setup(problem, seed=0)
        model.set_statistics([0.0], [1.0])
        model.to(device).train()
        optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=device == "cuda")
        loss = training_loop.WindowLoss(model)
        step = TrainingStep(loss, optimizer, torch.device(device), num_ranks=1, record=record)
        mine = []
        for number in range(steps):
            draw = windows(problem, model.window, 20, number)
            rate = 1e-3 * (1 + number % 3)
            found = step.losses(draw, rate)
            step.update(found, 20, rate)
            mine.append(found.detach().cpu().numpy())
        losses.append(np.stack(mine))
        recorded = step.recorded
    relative = np.abs(losses[1] - losses[0]) / np.abs(losses[0]).mean(axis=1, keepdims=True)
    return float(relative.max()), recorded


def windows(problem: Problem, window: int, batch: int, seed: int) -> SimpleNamespace:
    """Return random windows as a draw."""
    random = np.random.default_rng(seed)
    return SimpleNamespace(
        states=random.standard_normal((batch, window, len(problem.fields), *problem.shape)).astype(np.float32),
        times=np.tile(np.arange(window, dtype=np.float32) * np.float32(problem.interval), (batch, 1)),
        parameters=np.tile(np.array([low for low, _ in problem.parameters.values()], np.float32), (batch, 1)),
        on_device=None,
    )  # fmt: skip


# -- a live reservoir beside a resident tensor -------------------------------------------------------------------------


class ResidentFeed:
    """Batches from a tensor on the device, for some seconds: nothing is received, gathered, checked or copied."""

    starved_seconds = 0.0

    def __init__(self, problem: Problem, window: int, batch: int, device: str, seconds: float) -> None:
        draw = windows(problem, window, 2000, 0)
        arrays = (draw.states, draw.times, draw.parameters)
        self._tensors = [torch.from_numpy(array).to(device, torch.float32) for array in arrays]
        self._order = torch.randint(2000, (4096, batch), device=device)
        self._table = np.zeros(batch, [("ticket", "u8"), ("simulation", "u8"), ("start", "u4"), ("first", "u1")])
        self._end, self._next = time.monotonic() + seconds, 0

    def statistics(self) -> dict[str, Any]:
        """Return those of the random states."""
        return {"count": 1, "mean": [0.0], "std": [1.0]}

    def next(self) -> SimpleNamespace | None:
        """Return a batch as the step takes it."""
        if time.monotonic() > self._end:
            return None
        rows = self._order[self._next % len(self._order)]
        self._next += 1
        return SimpleNamespace(
            tensors=[tensor[rows] for tensor in self._tensors], table=self._table, checksums=np.zeros((0, 0))
        )

    def release(self, draw: SimpleNamespace) -> None:
        """Do nothing."""

    close = begin_at = steer = lambda self, *_: None


class ResidentStep(TrainingStep):
    """A step on tensors that are there."""

    def _on_device(self, draw: Any) -> list[torch.Tensor]:
        return draw.tensors


def reports(folder: Path) -> list[float]:
    """Return the samples per second of a training's reports, without the first three and the last."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(one)["samples_per_second"] for one in lines][3:-1]


def batches(name: str, quick: bool, device: str) -> Iterator[dict[str, Any]]:
    """Yield a model's batches per second of the loop on a live reservoir and on a resident tensor, which take turns."""
    seconds, turns, batch, make = 8.0 if quick else 12.0, 1 if quick else 2, 32, MODELS[name]
    with tempfile.TemporaryDirectory() as root:
        settings = LiveSettings(
            case=HEAT, folder=Path(root) / name, slots=4000, watermark=500, solvers=1 if quick else 2,
            seconds=seconds, batch_size=batch, device=device, total_windows=10**6,
        )  # fmt: skip
        pairs, accepted = [], 0
        for _ in range(turns):
            accepted += train_online(settings, make())["accepted"]
            resident = resident_reports(replace(settings, folder=Path(root) / f"{name}-resident"), make())
            pairs.append((reports(settings.folder), resident))
    found = [np.concatenate(one) / batch for one in zip(*pairs, strict=True)]
    if not all(map(len, found)):
        return
    live, resident = (float(np.median(one)) for one in found)
    setup = (
        f"heat2d 64 x 64, batch {batch}, reservoir of 4000 steps, {settings.solvers} solvers beside it, {turns} runs "
        f"of {seconds:g} s in turn, medians of {len(found[0])} and {len(found[1])} reports"
    )
    ratios = [float(np.median(ours) / np.median(theirs)) for ours, theirs in pairs if ours and theirs]
    yield line(f"batches {name}: live reservoir", live, "1/s", device, setup=setup, accepted=accepted)
    yield line(f"batches {name}: resident tensor", resident, "1/s", device, setup=setup)
    yield line(f"batches {name}: live over resident", live / resident, "fraction", device, goal=0.95, setup=setup,
               pairs=ratios)  # fmt: skip


def resident_reports(settings: LiveSettings, surrogate: Surrogate) -> list[float]:
    """Return what the loop reports on a tensor that lies on the device."""
    problem = Problem.of(find_case(*settings.case).load())
    prepare(settings.folder, surrogate, problem, 0)
    plain, training_loop.TrainingStep = training_loop.TrainingStep, ResidentStep
    try:
        feed = ResidentFeed(problem, surrogate.window, settings.batch_size, settings.device, settings.seconds)
        training_loop.train(trainer_settings(settings), feed)
    finally:
        training_loop.TrainingStep = plain
    return reports(settings.folder)


# -- memory --------------------------------------------------------------------------------------------------------


def flood(case: Any, environment: dict[str, str]) -> None:
    """Be a producer that sends random fields as fast as they are taken."""
    os.environ.update(environment)
    loaded = find_case(*case).load()
    values = np.random.default_rng(0).random((len(loaded.fields), *loaded.grid.shape), np.float32)
    with Connection({name: loaded.grid.shape for name in loaded.fields}, None) as connection:
        for stream in connection.simulations():
            for step in range(loaded.num_snapshots + 1):
                stream.send(step=step, time=float(step), values=values)


def small_model() -> FNO:
    """Return a model whose activations are small beside the reservoir."""
    return FNO(modes=4, width=4, layers=1)


def train_slowly(settings: LiveSettings, addresses: str) -> None:
    """Be a trainer that is slower than the producers, and has made steps before the first window comes."""
    windows_per_second(settings.case, small_model, settings.batch_size, settings.threads)
    feed = Feed(addresses, TOKEN, STUDY, batch_size=settings.batch_size)
    training_loop.train(trainer_settings(settings), feed)


def memory(quick: bool, device: str) -> Iterator[dict[str, Any]]:
    """Yield the largest memory of intake and trainer while a full reservoir keeps the producers waiting."""
    size, seconds = (64e6, 10.0) if quick else (1e9, 70.0)
    case = ("heat2d", (256, 256))
    with tempfile.TemporaryDirectory() as root:
        settings = LiveSettings(case=case, folder=Path(root) / "run", slots=int(size / 2**18), watermark=32, solvers=2,
                                views=1.0, batch_size=2, threads=1)  # fmt: skip
        surrogate = small_model()
        prepare(settings.folder, surrogate, Problem.of(find_case(*case).load()), 0)
        intake = IntakeProcess(settings, surrogate.window)
        _, log = plan_of(settings, find_case(*case).load(), intake)
        trainer = SPAWN.Process(target=train_slowly, args=(settings, intake.addresses), daemon=True)
        try:
            trainer.start()
            processes = [psutil.Process(intake.pid), psutil.Process(trainer.pid)]
            mapped = settings.slots * 2**18
            # Both have loaded what they need then, the trainer has made steps, and nothing has come yet.
            while not intake.call("status")["peers"]:
                time.sleep(0.5)
            time.sleep(2.0)
            before = sum(one.memory_full_info().pss for one in processes) - mapped
            largest, samples, full = 0, 0, 0
            with solvers(settings, intake.addresses, run=flood):
                began = time.monotonic()
                while time.monotonic() - began < seconds:
                    time.sleep(0.5)
                    largest = max(largest, sum(one.memory_full_info().pss for one in processes))
                    status = intake.call("status")
                    if not status["steps_accepted"]:
                        began = time.monotonic()  # the producers start
                    samples += 1
                    full += status["population"] > 0.9 * settings.slots
        finally:
            trainer.kill()
            trainer.join()
            intake.close()
            log.close()
        setup = (
            f"{mapped / 1e6:.0f} MB configured, 2 producers for {seconds:g} s, the reservoir full at {full} of "
            f"{samples} looks, {status['steps_accepted']} steps of 256 KiB accepted; taken off: "
            f"{before / 1e6:.0f} MB of interpreters, libraries, model, moments and activations before the first sample"
        )
        # Where it never was full nothing was put to the test.
        value = (largest - before) / mapped if full else float("nan")
        yield line("memory: intake and trainer over what was configured", value, "1", device, limit=1.1, setup=setup,
                   largest=largest, before=before)  # fmt: skip


# -- workers on other nodes ------------------------------------------------------------------------------------------


def fetching_feed(*arguments: Any, **options: Any) -> Feed:
    """Return a feed that behaves as if the reservoir were on another node."""
    with mock.patch.object(Supply, "_attach", lambda *_: None):
        return Feed(*arguments, **options)


def draws(quick: bool, device: str) -> Iterator[dict[str, Any]]:
    """Yield the speed of draws from a full reservoir, mapped and fetched over tcp."""
    seconds, found = 3.0 if quick else 10.0, {}
    for side in (64, 256, 1024):
        case = ("heat2d", (side, side))
        slots = int((100e6 if quick else 400e6) / (4 * side**2))
        with tempfile.TemporaryDirectory() as root:
            settings = LiveSettings(case=case, folder=Path(root) / "run", slots=slots, watermark=8, batch_size=8)
            loaded, surrogate = find_case(*case).load(), FNO(modes=4, width=4, layers=1)
            prepare(settings.folder, surrogate, Problem.of(loaded), 0)
            intake = IntakeProcess(settings, surrogate.window)
            _, log = plan_of(settings, loaded, intake)
            try:
                with solvers(settings, intake.addresses, run=flood):
                    while intake.call("status")["population"] < slots // 2:
                        time.sleep(0.2)
                    for generation, (name, kind) in enumerate((("mapped", Feed), ("over tcp", fetching_feed))):
                        address = intake.addresses.split(",")[-1]
                        with kind(address, TOKEN, STUDY, batch_size=8, generation=generation) as feed:
                            found[name] = drawn_per_second(feed, seconds)
                        setup = f"heat2d {side} x {side}, batches of 8 windows of {surrogate.window}, one worker"
                        yield line(f"draws {side}: {name}", found[name] / 1e6, "MB/s", "cpu", setup=setup)
            finally:
                intake.close()
                log.close()
        yield line(f"draws {side}: over tcp over mapped", found["over tcp"] / found["mapped"], "fraction", "cpu",
                   setup=setup)  # fmt: skip


def drawn_per_second(feed: Feed, seconds: float) -> float:
    """Return the bytes of states that a feed gives in a second."""
    for _ in range(5):
        feed.release(feed.next())
    began, size = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        draw = feed.next()
        size += draw.states.nbytes
        feed.release(draw)
    return size / (time.monotonic() - began)


PARTS = {"graph": graph, "batches": batches, "draws": draws, "memory": memory}


def main() -> None:
    """Measure what is asked for."""
    options = flags(__doc__, PARTS, devices=("cpu", "cuda")).parse_args()
    report = Report("trainer", device=options.device, quick=options.quick, resume=options.resume)
    for part, measure in PARTS.items():
        if options.only not in (None, part) or (part == "graph" and options.device != "cuda"):
            continue
        if part == "batches":  # model by model: what is measured is kept, whatever becomes of the others
            for name in MODELS:
                report.measure(f"{part} {name}:", measure(name, options.quick, options.device))
        else:
            report.measure(part, measure(options.quick, options.device))


if __name__ == "__main__":
    main()
