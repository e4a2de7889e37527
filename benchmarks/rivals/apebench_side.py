"""APEBench's side of emulators.py: its data, its metric, and its networks for the comparison with the rewritten ones.

    python benchmarks/rivals/apebench_side.py data FOLDER SCENARIO [NAME=VALUE ...]
    python benchmarks/rivals/apebench_side.py networks FOLDER SCENARIO NETWORK [NETWORK ...]
    python benchmarks/rivals/apebench_side.py score FOLDER SCENARIO

It runs in an environment of its own: `python -m venv .rivals/apebench && .rivals/apebench/bin/pip install
apebench==0.1.1 "jax[cpu]<0.5"` (Koehler et al. 2024). `data` writes FOLDER/SCENARIO.npz: train (samples, steps, fields,
*grid), test likewise, its first step the initial states; and what made them. `networks` writes the initial weights of
its networks, an input and the outputs. `score` gives FOLDER/SCENARIO-rollouts.npz, one array (samples, steps, fields,
*grid) a name, to its metric and prints one JSON line a name.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import apebench
import equinox
import jax
import numpy as np


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


def write_networks(folder: Path, name: str, networks: list[str]) -> None:
    """Write the weights of networks, in the order of their tree, a random input and the outputs."""
    own = scenario(folder, name)
    x = np.random.default_rng(0).normal(size=(3, own.num_channels, *(own.num_points,) * own.num_spatial_dims))
    x = x.astype(np.float32)
    for config in networks:
        network = own.get_network(config, jax.random.PRNGKey(0))
        leaves = jax.tree_util.tree_leaves(equinox.filter(network, equinox.is_array))
        arrays = {f"weight{number:03d}": np.asarray(leaf) for number, leaf in enumerate(leaves)}
        y = np.asarray(jax.vmap(network)(x))
        np.savez(folder / f"{name}-{config.replace(';', '_')}.npz", x=x, y=y, **arrays)


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
    elif verb == "networks":
        write_networks(Path(place), which, rest)
    else:
        score(Path(place), which)
