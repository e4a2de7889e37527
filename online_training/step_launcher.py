"""Solver jobs as steps of the Slurm allocation that the study itself runs in: srun instead of mpirun."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .launcher import Job
from .local_launcher import LocalLauncher

_DEFAULT_MPI = "pmi2"  # MPICH and its kin; a site's Open MPI wants pmix
_KEPT = ("SLURM_CONF",)
_NETWORK = "MPIR_CVAR_CH4_NETMOD"  # by which of its networks MPICH speaks to other nodes


def step_flags(environment: Mapping[str, str], options: Sequence[str], *, whole_nodes: bool = False) -> list[str]:
    """Return srun's flags for a job's step.

    Steps get cores of their own (`--exact`) and wait where none are free. That would last for ever where the study
    is itself a step, which holds the allocation's cores: its jobs share them (`--overlap`). A step over whole nodes
    may use all that the allocation has there, and keeps nothing from other steps.

    Raises
    ------
    RuntimeError : this process is in no allocation.
    """
    allocation = environment.get("SLURM_JOB_ID")
    if not allocation:
        raise RuntimeError(
            "This process is in no Slurm allocation (SLURM_JOB_ID is unset): use sbatch or salloc first."
        )
    if whole_nodes:
        return [f"--jobid={allocation}", "--overlap", "--mem=0", "--mpi=none", *options]
    share = "--overlap" if environment.get("SLURM_STEP_ID", "").isdigit() else "--exact"
    mpi = [] if any(option.startswith("--mpi") for option in options) else [f"--mpi={_DEFAULT_MPI}"]
    return [f"--jobid={allocation}", share, "--cpus-per-task=1", "--kill-on-bad-exit=1", *mpi, *options]


def short_addresses(launch: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return what keeps the addresses that MPICH's ranks tell one another short enough for Slurm's pmi2.

    Over UCX, which the MPICH wheel prefers, an address has some 6 kB, which pmi2 cuts at times, so that MPI_Init fails
    or never ends; over libfabric it has 66 bytes. What the user says about MPICH's network is kept, and a site's own
    MPI, which may have only one, is left alone.

    launch : the words that start the ranks. environment : of the user.
    """
    with_pmi2 = "--mpi=pmi2" in launch or "pmi2" in launch
    ours = Path(sys.executable).with_name("mpichversion").exists()
    return {_NETWORK: environment.get(_NETWORK, "ofi")} if with_pmi2 and ours else {}


class StepLauncher(LocalLauncher):
    """Runs each job under an srun of its own inside the allocation, on any of its nodes.

    What the local launcher does with mpirun holds for srun: it ends with the supervisor. Ranks on other nodes end
    with their step, or with their lease.

    options : further flags of srun, e.g. "--mpi=pmix" or "--mem-per-cpu=1G".
    whole_nodes : the jobs are no MPI programs, but look after all that the allocation has on their nodes.

    Raises
    ------
    RuntimeError : there is no srun, or no allocation.
    """

    def __init__(self, options: Sequence[str] = (), *, whole_nodes: bool = False) -> None:
        srun = shutil.which("srun")
        if srun is None:
            raise RuntimeError("No srun on PATH. Load Slurm's module, or use --scheduler local.")
        super().__init__(mpirun=srun, flags=step_flags(os.environ, options, whole_nodes=whole_nodes))

    def start(self, job: Job) -> int:
        """Start a job's step and return at once, with the process id of its srun.

        Raises
        ------
        RuntimeError : the job brings an mpirun of its own, which cannot be a step.
        """
        if job.own_mpirun:
            raise RuntimeError(f"{job.command[0]} starts its own ranks; run it with --scheduler slurm or local.")
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        kept.update(short_addresses(self._flags, os.environ))
        return super().start(replace(job, environment={**kept, **job.environment}))
