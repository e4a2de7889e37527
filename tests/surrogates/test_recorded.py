"""Work recorded as a CUDA graph: what it computes anew, with inputs of its own and without any."""

import pytest
import torch

from headrace.surrogates.recorded import Recorded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_recording_computes_from_new_inputs_and_from_none():
    ones, numbers, state = torch.ones(3).cuda(), torch.arange(3.0).cuda(), torch.zeros(3).cuda()
    of_two = Recorded(lambda left, right: left + 2 * right, numbers, ones)
    assert of_two(ones, numbers).tolist() == [1.0, 3.0, 5.0]
    of_none = Recorded(lambda: state.add_(1), calls=2)
    for _ in range(3):
        of_none()
    assert state.tolist() == [5.0, 5.0, 5.0], "two calls before, three replayed; recording computes nothing"
