"""Message passing: shifted slices equal the messages of the paper, edge by edge, and meshes have no numbering."""

import pytest
import torch

from headrace.surrogates import MessagePassing, Stepping, load_surrogate
from headrace.surrogates.graph import Graph, offsets_within
from headrace.surrogates.message_passing import convolved
from tests.surrogates.problems import wave_problem, wave_windows

PLAIN = Stepping(inputs=("parameters", "time"), conditioning="film")


def made(shape=(12,), *, periodic=None, seed=0, stepping=PLAIN, **arguments):
    surrogate = MessagePassing(**{"hidden": 8, "layers": 2, **arguments}, stepping=stepping)
    surrogate.setup(wave_problem(shape, periodic=periodic), seed=seed)
    with torch.no_grad():
        surrogate.network.output.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(5))
    return surrogate


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def one_round_edge_by_edge(messages, h, u, theta, edges):
    """The published formulas: every edge concatenates all that its message depends on; features last, no batch."""
    first = torch.cat((messages.receiver.weight[:, : h.shape[1]], messages.sender.weight, messages.difference.weight,
                       messages.distance.weight, messages.receiver.weight[:, h.shape[1] :]), dim=1)  # fmt: skip
    swish = torch.nn.functional.silu
    mean = []
    for i in range(len(h)):
        sent = []
        for sender, receiver, distance in edges:
            if receiver == i:
                told = torch.cat((h[i], h[sender], u[i] - u[sender], distance, theta))
                sent.append(swish(messages.second(swish(first @ told + messages.receiver.bias))))
        mean.append(torch.stack(sent).mean(0))
    h = h + messages.update(torch.cat((h, torch.stack(mean), theta.expand(len(h), -1)), dim=1))
    return (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize("periodic", [True, False])
def test_shifted_slices_equal_messages_edge_by_edge(periodic):
    n = 9
    network = made((n,), periodic=(periodic,)).network
    h, u, theta = noise(n, 8), noise(n, 2), noise(3)
    edges = [
        ((i + o) % n, i, torch.tensor([-o / n]))
        for i in range(n) for o in (-3, -2, -1, 1, 2, 3) if periodic or 0 <= i + o < n
    ]  # fmt: skip
    expected = one_round_edge_by_edge(network.rounds[0], h, u, theta, edges)
    found = network.rounds[0](h[None], u[None], theta[None, None], network.neighbours)[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_grid_is_a_graph():
    shape, walls = (5, 4), (False, False)
    grid = made(shape, periodic=walls, radius=1.5)
    axes = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    index = torch.arange(20).reshape(shape)
    edges = [
        (index[i + a, j + b], index[i, j])
        for i in range(5) for j in range(4) for a, b in offsets_within(1.5, 2)
        if 0 <= i + a < 5 and 0 <= j + b < 4
    ]  # fmt: skip
    positions = torch.stack([axis.flatten() / n for axis, n in zip(axes, shape, strict=True)], dim=1)
    graph = Graph(positions=positions, edges=torch.tensor(edges).T)
    mesh = MessagePassing(hidden=8, layers=2, graph=graph, stepping=PLAIN)
    mesh.setup(wave_problem((20,), periodic=(False,)))
    h, u, theta = noise(2, 20, 8), noise(2, 20, 2), noise(2, 1, 3)
    on_grid = grid.network.rounds[1](h.reshape(2, 5, 4, 8), u.reshape(2, 5, 4, 2), theta[:, None],
                                     grid.network.neighbours)  # fmt: skip
    # The box is twice as long for the graph, whose positions go from first to last point.
    stretch = torch.tensor([0.8])
    rounds = grid.network.rounds[1]
    with torch.no_grad():
        rounds.distance.weight.mul_(stretch)
    on_mesh = rounds(h, u, theta, mesh.network.neighbours)
    assert torch.allclose(on_mesh, on_grid.reshape(2, 20, 8), atol=1e-5)


def triangles():
    """Two triangles on four points."""
    return Graph.of_mesh([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 2.0]], [[0, 1, 2], [0, 2, 3]])


def test_the_edges_of_a_mesh_go_both_ways_once():
    pairs = {(0, 1), (1, 2), (0, 2), (2, 3), (0, 3)}
    assert {tuple(e) for e in triangles().edges.T.tolist()} == pairs | {(b, a) for a, b in pairs}
    assert triangles().edges.shape == (2, 10)


def test_the_numbering_of_a_mesh_does_not_matter():
    order = torch.tensor([2, 0, 3, 1])
    graph = triangles()
    renumbered = Graph(positions=graph.positions[order], edges=torch.argsort(order)[graph.edges])
    one, other = (made((4,), periodic=(False,), graph=g) for g in (graph, renumbered))
    x, parameters, times = 5 + noise(3, 1, 2, 4), torch.ones(3, 2), torch.tensor([0.1, 0.2])
    assert torch.allclose(
        other.predict(x[..., order], parameters, times), one.predict(x, parameters, times)[..., order], atol=1e-5
    )


def test_a_file_holds_the_mesh(tmp_path):
    surrogate = made((4,), periodic=(False,), graph=triangles())
    surrogate.save(tmp_path / "model")
    loaded = load_surrogate(tmp_path / "model")
    x, parameters, times = noise(3, 1, 2, 4), torch.ones(3, 2), torch.tensor([0.1, 0.2])
    assert torch.equal(loaded.predict(x, parameters, times), surrogate.predict(x, parameters, times))


@pytest.mark.parametrize("bundle", [20, 25, 50])
def test_the_published_network(bundle):
    problem = wave_problem((40,), num_snapshots=249)
    stepping = Stepping(history=25, bundle=bundle, pushforward=1, conditioning="film")
    surrogate = MessagePassing(stepping=stepping)
    surrogate.setup(problem)
    assert surrogate.network.output(torch.relu(surrogate.network.first(torch.zeros(1, 1, 128)))).shape == (1, 2, bundle)
    if bundle == 25:
        assert MessagePassing().architecture() == surrogate.architecture()
    batch = wave_windows(problem, surrogate.window, batch=2)
    assert surrogate.training_loss(batch).shape == (2,)


@pytest.mark.parametrize(("inputs", "kernel", "stride", "n"), [(1, 16, 3, 128), (8, 14, 1, 38), (2, 2, 4, 9)])
def test_the_product_is_the_convolution(inputs, kernel, stride, n):
    convolution = torch.nn.Conv1d(inputs, 3, kernel, stride=stride).double()
    x = noise(2, 5, inputs, n).double()
    expected = convolution(x.flatten(0, 1)).unflatten(0, (2, 5))
    assert torch.allclose(convolved(convolution, x), expected, rtol=0, atol=1e-13)


def test_the_decoder_puts_fields_and_times_in_their_places():
    surrogate = MessagePassing(layers=1, stepping=Stepping(bundle=20))
    surrogate.setup(wave_problem((12,), num_snapshots=20))
    with torch.no_grad():
        surrogate.network.output.weight.zero_()
        surrogate.network.output.bias.copy_(torch.tensor([1.0, 2.0]))
    channels = surrogate.network(noise(3, surrogate.channels(surrogate.problem).inputs, 12)).unflatten(1, (20, 2))
    assert (channels[:, :, 0] == 1).all() and (channels[:, :, 1] == 2).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"radius": 0.5}, "no neighbours"), ({"radius": 6}, "more than 12 points"), ({"hidden": 0}, "hidden 0"),
     ({"graph": triangles()}, r"4 points.*\(12,\)"),
     ({"graph": triangles(), "stepping": Stepping()}, "leave position out")],
)  # fmt: skip
def test_what_does_not_fit_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        made((12,), **arguments)


def test_edges_to_points_that_are_not_there_are_named():
    with pytest.raises(ValueError, match="name points 0 to 4; there are 4"):
        Graph(positions=torch.zeros(4, 2), edges=torch.tensor([[0], [4]]))


@pytest.mark.parametrize("positions", [torch.zeros(0, 2), torch.tensor([[0.0, float("nan")], [1.0, 1.0]])])
def test_positions_that_are_none_are_named(positions):
    with pytest.raises(ValueError, match="one point or more, and finite"):
        Graph(positions=positions, edges=torch.zeros(2, 0))


@pytest.mark.parametrize("points", [1, 3])
def test_points_in_one_place_and_alone_have_finite_states(points):
    graph = Graph(positions=torch.ones(points, 2), edges=torch.zeros(2, 0))
    surrogate = made((points,), periodic=(False,), graph=graph)
    x, parameters, times = 5 + noise(2, 1, 2, points), torch.ones(2, 2), torch.tensor([0.1, 0.2])
    assert surrogate.predict(x, parameters, times).isfinite().all()


@pytest.mark.parametrize(
    ("graph", "points", "words"),
    [(None, 5, "up to 3 grid steps away need more than 6 points"), (triangles(), 5, r"has 4 points.*\(5,\)")],
)
def test_states_on_other_points_than_messages_can_reach_are_refused(graph, points, words):
    surrogate = made((4,) if graph else (12,), periodic=(False,), graph=graph)
    with pytest.raises(ValueError, match=words):
        surrogate.predict(noise(1, 1, 2, points), torch.ones(1, 2), torch.tensor([0.1]))
