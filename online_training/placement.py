"""Where a study's intake and trainers run: on one node of Ray, the one with GPUs, or the trainers on several."""

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
    """The intake's node of Ray, and where the trainer's workers may be.

    node : Ray's identity of it. address : its IP address, by which Ray names a resource that every node has.
    device : "cuda" or "cpu", for the trainer's workers.
    apart : whether workers may be on other nodes too, to which the intake sends what they draw.
    """

    node: str
    address: str
    device: str
    apart: bool = False

    def resources(self) -> dict[str, float]:
        """Return what pins an actor or a trainer's worker to the intake's node, in Ray's terms."""
        return {f"node:{self.address}": 0.001}


def choose_place(nodes: Sequence[Mapping[str, Any]], own: str, settings: StudySettings) -> Place:
    """Return the node for the intake, and for the trainers, which map the reservoir in its memory where they can.

    Of the nodes with a GPU for each worker, where GPUs may be used, the one with most; else this process's own node,
    else the one with most CPUs. Where no node has enough, or the settings want the workers spread, the workers are
    on several, and the intake is on the one that has most.

    nodes : what `ray.nodes()` says. own : identity of this process's node.

    Raises
    ------
    StudyError : all nodes together have not what the workers need; says what the nodes have.
    """
    alive = [node for node in nodes if node["Alive"]]

    def has(node: Mapping[str, Any], name: str) -> float:
        return node["Resources"].get(name, 0.0)

    def holds(node: Mapping[str, Any], on_gpus: bool) -> int:
        """How many workers a node has room for."""
        by_cpus = int(has(node, "CPU") // CPU_PER_WORKER)
        return min(by_cpus, int(has(node, "GPU"))) if on_gpus else by_cpus

    def with_room(on_gpus: bool) -> list[Mapping[str, Any]]:
        """The nodes that hold all workers; where none does, those that hold some, if all are held together."""
        some = [node for node in alive if holds(node, on_gpus)]
        together = sum(holds(node, on_gpus) for node in some) >= settings.workers
        return [node for node in some if holds(node, on_gpus) >= settings.workers] or (some if together else [])

    with_gpus = with_room(True) if settings.device != "cpu" else []
    chosen = with_gpus or with_room(False)
    told = "; ".join(
        f"{node['NodeManagerAddress']}: {has(node, 'CPU'):g} CPUs, {has(node, 'GPU'):g} GPUs" for node in alive
    )
    if settings.device == "cuda" and not with_gpus:
        raise StudyError(
            f"{settings.workers} workers on cuda need as many GPUs; Ray has {told}. Use device=cpu, or fewer workers."
        )
    if not chosen:
        raise StudyError(
            f"{settings.workers} workers need {CPU_PER_WORKER * settings.workers:g} CPUs; Ray has {told}. "
            "Use fewer workers, or a larger cluster."
        )
    on_gpus = bool(with_gpus)
    best = max(
        chosen, key=lambda node: (has(node, "GPU") if on_gpus else 0.0, node["NodeID"] == own, has(node, "CPU"))
    )
    return Place(
        node=best["NodeID"], address=best["NodeManagerAddress"], device="cuda" if on_gpus else "cpu",
        apart=len(alive) > 1 and (settings.spread_workers or holds(best, on_gpus) < settings.workers),
    )  # fmt: skip
