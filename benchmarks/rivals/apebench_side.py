"""APEBench's side of emulators.py: its data, its metric, and its networks for the comparison with the rewritten ones.

    python benchmarks/rivals/apebench_side.py data FOLDER SCENARIO [NAME=VALUE ...]
    python benchmarks/rivals/apebench_side.py train FOLDER SCENARIO NETWORK SEED [SEED ...] [until=SECONDS]
    python benchmarks/rivals/apebench_side.py score FOLDER SCENARIO

It runs in an environment of its own: `python -m venv .rivals/apebench && .rivals/apebench/bin/pip install
apebench==0.1.1 "jax[cpu]<0.5"` (Koehler et al. 2024); with a newer JAX on a GPU it makes the same data.

`data` writes FOLDER/SCENARIO.npz: train (samples, steps, fields, *grid), test likewise, its first step the initial
states; and what made them. `train` trains one of its networks by its own trainer and budget and writes the errors that
it finds itself into FOLDER/SCENARIO-NETWORK-SEED.score.json; what is there stays. What is not done when the program has
run so many seconds is put aside as .eqx, arrays only, and the same command goes on with it: the steps are those of its
trainer, and so is the order of the windows. `score` gives
FOLDER/SCENARIO-rollouts.npz, one array (samples, steps, fields, *grid) a name, to its metric and prints one JSON line a
name.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import apebench
import equinox as eqx
import jax
import numpy as np
from trainax import PermutationMixer

BEGAN = time.perf_counter()

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


def write_training(folder: Path, name: str, config: str, seed: int, until: float) -> None:
    """Train one network as `BaseScenario.run_raw` does for a seed, and write the error of every step of its tests.

    It stops when the program has run `until` seconds, and goes on from there at the next call.
    """
    path = folder / f"{name}-{config.replace(';', '_')}-{seed}.score.json"
    if path.exists():
        return
    own, began = scenario(folder, name), time.perf_counter()
    start, shuffle = jax.random.split(jax.random.PRNGKey(seed), 2)
    network = own.get_neural_stepper(task_config="predict", network_config=config, key=start)
    trainer, aside = own.get_trainer(train_config="one"), path.with_suffix(".eqx")
    # The loop of trainax' GeneralTrainer, which has no way to stop and go on.
    state = (network, trainer.optimizer.init(eqx.filter(network, eqx.is_array)), np.zeros(2))
    if aside.exists():
        state = eqx.tree_deserialise_leaves(aside, state)
    network, moments, (done, before) = state
    order = PermutationMixer(num_total_samples=trainer.trajectory_sub_stacker.num_total_samples,
                             num_minibatches=trainer.num_minibatches, batch_size=trainer.batch_size,
                             shuffle_key=shuffle)  # fmt: skip
    step = eqx.filter_jit(trainer.step_fn)
    for number in range(int(done), trainer.num_minibatches):
        if number % 50 == 0 and time.perf_counter() - BEGAN > until:
            spent = np.array([number, before + time.perf_counter() - began])
            whole = aside.with_name(f"new-{aside.name}")  # a torn one must not be gone on from
            eqx.tree_serialise_leaves(whole, (network, moments, spent))
            whole.replace(aside)
            return
        network, moments, loss = step(network, moments, trainer.trajectory_sub_stacker(order(number)))
        if number % 50 == 49:
            loss.block_until_ready()  # the clock sees steps that are done
    (errors,) = own.perform_tests(network, remove_singleton_axis=True)["mean_nRMSE"]
    score = {
        "scenario": name, "network": config, "seed": seed, "errors": np.asarray(errors).tolist(),
        "weights": own.get_parameter_count(config), "steps": own.num_training_steps,
        "seconds": before + time.perf_counter() - began, "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }  # fmt: skip
    part = path.with_suffix(".part")
    part.write_text(json.dumps(score))
    os.replace(part, path)
    aside.unlink(missing_ok=True)


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
        limits = [float(word.removeprefix("until=")) for word in rest if word.startswith("until=")]
        for seed in [word for word in rest[1:] if not word.startswith("until=")]:
            write_training(Path(place), which, rest[0], int(seed), *(limits or [math.inf]))
    else:
        score(Path(place), which)
