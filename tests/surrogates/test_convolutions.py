"""Convolutions on boxes, and what U-Net and ConvNet promise beyond every surrogate."""

import pytest
import torch

from headrace.surrogates import ConvNet, Stepping, UNet
from headrace.surrogates.autoregressive import Channels
from headrace.surrogates.convnet import DILATED
from headrace.surrogates.convolution import BoxConv, Upsample
from headrace.surrogates.unet import UNetwork
from tests.surrogates.problems import wave_problem


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (5, 1, 1), (3, 1, 4), (3, 2, 1), (1, 1, 1)])
def test_around_periodic_axes_the_state_goes_on_and_beyond_walls_it_is_zero(kernel, stride, dilation):
    conv = BoxConv(2, 3, periodic=(True, False), kernel=kernel, stride=stride, dilation=dilation)
    x = noise(1, 2, 9, 10)
    reach = dilation * (kernel // 2)
    by_index = x[:, :, (torch.arange(-reach, 9 + reach) % 9)]
    padded = torch.nn.functional.pad(by_index, (reach, reach, 0, 0))
    expected = torch.nn.functional.conv2d(padded, conv.conv.weight, conv.conv.bias, stride=stride, dilation=dilation)
    assert torch.allclose(conv(x), expected, atol=1e-5)
    assert conv(x).shape[2:] == (-(-9 // stride), -(-10 // stride))


@pytest.mark.parametrize("grid", [(16, 12), (15, 11)])
def test_coarse_grids_come_back_to_the_fine_one(grid):
    up, down = Upsample(2, 2, periodic=(True, False)), BoxConv(2, 2, periodic=(True, False), stride=2)
    assert up(down(noise(1, 2, *grid)), grid).shape[2:] == grid


def test_upsampling_on_a_circle_commutes_with_its_shifts():
    up = Upsample(2, 3, periodic=(True,))
    x = noise(1, 2, 8)
    assert torch.allclose(up(x.roll(3, -1), (16,)), up(x, (16,)).roll(6, -1), atol=1e-5)


def test_a_kernel_that_goes_twice_around_is_refused():
    with pytest.raises(ValueError, match="periodic axis of 3 points cannot be continued by 4"):
        BoxConv(1, 1, periodic=(True,), dilation=4)(noise(1, 1, 3))


def test_the_default_unet_of_width_64_has_the_published_number_of_weights():
    # Gupta and Brandstetter (2022), U-Net mod 64: 144 million; four known states of three fields -> one.
    with torch.device("meta"):
        network = UNetwork(Channels(inputs=12, states=12, outputs=3, conditions=0), UNet(width=64), (False, False))
    assert round(sum(p.numel() for p in network.parameters()), -6) == 144_000_000


@pytest.mark.parametrize("arguments", [
    {"width": 26, "blocks": 8, "activation": "relu"},
    {"width": 32, "blocks": 2, "dilations": (1, 2, 4, 2, 1), "activation": "relu"},
])  # fmt: skip
def test_the_small_networks_of_apebench_have_about_32_thousand_weights(arguments):
    surrogate = ConvNet(**arguments, stepping=Stepping(inputs=()))
    surrogate.setup(wave_problem((160,), fields=("u",)))
    assert 31_000 < sum(p.numel() for p in surrogate.parameters()) < 33_500


@pytest.mark.parametrize(("dilations", "reach"), [((1, 1), 4), (DILATED, 2 * 22)])
def test_a_convnet_sees_as_far_as_it_says_and_no_further(dilations, reach):
    problem = wave_problem((101,), fields=("u",), periodic=(False,))
    surrogate = ConvNet(width=4, blocks=2, dilations=dilations, stepping=Stepping(inputs=()))
    surrogate.setup(problem)
    torch.nn.init.ones_(surrogate.network.output.conv.weight)
    x = noise(1, 1, 101).requires_grad_()
    surrogate.network(x)[0, 0, 50].backward()
    seen = x.grad[0, 0].nonzero().flatten() - 50
    assert surrogate.reach == reach
    assert seen.min() == -reach and seen.max() == reach


@pytest.mark.parametrize("shape", [(9, 17), (16, 16), (31, 10)])
def test_a_unet_works_on_grids_that_it_was_not_made_for(shape):
    surrogate = UNet(width=8, multipliers=(1, 2, 2))
    surrogate.setup(wave_problem((16, 16)))
    states = surrogate.predict(noise(2, 1, 2, *shape), torch.ones(2, 2), torch.tensor([0.1]))
    assert states.shape == (2, 1, 2, *shape)


@pytest.mark.parametrize(
    ("cls", "arguments", "words"),
    [(UNet, {}, r"4 levels needs 9 points per axis.*\(16, 8\)"), (UNet, {"multipliers": ()}, "multipliers"),
     (UNet, {"width": 0}, "width 0"), (ConvNet, {"dilations": (0,)}, "dilations"), (ConvNet, {"kernel": 4}, "kernel 4"),
     (ConvNet, {"activation": "x"}, "gelu"), (ConvNet, {"blocks": 0}, "blocks 0"),
     (ConvNet, {"dilations": (16,)}, "periodic axes of 16 points.*one of 8")],
)  # fmt: skip
def test_convolutional_networks_name_what_does_not_fit(cls, arguments, words):
    with pytest.raises(ValueError, match=words):
        cls(**arguments).setup(wave_problem((16, 8)))


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_a_unet_has_nothing_to_normalise_over_on_a_single_point(shape):
    problem = wave_problem(shape)
    with pytest.raises(ValueError, match=r"normalises single numbers on the grid .*norm=false"):
        UNet(width=8, multipliers=(1,)).setup(problem)
    for form in ({"width": 8, "norm": False}, {"width": 12}):
        surrogate = UNet(multipliers=(1,), **form)
        surrogate.setup(problem)
        assert surrogate.predict(noise(1, 1, 2, *shape), torch.ones(1, 2), torch.tensor([0.1])).isfinite().all()
