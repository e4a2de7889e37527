"""One optimiser step: the numbers that are written out by hand, recorded on a GPU only where that changes none."""

import copy

import numpy as np
import pytest
import torch

from headrace.online_training.adam import Adam
from headrace.online_training.training_loop import WindowLoss
from headrace.online_training.training_step import TrainingStep
from headrace.surrogates import FNO, LPINN, MLP, WindowBatch
from headrace.surrogates.stepping import Stepping
from tests.online_training.fake_feed import PROBLEM, FakeFeed

RATES = (1e-2, 3e-3, 1e-3)


def make_model(device: str) -> MLP:
    model = MLP(hidden=(16, 16))
    model.setup(PROBLEM, seed=1)
    model.set_statistics([0.0], [0.5])
    return model.to(device).train()


def train(model: MLP, device: str, num_batches: int, *, record: bool) -> tuple[list[np.ndarray], TrainingStep]:
    optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=device == "cuda")
    step = TrainingStep(WindowLoss(model), optimizer, torch.device(device), num_ranks=1, record=record)
    feed, losses = FakeFeed(num_batches), []
    while (draw := feed.next()) is not None:
        rate = RATES[len(losses) % 3]
        found = step.losses(draw, rate)
        step.update(found, len(draw.table), rate)
        losses.append(found.detach().cpu().numpy())
    return losses, step


def test_a_step_is_adam_on_the_mean_loss_of_the_batch_at_the_rate_given() -> None:
    model = make_model("cpu")
    twin = copy.deepcopy(model)
    losses, step = train(model, "cpu", 8, record=True)
    assert not step.recorded, "there is nothing to record on a CPU"
    optimizer, feed = torch.optim.Adam(twin.parameters(), fused=True), FakeFeed(8)
    for number, mine in enumerate(losses):
        draw = feed.next()
        tensors = (torch.from_numpy(array) for array in (draw.states, draw.times, draw.parameters))
        loss = twin.training_loss(WindowBatch(**dict(zip(("states", "times", "parameters"), tensors, strict=True))))
        assert np.array_equal(loss.detach().numpy(), mine)
        optimizer.param_groups[0]["lr"] = RATES[number % 3]
        optimizer.zero_grad()
        (loss.sum() / len(mine)).backward()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_only_losses_that_do_the_same_for_every_batch_are_recorded() -> None:
    assert MLP().recordable and FNO().recordable
    assert not FNO(stepping=Stepping(pushforward=2)).recordable, "each batch draws how many calls it makes"
    assert not LPINN().recordable, "and nobody else promised anything"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_steps_are_those_that_were_not_recorded() -> None:
    eager, _ = train(make_model("cuda"), "cuda", 20, record=False)
    recorded, step = train(make_model("cuda"), "cuda", 20, record=True)
    assert step.recorded
    assert [len(one) for one in recorded] == [16] * 19 + [9], "the last, smaller batch is computed eagerly"
    for one, other in zip(eager, recorded, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_adam_without_the_compiler_takes_the_same_steps_and_goes_on_from_the_same_state():
    weights = {}
    for kind in (Adam, torch.optim.Adam):
        model = make_model("cpu")
        optimizer = kind(model.parameters(), lr=1e-2, fused=True)
        for step in range(6):
            optimizer.zero_grad()
            sum((weight - 0.1).square().sum() for weight in model.parameters()).backward()
            optimizer.step()
            if step == 2:
                kept = copy.deepcopy(optimizer.state_dict())
                optimizer = kind(model.parameters(), lr=1.0, fused=True)
                optimizer.load_state_dict(kept)
        weights[kind] = torch.nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(weights[Adam], weights[torch.optim.Adam])
