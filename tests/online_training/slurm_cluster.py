"""A real Slurm for tests: a controller and two nodes on this host, files in one folder, no systemd, no cgroups.

The nodes are separate (addresses, ports, /tmp, /dev/shm, processes) where the kernel allows it, and share all of these
with the test where it does not; `separate` says which.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from headrace.online_training.ray_nodes import free_ports
from tests.online_training.separate_nodes import PATHS, SeparateNodes, why_not

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
NODES = ("n1", "n2")
_GIVE_UP = "MessageTimeout=2\n"
INSTALL = "apt-get install -y slurmctld slurmd slurm-client munge iproute2, and be root"


def available() -> bool:
    """Whether this machine can run it."""
    return os.geteuid() == 0 and all(shutil.which(program, path=PATHS) for program in PROGRAMS)


def processes_with(path: Path) -> list[int]:
    """Return the processes of this host, those on nodes included, that have a path in their arguments."""
    every = psutil.process_iter(["cmdline"])
    return [one.pid for one in every if any(str(path) in word for word in one.info["cmdline"] or ())]


class SlurmCluster:
    """Controller, nodes n1 and n2 and their munge; `environment` makes this process their client.

    Parameters
    ----------
    cpus : of each node.
    shared : folders below /tmp that the nodes must see, beside this repository and its Python.
    """

    def __init__(self, cpus: int = 4, shared: tuple[Path, ...] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hr-slurm-"))
        self._processes: dict[str, subprocess.Popen] = {}
        self._configuration = self.folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self._configuration)}
        self.obstacle = why_not()
        self._killed: list[str] = []
        self._nodes: SeparateNodes | None = None
        if not self.obstacle:
            repository = Path(__file__).parents[2]
            shared = (*shared, repository, Path(sys.prefix), Path(sys.base_prefix))
            self._nodes = SeparateNodes(self.folder, NODES, shared)
        (self.folder / "key").write_bytes(os.urandom(128))
        (self.folder / "key").chmod(0o400)
        control, *ports = free_ports(3)
        host = socket.gethostname()
        addresses = self._nodes.addresses if self._nodes else dict.fromkeys(NODES, "127.0.0.1")
        hosts = dict(zip(NODES, NODES, strict=True)) if self._nodes else dict.fromkeys(NODES, host)
        self.address = self._nodes.own_address if self._nodes else "127.0.0.1"
        """Address of this process that the nodes reach."""
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={hosts[name]} NodeAddr={addresses[name]} Port={port} CPUs={cpus}"
            for name, port in zip(NODES, ports, strict=True)
        )
        self._configuration.write_text(f"""
ClusterName=test
SlurmctldHost={host}({self.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
SlurmctldPort={control}
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool-%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdTimeout=120
KillWait=3
{nodes}
PartitionName=main Nodes={",".join(NODES)} Default=YES MaxTime=60 State=UP
""")
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()

    @property
    def separate(self) -> bool:
        """Whether the nodes have addresses, ports and temporary folders of their own."""
        return self._nodes is not None

    def _spawn(self, name: str, command: list[str]) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **self.environment, "PATH": PATHS},
            )  # fmt: skip

    def __enter__(self) -> "SlurmCluster":
        try:
            munge = [f"--{name}={self.folder}/{file}" for name, file in (
                ("socket", "munge.socket"), ("key-file", "key"), ("pid-file", "munge.pid"), ("log-file", "munge.log"),
                ("seed-file", "seed"),
            )]  # fmt: skip
            if self._nodes:
                self._nodes.__enter__()
            self._spawn("munged", ["munged", "--foreground", "--force", *munge])
            self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._spawn("slurmctld", ["slurmctld", "-D", "-c", "-i"])
            for name in NODES:
                self.start_node(name)
            self.wait_for_nodes()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start_node(self, name: str) -> None:
        """Switch a node on, at first or after it was killed."""
        command = ["slurmd", "-D", "-N", name]
        if self._nodes:
            self._nodes.start(name, command, self.environment)
        else:
            self._spawn(name, command)

    def start_missing_nodes(self) -> None:
        """Switch on again what `kill_node` took away."""
        for name in self._killed:
            self.start_node(name)
        self._killed.clear()

    def wait_for_nodes(self, states: tuple[str, ...] = ("idle",)) -> None:
        """Return when the nodes have these states, in any order."""
        self._wait(lambda: set(self.run("sinfo", "-h", "-N", "-o", "%T").split()) == set(states), "both nodes")

    def _wait(self, condition, what: str, seconds: float = 180.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log"))
                raise AssertionError(f"{what} did not come up\n{logs}")
            time.sleep(0.1)

    def run(self, *command: str) -> str:
        """Run a client command and return what it prints."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment, "PATH": PATHS}, capture_output=True, text=True, check=False,
            timeout=180,
        )  # fmt: skip
        return done.stdout

    def kill_node(self, name: str) -> None:
        """Take a node away at once, with everything that runs on it. Needs separate nodes."""
        assert self._nodes is not None, "a node that shares this host's processes cannot be killed whole"
        self._nodes.kill(name)
        self._killed.append(name)
        # The controller would find out by itself, after a silence that a slow machine must not be taken for.
        self.run("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=killed")

    def kill_controller(self) -> None:
        """kill -9 the controller; clients give up on it after 2 s, not 10."""
        process = self._processes.pop("slurmctld")
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open(self._configuration, "a") as file:
            file.write(_GIVE_UP)

    def restart_controller(self) -> None:
        """Start the controller again with the state that it saved."""
        self._configuration.write_text(self._configuration.read_text().removesuffix(_GIVE_UP))
        self._spawn("slurmctld", ["slurmctld", "-D"])

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--signal=KILL", "--user=root")
        if self._nodes:
            self._nodes.close()
        for name in (*NODES, "slurmctld", "munged"):
            process = self._processes.pop(name, None)
            if process is not None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
