"""DistributedDataParallel without torch's compiler."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class DataParallel(torch.nn.parallel.DistributedDataParallel):
    """`torch.nn.parallel.DistributedDataParallel` to the bit, for models that are not compiled.

    torch asks its compiler for a setting when such a model is made, marks the forward pass for it, and imports all of
    it for that: 2.5 s of a core in every worker before its first batch. Where torch asks for more, it is imported
    again, and nothing else changes.
    """

    def __init__(self, module: torch.nn.Module, **settings: Any) -> None:
        with _unasked():
            super().__init__(module, **settings)

    def _run_ddp_forward(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


class _Answers:
    """In the place of a module that is not imported: some of its names; for another one it is imported after all."""

    def __init__(self, module: str, **names: Any) -> None:
        self._module = module
        vars(self).update(names)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._module), name)


@contextmanager
def _unasked() -> Iterator[None]:
    """Answer for a compiler that was not imported what it answers where nobody has set anything."""
    if "torch._dynamo" in sys.modules:
        yield
        return
    utils = _Answers("torch._dynamo.utils", get_optimize_ddp_mode=lambda: "ddp_optimizer")
    torch._dynamo = answers = _Answers("torch._dynamo", utils=utils)
    try:
        yield
    finally:
        if vars(torch).get("_dynamo") is answers:
            del torch._dynamo
