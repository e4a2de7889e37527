"""Nodes of their own on one host: each has a network, processes, a host name and temporary folders to itself.

What two machines do not share is not shared here: addresses and ports, /tmp, /dev/shm, process numbers. Shared are the
files outside of them and the folders that are named, as on a cluster with one file system. Everything ends with the
process that made it, also when that one is killed.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from headrace.online_training.die_with_parent import wrapper
from tests.online_training.intake_setup import environment_without_ray

_UNSHARE = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
_TRIAL = "ip link add one type veth peer name two && mount -t tmpfs none /tmp"
PATHS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/sbin"])


def why_not() -> str:
    """Return what forbids separate nodes here; "" where they can be had."""
    if os.geteuid() != 0:
        return "namespaces need root"
    try:
        trial = _run(*_UNSHARE, "sh", "-c", _TRIAL, check=False)
    except FileNotFoundError as error:
        return f"{error.filename} is missing: apt-get install -y iproute2 util-linux"
    return f"unshare, veth or mount is refused: {trial.stderr.strip()}" if trial.returncode else ""


class SeparateNodes:
    """A switch, this process's own address on it, and any number of nodes.

    Parameters
    ----------
    folder : for logs and the hosts file; all nodes see it.
    names : of the nodes, each its host name; addresses follow in this order.
    shared : further folders that the nodes see although they lie below /tmp.
    """

    def __init__(self, folder: Path, names: Sequence[str], shared: Sequence[Path] = ()) -> None:
        self._folder = folder
        self._shared = sorted({folder.resolve(), *(Path(path).resolve() for path in shared)})
        used = _run("ip", "-4", "-o", "addr", "show").stdout
        while True:
            high, low = os.urandom(2)
            subnet = f"10.{high}.{low}"
            if f"inet {subnet}." not in used:
                break
        self.own_address = f"{subnet}.1"
        self.addresses = {name: f"{subnet}.{number}" for number, name in enumerate(names, 11)}
        self._mark = f"hr{high:02x}{low:02x}"
        hosts = "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        self._processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "SeparateNodes":
        try:
            self._start_switch()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_switch(self) -> None:
        with open(self._folder / "switch.out", "ab") as log:
            self._processes["switch"] = subprocess.Popen(
                [*wrapper(os.getpid()), "unshare", "--net", "sh", "-c",
                 "ip link add switch type bridge && ip link set switch up && exec sleep 86400"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "PATH": PATHS},
            )  # fmt: skip
        self._switch = self._processes["switch"].pid
        _until(lambda: "switch" in self._in_switch("ip", "-o", "link", check=False).stdout)
        self._plug(f"{self._mark}.0", None)
        _run("ip", "addr", "add", f"{self.own_address}/24", "dev", f"{self._mark}.0")
        _run("ip", "link", "set", f"{self._mark}.0", "up")

    def start(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        """Switch a node on; the command is what runs on it, and the node goes off with it."""
        mounts = [_private_with(self._shared, "/tmp", self._folder / f"tmp-{name}"), "mount -t tmpfs none /dev/shm"]
        script = f"""
set -e
hostname {name}
mount --bind {self._folder}/hosts /etc/hosts
{chr(10).join(mounts)}
ip link set lo up
until ip link show dev eth0 > /dev/null 2>&1; do sleep 0.02; done
ip addr add {self.addresses[name]}/24 dev eth0
ip link set eth0 up
exec "$@"
"""
        with open(self._folder / f"{name}.out", "ab") as log:
            process = subprocess.Popen(
                [*wrapper(os.getpid()), *_UNSHARE, "sh", "-c", script, "node", *command], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env={**environment_without_ray(), "PATH": PATHS, **environment},
            )  # fmt: skip
        self._processes[name] = process
        _until(lambda: _first_child(process.pid) is not None or process.poll() is not None)
        inside = _first_child(process.pid)
        if inside is None:
            raise AssertionError(f"node {name} did not start: {(self._folder / f'{name}.out').read_text()}")
        self._plug(f"{self._mark}.{name}", inside)

    def kill(self, name: str) -> None:
        """Pull a node's plug: every process on it is gone at once."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def close(self) -> None:
        """Switch everything off."""
        for name in reversed(list(self._processes)):
            self.kill(name)

    def _plug(self, interface: str, inside: int | None) -> None:
        """Join the switch and a node by a pair of interfaces; None is this process's own side."""
        port = interface.replace(self._mark, "port")
        _run("ip", "link", "add", interface, "type", "veth", "peer", "name", port, "netns", str(self._switch))
        self._in_switch("ip", "link", "set", port, "master", "switch", "up")
        if inside is not None:
            _run("ip", "link", "set", interface, "netns", str(inside), "name", "eth0")

    def _in_switch(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        return _run("nsenter", "--net", "--target", str(self._switch), *command, check=check)


def _private_with(shared: Sequence[Path], place: str, stage: Path) -> str:
    """Return the commands that put an empty folder in a place and keep the shared ones below it."""
    lines = [f"mkdir -p {stage}", f"mount -t tmpfs none {stage}", f"chmod 1777 {stage}"]
    for path in shared:
        if path.is_relative_to(place):
            target = stage / path.relative_to(place)
            lines += [f"mkdir -p {target}", f"mount --bind {path} {target}"]
    return "\n".join([*lines, f"mount --move {stage} {place}"])


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command, env={**os.environ, "PATH": PATHS}, capture_output=True, text=True, timeout=120, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr}")
    return done


def _first_child(pid: int) -> int | None:
    """Return the first child of a process, the init of a node; its network namespace must not be ours any more."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        if os.readlink(f"/proc/{child}/ns/net") != os.readlink("/proc/self/ns/net"):
            return child
    return None


def _until(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("a separate node did not come up")
        time.sleep(0.02)
