"""A function of tensors as a CUDA graph: recorded once, replayed without the cost of launching its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Recorded:
    """Function of tensors of fixed shapes -> its results, valid until the next call.

    function : nothing in it may depend on values on the host. Recording it computes nothing.
    calls : of it on the example before; a training step trains in each of them. 0 where the stream has seen its work.
    stream : where it is called and recorded; None is a new one.

    Raises
    ------
    RuntimeError : it cannot be recorded.
    """

    def __init__(
        self, function: Callable[..., Any], *example: torch.Tensor, calls: int = 3,
        stream: torch.cuda.Stream | None = None,
    ) -> None:  # fmt: skip
        # The graph knows where the tensors of the function lie: they must not go before it does.
        self._function, self._inputs = function, [tensor.clone() for tensor in example]
        stream = stream or torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(calls):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # On the same stream, so that graphs replayed at the same time share no workspace of cuBLAS. Other threads may
        # take memory meanwhile, as the one that sends batches: by default that would spoil the recording, and fail.
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._results = function(*self._inputs)

    def takes(self, *tensors: torch.Tensor) -> bool:
        """Whether tensors have the recorded shapes."""
        return [tensor.shape for tensor in tensors] == [mine.shape for mine in self._inputs]

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Return the results for other values."""
        if tensors:  # the copies of none are refused
            torch._foreach_copy_(self._inputs, tensors)  # in one launch
        self._graph.replay()
        return self._results
