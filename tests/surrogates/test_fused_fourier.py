"""The fused kernels equal the plain layers: in the interpreter of Triton, and on a GPU where there is one."""

import importlib.util
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from headrace.surrogates import fused_fourier
from headrace.surrogates.fourier_network import FourierLayer, FourierNetwork, Pointwise

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (pip install triton)"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


def in_interpreter(file: str) -> list[float]:
    """Return the numbers that a test file prints as a program in the interpreter of Triton.

    Triton reads TRITON_INTERPRET when its kernels are defined: hence a process of its own.
    """
    run = subprocess.run(
        [sys.executable, "-m", f"tests.surrogates.{Path(file).stem}"], env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(file).parents[2], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [float(word) for word in run.stdout.split()]


# Channels, batch, grid, modes, periods, gelu at the end, layers: sizes that fill no tile, walls, Nyquist kept.
STACKS = [
    (20, 2, (4, 12), (2, 2), (1.0, 1.0), True, 2),
    (8, 1, (3, 70), (1, 9), (1.0, 1.25), False, 2),
    (8, 2, (3, 8), (1, 5), (1.25, 1.0), True, 1),
]


def stack(channels, modes, periods, layers, dtype=torch.float32):
    torch.manual_seed(0)
    made = [
        FourierLayer(channels, modes=modes, periods=periods, conditions=0, norm="none", hidden=0, rank=None)
        for _ in range(layers)
    ]
    for layer in made:
        torch.nn.init.normal_(layer.skip.bias)
        layer.to(dtype)
    return made


def parameters_of(layers):
    return [(layer.spectral.weight.matrices, layer.skip.weight, layer.skip.bias) for layer in layers]


def values_and_gradients(out, inputs, seed=1):
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(out)
    return [out, *torch.autograd.grad(out, inputs, gradient)]


def plain(layers, x, active):
    for number, layer in enumerate(layers, start=1):
        x = layer(x, None, active=active or number < len(layers))
    return x


def farthest(found, expected):
    return max(((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-300)).item()
               for a, b in zip(found, expected, strict=True))  # fmt: skip


def distances_of_layers():
    for channels, batch, grid, modes, periods, active, count in STACKS:
        layers = stack(channels, modes, periods, count)
        x = torch.randn(channels, batch, *grid, requires_grad=True)
        inputs = [x, *(part for layer in parameters_of(layers) for part in layer)]
        fused = fused_fourier.fourier_layers(x, parameters_of(layers), modes=modes, periods=periods, active=active)
        yield farthest(values_and_gradients(fused, inputs), values_and_gradients(plain(layers, x, active), inputs))


def distance_of_lifted_layers():
    lifting = Pointwise(3, 12)
    torch.nn.init.normal_(lifting.bias)
    layers = stack(12, (1, 3), (1.0, 1.25), 2)
    x = torch.randn(2, 3, 3, 9, requires_grad=True).transpose(0, 1)  # batch first in memory
    inputs = [x, lifting.weight, lifting.bias, *(part for layer in parameters_of(layers) for part in layer)]
    fused = fused_fourier.lifted_layers(
        x, lifting.weight, lifting.bias, parameters_of(layers), modes=(1, 3), periods=(1.0, 1.25), active=False
    )
    return farthest(values_and_gradients(fused, inputs), values_and_gradients(plain(layers, lifting(x), False), inputs))


def tensors_alive_without_gradients():
    """Return how many states and row spectra of four layers are alive at once where nobody asks for gradients."""
    alive, most, blend = [], 0, fused_fourier._blend

    def counted(x, skip, z, *others, **more):
        nonlocal most
        alive.extend(weakref.ref(tensor) for tensor in (x, z))
        most = max(most, len({id(one()) for one in alive if one() is not None}))
        return blend(x, skip, z, *others, **more)

    fused_fourier._blend = counted
    with torch.no_grad():
        fused_fourier.fourier_layers(
            torch.randn(8, 1, 4, 12), parameters_of(stack(8, (2, 2), (1.0, 1.0), 4)), modes=(2, 2), periods=(1.0, 1.0),
            active=True,
        )  # fmt: skip
    return most


def distance_of_projection():
    torch.manual_seed(0)
    first, second = Pointwise(20, 48), Pointwise(48, 2)
    torch.nn.init.normal_(first.bias)
    x = torch.randn(20, 3, 5, 7, requires_grad=True)
    inputs = [x, first.weight, first.bias, second.weight, second.bias]
    expected = second(torch.nn.functional.gelu(first(x)))
    return farthest(
        values_and_gradients(fused_fourier.projection(*inputs), inputs), values_and_gradients(expected, inputs)
    )


@needs_triton
def test_kernels_equal_the_plain_layers_and_their_gradients():
    *distances, alive = in_interpreter(__file__)
    print(distances)
    assert alive <= 3  # the first state, the one before a layer, and the layer's row spectra
    assert len(distances) == len(STACKS) + 2
    assert max(distances) < 2e-6


def test_the_bias_of_a_layer_is_the_sum_that_the_wave_number_zero_holds():
    plan = fused_fourier.Plan.of((9, 11), (3, 4), (1.0, 1.25), torch.device("cpu"))
    assert torch.equal(plan.inverse[0], torch.ones(11))


def test_without_a_gpu_the_plain_form_runs():
    assert not fused_fourier.usable(torch.zeros(4, 1, 8, 8), (2, 2))


@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("tf32", 1e-2), ("bf16", 3e-2)])
@pytest.mark.parametrize(("channels", "grid", "modes"), [(20, (64, 64), 12), (64, (64, 64), 16), (64, (256, 256), 16),
                                                         (32, (61, 67), 12)])  # fmt: skip
def test_a_gpu_agrees_with_float64(channels, grid, modes, precision, tolerance, monkeypatch):
    """Gradients that are sums over all points cancel: they keep a digit less. Six channels become eight."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", precision != "fp32")
    torch.manual_seed(0)
    exact = FourierNetwork(5, 1, channels, modes=(modes, modes), periods=(1.0, 1.0), layers=2).double().cuda()
    network = FourierNetwork(5, 1, channels, modes=(modes, modes), periods=(1.0, 1.0), layers=2).cuda()
    network.load_state_dict(exact.state_dict())
    x = torch.randn(2, 5, *grid, dtype=torch.float64, device="cuda")
    expected = values_and_gradients(exact(x), list(exact.parameters()))
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        out = network(x.float())
    found = values_and_gradients(out, list(network.parameters()))
    assert farthest(found[:1], expected[:1]) < tolerance
    assert farthest(found, expected) < 10 * tolerance


@needs_gpu
def test_the_compiler_agrees_with_float64_on_a_gpu():
    torch.manual_seed(0)
    exact = FourierNetwork(3, 1, 32, modes=(16, 16), periods=(1.0, 1.0), layers=2).double().cuda()
    network = FourierNetwork(3, 1, 32, modes=(16, 16), periods=(1.0, 1.0), layers=2).cuda()
    network.load_state_dict(exact.state_dict())
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64, device="cuda")
    out = torch.compile(network, fullgraph=True, dynamic=False)(x.float())
    found, expected = (values_and_gradients(y, list(net.parameters()))
                       for y, net in ((out, network), (exact(x), exact)))  # fmt: skip
    assert farthest(found, expected) < 1e-5


def no_number():
    """Return the NaN that a GPU makes, all ones: rounded to TF32 as a whole number it would become zero."""
    return torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)


@needs_gpu
def test_what_is_no_number_stays_none_in_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    torch.manual_seed(0)
    network = FourierNetwork(3, 1, 64, modes=(16, 16), periods=(1.0, 1.0), layers=2).cuda()
    x = torch.randn(2, 3, 64, 64)
    x[0, 1, 5, 7] = no_number()
    out = network(x.cuda())
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no two NVIDIA GPUs")
def test_kernels_run_on_the_gpu_of_their_tensors():
    """Triton starts its kernels on the current device, which here is another one."""
    torch.manual_seed(0)
    network = FourierNetwork(3, 1, 20, modes=(8, 8), periods=(1.0, 1.0), layers=2)
    x, gradients = torch.randn(2, 3, 32, 32), []
    for device in ("cpu", "cuda:1"):
        network.to(device)
        made = values_and_gradients(network(x.to(device)), list(network.parameters()))
        gradients.append([slope.detach().cpu() for slope in made])
    assert torch.cuda.current_device() == 0
    assert farthest(gradients[1], gradients[0]) < 1e-4


if __name__ == "__main__":
    print(*distances_of_layers(), distance_of_lifted_layers(), distance_of_projection())
    print(tensors_alive_without_gradients())
