"""Surrogates for programs without Python: one call of the network as an ONNX file, in physical units.

A surrogate that steps becomes  initial (batch, history, fields, *grid), parameters (batch, parameters), time (batch,)
-> states (batch, bundle, fields, *grid), where time is that of the first wanted state; the caller rolls out. The MLP
becomes  parameters, time -> states (batch, fields, *grid). Normalisation is inside. There are no complex numbers and no
Fourier transforms in the file, Fourier neural operators included, so that any runtime can run it.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

import torch

from .autoregressive import Autoregressive
from .mlp import MLP
from .request import require_setup
from .surrogate import Surrogate


def export_onnx(surrogate: Surrogate, path: str | Path, *, opset: int = 18) -> None:
    """Write a surrogate as one ONNX file, for its grid and any batch; the file appears whole or not at all.

    Parameters
    ----------
    path : of the file, whose folder exists.
    opset : version of the ONNX operators.

    Raises
    ------
    ModuleNotFoundError : onnx or onnxscript is not installed.
    RuntimeError : the surrogate has no weights yet.
    TypeError : it neither steps nor is an MLP, or its stepping has target "linear".
    """
    problem = require_setup(surrogate)
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(f"ONNX export needs {' and '.join(missing)}: pip install onnx onnxscript.")
    was_training = surrogate.training
    if not isinstance(surrogate, Autoregressive | MLP):
        raise TypeError(f"{type(surrogate).__name__} has no form for ONNX: only Autoregressive ones and MLP.")
    if isinstance(surrogate, Autoregressive) and surrogate.linear_step is not None:
        raise TypeError("Stepping target 'linear' has no form for ONNX: its step is a Fourier transform. Take 'delta'.")
    call = (_Direct(surrogate) if isinstance(surrogate, MLP) else _Step(surrogate)).eval()
    device, batch = surrogate.normaliser.mean.device, 3  # a batch of 1 would be taken for a constant
    parameters = torch.ones(batch, len(problem.parameters), device=device)
    inputs = {"parameters": parameters, "time": torch.zeros(batch, device=device)}
    if isinstance(surrogate, Autoregressive):
        shape = (batch, surrogate.history, len(problem.fields), *problem.shape)
        inputs = {"initial": torch.zeros(shape, device=device), **inputs}
    any_batch = torch.export.Dim("batch")
    try:
        program = torch.onnx.export(
            call, tuple(inputs.values()), input_names=list(inputs), output_names=["states"], opset_version=opset,
            dynamic_shapes={name: {0: any_batch} for name in inputs},
            dynamo=True, verbose=False,
        )  # fmt: skip
    finally:
        surrogate.train(was_training)
    _write(program, Path(path))


class _Step(torch.nn.Module):
    """One call of a surrogate that steps."""

    def __init__(self, surrogate: Autoregressive) -> None:
        super().__init__()
        self.surrogate = surrogate

    def forward(self, initial: torch.Tensor, parameters: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return the next states."""
        return self.surrogate.step(initial, parameters, time)


class _Direct(torch.nn.Module):
    """One call of the MLP."""

    def __init__(self, surrogate: MLP) -> None:
        super().__init__()
        self.surrogate = surrogate

    def forward(self, parameters: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """Return the states at a time."""
        return self.surrogate.states_at(parameters, time)


def _write(program: torch.onnx.ONNXProgram, path: Path) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        program.save(name, external_data=False)
        with open(name, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
