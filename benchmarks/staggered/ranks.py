"""Latency of a frame with the parts of (2,2,2) in processes of their own, one core each, over the plain network on one.

As a module it is one of these processes: python -m staggered.ranks RANK SIZE FILE POINTS.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from lines import Figure

from headrace.surrogates.parts_on_ranks import PartsOnRanks
from headrace.surrogates.stagger import Stagger
from headrace.surrogates.staggered_network import StaggeredNetwork

from .figures import timed
from .training import fourier

REPEATS = 10


def network_of(points: int) -> StaggeredNetwork:
    """Return the network, the same in every process."""
    torch.manual_seed(0)
    return StaggeredNetwork(fourier(24, points // 2), Stagger((2, 2), 2)).eval()


@torch.no_grad()
def rank_of(rank: int, size: int, file: str, points: int) -> None:
    """Print the milliseconds of a window on the slowest rank, without and with the exchange that joins the field."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    ranks, window = PartsOnRanks(network_of(points)), torch.zeros(1, 2, 1, points, points)
    parts = ranks.taken(window)
    for joins in (False, True):
        for _ in range(2):
            ranks.joined(ranks.stepped(parts))
        dist.barrier()
        start = time.perf_counter()
        for _ in range(REPEATS):
            new = ranks.stepped(parts)
            if joins:
                ranks.joined(new)
        slowest = torch.tensor((time.perf_counter() - start) / REPEATS)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        if rank == 0:
            print(1e3 * float(slowest))
    dist.destroy_process_group()


@torch.no_grad()
def measure_ranks(quick: bool) -> Iterator[Figure]:
    """Yield the latency of a frame on 1 to 8 processes, as far as there are cores."""
    points, cores = 64 if quick else 256, len(os.sched_getaffinity(0))
    torch.set_num_threads(1)
    plain, x = fourier(24, points)(1).eval(), torch.zeros(1, 1, points, points)
    frame = 1e3 * timed(lambda: plain(x), "cpu", REPEATS)
    setup = f"FNO width 24, {points} x {points}, batch 1, float32, one core a process, {cores} cores"
    yield ("processes: plain network, a frame", frame, "ms", None, None, setup)
    for size in (1, 2, 4, 8):
        if size > cores:
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "staggered.ranks"]
            rest = [str(size), str(Path(folder) / "meet"), str(points)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running = [
                subprocess.Popen([*command, str(rank), *rest], cwd=Path(__file__).parents[1], env=environment,
                                 stdout=subprocess.PIPE, text=True)
                for rank in range(size)
            ]  # fmt: skip
            said = [process.communicate(timeout=300)[0] for process in running]
        alone, joined = (float(line) / 2 for line in said[0].split()[-2:])  # a window is two frames
        name = f"processes: (2,2,2) on {size}"
        yield (f"{name}: a frame, nothing sent", alone, "ms", None, None, setup)
        yield (f"{name}: speed-up over the plain network, nothing sent", frame / alone, "x", None, frame, setup)
        yield (f"{name}: speed-up, the field joined in every window", frame / joined, "x", None, frame, setup)


if __name__ == "__main__":
    rank_of(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
