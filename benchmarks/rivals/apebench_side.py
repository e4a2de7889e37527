"""APEBench's side of emulators.py: its data, its metric, and its networks for the comparison with the rewritten ones.

    python benchmarks/rivals/apebench_side.py data FOLDER SCENARIO [NAME=VALUE ...]
    python benchmarks/rivals/apebench_side.py train FOLDER SCENARIO NETWORK SEED [SEED ...]
    python benchmarks/rivals/apebench_side.py score FOLDER SCENARIO

It runs in an environment of its own: `python -m venv .rivals/apebench && .rivals/apebench/bin/pip install
apebench==0.1.1 "jax[cpu]<0.5"` (Koehler et al. 2024); with a newer JAX on a GPU it makes the same data.

`data` writes FOLDER/SCENARIO.npz: train (samples, steps, fields, *grid), test likewise, its first step the initial
states; and what made them. `train` trains one of its networks by its own trainer and budget and writes the errors that
it finds itself into FOLDER/SCENARIO-NETWORK-SEED.score.json; what is there stays. `score` gives
FOLDER/SCENARIO-rollouts.npz, one array (samples, steps, fields, *grid) a name, to its metric and prints one JSON line a
name.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import apebench
import jax
import numpy as np

if hasattr(jax.config, "jax_threefry_partitionable"):
    # The random numbers of the versions below 0.5, which APEBench was made with.
    jax.config.update("jax_threefry_partitionable", False)


def scenario(folder: Path, name: str) -> Any:
    """Return a scenario with the sizes that its data were made with."""
    settings = json.loads((folder / f"{name}.json").read_text())
    return apebench.scenarios.scenario_dict[settings.pop("scenario")](**settings)


def write_data(folder: Path, name: str, settings: list[str]) -> None:
    """Write the training and test trajectories of a scenario; settings NAME=VALUE are its own."""
    given = {key: int(value) for key, value in (setting.split("=") for setting in settings)}
    dimensions = given.get("num_spatial_dims", 1)
    label = f"{name}-{dimensions}d"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{label}.json").write_text(json.dumps({"scenario": name, **given}))
    own = scenario(folder, label)
    np.savez(folder / f"{label}.npz", train=np.asarray(own.get_train_data()), test=np.asarray(own.get_test_data()))


def write_training(folder: Path, name: str, config: str, seed: int) -> None:
    """Train one network as `BaseScenario.run_raw` does for a seed, and write the error of every step of its tests."""
    path = folder / f"{name}-{config.replace(';', '_')}-{seed}.score.json"
    if path.exists():
        return
    own, began = scenario(folder, name), time.perf_counter()
    start, shuffle = jax.random.split(jax.random.PRNGKey(seed), 2)
    network = own.get_neural_stepper(task_config="predict", network_config=config, key=start)
    trained, _, _ = own.get_trainer(train_config="one")(network, shuffle, record_loss_every=100, spawn_tqdm=False)
    (errors,) = own.perform_tests(trained, remove_singleton_axis=True)["mean_nRMSE"]
    score = {
        "scenario": name, "network": config, "seed": seed, "errors": np.asarray(errors).tolist(),
        "weights": own.get_parameter_count(config), "steps": own.num_training_steps,
        "seconds": time.perf_counter() - began, "device": jax.devices()[0].device_kind, "jax": jax.__version__,
    }  # fmt: skip
    part = path.with_suffix(".part")
    part.write_text(json.dumps(score))
    os.replace(part, path)


def score(folder: Path, name: str) -> None:
    """Print the error of every step of every roll-out by APEBench's own metric."""
    own = scenario(folder, name)
    truth = np.load(folder / f"{name}.npz")["test"][:, 1:]
    for key, rollout in np.load(folder / f"{name}-rollouts.npz").items():
        (errors,) = own.perform_tests_on_rollout(rollout, truth)["mean_nRMSE"]
        sys.stdout.write(json.dumps({"name": key, "errors": np.asarray(errors).tolist()}) + "\n")


if __name__ == "__main__":
    verb, place, which, *rest = sys.argv[1:]
    if verb == "data":
        write_data(Path(place), which, rest)
    elif verb == "train":
        for number in map(int, rest[1:]):
            write_training(Path(place), which, rest[0], number)
    else:
        score(Path(place), which)
