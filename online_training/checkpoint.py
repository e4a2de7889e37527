"""Checkpoints of a training: atomic, checksummed, without pickle, readable on another number of workers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

FORMAT = 1
KEPT = 2
"""Checkpoints that stay: the newest, and one to fall back to."""

STATE, MODEL, OPTIMIZER = "state.json", "model.safetensors", "optimizer.safetensors"
_NAME = re.compile(r"batch-(\d{8,})")
_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Where a training stands; with the weights and the optimiser's moments, all that a resume needs.

    batch : optimiser steps taken.
    windows : uses of training windows over all workers; the position in the learning-rate schedule.
    generation : of the trainer that wrote it.
    learning_rate : of the last step, for people; the schedule follows from `windows`.
    random : {"seed", "counter"}; the generator of batch n is keyed by both, on every worker.
    optimizer : name and hyperparameters of the optimiser.
    """

    batch: int
    windows: int
    generation: int
    learning_rate: float
    random: Mapping[str, int]
    optimizer: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was read and verified.

    model : the surrogate's state_dict, on the CPU.
    optimizer : "key/parameter name" -> tensor, e.g. "exp_avg/network.0.weight"; empty where it was not asked for.
    """

    path: Path
    state: TrainingState
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


def folder_name(batch: int) -> str:
    """Return the name of the folder of one batch, e.g. batch-00000500."""
    return f"batch-{batch:08d}"


def checkpoint_folders(folder: str | Path) -> list[Path]:
    """Return the complete checkpoints in a folder, newest first; an unfinished one has another name."""
    if not Path(folder).is_dir():
        return []
    found = [(int(match[1]), path) for path in Path(folder).iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def save_checkpoint(
    folder: str | Path, state: TrainingState, *, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> Path:
    """Write a checkpoint under its batch's name and remove all but the two newest; one process writes.

    A folder of a temporary name is filled, brought to the disk and renamed; state.json, which holds the
    checksums, is written last. A killed process leaves the earlier checkpoints as they were.

    Raises
    ------
    OSError : the disk is full or cannot be written; names the checkpoint. Nothing half-written stays.
    """
    import safetensors.torch  # and torch, which an intake that looks for the newest checkpoint does without

    folder = Path(folder)
    path, temporary = folder / folder_name(state.batch), folder / f".{folder_name(state.batch)}.tmp"
    content = {
        MODEL: safetensors.torch.save(_owned(model.state_dict())),
        OPTIMIZER: safetensors.torch.save(_owned(_optimizer_tensors(model, optimizer))),
    }
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    content[STATE] = _encode_state(state, checksums)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".batch-*.tmp"):
            shutil.rmtree(left_over)
        temporary.mkdir()
        for name, data in content.items():
            _write(temporary / name, data)
        _sync_folder(temporary)
        if path.exists():  # of a past that was given up: this training started before it
            _remove(path)
        temporary.rename(path)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = (
            f"cannot write the checkpoint of batch {state.batch} ({error.strerror}); earlier ones are untouched. "
            "Make room and resume"
        )
        raise OSError(error.errno, reason, str(path)) from error
    _remove_old(folder)
    return path


def read_checkpoint(path: str | Path, *, with_optimizer: bool = True) -> Checkpoint:
    """Return one checkpoint after comparing every byte with its checksums.

    Raises
    ------
    ValueError : it is damaged; names the file and how.
    RuntimeError : it was written by a newer version.
    FileNotFoundError : there is none.
    """
    path = Path(path)
    state, checksums = _decode_state(path)
    model = _read_tensors(path / MODEL, checksums)
    optimizer = _read_tensors(path / OPTIMIZER, checksums) if with_optimizer else {}
    return Checkpoint(path=path, state=state, model=model, optimizer=optimizer)


def latest_checkpoint(folder: str | Path, *, with_optimizer: bool = True) -> Checkpoint | None:
    """Return the newest checkpoint that is sound, None where there is none at all.

    A damaged one is named in a warning, and the one before it is taken.

    Raises
    ------
    ValueError : there are checkpoints, and all are damaged.
    RuntimeError : the newest was written by a newer version.
    """
    return _newest(folder, lambda path: read_checkpoint(path, with_optimizer=with_optimizer))


def latest_batch(folder: str | Path) -> int:
    """Return the batch of the newest checkpoint that is sound by its checksums, 0 where there is none at all.

    Raises
    ------
    ValueError, RuntimeError : as `latest_checkpoint`.
    """

    def read(path: Path) -> int:
        state, checksums = _decode_state(path)
        for name in (MODEL, OPTIMIZER):
            _read_checked(path / name, checksums)
        return state.batch

    return _newest(folder, read) or 0


def _newest(folder: str | Path, read: Callable[[Path], _Read]) -> _Read | None:
    damage = []
    for path in checkpoint_folders(folder):
        try:
            return read(path)
        except FileNotFoundError:
            continue  # removed meanwhile, since newer ones were written
        except ValueError as error:
            damage.append(str(error))
            logger.warning("%s The checkpoint before it is used.", error)
    if damage:
        raise ValueError(
            f"No checkpoint in {folder} is sound. {' '.join(damage)} "
            "Restore one from a copy, or remove the folder to train from the initial model."
        )
    return None


def discard_newer(folder: str | Path, batch: int) -> None:
    """Remove the checkpoints after a batch: damaged ones, when a training goes on from an earlier one."""
    for path in checkpoint_folders(folder):
        if int(_NAME.fullmatch(path.name)[1]) > batch:
            logger.warning("Checkpoint %s is removed: the training goes on from batch %d.", path, batch)
            _remove(path)


def restore_optimizer(checkpoint: Checkpoint, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's moments into an optimiser of the model's parameters, whatever device they are on.

    Raises
    ------
    ValueError : the checkpoint is of another optimiser, or has moments for other parameters.
    """
    expected, found = type(optimizer).__name__, checkpoint.state.optimizer["name"]
    if expected != found:
        raise ValueError(f"Checkpoint {checkpoint.path} is of the optimiser {found}; this training uses {expected}.")
    names = [name for name, _ in model.named_parameters()]
    moments: dict[str, dict[str, torch.Tensor]] = {name: {} for name in names}
    for key, tensor in checkpoint.optimizer.items():
        quantity, _, name = key.partition("/")
        if name not in moments:
            raise ValueError(f"Checkpoint {checkpoint.path} has {quantity} of {name!r}, which this model has not.")
        moments[name][quantity] = tensor
    content = optimizer.state_dict()
    content["state"] = {index: moments[name] for index, name in enumerate(names) if moments[name]}
    optimizer.load_state_dict(content)


def optimizer_settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the name and the hyperparameters of an optimiser as plain data."""
    group = optimizer.param_groups[0]
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in group.items() if key not in ("params", "lr")}
    return {"name": type(optimizer).__name__, **plain}


def _optimizer_tensors(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{quantity}/{name}": value
        for name, parameter in model.named_parameters()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def _owned(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies on the CPU: safetensors refuses tensors that share memory, as tied weights do."""
    import torch

    return {name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for name, t in tensors.items()}


def _encode_state(state: TrainingState, checksums: Mapping[str, str]) -> bytes:
    content = {"format": FORMAT, "state": asdict(state), "checksums": dict(checksums)}
    return json.dumps({**content, "sha256": _digest(content)}, indent=1, sort_keys=True).encode()


def _decode_state(folder: Path) -> tuple[TrainingState, dict[str, str]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no checkpoint {folder}.")
    path = folder / STATE
    try:
        content = json.loads(_read(path))
        recorded = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"Checkpoint file {path} is damaged: it is not the JSON that was written ({error})."
        ) from error
    if recorded != _digest(content):
        raise ValueError(f"Checkpoint file {path} is damaged: its content does not match its checksum.")
    if content["format"] > FORMAT:
        raise RuntimeError(
            f"Checkpoint {folder} has format {content['format']}; this version reads up to {FORMAT}. "
            "Update headrace."
        )
    return TrainingState(**content["state"]), content["checksums"]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _read_tensors(path: Path, checksums: Mapping[str, str]) -> dict[str, torch.Tensor]:
    import safetensors.torch

    try:
        return safetensors.torch.load(_read_checked(path, checksums))
    except SafetensorError as error:
        raise ValueError(f"Checkpoint file {path} cannot be read as safetensors: {error}.") from error


def _read_checked(path: Path, checksums: Mapping[str, str]) -> bytes:
    data = _read(path)
    found = hashlib.sha256(data).hexdigest()
    if found != checksums[path.name]:
        raise ValueError(
            f"Checkpoint file {path} is damaged: {len(data)} bytes with sha256 {found[:12]}..., "
            f"written with {checksums[path.name][:12]}..."
        )
    return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if path.parent.is_dir():
            raise ValueError(f"Checkpoint {path.parent} is damaged: {path.name} is missing.") from None
        raise


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_old(folder: Path) -> None:
    """Keep the newest ones; a checkpoint that cannot be removed is no reason to stop a training."""
    for path in checkpoint_folders(folder)[KEPT:]:
        with contextlib.suppress(OSError):
            _remove(path)


def _remove(path: Path) -> None:
    """Take a checkpoint away at once: a reader, or a kill halfway, never sees a part of it."""
    hidden = path.with_name(f".{path.name}.old.tmp")
    path.rename(hidden)
    shutil.rmtree(hidden)
