"""Weights of other people's Fourier neural operators, as networks of ours.

Only dictionaries of tensors are taken, never files: read yours with safetensors, or with
torch.load(path, weights_only=True). Two families are known: FNO of neuraloperator 2.x (dense weights, linear skips,
its default channel MLP, no norm, no padding), and the scripts of Li et al. (2021), fourier_1d, _2d and _3d with fc0,
conv, w, fc1, fc2.

The result takes and gives what theirs does, (batch, channels, *grid), with the coordinates among the channels, as their
data loaders or embeddings put them there. It agrees with theirs where their inverse transform is well defined:
imaginary parts of the wave numbers 0 and n/2 of the last axis are ignored. neuraloperator 2.0.0 shifts the spectrum of
odd grids by one mode on all axes but the last; that is not repeated here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .fourier_network import FourierNetwork

Weights = Mapping[str, torch.Tensor]


def network_of_weights(weights: Weights) -> FourierNetwork:
    """Return the network that a dictionary of published weights describes.

    Raises
    ------
    ValueError : neither of the known families, or a variant of one that is not supported; the message says which.
    """
    # Their metadata travels in the same dictionary.
    weights = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if "fno_blocks.convs.0.weight" in weights or "fno_blocks.convs.0.weight.tensor" in weights:
        return _neuraloperator(weights)
    if "fc0.weight" in weights and "conv0.weights1" in weights:
        return _original(weights)
    shown = ", ".join(list(weights)[:4]) or "nothing"
    raise ValueError(
        f"These weights ({shown}, ..) are neither of neuraloperator's FNO, with dense weights, nor of the scripts of "
        "2021 with fc0, conv0, w0, fc1, fc2."
    )


def _neuraloperator(weights: Weights) -> FourierNetwork:
    # Their dense tensors are plain or wrapped, by version.
    suffix = ".tensor" if "fno_blocks.convs.0.weight.tensor" in weights else ""
    known = ("fno_blocks.convs.", "fno_blocks.fno_skips.", "fno_blocks.channel_mlp", "lifting.fcs.", "projection.fcs.")
    strange = [name for name in weights if not name.startswith(known)]
    if strange:
        raise ValueError(f"neuraloperator weights with {strange[0]} are of a variant that is not supported.")
    layers = _count(weights, "fno_blocks.convs.{}.weight" + suffix)
    first = weights["fno_blocks.convs.0.weight" + suffix]  # (inputs, outputs, 2 m, .., m), complex
    modes = [*(n // 2 for n in first.shape[2:-1]), first.shape[-1]]
    if any(n % 2 for n in first.shape[2:-1]):
        raise ValueError(f"neuraloperator weights keep {tuple(first.shape[2:])} modes; all but the last must be even.")
    width = first.shape[0]
    lifted = "lifting.fcs.1.weight" in weights
    if "fno_blocks.channel_mlp.0.fcs.0.weight" not in weights:
        # Their layers without it apply the nonlinearity twice in a row.
        raise ValueError("neuraloperator weights without channel MLP are not supported.")
    inner = weights["fno_blocks.channel_mlp.0.fcs.0.weight"].shape[0]
    projection, outputs = weights["projection.fcs.0.weight"], weights["projection.fcs.1.weight"]
    lifting = weights["lifting.fcs.0.weight"]
    network = FourierNetwork(
        lifting.shape[1], outputs.shape[0], width, modes=modes, periods=[1.0] * len(modes), layers=layers,
        channel_mlp=inner / width, lifting=lifting.shape[0] if lifted else 0, projection=projection.shape[0],
    )  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    ours = ("lifting.first", "lifting.second") if lifted else ("lifting",)
    for number, name in enumerate(ours):
        _pointwise(state, name, weights, f"lifting.fcs.{number}")
    _pointwise(state, "hidden", weights, "projection.fcs.0")
    _pointwise(state, "output", weights, "projection.fcs.1")
    for layer in range(layers):
        conv = f"fno_blocks.convs.{layer}"
        state[f"layers.{layer}.spectral.weight.matrices"] = _matrices(weights[f"{conv}.weight{suffix}"])
        state[f"layers.{layer}.skip.weight"] = weights[f"fno_blocks.fno_skips.{layer}.conv.weight"].flatten(1)
        state[f"layers.{layer}.skip.bias"] = weights[f"{conv}.bias"].flatten()
        _pointwise(state, f"layers.{layer}.channel_mlp.first", weights, f"fno_blocks.channel_mlp.{layer}.fcs.0")
        _pointwise(state, f"layers.{layer}.channel_mlp.second", weights, f"fno_blocks.channel_mlp.{layer}.fcs.1")
        state[f"layers.{layer}.gate"] = weights[f"fno_blocks.channel_mlp_skips.{layer}.weight"].flatten()
    return _filled(network, state)


def _original(weights: Weights) -> FourierNetwork:
    layers = _count(weights, "conv{}.weights1")
    corners = [name for name in weights if name.startswith("conv0.weights")]
    ndim = {1: 1, 2: 2, 4: 3}[len(corners)]
    first = weights["conv0.weights1"]
    modes, width = list(first.shape[2 : 2 + ndim]), first.shape[0]
    network = FourierNetwork(
        weights["fc0.weight"].shape[1], weights["fc2.weight"].shape[0], width, modes=modes, periods=[1.0] * ndim,
        layers=layers, projection=weights["fc1.weight"].shape[0],
    )  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    for ours, theirs in {"lifting": "fc0", "hidden": "fc1", "output": "fc2"}.items():
        _pointwise(state, ours, weights, theirs)
    for layer in range(layers):
        parts = [weights[f"conv{layer}.weights{corner + 1}"] for corner in range(len(corners))]
        # Their corners are (low, low), (high, low), (low, high), (high, high) of the first two axes in 3-D.
        while len(parts) > 1:
            axis = 2 if len(parts) == len(corners) else 3
            parts = [torch.cat((high, low), dim=axis) for low, high in zip(parts[::2], parts[1::2], strict=True)]
        state[f"layers.{layer}.spectral.weight.matrices"] = _matrices(parts[0])
        _pointwise(state, f"layers.{layer}.skip", weights, f"w{layer}")
    return _filled(network, state)


def _matrices(weight: torch.Tensor) -> torch.Tensor:
    """Complex (inputs, outputs, k, ..) -> (modes, inputs, 2, outputs)."""
    parts = weight if not weight.is_complex() else torch.view_as_real(weight)
    return parts.flatten(2, -2).permute(2, 0, 3, 1).contiguous()


def _pointwise(state: dict[str, torch.Tensor], ours: str, weights: Weights, theirs: str) -> None:
    state[f"{ours}.weight"] = weights[f"{theirs}.weight"].flatten(1)
    state[f"{ours}.bias"] = weights[f"{theirs}.bias"]


def _count(weights: Weights, pattern: str) -> int:
    return next(number for number in range(len(weights) + 1) if pattern.format(number) not in weights)


def _filled(network: FourierNetwork, state: Weights) -> FourierNetwork:
    network.to(state["output.weight"].dtype).load_state_dict(state)
    return network.eval()
