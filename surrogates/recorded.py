"""A function of tensors as a CUDA graph: recorded once, replayed without the cost of launching its kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Recorded:
    """Function of tensors of fixed shapes -> its results, valid until the next call.

    function : nothing in it may depend on values on the host. It is called three times on the example before it is
        recorded; a training step trains in each of them.

    Raises
    ------
    RuntimeError : it cannot be recorded.
    """

    def __init__(self, function: Callable[..., Any], *example: torch.Tensor) -> None:
        self._inputs = [tensor.clone() for tensor in example]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # On the same stream, so that graphs replayed at the same time share no workspace of cuBLAS.
        with torch.cuda.graph(self._graph, stream=stream):
            self._results = function(*self._inputs)

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """Return the results for other values."""
        for mine, tensor in zip(self._inputs, tensors, strict=True):
            mine.copy_(tensor)
        self._graph.replay()
        return self._results
