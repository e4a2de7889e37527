"""The workers of a training by Ray Train: started with nothing beside them, and how they find one another.

Some of what is changed in Ray Train is not public: a version that is made otherwise starts more, and does the same.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.train.backend import Backend, BackendConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

try:
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
except ImportError:
    FixedScalingPolicy = object
try:
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
except ImportError:
    ElasticScalingPolicy = object

_UNUSED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
_SHUTDOWN_SECONDS = 30.0
_PREFIX = "workers-"


def leave_out_unused(trainer: Any) -> None:
    """Keep a trainer of Ray Train from starting what deals out Ray's data sets, cleans up, or asks for resources twice.

    Its controller gets no environment of its own: Ray starts a process for that first, and could not take one that is
    ready. It reads the variables that Ray, or the job in its cluster, was started with.
    """
    callbacks = getattr(trainer, "_create_default_callbacks", None)
    if callbacks is not None:
        trainer._create_default_callbacks = lambda: [
            one for one in callbacks() if type(one).__name__ not in _UNUSED_CALLBACKS
        ]
    with contextlib.suppress(ImportError):
        from ray.train.v2._internal.execution.controller import TrainController

        def run(**parts: Any) -> Any:
            policy = _OWN_POLICIES.get(type(parts.get("scaling_policy")))
            if policy is not None:
                parts["scaling_policy"] = policy(trainer.scaling_config)
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            controller = ray.remote(num_cpus=0, scheduling_strategy=here)(TrainController).remote(**parts)
            ray.get(controller.run.remote())
            return ray.get(controller.get_result.remote())

        trainer._initialize_and_run_controller = run


class FixedWorkers(FixedScalingPolicy):
    """A fixed number of workers, that their placement group alone asks for.

    Ray's policy says the same to an actor too, which tells an autoscaler, and waits until that has started: 3 s of a
    core. Ray's controller reads this in a process of its own, which therefore need not import torch.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask nobody, and let the workers, which this process is about to start, report to nobody."""
        _report_to_nobody()

    def _send_resource_request(self) -> None:
        """Ask nobody."""

    def _maybe_send_resource_request(self) -> None:
        """Ask nobody."""

    def _cancel_resource_request(self) -> None:
        """Take back nothing."""


class ElasticWorkers(ElasticScalingPolicy):
    """As many workers as there is room for, within limits."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ask for room as Ray does, and let the workers report to nobody."""
        super().after_controller_start(train_run_context)
        _report_to_nobody()


_OWN_POLICIES = {FixedScalingPolicy: FixedWorkers, ElasticScalingPolicy: ElasticWorkers}


class _Nobody:
    """In the place of the actor at which workers wait for one another when they report to Ray, as ours never do."""

    @classmethod
    def options(cls, **unused: Any) -> type[_Nobody]:
        return cls

    @classmethod
    def remote(cls, **unused: Any) -> _Nobody:
        return cls()


def _report_to_nobody() -> None:
    """Keep Ray's controller, whose process this is, from starting that actor for its workers: 2.5 s of a core."""
    with contextlib.suppress(ImportError, AttributeError):
        from ray.train.v2._internal.execution.worker_group import state, worker_group

        end = state._shutdown_sync_actor
        state._shutdown_sync_actor = lambda actor: None if isinstance(actor, _Nobody) else end(actor)
        worker_group.SynchronizationActor = _Nobody


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
        """What the training loop runs in: on GPUs, Ray's choice of the current one; without, nothing."""
        if self.backend == "gloo":
            return super().train_func_context
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
