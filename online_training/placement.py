"""Where a study's intake and trainers run: together on one node of Ray, the one with GPUs where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .run_directory import StudyError
from .settings import StudySettings

CPU_PER_WORKER = 0.5
"""What a trainer worker asks Ray for. Bookkeeping only: a study's own Ray has at least as many CPUs as workers."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One node of Ray.

    node : Ray's identity of it. address : its IP address, by which Ray names a resource that every node has.
    device : "cuda" or "cpu", for the trainer's workers.
    """

    node: str
    address: str
    device: str

    def resources(self) -> dict[str, float]:
        """Return what pins an actor or a trainer's worker to this node, in Ray's terms."""
        return {f"node:{self.address}": 0.001}


def choose_place(nodes: Sequence[Mapping[str, Any]], own: str, settings: StudySettings) -> Place:
    """Return the node for intake and trainers: the reservoir lies in its memory, so they cannot be apart.

    One with a GPU for each worker where GPUs may be used, and there the one with most; else this process's own node,
    else the one with most CPUs.

    nodes : what `ray.nodes()` says. own : identity of this process's node.

    Raises
    ------
    StudyError : no node has what the workers need; says what the nodes have.
    """
    alive = [node for node in nodes if node["Alive"]]

    def has(node: Mapping[str, Any], name: str) -> float:
        return node["Resources"].get(name, 0.0)

    enough = [node for node in alive if has(node, "CPU") >= CPU_PER_WORKER * settings.workers]
    with_gpus = [node for node in enough if has(node, "GPU") >= settings.workers]
    told = "; ".join(
        f"{node['NodeManagerAddress']}: {has(node, 'CPU'):g} CPUs, {has(node, 'GPU'):g} GPUs" for node in alive
    )
    if settings.device == "cuda" and not with_gpus:
        raise StudyError(
            f"{settings.workers} workers on cuda need as many GPUs on one node; Ray has {told}. "
            "Use device=cpu, or fewer workers."
        )
    if not enough:
        raise StudyError(
            f"{settings.workers} workers need {CPU_PER_WORKER * settings.workers:g} CPUs on one node; Ray has {told}. "
            "Use fewer workers, or a larger cluster."
        )
    on_gpus = bool(with_gpus) and settings.device != "cpu"
    best = max(
        with_gpus if on_gpus else enough,
        key=lambda node: (has(node, "GPU") if on_gpus else 0.0, node["NodeID"] == own, has(node, "CPU")),
    )
    return Place(node=best["NodeID"], address=best["NodeManagerAddress"], device="cuda" if on_gpus else "cpu")
