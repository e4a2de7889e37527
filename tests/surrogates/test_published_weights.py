"""Imported weights compute what the published formulas compute in float64 with complex transforms."""

import pytest
import torch
from torch.nn.functional import conv1d, gelu

from headrace.surrogates.published_weights import network_of_weights


def noise(*shape, seed=0, complex_=False):
    dtype = torch.complex64 if complex_ else torch.float32
    return 0.5 * torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed + len(shape)))


def pointwise(x, weights, name):
    return conv1d(x.flatten(2), weights[f"{name}.weight"].flatten(1)[..., None],
                  weights.get(f"{name}.bias")).unflatten(2, x.shape[2:])  # fmt: skip


def spectral(x, corners, modes):
    """rfftn, one complex product for each kept corner, irfftn without the imaginary parts that it must ignore."""
    grid, axes = x.shape[2:], tuple(range(2, x.ndim))
    spectrum = torch.fft.rfftn(x, dim=axes)
    out = torch.zeros_like(spectrum)[:, :1].repeat(1, corners[0].shape[1], *(1,) * len(grid))
    for number, weight in enumerate(corners):
        low, high = slice(None, modes[0]), slice(-modes[0], None)
        chosen = [high if number >> axis & 1 else low for axis in range(len(grid) - 1)]
        where = (slice(None), slice(None), *chosen, slice(None, modes[-1]))
        out[where] = torch.einsum("bi...,io...->bo...", spectrum[where], weight)
    out = torch.fft.ifftn(out, dim=axes[:-1]) if len(grid) > 1 else out
    out[..., 0].imag.zero_()
    if grid[-1] % 2 == 0:
        out[..., -1].imag.zero_()
    return torch.fft.irfft(out, n=grid[-1], dim=-1)


def exact(weights):
    return {n: v.to(torch.complex128) if v.is_complex() else v.double() for n, v in weights.items()}


def original_weights(ndim, modes=3, width=4):
    shapes = {"fc0": (width, 2 + ndim), "fc1": (8, width), "fc2": (1, 8)}
    weights = {f"{name}.weight": noise(*shape) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": noise(shape[0]) for name, shape in shapes.items()}
    for layer in range(2):
        for corner in range(2 ** (ndim - 1)):
            name = f"conv{layer}.weights{corner + 1}"
            weights[name] = noise(width, width, *(modes,) * ndim, seed=10 * layer + corner, complex_=True)
        weights[f"w{layer}.weight"] = noise(width, width, *(1,) * ndim, seed=layer + 50)
        weights[f"w{layer}.bias"] = noise(width, seed=layer)
    return weights


@pytest.mark.parametrize("grid", [(16,), (17,), (12, 14), (13, 7), (8, 6, 10), (7, 9, 8)])
def test_the_scripts_of_2021(grid):
    ndim = len(grid)
    weights = original_weights(ndim)
    x = noise(2, 2 + ndim, *grid)
    found = network_of_weights(weights)(x)
    w, h = exact(weights), x.double()
    h = pointwise(h, w, "fc0")
    for layer in range(2):
        corners = [w[f"conv{layer}.weights{corner + 1}"] for corner in range(2 ** (ndim - 1))]
        h = spectral(h, corners, (3,) * ndim) + pointwise(h, w, f"w{layer}")
        h = gelu(h) if layer == 0 else h
    expected = pointwise(gelu(pointwise(h, w, "fc1")), w, "fc2")
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


def neuraloperator_weights(ndim, suffix, width=4):
    shapes = {"lifting.fcs.0": (8, 3), "lifting.fcs.1": (width, 8), "projection.fcs.0": (6, width),
              "projection.fcs.1": (2, 6)}  # fmt: skip
    for layer in range(2):
        shapes[f"fno_blocks.channel_mlp.{layer}.fcs.0"] = (2, width)
        shapes[f"fno_blocks.channel_mlp.{layer}.fcs.1"] = (width, 2)
    weights = {f"{name}.weight": noise(*shape, 1, seed=len(name)) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": noise(shape[0]) for name, shape in shapes.items()}
    for layer in range(2):
        kept = (*(6,) * (ndim - 1), 4)
        weights[f"fno_blocks.convs.{layer}.weight{suffix}"] = noise(width, width, *kept, seed=layer, complex_=True)
        weights[f"fno_blocks.convs.{layer}.bias"] = noise(width, *(1,) * ndim, seed=layer)
        weights[f"fno_blocks.fno_skips.{layer}.conv.weight"] = noise(width, width, 1, seed=layer)
        weights[f"fno_blocks.channel_mlp_skips.{layer}.weight"] = noise(1, width, *(1,) * ndim, seed=layer)
    return {**weights, "_metadata": {"n_modes": 6}}


@pytest.mark.parametrize("suffix", ["", ".tensor"])
@pytest.mark.parametrize("grid", [(16,), (12, 14), (8, 10, 8)])
def test_neuraloperator(grid, suffix):
    ndim = len(grid)
    weights = neuraloperator_weights(ndim, suffix)
    x = noise(2, 3, *grid)
    found = network_of_weights(weights)(x)
    del weights["_metadata"]
    w = exact(weights)
    h = pointwise(gelu(pointwise(x.double(), w, "lifting.fcs.0")), w, "lifting.fcs.1")
    for layer in range(2):
        # Their weights are in the order -3 .. 2 of all axes but the last; corners are halves of it.
        centred = w[f"fno_blocks.convs.{layer}.weight{suffix}"]
        corners = []
        for number in range(2 ** (ndim - 1)):
            corner = centred
            for axis in range(ndim - 1):
                corner = corner.narrow(2 + axis, 0 if number >> axis & 1 else 3, 3)
            corners.append(corner)
        block = f"fno_blocks.channel_mlp.{layer}.fcs"
        y = spectral(h, corners, (3, 4)) + w[f"fno_blocks.convs.{layer}.bias"]
        y = y + pointwise(h, w, f"fno_blocks.fno_skips.{layer}.conv")
        y = gelu(y) if layer == 0 else y
        y = pointwise(gelu(pointwise(y, w, f"{block}.0")), w, f"{block}.1")
        h = y + w[f"fno_blocks.channel_mlp_skips.{layer}.weight"] * h
        h = gelu(h) if layer == 0 else h
    expected = pointwise(gelu(pointwise(h, w, "projection.fcs.0")), w, "projection.fcs.1")
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5


@pytest.mark.parametrize(
    ("change", "words"),
    [({"only": "fc0"}, "neither of neuraloperator"), ({"drop": "channel_mlp.0.fcs.0"}, "without channel MLP"),
     ({"add": "fno_blocks.norm.0.weight"}, r"fno_blocks\.norm\.0\.weight are of a variant")],
)  # fmt: skip
def test_other_weights_are_named(change, words):
    weights = neuraloperator_weights(2, "")
    if "only" in change:
        weights = {name: value for name, value in original_weights(2).items() if name.startswith(change["only"])}
    if "drop" in change:
        weights = {name: value for name, value in weights.items() if change["drop"] not in name}
    if "add" in change:
        weights[change["add"]] = torch.zeros(4)
    with pytest.raises(ValueError, match=words):
        network_of_weights(weights)
