"""One process of test_parts_on_ranks: python -m tests.surrogates.parts_rank RANK SIZE FILE."""

import sys

import torch
import torch.distributed as dist

from headrace.surrogates.parts_on_ranks import PartsOnRanks
from headrace.surrogates.stagger import Stagger

from .test_neuralstagger import networks, vorticity


def main(rank, size, file):
    """Compare six steps on ranks with those of the network in one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    for options in ({}, {"shared": True, "position": (True, True)}):
        network, window = networks(Stagger((2, 2), 2), scale=0.05, **options), vorticity(2, frames=2)
        ranks = PartsOnRanks(network)
        parts, whole = ranks.taken(window), window
        with torch.no_grad():
            for _ in range(6):
                parts, whole = ranks.stepped(parts), network(whole)
        torch.testing.assert_close(ranks.joined(parts), whole, rtol=1e-9, atol=1e-11)
    dist.destroy_process_group()
    print("agree", ranks.mine)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
