"""Ray on the further nodes of a Slurm allocation: one step with a process on each, which ends with the study.

Run as `python -m headrace.online_training.ray_nodes HEAD INTERFACE` it is that process. It starts Ray's node
in the foreground on free ports and removes its folder afterwards. Whatever stops the step stops this Ray and no other.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .die_with_parent import wrapper
from .interface import address_of
from .launcher import Job
from .step_launcher import StepLauncher

OBJECT_STORE_BYTES = 128 * 2**20
"""Samples never pass through Ray; this is about its smallest useful store."""

_JOIN_SECONDS = 120.0
_NOT_DEALT_OUT = (20_000, 32_768)  # nor used by Ray unasked
_NEEDED = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED")


def other_nodes() -> list[str]:
    """Return the nodes of this process's allocation but the one it runs on.

    Raises
    ------
    RuntimeError : there is no allocation.
    """
    listed = os.environ.get("SLURM_JOB_NODELIST")
    if not listed:
        raise RuntimeError(
            "Ray over the nodes of an allocation needs one, and SLURM_JOB_NODELIST is unset: use headrace submit, "
            "sbatch or salloc first."
        )
    answer = subprocess.run(
        ["scontrol", "show", "hostnames", listed], capture_output=True, text=True, timeout=60, check=True
    )
    return [name for name in answer.stdout.split() if name != os.environ.get("SLURMD_NODENAME")]


@contextlib.contextmanager
def ray_on_other_nodes(head: str, interface: str, log: Path, joined: Callable[[], int]) -> Iterator[None]:
    """Keep Ray running on the other nodes of the allocation for the length of a block, joined to this head.

    Returns from entering when all have joined.

    head : HOST:PORT of the head. interface : by which the nodes talk to one another, as `address_of` takes it.
    log : file for what the nodes say. joined : says how many nodes the head knows, itself among them.

    Raises
    ------
    RuntimeError : no allocation, or a node did not join; holds its last words.
    """
    names = other_nodes()
    if not names:
        yield
        return
    launcher = StepLauncher(
        [f"--nodes={len(names)}", "--ntasks-per-node=1", f"--nodelist={','.join(names)}"], whole_nodes=True
    )
    job = Job(
        name="ray", command=[sys.executable, "-P", "-m", __name__, head, interface], ranks=len(names),
        environment={name: os.environ[name] for name in _NEEDED if name in os.environ}, log=log,
    )  # fmt: skip
    launcher.start(job)
    try:
        deadline = time.monotonic() + _JOIN_SECONDS
        while joined() < 1 + len(names):
            code = launcher.poll().get("ray")
            if code is not None or time.monotonic() > deadline:
                ended = f"ended with code {code}" if code is not None else f"did not join in {_JOIN_SECONDS:g} s"
                words = log.read_text(errors="replace")[-2000:].strip() if log.exists() else ""
                raise RuntimeError(f"Ray on the nodes {', '.join(names)} {ended}: {words}")
            time.sleep(0.2)
        yield
    finally:
        launcher.stop_all()


def node_command(head: str, address: str, cpus: int, folder: str) -> list[str]:
    """Return the command that runs one node of Ray in the foreground, all its ports free ones of this host."""
    agent, environment_agent, metrics = free_ports(3)
    return [
        sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--block", f"--address={head}",
        f"--node-ip-address={address}", f"--num-cpus={cpus}", f"--temp-dir={folder}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={agent}",
        f"--runtime-env-agent-port={environment_agent}", f"--metrics-export-port={metrics}", "--disable-usage-stats",
    ]  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Return ports that nobody uses, below those that the kernel deals out.

    One of these would be free now, and somebody's before a program that takes seconds to start listens there.
    """
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind(("", random.randrange(*_NOT_DEALT_OUT)))
                ports.append(each.getsockname()[1])
    return ports


def allocated_cpus() -> int:
    """Return the cores that this process's job has on this node: Slurm's word, else what the kernel allows."""
    told = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return int(told) if told.isdigit() else len(os.sched_getaffinity(0))


def main() -> None:
    """Run one node of Ray until it ends, or until SIGTERM."""
    head, interface = sys.argv[1:]
    # Unix sockets live below this folder, and their paths may not exceed 107 bytes.
    with tempfile.TemporaryDirectory(prefix="hr-", ignore_cleanup_errors=True) as folder:
        stopping = False

        def stop(*_: object) -> None:
            nonlocal stopping
            stopping = True
            node.terminate()

        began, code = time.monotonic(), 1
        # Ray gives a node 30 s to start, which may be too little the first time; the second finds its files read.
        while code and not stopping and time.monotonic() - began < _JOIN_SECONDS:
            command = node_command(head, address_of(interface), allocated_cpus(), folder)
            node = subprocess.Popen([*wrapper(os.getpid()), *command])
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
            code = node.wait()
    sys.exit(code)


if __name__ == "__main__":
    main()
