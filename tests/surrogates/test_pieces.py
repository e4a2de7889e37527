"""The last pointwise network in pieces equals the plain one, with its gradient."""

import torch
from torch.nn.functional import gelu

from headrace.surrogates import pieces
from headrace.surrogates.fourier_network import FourierNetwork, Pointwise


def test_values_and_gradients_equal_the_plain_form(monkeypatch):
    monkeypatch.setattr(pieces, "POINTS", 16)
    torch.manual_seed(0)
    first, second = Pointwise(5, 12).double(), Pointwise(12, 2).double()
    torch.nn.init.normal_(first.bias)
    x = torch.randn(5, 3, 7, 2, dtype=torch.float64, requires_grad=True)
    inputs = [x, first.weight, first.bias, second.weight, second.bias]
    expected = second(gelu(first(x)))
    slope = torch.randn_like(expected)
    found = pieces.projection(*inputs)
    assert torch.allclose(found, expected, rtol=1e-13)
    pairs = zip(torch.autograd.grad(found, inputs, slope), torch.autograd.grad(expected, inputs, slope), strict=True)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in pairs)


def test_a_network_takes_them_in_training_only(monkeypatch):
    monkeypatch.setattr(pieces, "POINTS", 16)
    network = FourierNetwork(1, 1, 4, modes=(2, 2), periods=(1.0, 1.0), layers=1)
    x = torch.randn(2, 1, 6, 6)
    assert "_Projection" in type(network(x).grad_fn.next_functions[0][0].next_functions[0][0]).__name__
    with torch.no_grad():
        assert not pieces.usable(network.lifting(x.transpose(0, 1)))


def test_transforms_of_functions_see_the_plain_form(monkeypatch):
    monkeypatch.setattr(pieces, "POINTS", 16)
    torch.manual_seed(0)
    network = FourierNetwork(1, 1, 4, modes=(2, 2), periods=(1.0, 1.0), layers=2).double()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    weights = dict(network.named_parameters())
    found = torch.func.grad(lambda w: torch.func.functional_call(network, w, (x,)).square().mean())(weights)
    expected = torch.autograd.grad(network(x).square().mean(), weights.values())
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found.values(), expected, strict=True))
