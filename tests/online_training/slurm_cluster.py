"""A real Slurm for tests: a controller and two nodes on this host, files in one folder, no systemd, no cgroups."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
PATHS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin"])
INSTALL = "apt-get install -y slurmctld slurmd slurm-client munge, and be root"


def available() -> bool:
    """Whether this machine can run it."""
    return os.geteuid() == 0 and all(shutil.which(program, path=PATHS) for program in PROGRAMS)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class SlurmCluster:
    """Controller, nodes n1 and n2 and their munge; `environment` makes this process their client."""

    def __init__(self, cpus: int = 4) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hr-slurm-"))
        self._processes: dict[str, subprocess.Popen] = {}
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        (self.folder / "key").write_bytes(os.urandom(128))
        (self.folder / "key").chmod(0o400)
        control, first, second = _free_ports(3)
        host = socket.gethostname()
        (self.folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
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
SlurmdTimeout=10
KillWait=3
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
""")
        for name in ("state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir()

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
            self._spawn("munged", ["munged", "--foreground", "--force", *munge])
            self._wait(lambda: (self.folder / "munge.socket").exists(), "munged")
            self._spawn("slurmctld", ["slurmctld", "-D", "-c", "-i"])
            for node in ("n1", "n2"):
                self._spawn(node, ["slurmd", "-D", "-N", node])
            self._wait(lambda: self.run("sinfo", "-h", "-o", "%T").split() == ["idle"], "both nodes")
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait(self, condition, what: str, seconds: float = 40.0) -> None:
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
            timeout=60,
        )  # fmt: skip
        return done.stdout

    def kill(self, name: str) -> None:
        """kill -9 the daemon of a node, "slurmctld" or "munged"."""
        self._processes[name].send_signal(signal.SIGKILL)
        self._processes.pop(name).wait()

    def restart_controller(self) -> None:
        """Start the controller again with the state that it saved."""
        self._spawn("slurmctld", ["slurmctld", "-D"])

    def __exit__(self, *_: object) -> None:
        self.run("scancel", "--signal=KILL", "--user=root")
        for name in ("n1", "n2", "slurmctld", "munged"):
            process = self._processes.pop(name, None)
            if process is not None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
