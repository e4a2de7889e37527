"""The fused U-Nets equal the plain one: in the interpreter of Triton, and on a GPU where there is one."""

import subprocess
import sys

import pytest
import torch

from headrace.surrogates import UNet, fused_unet
from headrace.surrogates.autoregressive import Channels
from headrace.surrogates.stagger import Stagger
from headrace.surrogates.staggered_network import StaggeredNetwork
from headrace.surrogates.unet import UNetwork
from tests.surrogates.test_fused_fourier import farthest, in_interpreter, needs_gpu, needs_triton

# Parts, batch, width, grid, periodic: channels that fill no tile, an odd grid between walls, two tiles of channels.
CASES = [(2, 1, 6, (4, 6), (True, True)), (1, 2, 16, (3, 5), (False, True)), (1, 1, 80, (2, 3), (True, True))]


def maker(width, periodic, blocks=1):
    """Return inputs -> a U-Net whose output is not zero."""
    form = UNet(width=width, blocks=blocks, multipliers=(1, 2), norm=False)
    return lambda inputs: UNetwork(Channels(inputs=inputs, states=1, outputs=2, conditions=0), form, periodic)


def made(parts, batch, width, grid, periodic, device="cpu"):
    """Return networks, inputs and the outputs of each network in float64."""
    torch.manual_seed(0)
    networks = [maker(width, periodic)(3).to(device) for _ in range(parts)]
    x = torch.randn(parts, batch, 3, *grid, device=device)
    expected = torch.stack([network.double()(part) for network, part in zip(networks, x.double(), strict=True)])
    return [network.float() for network in networks], x, expected.detach()


def distances():
    for case in CASES:
        networks, x, expected = made(*case)
        weights, _ = torch.func.stack_module_state(networks)
        with torch.no_grad():
            yield farthest([fused_unet.unets(networks[0], weights, x)], [expected])


def distance_of_staggered_networks(shared):
    """Return how far the two forms are apart where the kernels are taken of themselves."""
    network = StaggeredNetwork(maker(6, (True, True)), Stagger((2, 1), 1), fields=2, shared=shared, scale=2.0, gain=0.5)
    window = torch.randn(1, 1, 2, 4, 6)
    with torch.no_grad():
        expected, known = network(window), fused_unet.usable
        fused_unet.usable = lambda *_: True
        found = network(window)
        fused_unet.usable = known
    return farthest([found - window], [expected - window])


@needs_triton
def test_kernels_equal_the_plain_networks():
    found = in_interpreter(__file__)
    assert len(found) == len(CASES) + 2
    assert max(found) < 2e-6


@needs_gpu
def test_what_the_kernels_do_not_know_takes_the_plain_form():
    network, x = maker(8, (True, True))(3).cuda(), torch.randn(1, 1, 3, 4, 6, device="cuda")
    others = [UNetwork(Channels(inputs=3, states=1, outputs=2, conditions=count), UNet(width=8, norm=norm), (True,) * 2)
              for count, norm in ((1, False), (0, True))]  # fmt: skip
    changed = maker(8, (True, True))(3).cuda()
    torch.nn.utils.parametrizations.weight_norm(changed.first.conv)
    assert not fused_unet.usable(network, x)  # gradients are wanted
    with torch.no_grad():
        assert fused_unet.usable(network, x)
        assert not any(fused_unet.usable(other, x) for other in (*others, changed))
        unfit = (x.cpu(), x.double(), x.bfloat16(), x[0], x[:, :, :2])
        assert not any(fused_unet.usable(network, other) for other in unfit)
        with pytest.raises(RuntimeError, match="channels"):
            network(x[0, :, :2])


def test_newer_switches_of_precision_count_where_the_older_ones_cannot_be_read():
    """In a process of its own, as PyTorch takes back no newer switch."""
    program = """
import torch
from headrace.surrogates.fused_fourier import rounds_to_tf32
convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
print(rounds_to_tf32(convolutions), rounds_to_tf32(products))
convolutions.conv.fp32_precision, products.fp32_precision = "ieee", "tf32"
print(rounds_to_tf32(convolutions), rounds_to_tf32(products))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert run.stdout.split() == ["True", "False", "False", "True"]


@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("tf32", 1e-2)])
@pytest.mark.parametrize("case", [(8, 2, 32, (64, 48), (True, True)), (3, 1, 6, (17, 33), (False, True)),
                                  (1, 3, 64, (24, 40), (False, False))])  # fmt: skip
def test_a_gpu_agrees_with_float64(case, precision, tolerance, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", precision != "fp32")
    networks, x, expected = made(*case, device="cuda")
    weights, _ = torch.func.stack_module_state(networks)
    with torch.no_grad():
        assert fused_unet.usable(networks[0], x) == (precision == "tf32")
        assert farthest([fused_unet.unets(networks[0], weights, x)], [expected]) < tolerance


@needs_gpu
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("streams", [0, 2])
def test_staggered_networks_give_without_gradients_what_they_give_with_them(shared, streams):
    torch.manual_seed(0)
    make = maker(16, (True, True), blocks=2)
    network = StaggeredNetwork(make, Stagger((2, 2), 2), fields=2, shared=shared, streams=streams).cuda()
    window = torch.randn(3, 2, 2, 32, 48, device="cuda")
    expected = network(window)
    expected.sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())
    with torch.no_grad():
        found = network(window)
        parts = network.stagger.split(window)[:, :, 0]
        alone = torch.stack([network.alone(index, part) for index, part in enumerate(parts)])
    assert farthest([found - window], [expected - window]) < 1e-2
    assert farthest([network.stagger.split(found)[:, :, 0]], [alone]) < 1e-5


if __name__ == "__main__":
    torch.backends.cudnn.allow_tf32 = False  # then products have the accuracy of float32
    print(*distances(), *(distance_of_staggered_networks(shared) for shared in (True, False)))
