"""Solver jobs on this node: mpirun, started clean, watched, and stopped to the last rank."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from headrace.solvers.external import PERMISSIONS

from . import on_own_cores
from .die_with_parent import wrapper
from .launcher import Job, Launcher
from .mpi_segments import remove, segments_of

# What an outer mpirun, scheduler or Ray leaves in the environment, and an inner mpirun would misread.
_LEAKS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "HYD", "MPI_LOCAL", "MPIEXEC_", "SLURM_", "PBS_", "LSB_", "RAY_")
# Settings of a site or user, not leaks, unless this process is a rank itself.
_SETTINGS = ("OMPI_MCA_", "PMIX_MCA_", "PRTE_MCA_", "HYDRA_")
_RANK_MARKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What tells a process how many threads to compute with."""

_TAG = "HEADRACE_JOB_TAG"  # marks every process of a job, so that each can be found again
_KILL_SECONDS = 60.0  # a killed process needs a share of the processor to end


def thread_variables(count: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what tells a solver rank its threads: a number, or with 0 what the user's own environment says, else one.

    Ray, and whatever else stands between the user and a rank, would say something of their own.
    """
    own = environment.get(THREADS[0], "1")
    return {name: str(count) if count else environment.get(name, own) for name in THREADS}


def cores_for(variables: Mapping[str, str]) -> int:
    """Return the cores that a rank with these threads keeps busy; of nested threads only the outer ones count.

    Raises
    ------
    ValueError : OMP_NUM_THREADS is no positive number.
    """
    told = variables[THREADS[0]]
    first = told.split(",")[0].strip()
    if not first.isdecimal() or int(first) < 1:
        raise ValueError(f"OMP_NUM_THREADS is {told!r}; it must be a positive number. Correct it, or give --threads.")
    return int(first)


def kind_to_neighbours(busy: int) -> dict[str, str]:
    """Return what lets ranks of MPICH and Intel MPI sleep while they wait, where busy processes outnumber cores.

    Two ranks and a trainer on two cores: a waiting rank that polls keeps the other from running for whole time slices.
    Seen there with MPICH: 6.4 s a simulation of 100 implicit steps without this, 1.6 s with it.
    """
    sleep = {"MPIR_CVAR_ENABLE_HEAVY_YIELD": "1", "I_MPI_THREAD_YIELD": "3"}
    crowded = busy > len(os.sched_getaffinity(0))
    return {name: value for name, value in sleep.items() if name not in os.environ} if crowded else {}


def find_mpirun() -> Path:
    """Return the mpirun beside this Python, else the first one on PATH.

    Raises
    ------
    RuntimeError : there is none; says how to get one.
    """
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("mpirun")
    if found is None:
        raise RuntimeError(
            f"No mpirun beside {sys.executable} or on PATH. Run pip install 'headrace[mpich]', or load the site's MPI."
        )
    return Path(found)


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what an outer mpirun, scheduler or Ray left in it, and with one thread a rank."""
    is_rank = any(mark in environment for mark in _RANK_MARKS)
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith(_LEAKS)
        or name.startswith(PERMISSIONS)
        or (name.startswith(_SETTINGS) and not is_rank)
    }
    return {**kept, **dict.fromkeys(THREADS, "1"), "PYTHONUNBUFFERED": "1"}


class LocalLauncher(Launcher):
    """Runs each job under an mpirun of its own on this node; ranks share its cores with everything else.

    Every job has its own session, so that Ctrl-C on a terminal does not reach it, and ends with the
    thread that started it: mpirun and each rank are killed by the kernel when their parent dies.

    Parameters
    ----------
    mpirun : which one; None finds it.
    flags : its flags before -n; None: those with which ranks share cores.
    grace : seconds between SIGTERM and SIGKILL.
    bind : cores of its own for each rank, 0: ranks share all cores with everything else.

    Raises
    ------
    RuntimeError : there is no mpirun.
    """

    def __init__(
        self, *, mpirun: str | Path | None = None, flags: Sequence[str] | None = None, grace: float = 5.0, bind: int = 0
    ) -> None:
        self.mpirun = Path(mpirun) if mpirun is not None else find_mpirun()
        self._grace = grace
        self._flags = _flags_of(self.mpirun) if flags is None else list(flags)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: dict[str, int] = {}
        self._identity = uuid.uuid4().hex
        # From the last to the first: what is not bound, as the trainer, finds the first ones least used.
        self._bind, self._free = bind, sorted(os.sched_getaffinity(0), reverse=True)
        self._bound: dict[str, list[int]] = {}

    def start(self, job: Job) -> int:
        """Start a job and return at once, with the process id of its mpirun.

        Raises
        ------
        RuntimeError : too few cores are free to bind its ranks, or it starts them itself, where they cannot be bound.
        """
        if job.name in self._running:
            raise ValueError(f"Job {job.name} is running already; every job needs a name of its own.")
        ranks = [str(self.mpirun), *self._flags, "-n", str(job.ranks), *wrapper()]
        binding = self._take_cores(job) if self._bind else {}
        if binding:
            ranks += [sys.executable, "-I", "-S", on_own_cores.__file__]
        command = [*wrapper(os.getpid()), *([] if job.own_mpirun else ranks), *job.command]
        environment = {**_environment_for(self.mpirun), **job.environment, **binding, _TAG: self.tag(job.name)}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True,
            )  # fmt: skip
        self._running[job.name] = process
        return process.pid

    def poll(self) -> dict[str, int]:
        """Return the exit codes of the jobs that ended since the last call; 128 + n where signal n ended mpirun."""
        for name, process in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[name]
                _end(processes_of(self.tag(name), process.pid), 0.0)  # ranks that outlived their mpirun
                self._note_end(name, code)
        ended, self._ended = self._ended, {}
        return ended

    def stop(self, name: str) -> None:
        """End a job: SIGTERM, after a grace period SIGKILL, to all of its processes; unknown names are ignored.

        Raises
        ------
        RuntimeError : a process cannot be killed.
        """
        self._stop([name])

    def stop_all(self) -> None:
        """End every job that this launcher started, together.

        Raises
        ------
        RuntimeError : a process cannot be killed.
        """
        self._stop(list(self._running))

    def tag(self, name: str) -> str:
        """Return the mark that every process of a job carries in its environment."""
        return f"{self._identity}-{name}"

    def _stop(self, names: Iterable[str]) -> None:
        stopped = {name: self._running.pop(name) for name in names if name in self._running}
        members: set[psutil.Process] = set()
        for name, process in stopped.items():
            members.update(processes_of(self.tag(name), process.pid))
            if process.poll() is None:
                # While it changes its program it shows no environment, and so no tag: its number is known without.
                members.add(psutil.Process(process.pid))
        _end(list(members), self._grace)
        for name, process in stopped.items():
            code = process.wait(_KILL_SECONDS)
            # What it started in its last moment goes too.
            left = [member.pid for member in _end(processes_of(self.tag(name), process.pid), 0.0)]
            if left:
                raise RuntimeError(f"Processes {left} of job {name} cannot be killed; look at them on this node.")
            self._note_end(name, code)

    def _note_end(self, name: str, code: int) -> None:
        self._ended[name] = code if code >= 0 else 128 - code
        self._free += self._bound.pop(name, [])

    def _take_cores(self, job: Job) -> dict[str, str]:
        """Return the variable that tells each rank its cores."""
        count = job.ranks * self._bind
        if job.own_mpirun:
            raise RuntimeError(f"{job.command[0]} starts its own ranks, which cannot be bound: leave out --bind-cores.")
        if count > len(self._free):
            raise RuntimeError(
                f"Job {job.name} needs {count} cores to itself, and {len(self._free)} are free. Take fewer jobs, ranks "
                "or threads, or leave out --bind-cores."
            )
        cores, self._free = self._free[:count], self._free[count:]
        self._bound[job.name] = cores
        groups = [cores[i : i + self._bind] for i in range(0, count, self._bind)]
        return {on_own_cores.CORES: ";".join(",".join(map(str, group)) for group in groups)}


def _environment_for(mpirun: Path) -> dict[str, str]:
    """Return a clean environment in which mpirun finds what stands beside it: Intel's is a script that calls others."""
    environment = clean_environment(os.environ)
    return {**environment, "PATH": os.pathsep.join([environment.get("PATH", os.defpath), str(mpirun.parent)])}


def _flags_of(mpirun: Path) -> list[str]:
    """Return the flags with which this mpirun lets ranks share cores."""
    try:
        answer = subprocess.run(
            [str(mpirun), "--version"], capture_output=True, text=True, timeout=120, check=True,
            env=_environment_for(mpirun), stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"{mpirun} --version failed ({error}). Repair this MPI, or load another.") from error
    said = answer.stdout + answer.stderr
    if "Open MPI" not in said and "OpenRTE" not in said:  # Debian's mpirun.openmpi calls itself by the second name
        return []  # MPICH and its kin do not bind ranks, and yield the core while they wait
    # Open MPI would bind the first ranks of all jobs to the same cores.
    flags = ["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"]
    # No other node is started from here; without ssh, as in a container, Open MPI 4 would not start this one either.
    flags += ["--mca", "plm_rsh_agent", "false"]
    return [*flags, "--allow-run-as-root"] if os.geteuid() == 0 else flags


def processes_of(tag: str, pid: int) -> list[psutil.Process]:
    """Return the live processes of a job: descendants of its mpirun, and all that carry the job's tag.

    Neither sessions nor parents alone would do: MPICH gives every rank a session, and a rank whose mpirun was
    killed has another parent.
    """
    found = {}
    try:
        found.update({process.pid: process for process in psutil.Process(pid).children(recursive=True)})
    except psutil.NoSuchProcess:
        pass  # it has ended; the tag finds the rest
    for process in psutil.process_iter():
        try:
            if process.environ().get(_TAG) == tag:
                found[process.pid] = process
        except (OSError, psutil.Error):
            continue  # it ended while we looked, or belongs to somebody else
    return [process for process in found.values() if is_alive(process)]


def _end(processes: list[psutil.Process], grace: float) -> list[psutil.Process]:
    """Ask processes to end, and kill those that are alive after the grace period; return those that live on.

    What their MPI would have removed from /dev/shm in MPI_Finalize goes with them.
    """
    segments = {segment for process in processes for segment in segments_of(process.pid)}
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_SECONDS)):
        if number == signal.SIGTERM and not grace:
            continue
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                pass
        deadline = time.monotonic() + patience
        while processes and time.monotonic() < deadline:
            processes = [process for process in processes if is_alive(process)]
            time.sleep(0.02)
    if not processes:
        remove(segments)
    return processes


def is_alive(process: psutil.Process) -> bool:
    """Say whether a process runs; one that only waits for its parent's look does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
