"""How the workers of a training find one another: by a file of the run, listening on the interface of Ray alone."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.train.backend import Backend, BackendConfig

_SHUTDOWN_SECONDS = 30.0
_PREFIX = "workers-"


@dataclass
class FileRendezvous(BackendConfig):
    """In the place of Ray Train's TorchConfig, whose store would listen on every interface without a token.

    Ray's controller reads it in a process of its own, which therefore need not import torch (3 s of a core).

    backend : of torch.distributed.
    folder : of the run, that all nodes see and nobody else reads; a file in it takes the store's place.
    """

    backend: str
    folder: str

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train calls when workers start and end."""
        return _FileBackend

    @property
    def train_func_context(self) -> Any:
        """What the training loop runs in: Ray's choice of the current GPU."""
        from ray.train.torch import TorchConfig

        return TorchConfig().train_func_context


class _FileBackend(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: ray.train.backend.BaseWorkerGroup, backend_config: FileRendezvous) -> None:
        """Join the workers; one alone listens to nobody."""
        count = len(worker_group)
        if count == 1:
            return
        folder = Path(backend_config.folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        for old in folder.glob(f"{_PREFIX}*"):
            old.unlink(missing_ok=True)  # of workers that were killed
        path = folder / f"{_PREFIX}{uuid.uuid4().hex}"
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, backend_config.backend, str(path), rank, count)
                for rank in range(count)
            ]
        )

    def on_shutdown(self, worker_group: ray.train.backend.BaseWorkerGroup, backend_config: FileRendezvous) -> None:
        """Part the workers, as far as they answer."""
        ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=_SHUTDOWN_SECONDS)


def _join(backend: str, path: str, rank: int, count: int) -> None:
    import torch.distributed as dist

    name = interface_with(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
    dist.init_process_group(backend, init_method=f"file://{path}", rank=rank, world_size=count)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def interface_with(address: str) -> str:
    """Return the name of this node's interface that has an address; "" where none has."""
    for name, some in psutil.net_if_addrs().items():
        if any(one.address == address for one in some):
            return name
    return ""
