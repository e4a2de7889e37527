"""A run directory without a study: real simulations, a briefly trained model, and logs as a study leaves them."""

import json
import math
import time
from pathlib import Path

import numpy as np
import torch

from headrace.cases.catalogue import find_case
from headrace.online_training.design import draw_design
from headrace.online_training.ledger import RecordWriter
from headrace.online_training.run_directory import RunDirectory
from headrace.online_training.settings import StudySettings
from headrace.solvers import MemorySink
from headrace.solvers.hdf5 import HDF5Sink
from headrace.solvers.simulate import simulate
from headrace.surrogates import MLP, Problem, WindowBatch


def make_run(
    folder: Path, case_text="heat2d", *, shape=(8, 8), simulations=4, held_out=3, epochs=8, model=None, finished=True
):
    """Write the run directory and return its path; the numbers in it are what the simulations really gave."""
    reference = find_case(case_text, shape)
    case = reference.load()
    settings = StudySettings(simulations=simulations, held_out=held_out)
    surrogate = model or MLP(hidden=(64, 64))
    surrogate.setup(Problem.of(case), seed=0)
    directory = RunDirectory(folder)
    directory.create(reference, surrogate, settings)
    points = [draw_design(len(case.parameters), n, 0, kind="sobol", held_out=h)
              for n, h in ((simulations, False), (held_out, True))]  # fmt: skip
    parameters = [case.draw(point) for point in np.concatenate(points)]
    trajectories = []
    logs = directory.ledger
    with RecordWriter(logs / "study-1.log") as study, RecordWriter(logs / "intake-1.log") as intake:
        study.append({"e": "session", "n": 1})
        for number, values in enumerate(parameters):
            study.append({"e": "planned", "s": number, "held_out": number >= simulations, "parameters": dict(values),
                          "seed": 0})  # fmt: skip
            intake.append({"e": "assigned", "s": number, "a": 1, "job": "1-0001"})
            sink = MemorySink()
            simulate(case, values, sink, simulation=number)
            trajectories.append(sink.values.astype(np.float32))
            for step in range(len(sink.times)):
                intake.append({"e": "step", "s": number, "a": 1, "t": step, "h": 0})
            intake.append({"e": "ended", "s": number, "a": 1, "status": 0, "steps": len(sink.times)})
            if number >= simulations:
                simulate(case, values, HDF5Sink(directory.held_out / f"sim-{number:06d}.h5"), simulation=number)
        if finished:
            study.append({"e": "finished"})
    _train(directory.path, surrogate, case, parameters[:simulations], np.stack(trajectories[:simulations]), epochs)
    return directory.path


def _train(path, surrogate, case, parameters, states, epochs):
    """states (simulations, steps, fields, *grid); leaves model/ and the three logs."""
    torch.manual_seed(0)
    axes = (0, 1, *range(3, states.ndim))
    surrogate.set_statistics(states.mean(axes), states.std(axes))
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=2e-3)
    window, steps = surrogate.window, states.shape[1]
    starts = [(s, k) for s in range(len(states)) for k in range(steps - window + 1)]
    values = np.array([[*p.values()] for p in parameters], dtype=np.float32)
    generator = np.random.default_rng(0)
    total, used, now = epochs * len(starts), 0, time.time() - epochs
    with (open(path / "metrics.jsonl", "w") as metrics, open(path / "intake.jsonl", "w") as intake,
          open(path / "validation.jsonl", "w") as validation):  # fmt: skip
        for epoch in range(epochs):
            losses = []
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            for chosen in np.array_split(generator.permutation(len(starts)), max(1, len(starts) // 32)):
                rows = [starts[i] for i in chosen]
                batch = WindowBatch(
                    states=torch.from_numpy(np.stack([states[s, k : k + window] for s, k in rows])),
                    times=torch.from_numpy(np.stack([case.times[k : k + window] for _, k in rows]).astype(np.float32)),
                    parameters=torch.from_numpy(values[[s for s, _ in rows]]),
                )
                loss = surrogate.training_loss(batch).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
                used += len(rows)
            done = min(1.0, (epoch + 1) / (0.7 * epochs))
            _line(metrics, time=now + epoch, generation=1, batch=used // 32, windows=used, total_windows=total,
                  loss=float(np.mean(losses)), learning_rate=optimizer.param_groups[0]["lr"],
                  samples_per_second=float(len(starts)), starved=0.3 * (1 - done))  # fmt: skip
            _line(intake, time=now + epoch, elapsed=float(epoch), done=round(done * len(states)),
                  steps_accepted=round(done * len(starts)), population=round(min(1, 2 * done) * 0.6 * len(starts)),
                  unseen=round(0.2 * (1 - done) * len(starts)), capacity=len(starts), quarantined=[], lost=0,
                  blocked_seconds=0.05 * epoch, solver_seconds=float(epoch) + 1)  # fmt: skip
            if epoch % 3 == 2:
                error = float(np.sqrt(np.mean(losses)))
                _line(validation, time=now + epoch, batch=used // 32, nrmse=0.4 * error, vrmse=error,
                      max_error=100 * error)  # fmt: skip
    surrogate.save(path / "model")


def _line(file, **record):
    file.write(json.dumps(record) + "\n")
