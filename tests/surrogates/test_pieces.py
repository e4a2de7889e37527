"""Layers and the last pointwise network in pieces equal the plain ones, with their gradients."""

import pytest
import torch
from torch.nn.functional import gelu

from headrace.surrogates import pieces
from headrace.surrogates.fourier_network import FourierNetwork, Pointwise
from headrace.surrogates.spectral import forward_matrix, inverse_matrix, row_spectra


def test_values_and_gradients_equal_the_plain_form(monkeypatch):
    monkeypatch.setattr(pieces, "POINTS", 16)
    torch.manual_seed(0)
    first, second = Pointwise(5, 12).double(), Pointwise(12, 2).double()
    torch.nn.init.normal_(first.bias)
    x = torch.randn(3, 5, 37, dtype=torch.float64, requires_grad=True)
    inputs = [x, first.weight, first.bias, second.weight, second.bias]
    expected = second(gelu(first(x.transpose(0, 1)))).transpose(0, 1)
    slope = torch.randn_like(expected)
    found = pieces.projection(*inputs)
    assert torch.allclose(found, expected, rtol=1e-13)
    pairs = zip(torch.autograd.grad(found, inputs, slope), torch.autograd.grad(expected, inputs, slope), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in pairs)


@pytest.mark.parametrize("inputs", [1, 5])
@pytest.mark.parametrize(("grid", "modes"), [((6, 8), (2, 4)), ((7, 11), (3, 2)), ((5, 6, 7), (2, 3, 2))])
@pytest.mark.parametrize("rank", [None, 2])
def test_a_network_in_pieces_is_the_plain_one(monkeypatch, inputs, grid, modes, rank):
    monkeypatch.setattr(pieces, "NUMBERS", 4 * 2 * grid[-1])  # two rows; seven of an odd grid leave one over
    torch.manual_seed(0)
    network = FourierNetwork(inputs, 2, 4, modes=modes, periods=(1.0, 1.25, 1.0)[: len(grid)], layers=3, rank=rank)
    network.double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, inputs, *grid, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(3, 2, *grid, dtype=torch.float64)
    asked = [x, *network.parameters()]

    taken, blend = [], pieces.blend
    monkeypatch.setattr(pieces, "blend", lambda *parts, active: taken.append(active) or blend(*parts, active=active))

    def found(usable):
        monkeypatch.setattr(pieces, "usable", lambda x: usable)
        y = network(x)
        return y.detach(), *torch.autograd.grad(y, asked, slope)

    pairs = list(zip(found(True), found(False), strict=True))
    assert taken == [True, True, False]
    for in_pieces, plain in pairs:
        assert (in_pieces - plain).norm() <= 1e-13 * plain.norm()


def test_gradients_of_a_piecewise_layer_are_those_of_its_differences(monkeypatch):
    monkeypatch.setattr(pieces, "NUMBERS", 20)
    torch.manual_seed(0)
    last = (5, 2, 1.0, torch.float64, torch.device("cpu"))  # points, modes, period
    forward, inverse = forward_matrix(*last), inverse_matrix(*last)
    shapes = ((2, 3, 4, 5), (2, 2, 4, 4), (2, 3), (2,))  # states, row spectra, skip, bias
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    for active in (False, True):
        assert torch.autograd.gradcheck(lambda *i, a=active: pieces.blend(*i, forward, inverse, active=a), inputs)
        assert torch.autograd.gradcheck(lambda *i, a=active: pieces.blend(*i, None, inverse, active=a)[0], inputs)
    y, spectra = pieces.blend(*inputs, forward, inverse, active=True)
    assert torch.allclose(spectra, row_spectra(y, forward), rtol=1e-13)


def test_layers_of_small_planes_are_left_whole():
    assert pieces.large(32, (64, 64)) and pieces.large(64, (3, 32, 64))
    assert not pieces.large(32, (32, 64)) and not pieces.large(10**6, (10**3,))


def test_a_batch_of_none_goes_through_in_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "NUMBERS", 16)
    monkeypatch.setattr(pieces, "usable", lambda x: True)
    network = FourierNetwork(1, 2, 4, modes=(2, 2), periods=(1.0, 1.0), layers=2)
    y = network(torch.zeros(0, 1, 6, 7))
    y.sum().backward()
    assert y.shape == (0, 2, 6, 7)
    assert not any(parameter.grad.any() for parameter in network.parameters())


def test_a_network_takes_them_in_training_only(monkeypatch):
    monkeypatch.setattr(pieces, "POINTS", 16)
    taken, projection = [], pieces.projection
    monkeypatch.setattr(pieces, "projection", lambda x, *parts: taken.append(x.shape) or projection(x, *parts))
    network = FourierNetwork(1, 1, 4, modes=(2, 2), periods=(1.0, 1.0), layers=1)
    x = torch.randn(2, 1, 6, 6)
    with torch.no_grad():
        network(x)
    assert not taken
    network(x)
    assert taken == [(1, 4, 72)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_half_precision_is_not_summed_over_pieces(dtype):
    assert pieces.usable(torch.zeros(1, 1 + pieces.POINTS, dtype=dtype)) == (dtype.itemsize > 2)


def test_transforms_of_functions_see_the_plain_form(monkeypatch):
    monkeypatch.setattr(pieces, "POINTS", 16)
    torch.manual_seed(0)
    network = FourierNetwork(1, 1, 4, modes=(2, 2), periods=(1.0, 1.0), layers=2).double()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    weights = dict(network.named_parameters())
    found = torch.func.grad(lambda w: torch.func.functional_call(network, w, (x,)).square().mean())(weights)
    expected = torch.autograd.grad(network(x).square().mean(), weights.values())
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found.values(), expected, strict=True))
