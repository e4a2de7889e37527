"""Parts of a staggered network in processes of their own give what one process gives."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from headrace.surrogates.parts_on_ranks import PartsOnRanks
from headrace.surrogates.stagger import Stagger

from .test_neuralstagger import networks, vorticity


def test_three_processes_step_eight_parts(tmp_path):
    root, size = Path(__file__).resolve().parents[2], 3
    command = [sys.executable, "-m", "tests.surrogates.parts_rank"]
    ranks = [
        subprocess.Popen([*command, str(rank), str(size), str(tmp_path / "meet")], cwd=root, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(size)
    ]  # fmt: skip
    mine = []
    for rank in ranks:
        out, err = rank.communicate(timeout=120)
        assert rank.returncode == 0, err
        mine += [int(n) for n in out.split("[")[1].rstrip("]\n").split(",")]
    assert sorted(mine) == list(range(8))


def test_what_cannot_be_dealt_is_named(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="exchange"):
            PartsOnRanks(networks(Stagger((2, 2)), exchange=1))
        ranks = PartsOnRanks(networks(Stagger((2, 2), 2), reading="offset"))
        with pytest.raises(ValueError, match="phase"), torch.no_grad():
            ranks.stepped(ranks.taken(vorticity(1, frames=2)))
    finally:
        dist.destroy_process_group()
