"""The spectral layer against a float64 reference with complex FFTs, and the symmetries it must have."""

import math

import pytest
import torch

from headrace.surrogates.fourier_network import FourierNetwork
from headrace.surrogates.spectral import SpectralConv, forward_matrix, inverse_matrix

# Grid and modes: even, odd and prime sizes, all modes kept (Nyquist included) and few.
GRIDS = [
    ((16,), (9,)), ((17,), (9,)), ((8,), (1,)), ((2,), (2,)), ((101,), (16,)),
    ((12, 16), (6, 9)), ((13, 17), (6, 9)), ((64, 64), (12, 12)), ((37, 45), (12, 12)), ((16, 7), (3, 4)),
    ((8, 6, 10), (4, 3, 6)), ((7, 5, 11), (3, 2, 6)), ((9, 8, 4), (2, 4, 1)),
]  # fmt: skip


def layer(inputs, outputs, modes, periods=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return SpectralConv(inputs, outputs, modes=modes, periods=periods or (1.0,) * len(modes), generator=generator)


def applied(conv, x):
    """The layer on (batch, channels, *grid)."""
    return conv(x.transpose(0, 1)).transpose(0, 1)


def reference(x, conv):
    """The same layer with complex FFTs in float64, the imaginary parts of the self-conjugate columns put to 0."""
    modes, grid = conv.modes, x.shape[2:]
    ndim = len(grid)
    axes = tuple(range(2, 2 + ndim))
    weight = conv.weight.matrices.detach().double()
    weight = torch.complex(weight[:, :, 0], weight[:, :, 1]).reshape(*conv.kept, x.shape[1], -1)
    index = [torch.arange(-m, m) % n for m, n in zip(modes[:-1], grid[:-1], strict=True)]
    corner = (slice(None), slice(None), *torch.meshgrid(*index, torch.arange(modes[-1]), indexing="ij"))
    kept = torch.fft.fftn(x.double(), dim=axes, norm="forward")[corner]
    letters = "xyz"[:ndim]
    product = torch.einsum(f"bi{letters},{letters}io->bo{letters}", kept, weight)
    half = (*grid[:-1], grid[-1] // 2 + 1)
    spectrum = torch.zeros(len(x), product.shape[1], *half, dtype=torch.complex128)
    spectrum[corner] = product
    if ndim > 1:
        spectrum = torch.fft.ifftn(spectrum, dim=axes[:-1], norm="forward")
    spectrum[..., 0].imag.zero_()
    if grid[-1] % 2 == 0:
        spectrum[..., -1].imag.zero_()
    return torch.fft.irfft(spectrum, n=grid[-1], dim=-1, norm="forward")


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("grid", "modes"), GRIDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_equals_the_float64_reference(grid, modes, dtype, tolerance):
    conv = layer(3, 4, modes).to(dtype)
    x = torch.randn(2, 3, *grid, dtype=dtype, generator=torch.Generator().manual_seed(1))
    error = relative(applied(conv, x).double(), reference(x, conv))
    assert error < tolerance, f"{grid} {modes}: {error:.1e} from the reference"


# Every grid and number of modes that benchmarks measure.
MEASURED = [
    ((1024,), (16,)), ((64, 64), (8, 8)), ((64, 64), (12, 12)), ((64, 64), (16, 16)), ((61, 67), (12, 12)),
    ((128, 128), (16, 16)), ((256, 256), (16, 16)), ((256, 256), (32, 32)), ((64, 64, 64), (8, 8, 8)),
]  # fmt: skip


@pytest.mark.parametrize(("grid", "modes"), MEASURED)
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"))],
)
def test_float32_keeps_five_digits_at_every_measured_size_on_every_device(grid, modes, device):
    conv = layer(2, 2, modes)
    x = torch.randn(1, 2, *grid, generator=torch.Generator().manual_seed(1))
    expected = reference(x, conv)
    assert relative(applied(conv.to(device), x.to(device)).double().cpu(), expected) < 1e-5


def test_padding_equals_the_transform_of_the_state_continued_by_zeros():
    conv = layer(2, 2, (4, 4), periods=(1.5, 1.25)).double()
    x = torch.randn(1, 2, 12, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    padded = torch.zeros(1, 2, 18, 20, dtype=torch.float64)
    padded[..., :12, :16] = x
    assert relative(applied(conv, x), reference(padded, conv)[..., :12, :16]) < 1e-13


def test_imaginary_parts_at_wave_numbers_0_and_nyquist_have_no_influence():
    n, m = 16, 9
    inverse = inverse_matrix(n, m, 1.0, torch.float64, torch.device("cpu"))
    assert torch.equal(inverse[1], torch.zeros(n, dtype=torch.float64))
    assert torch.equal(inverse[2 * m - 1], torch.zeros(n, dtype=torch.float64))
    forward = forward_matrix(n, m, 1.0, torch.float64, torch.device("cpu"))
    assert torch.allclose(forward @ inverse, torch.eye(n, dtype=torch.float64), atol=1e-14)


def test_gradients_equal_finite_differences():
    conv = layer(2, 2, (2, 3)).double()
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: torch.func.functional_call(conv, {"weight.matrices": w}, (x,)),
                                    (x, conv.weight.matrices))  # fmt: skip


@pytest.mark.parametrize(("grid", "modes", "shift"), [((16,), (5,), (3,)), ((13, 12), (4, 4), (5, 7))])
def test_commutes_with_translations_on_a_periodic_grid(grid, modes, shift):
    conv = layer(2, 3, modes).double()
    x = torch.randn(1, 2, *grid, dtype=torch.float64)
    axes = tuple(range(2, 2 + len(grid)))
    assert relative(applied(conv, x.roll(shift, axes)), applied(conv, x).roll(shift, axes)) < 1e-13


def test_gives_the_same_function_on_every_grid():
    conv = layer(1, 1, (4, 4)).double()

    def output(n, m):
        x, y = torch.meshgrid(torch.arange(n) / n, torch.arange(m) / m, indexing="ij")
        smooth = torch.sin(2 * math.pi * (x + 2 * y)) + torch.cos(6 * math.pi * x)
        return conv(smooth.double()[None, None])

    coarse = output(16, 12)
    assert relative(output(48, 60)[..., ::3, ::5], coarse) < 1e-6  # the coordinates are float32
    assert relative(output(32, 36)[..., ::2, ::3], coarse) < 1e-6


@pytest.mark.parametrize(("grid", "modes"), [((8,), (3,)), ((8, 6), (3, 2)), ((4, 6, 5), (2, 3, 2))])
def test_takes_no_samples_at_all(grid, modes):
    assert applied(layer(2, 3, modes), torch.zeros(0, 2, *grid)).shape == (0, 3, *grid)


def test_keeps_the_published_number_of_weights():
    # Li et al. (2021): 2 corners of m x m complex 20 x 20 matrices in 2-D, 4 of m x m x m in 3-D.
    assert layer(20, 20, (8, 8)).weight.matrices.numel() == 2 * 2 * 8**2 * 20**2
    assert layer(20, 20, (8, 8, 8)).weight.matrices.numel() == 2 * 4 * 8**3 * 20**2


@pytest.mark.parametrize(("grid", "modes"), [((16,), (10,)), ((8, 16), (5, 4)), ((8, 8), (4,)), ((8, 8), (0, 4))])
def test_names_modes_that_the_grid_lacks(grid, modes):
    with pytest.raises(ValueError, match="odes"):
        layer(1, 1, modes)(torch.zeros(1, 1, *grid))


def test_training_works_after_a_first_use_in_inference_mode():
    conv = layer(1, 1, (3, 5))
    x = torch.randn(1, 1, 9, 19)  # sizes that no other test has put into the cache
    with torch.inference_mode():
        conv(x)
    conv(x).sum().backward()
    assert conv.weight.matrices.grad.abs().sum() > 0


def test_an_exporter_leaves_no_placeholders_behind():
    conv, x = layer(1, 1, (3, 5)), torch.randn(1, 1, 9, 23)  # sizes that no other test has put into the cache
    exported = torch.export.export(conv, (x,), strict=False)
    assert torch.equal(conv(x), exported.module()(x)) and type(conv(x)) is torch.Tensor


def test_distributed_training_and_a_fused_optimiser_take_the_network(tmp_path):
    """Both refuse complex weights; over gloo, of one process, whose mean over processes is its own gradient."""
    x = torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(0))

    def trained(wrap, **how):
        torch.manual_seed(0)
        network = FourierNetwork(3, 1, 4, modes=(3, 3), periods=(1.0, 1.0), layers=2)
        called, optimizer = wrap(network), torch.optim.Adam(network.parameters(), lr=1e-2, **how)
        for _ in range(3):
            optimizer.zero_grad()
            called(x).square().mean().backward()
            optimizer.step()
        return torch.cat([weight.detach().flatten() for weight in network.parameters()])

    meeting = f"file://{tmp_path / 'meeting'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        found = trained(torch.nn.parallel.DistributedDataParallel, fused=True)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, trained(lambda network: network), rtol=1e-4, atol=1e-5)


def test_the_compiler_takes_the_whole_network_in_one_piece_without_complex_numbers():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    network = FourierNetwork(3, 1, 8, modes=(4, 4), periods=(1.0, 1.25), layers=2)
    x = torch.randn(2, 3, 16, 13, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    compiled(x)
    found, expected = compiled(x), network(x)
    assert len(graphs) == 1, "the second call uses what the first one made"
    assert torch.equal(found, expected)
    weights = list(network.parameters())
    slopes = (torch.autograd.grad(out.square().sum(), weights) for out in (found, expected))
    assert all(map(torch.equal, *slopes))
    values = [node.meta.get("example_value") for node in graphs[0].graph.nodes]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    assert len(tensors) > 50 and not any(value.is_complex() for value in tensors)


@pytest.mark.parametrize(("grid", "modes"), [((17,), (9,)), ((12, 13), (3, 4)), ((8, 6, 10), (2, 3, 4))])
def test_factorised_weights_equal_the_dense_ones_that_they_stand_for(grid, modes):
    periods = (1.0,) * len(modes)
    factorised = SpectralConv(3, 4, modes=modes, periods=periods, rank=5).double()
    dense = SpectralConv(3, 4, modes=modes, periods=periods).double()
    parts = factorised.weight
    product = torch.ones(5, *(1,) * len(modes), dtype=torch.complex128)
    for axis, factor in enumerate(parts.factors):
        view = [5, *(-1 if other == axis else 1 for other in range(len(modes)))]
        product = product * torch.complex(factor[0], factor[1]).reshape(view)
    whole = torch.einsum("qi,qk,oq->kio", parts.encode + 0j, product.flatten(1), parts.decode + 0j)
    dense.weight.matrices.data.copy_(torch.stack((whole.real, whole.imag), dim=2))
    x = torch.randn(3, 2, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(factorised(x), dense(x), rtol=1e-10, atol=1e-12)
    assert sum(p.numel() for p in factorised.parameters()) == 5 * (3 + 4 + 2 * sum(factorised.kept))


def test_factorised_weights_start_at_the_size_of_dense_ones():
    x = torch.randn(64, 4, 64, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    make = [SpectralConv(64, 64, modes=(16,), periods=(1.0,), rank=rank, generator=generator) for rank in (None, 64)]
    dense, factorised = (conv(x).std().item() for conv in make)
    assert 0.8 < factorised / dense < 1.25
