"""A surrogate on disk: config.json, model.safetensors and a model card in one folder."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors
import safetensors.torch

from .convnet import ConvNet
from .fno import FNO
from .lpinn import LPINN
from .message_passing import MessagePassing
from .mlp import MLP
from .neuralstagger import NeuralStagger
from .problem import Problem
from .request import require_setup
from .surrogate import Surrogate
from .unet import UNet

FORMAT = "headrace-surrogate"
VERSION = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"

ALL_SURROGATES: tuple[type[Surrogate], ...] = (MLP, FNO, UNet, ConvNet, MessagePassing, LPINN, NeuralStagger)
"""The classes that `load_surrogate` knows by name."""


def save_surrogate(surrogate: Surrogate, folder: str | Path, *, metrics: Mapping[str, float] | None = None) -> None:
    """Write a surrogate to a folder that appears complete or not at all; an older model there is replaced.

    Parameters
    ----------
    folder : new, or that of an earlier surrogate.
    metrics : figures for the model card, e.g. {"validation nRMSE": 0.012}.

    Raises
    ------
    RuntimeError : the surrogate has no weights yet.
    FileExistsError : the folder holds something else.
    OSError : it cannot be written; nothing is left behind.
    """
    problem = require_setup(surrogate)
    folder = Path(folder)
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not a surrogate's folder; it was left alone. Choose another.")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in surrogate.state_dict().items()}
    weights = safetensors.torch.save(state)
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "class": type(surrogate).__name__,
        "module": type(surrogate).__module__,
        "architecture": surrogate.architecture(),
        "problem": problem.to_dict(),
        "weights": {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()},
        "num_weights": sum(parameter.numel() for parameter in surrogate.parameters()),
        "metrics": {name: float(value) for name, value in (metrics or {}).items()},
    }
    config = json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n"
    _write_folder(folder, {WEIGHTS: weights, CARD: _card(content).encode(), CONFIG: config.encode()})


def load_surrogate(
    path: str | Path, *, classes: Sequence[type[Surrogate]] = (), modules: Sequence[str | ModuleType] = ()
) -> Surrogate:
    """Read a surrogate from its folder, or from the model/ of a run directory; needs neither MPI nor Ray.

    A file never decides what code runs: a class of your own is found among what you name here, or not at all.

    Parameters
    ----------
    classes : the user's own surrogate classes, found by their names beside those of headrace.
    modules : modules that may hold the class: loaded ones, such as that of a run's case.py, are looked into; one given
        by its name is imported, but only if config.json says that the class stands in it.

    Raises
    ------
    FileNotFoundError : there is no model, or a file of it is missing.
    ValueError : a file is damaged, of a newer version, or of an unknown class; the message names it.
    """
    folder = _model_folder(Path(path))
    config = _read_config(folder / CONFIG)
    weights = _read_weights(folder / WEIGHTS, config["weights"])
    cls = _class_of(folder, config, classes, modules)
    try:
        surrogate = cls(**config["architecture"])
        surrogate.setup(Problem.from_dict(config["problem"]))
    except (KeyError, TypeError) as unknown:
        raise ValueError(
            f"{folder / CONFIG} describes a surrogate of class {config['class']} that cannot be made: {unknown}. "
            "If a newer headrace wrote it, update headrace."
        ) from unknown
    try:
        surrogate.load_state_dict(safetensors.torch.load(weights))
    except (RuntimeError, safetensors.SafetensorError) as mismatch:
        raise ValueError(f"{folder / WEIGHTS} does not fit the class {config['class']}: {mismatch}") from mismatch
    return surrogate.eval()


def surrogate_classes(module: ModuleType) -> list[type[Surrogate]]:
    """Return the surrogate classes that a module defines itself, in the order of their definition."""
    return [
        value for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Surrogate) and not inspect.isabstract(value)
        and value.__module__ == module.__name__
    ]  # fmt: skip


def _class_of(
    folder: Path, config: Mapping[str, Any], classes: Sequence[type[Surrogate]], modules: Sequence[str | ModuleType]
) -> type[Surrogate]:
    name, home = config["class"], config.get("module")
    known = {cls.__name__: cls for cls in ALL_SURROGATES}
    for module in modules:
        if isinstance(module, str):
            if module != home:
                continue
            module = importlib.import_module(module)
        known |= {cls.__name__: cls for cls in surrogate_classes(module)}
    known |= {cls.__name__: cls for cls in classes}
    if name not in known:
        if home and home.startswith("headrace_case_"):  # imported under that name only while a study runs
            stands, or_module = " from the case file of its run", ""
        else:
            stands = f" from the module {home!r}" if home else ""
            or_module = f", or the module that holds it, modules=[{home or '...'!r}]"
        raise ValueError(
            f"{folder} holds a surrogate of class {name!r}{stands}; known are {', '.join(known)}. Give your own class, "
            f"load_surrogate(path, classes=[{name}]){or_module}."
        )
    return known[name]


def _model_folder(path: Path) -> Path:
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if (path / "study.toml").is_file():
        raise FileNotFoundError(f"Run {path} has no model/ yet: it appears when training ends.")
    reason = f"it has no {CONFIG} and no model/{CONFIG}" if path.is_dir() else "there is no such folder"
    raise FileNotFoundError(f"No surrogate in {path}: {reason}.")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as damage:  # the first also of bytes that are not UTF-8
        raise ValueError(f"{path} is damaged: not valid JSON ({damage}).") from damage
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe a {FORMAT}.")
    version = config.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"{path} is of format version {version}; this headrace reads versions up to {VERSION}. Update headrace."
        )
    content = {name: value for name, value in config.items() if name != "sha256"}
    if config.get("sha256") != _digest(content):
        raise ValueError(f"{path} is damaged or was edited: its checksum does not match.")
    missing = [name for name in ("class", "architecture", "problem", "weights") if name not in content]
    if missing:
        raise ValueError(f"{path} is incomplete: it does not say {', '.join(missing)}.")
    return content


def _read_weights(path: Path, expected: Mapping[str, Any]) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the model is incomplete.")
    weights = path.read_bytes()
    if len(weights) != expected["bytes"]:
        raise ValueError(f"{path} is damaged: it has {len(weights)} bytes, {expected['bytes']} were written.")
    if hashlib.sha256(weights).hexdigest() != expected["sha256"]:
        raise ValueError(f"{path} is damaged: its checksum does not match.")
    return weights


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files beside a folder's place, then move them there as a whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    old = fresh.with_name(f"{fresh.name}.old")
    try:
        fresh.chmod(0o755)
        for name, content in files.items():
            with open(fresh / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _sync(fresh)
        if folder.exists():
            # No portable call swaps two folders: between these two renames the old model has this other name.
            folder.rename(old)
        fresh.rename(folder)
        _sync(folder.parent)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if old.exists():
        shutil.rmtree(old)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _card(content: Mapping[str, Any]) -> str:
    problem, architecture = content["problem"], content["architecture"]
    logarithmic = problem["logarithmic"]
    rows = [
        ("case", problem["case"]),
        ("fields", ", ".join(problem["fields"])),
        ("grid", f"{' x '.join(map(str, problem['shape']))} on {' x '.join(f'{x:g}' for x in problem['extent'])}"),
        ("snapshots", f"{problem['num_snapshots']} up to time {problem['duration']:g}"),
        *(
            (f"parameter {name}", f"{low:g} to {high:g}{', logarithmic' if name in logarithmic else ''}")
            for name, (low, high) in problem["parameters"].items()
        ),
        ("architecture", f"{content['class']}({', '.join(f'{k}={v!r}' for k, v in architecture.items())})"),
        ("weights", f"{content['num_weights']:,}"),
        *((name, f"{value:.4g}") for name, value in content["metrics"].items()),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        f"# {content['class']} for {problem['case']}\n\n"
        "A neural surrogate, trained online from running solvers by Headrace.\n"
        "It is valid for parameters within the bounds below.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        "```python\nfrom headrace.surrogates import load_surrogate\n\n"
        'surrogate = load_surrogate("this/folder")\nstates = surrogate.predict(initial, parameters, times)\n```\n'
    )
