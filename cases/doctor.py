"""`headrace doctor`: what this machine offers a study, what is missing, and what to do about it."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

GB = 10**9
SUBPROCESS_SECONDS = 60
MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}

_HELLO = (
    "import sys; from mpi4py import MPI; from headrace.online_training.solver_job import mpi_library; "
    "ranks = MPI.COMM_WORLD.allreduce(1); "
    "MPI.COMM_WORLD.rank or sys.stdout.write(f'ranks {ranks} {mpi_library()}' + chr(10))"
)
_RAY = "import ray; from ray.train.torch import TorchTrainer; told = [ray.__version__]"
_TORCH = (
    "import torch; gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]; "
    "told = [torch.__version__, torch.get_num_threads(), gpus]"
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    level : ok; warn, a study may run but not well; fail, `headrace train` cannot work.
    advice : what to do about it; empty where nothing is to be done.
    """

    subject: str
    level: Literal["ok", "warn", "fail"]
    text: str
    advice: str = ""


def examine(folder: Path) -> list[Finding]:
    """Return the findings on this machine; runs would be written below the folder."""
    checks: tuple[Callable[[], Finding], ...] = (
        check_mpi, check_ray, check_torch, check_shared_memory, check_memory, check_ports, check_open_files,
        lambda: check_disk(folder), check_temporary_folder, check_proxies, check_token,
        check_threads, check_scheduler, check_compiler,
    )  # fmt: skip
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        return list(pool.map(lambda check: check(), checks))


def show(findings: list[Finding], console: Console | None = None) -> int:
    """Print the findings and return the exit code: 1 where one is a failure."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in findings:
        word, colour = MARKS[finding.level]
        text = Text(finding.text)
        if finding.advice:
            text.append("\n→ " + finding.advice, style=colour)
        table.add_row(Text(word, style=colour), finding.subject, text)
    console = console or Console(highlight=False)
    console.print(table)
    failed = sum(finding.level == "fail" for finding in findings)
    warned = sum(finding.level == "warn" for finding in findings)
    console.print(f"\n{len(findings) - failed - warned} ok, {warned} to look at, {failed} in the way of a study")
    return 1 if failed else 0


def check_mpi() -> Finding:
    """Start two real ranks with the mpirun that a study would use."""
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    get_one = "pip install 'headrace[mpich]', or load the site's MPI module"
    if mpirun is None:
        return Finding(subject="MPI", level="fail", text="no mpirun beside this Python or on PATH", advice=get_one)
    version = _output([mpirun, "--version"])[1]
    open_mpi = ["--oversubscribe", *["--allow-run-as-root"] * (os.geteuid() == 0)] if "Open MPI" in version else []
    code, text = _output([mpirun, *open_mpi, "-n", "2", sys.executable, "-P", "-c", _HELLO])
    said = re.search(r"ranks (\d+) (.*)", text)
    if code or said is None:
        last = text.strip().splitlines()[-1:] or ["no output"]
        return Finding(subject="MPI", level="fail", text=f"{mpirun} cannot run two ranks: {last[0]}", advice=get_one)
    if said[1] != "2":
        return Finding(
            subject="MPI", level="fail", text=f"{mpirun} starts ranks that do not see each other; mpi4py has {said[2]}",
            advice="mpirun and mpi4py belong to different MPIs; use one for both: " + get_one,
        )  # fmt: skip
    return Finding(subject="MPI", level="ok", text=f"{said[2]}, two ranks said hello ({mpirun})")


def check_ray() -> Finding:
    """Import Ray Train in a process of its own."""
    told = _told_by("Ray", _RAY)
    if isinstance(told, Finding):
        return told
    (version,) = told
    if not (2, 53) <= tuple(int(part) for part in version.split(".")[:2]) < (3, 0):
        return Finding(
            subject="Ray", level="fail", text=f"version {version}, needed is 2.53 or later and below 3",
            advice="pip install 'ray[train]>=2.53,<3'",
        )  # fmt: skip
    address = os.environ.get("RAY_ADDRESS")
    where = f", joins the cluster at {address} (RAY_ADDRESS)" if address else ", a study starts its own"
    return Finding(subject="Ray", level="ok", text=f"{version}{where}")


def check_torch() -> Finding:
    """Import torch in a process of its own; report threads and GPUs."""
    told = _told_by("torch", _TORCH)
    if isinstance(told, Finding):
        return told
    version, threads, gpus = told
    device = ", ".join(gpus) if gpus else "no GPU, trains on CPU"
    return Finding(subject="torch", level="ok", text=f"{version}, {threads} CPU threads, {device}")


def check_shared_memory() -> Finding:
    """Look at /dev/shm, where the reservoir lies."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError as error:
        return Finding(
            subject="shared memory", level="fail", text=f"/dev/shm is not usable: {error.strerror}",
            advice="mount it: mount -t tmpfs tmpfs /dev/shm",
        )  # fmt: skip
    text = f"/dev/shm: {usage.free / GB:.2f} GB free of {usage.total / GB:.2f} GB"
    if usage.free < 0.3 * GB:
        advice = "--buffer must fit in it; in a container start with --shm-size=2g, or choose a smaller --buffer"
        return Finding(
            subject="shared memory", level="fail" if usage.free < 0.03 * GB else "warn", text=text, advice=advice
        )
    return Finding(subject="shared memory", level="ok", text=text)


def check_memory() -> Finding:
    """Look at the memory that is left."""
    memory = psutil.virtual_memory()
    text = f"{memory.available / GB:.1f} GB available of {memory.total / GB:.1f} GB"
    if memory.available < 2 * GB:
        return Finding(
            subject="memory", level="warn", text=text, advice="Ray, a trainer and two solver ranks take about 2 GB"
        )
    return Finding(subject="memory", level="ok", text=text)


def check_ports() -> Finding:
    """Bind a free port on the loopback interface, as the intake does, and reach it."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
    except OSError as error:
        return Finding(
            subject="ports", level="fail", text=f"cannot listen on 127.0.0.1: {error}",
            advice="a firewall or a sandbox forbids local connections; allow them, or choose another --interface",
        )  # fmt: skip
    return Finding(subject="ports", level="ok", text=f"listened on 127.0.0.1:{port} and reached it")


def check_open_files() -> Finding:
    """Look at the limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"at most {soft} (hard limit {hard})"
    if soft < 4096:
        return Finding(subject="open files", level="warn", text=text, advice=f"ulimit -n {min(hard, 65536)}")
    return Finding(subject="open files", level="ok", text=text)


def check_disk(folder: Path) -> Finding:
    """Look at the disk below a folder."""
    free = shutil.disk_usage(folder).free / GB
    text = f"{free:.1f} GB free in {folder}"
    if not os.access(folder, os.W_OK):
        return Finding(subject="disk", level="fail", text=f"{folder} is not writable", advice="choose a --run-dir")
    if free < 2:
        advice = "checkpoints, held-out simulations and Ray's session need about 1 GB; choose a --run-dir elsewhere"
        return Finding(subject="disk", level="fail" if free < 0.1 else "warn", text=text, advice=advice)
    return Finding(subject="disk", level="ok", text=text)


def check_temporary_folder() -> Finding:
    """Look at the folder for temporary files, where Ray keeps its sockets and session."""
    folder = tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    text = f"{folder}: {usage.free / GB:.1f} GB free"
    if usage.free < 0.05 * usage.total or usage.free < 0.5 * GB:
        advice = "Ray slows down or stops on a disk that is 95 % full; make room, or export TMPDIR=/another/short/path"
        return Finding(subject="temporary", level="warn", text=text, advice=advice)
    if len(folder) > 60:
        advice = "Ray's sockets need short paths; export TMPDIR=/a/short/path"
        return Finding(subject="temporary", level="warn", text=text, advice=advice)
    return Finding(subject="temporary", level="ok", text=text)


def check_proxies() -> Finding:
    """Look for proxy variables: gRPC, and so Ray, sends even local calls to a proxy."""
    names = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy")
    found = [name for name in names if os.environ.get(name) or os.environ.get(name.upper())]
    exceptions = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").replace(" ", "").split(",")
    if found and "*" not in exceptions and not {"127.0.0.1", "localhost"} <= set(exceptions):
        return Finding(
            subject="proxies", level="warn", text=f"{', '.join(found)} set, local calls of Ray may go there",
            advice="export no_proxy=127.0.0.1,localhost (and the names of the cluster's nodes)",
        )  # fmt: skip
    return Finding(subject="proxies", level="ok", text="none" if not found else f"{', '.join(found)}, local excepted")


def check_token() -> Finding:
    """Look at Ray's own token file where one is configured; a study makes its own otherwise."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None:
        return Finding(subject="tokens", level="ok", text="each study makes its own, readable by you alone")
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode)
    except OSError as error:
        return Finding(
            subject="tokens", level="fail", text=f"RAY_AUTH_TOKEN_PATH={path}: {error.strerror}",
            advice="unset it, or let it name the cluster's token file",
        )  # fmt: skip
    if mode & 0o077:
        return Finding(
            subject="tokens", level="warn", text=f"{path} can be read by others (mode {mode:o})",
            advice=f"chmod 600 {path}",
        )  # fmt: skip
    return Finding(subject="tokens", level="ok", text=f"{path}, mode 600")


def check_threads() -> Finding:
    """Compare cores with the threads that every rank would start."""
    cores, threads = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS")
    text = f"{cores} core{'s' * (cores > 1)} for this process, OMP_NUM_THREADS={threads or 'not set'}"
    return Finding(subject="cores", level="ok", text=text)


def check_scheduler() -> Finding:
    """Look for the commands of a batch scheduler."""
    found = [name for name in ("sbatch", "srun", "qsub", "bsub", "flux") if shutil.which(name)]
    text = ", ".join(found) if found else "none found; solver jobs run on this node with mpirun"
    return Finding(subject="scheduler", level="ok", text=text)


def check_compiler() -> Finding:
    """Look for a C compiler, which only solvers written in C need."""
    found = next((path for name in ("mpicc", "cc", "gcc", "clang") if (path := shutil.which(name))), None)
    return Finding(subject="C compiler", level="ok", text=found or "none; only needed for solvers written in C")


def _told_by(package: str, program: str) -> list[Any] | Finding:
    """Return what a program leaves in `told`, whatever the package says beside it; or that it cannot be imported."""
    program = f"import json; {program}; print(chr(10) + 'told', json.dumps(told))"
    code, text = _output([sys.executable, "-P", "-c", program])
    said = re.search(r"^told (\[.*\])$", text, re.MULTILINE)
    if code or said is None:
        return Finding(
            subject=package, level="fail", text=f"cannot be imported: {(text.strip().splitlines() or ['?'])[-1]}",
            advice="pip install 'headrace[train]'; solve works without it",
        )  # fmt: skip
    return json.loads(said[1])


def _output(command: list[str]) -> tuple[int, str]:
    """Return exit code and combined output of a command; 124 where it does not end."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            timeout=SUBPROCESS_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {SUBPROCESS_SECONDS} s"
    except OSError as error:
        return 127, str(error)
    return done.returncode, done.stdout
