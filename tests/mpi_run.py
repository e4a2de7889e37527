"""How tests start real MPI ranks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Ranks of one node speak as if they were on two: through sockets, in which MPI moves nothing for a rank outside of it.
OVER_THE_NETWORK = {
    "MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "OMPI_MCA_btl": "tcp,self", "OMPI_MCA_pml": "ob1"
}  # fmt: skip


def mpirun() -> str:
    """Path of mpirun: the one beside this Python, else the site's."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise RuntimeError("No mpirun: pip install mpich, or load the site's MPI module.")
    return found


def open_mpi_flags() -> list[str]:
    """Flags that let Open MPI share cores and run as root; none for other MPIs."""
    version = subprocess.run([mpirun(), "--version"], capture_output=True, text=True, check=False).stdout
    flags = ["--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"]
    return flags if "Open MPI" in version else []


def run_mpi(ranks: int, args: list[str], timeout: float = 120, **kwargs) -> subprocess.CompletedProcess:
    """Run `python *args` on a number of ranks; output is captured as text."""
    # With more ranks than cores, MPICH's ranks must let others run while they wait.
    defaults = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1"}
    environment = {**os.environ, **defaults, **kwargs.pop("env", {})}
    return subprocess.run(
        [mpirun(), *open_mpi_flags(), "-n", str(ranks), sys.executable, *args],
        capture_output=True, text=True, timeout=timeout, env=environment, check=False, **kwargs,
    )  # fmt: skip
