"""The fused rounds of messages equal the plain ones: in the interpreter of Triton, and on a GPU where there is one."""

import pytest
import torch

from headrace.surrogates import MessagePassing, WindowBatch, fused_messages
from headrace.surrogates.graph import offsets_within
from headrace.surrogates.message_passing import PUBLISHED, Band, MessageRound
from tests.surrogates.problems import wave_problem, wave_windows
from tests.surrogates.test_fused_fourier import farthest, in_interpreter, needs_gpu, needs_triton, no_number

# Hidden, states, conditions, batch, grid, periodic, radius, rounds: sizes that fill no tile, walls, a plane.
CASES = [
    (20, 3, 2, 3, (13,), (True,), 3.0, 2),
    (16, 2, 0, 1, (7,), (False,), 2.0, 1),
    (8, 2, 1, 2, (4, 5), (True, False), 1.5, 2),
]


def made(hidden, states, conditions, batch, grid, periodic, radius, rounds, dtype=torch.float32, device="cpu"):
    """Return rounds, band and inputs."""
    torch.manual_seed(0)
    network = torch.nn.ModuleList(MessageRound(hidden, states, len(grid), conditions) for _ in range(rounds))
    band = Band(periodic, (1.0,) * len(grid), radius)
    h, u, theta = (torch.randn(*shape, dtype=torch.float64) for shape in
                   ((batch, *grid, hidden), (batch, *grid, states), (batch, conditions)))  # fmt: skip
    return (network.to(device, dtype), band.to(device, dtype),
            *(x.to(device, dtype).requires_grad_() for x in (h, u, theta)))  # fmt: skip


def plain(network, band, h, u, theta):
    for one in network:
        h = one(h, u, theta[(slice(None), *(None,) * (h.ndim - 2))], band)
    return h


def values_and_gradients(form, network, band, *inputs):
    out = form(network, band, *inputs)
    gradient = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    wanted = [*inputs, *network.parameters()]
    return [out, *torch.autograd.grad(out, [x for x in wanted if x.numel()], gradient)]


def fused(network, band, h, u, theta):
    return fused_messages.message_rounds(h, u, theta, band, network)


def distances():
    for case in CASES:
        yield farthest(values_and_gradients(fused, *made(*case)),
                       values_and_gradients(plain, *made(*case, dtype=torch.float64)))  # fmt: skip


@needs_triton
def test_kernels_equal_the_plain_rounds_and_their_gradients():
    found = in_interpreter(__file__)
    assert len(found) == len(CASES)
    assert max(found) < 2e-5


@pytest.mark.parametrize("case", CASES)
def test_the_table_of_neighbours_is_that_of_the_shifted_slices(case):
    grid, periodic, radius = case[4:7]
    offsets = offsets_within(radius, len(grid))
    senders, receivers, share = fused_messages.neighbours(tuple(offsets), grid, periodic, torch.device("cpu"))
    band, points = Band(periodic, (1.0,) * len(grid), radius), torch.arange(share.numel())
    numbers = points.double().reshape(1, *grid, 1)
    mean = band(torch.zeros_like(numbers), numbers, lambda apart: 0 * apart[:, :1].double(), lambda first: first)
    assert torch.allclose((senders.clamp(min=0) * (senders >= 0)).sum(0) * share, mean.flatten().float())
    for s in range(len(offsets)):
        assert all(receivers[s, j] == i for i, j in zip(points, senders[s], strict=True) if j >= 0)
    assert (receivers >= 0).sum() == (senders >= 0).sum()


def test_a_first_use_in_inference_mode_leaves_a_table_that_training_can_keep():
    with torch.inference_mode():
        table = fused_messages.neighbours(((1,), (-1,)), (11,), (True,), torch.device("cpu"))
    assert not any(part.is_inference() for part in table)


@needs_gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("tf32", 1e-2)])
@pytest.mark.parametrize("case", [(128, 25, 1, 32, (100,), (True,), 3.0, 6),
                                  (64, 4, 2, 3, (17, 9), (True, False), 2.0, 2)])  # fmt: skip
def test_a_gpu_agrees_with_float64(case, precision, tolerance, monkeypatch):
    """Gradients that are sums over all points cancel: they keep a digit less."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", precision != "fp32")
    expected = values_and_gradients(plain, *made(*case, dtype=torch.float64, device="cuda"))
    found = values_and_gradients(fused, *made(*case, device="cuda"))
    assert farthest(found[:1], expected[:1]) < tolerance
    assert farthest(found, expected) < 10 * tolerance


@needs_gpu
def test_the_network_takes_the_kernels_on_a_gpu_and_says_the_same():
    model = MessagePassing(stepping=PUBLISHED)
    model.setup(wave_problem((40,), num_snapshots=249))
    torch.nn.init.normal_(model.network.output.weight)
    batch = wave_windows(model.problem, model.window, batch=2)
    expected = model.eval().training_loss(batch)
    on_gpu = {name: getattr(batch, name).cuda() for name in ("states", "times", "parameters")}
    found = model.cuda().training_loss(WindowBatch(**on_gpu))
    assert fused_messages.usable(torch.zeros(2, 40, 128, device="cuda"), offsets=6, rounds=6)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=0)


@needs_gpu
def test_what_is_no_number_stays_none_in_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    network, band, h, u, theta = made(64, 4, 2, 3, (17, 9), (True, False), 2.0, 2, device="cuda")
    with torch.no_grad():
        h[0, 3, 4, 5] = no_number()
    out = fused(network, band, h, u, theta)
    assert out[0].isnan().any()
    assert out[1:].isfinite().all()


if __name__ == "__main__":
    fused_messages.PARTS = 2  # programs are what takes time in the interpreter
    print(*distances())
