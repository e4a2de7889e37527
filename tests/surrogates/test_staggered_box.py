"""Flow in a periodic box for staggered networks: turned flows, and changes without divergence."""

import pytest
import torch


@pytest.fixture(scope="module")
def box(loaded):
    """Return the module of the benchmark."""
    return loaded("staggered.box")


@pytest.mark.parametrize("seed", range(4))
def test_a_turned_flow_becomes_what_the_flow_becomes_turned(box, seed):
    problem = box.Box(points=12)
    solver, steps = problem.solver(12, problem.frame, "cpu", torch.float64)
    start = problem.starts(2, 3, "cpu").double()

    def turned(fields):
        return box.turned(fields, torch.Generator().manual_seed(seed))

    assert not torch.equal(turned(start), start)
    torch.testing.assert_close(solver.advanced(turned(start), steps), turned(solver.advanced(start, steps)))


def test_changes_of_parts_have_no_divergence_on_their_own_grid(box):
    n = 9
    project = box.WithoutDivergence(torch.nn.Identity(), n).double()
    change = torch.randn(2, 3, n, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    free = project(change)
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    spectrum = torch.fft.fftn(free, dim=(-3, -2, -1))
    waves = torch.stack(torch.meshgrid(k, k, k, indexing="ij"))
    assert (waves * spectrum).sum(1).abs().max() < 1e-5 * spectrum.abs().max()
    torch.testing.assert_close(project(free), free, rtol=0, atol=1e-6)
