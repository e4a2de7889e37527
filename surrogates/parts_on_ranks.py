"""A staggered network over processes: every rank steps its own parts, which need nothing of each other.

This is the parallelism that the time of one part alone stands for: with a rank for every part a frame takes as long
as one small network, and nothing is sent until somebody wants the whole field.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from .staggered_network import StaggeredNetwork


class PartsOnRanks:
    """The parts of a network, dealt in turn to the ranks of a process group (gloo on CPUs, NCCL on GPUs).

    Weights are the same on all ranks, e.g. loaded from one file; a rank uses those of its own parts.

    group : None is the default group.

    Raises
    ------
    ValueError : the networks exchange values, or there are more ranks than parts.
    """

    def __init__(self, network: StaggeredNetwork, group: dist.ProcessGroup | None = None) -> None:
        self.network, self._group = network, group
        rank, size, parts = dist.get_rank(group), dist.get_world_size(group), network.stagger.parts
        if network.mixing is not None:
            raise ValueError("The parts exchange values: they cannot run in processes of their own. Use exchange=0.")
        if size > parts:
            raise ValueError(f"There are {size} ranks for {parts} parts; start at most as many ranks as parts.")
        self.mine = list(range(rank, parts, size))
        self._most = -(-parts // size)

    def taken(self, window: torch.Tensor) -> list[torch.Tensor]:
        """Return this rank's parts (batch, fields, *coarse) of a window (batch, s_t, fields, *grid)."""
        return [self.network.stagger.part(window, index)[:, 0] for index in self.mine]

    def stepped(self, parts: list[torch.Tensor], conditions: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Return this rank's parts one window later. Not collective."""
        if self.network.reading == "offset" and self.network.stagger.time > 1:
            raise ValueError('Parts that give later frames all start from the last one: reading "offset" must join '
                             'its parts after every window; take reading "phase".')  # fmt: skip
        pairs = zip(self.mine, parts, strict=True)
        return [self.network.alone(index, part, conditions) for index, part in pairs]

    def joined(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Return the window of all ranks' parts, (batch, s_t, fields, *grid), on every rank. Collective."""
        size, stagger = dist.get_world_size(self._group), self.network.stagger
        mine = parts + [torch.zeros_like(parts[0])] * (self._most - len(parts))
        gathered = [torch.empty_like(torch.stack(mine)) for _ in range(size)]
        dist.all_gather(gathered, torch.stack(mine).contiguous(), group=self._group)
        dealt = [gathered[index % size][index // size] for index in range(stagger.parts)]
        return stagger.join(torch.stack(dealt)[:, :, None])
