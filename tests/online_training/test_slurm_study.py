"""Whole studies on a real Slurm of two separate nodes: solver jobs by sbatch, and as steps of one allocation."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from headrace.online_training.audit import audit
from headrace.online_training.ledger import Ledger
from tests.online_training import slurm_cluster
from tests.online_training.intake_setup import environment_without_ray
from tests.online_training.running_study import DRIVER
from tests.online_training.slurm_cluster import SlurmCluster, processes_with

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not slurm_cluster.available(), reason=f"needs {slurm_cluster.INSTALL}"),
]
HEADRACE = [sys.executable, "-m", "headrace.cases"]
# Its simulations sleep most of their time, of which the machine has more than of processors.
STUDY = [str(DRIVER), "--model", "mlp", "--held-out", "0", "--ranks", "2", "--views", "1"]
PATIENCE = 420


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    with SlurmCluster(cpus=4, shared=(tmp_path_factory.getbasetemp(),)) as cluster:
        yield cluster


def environment_of(cluster: SlurmCluster) -> dict[str, str]:
    return {**environment_without_ray(), **cluster.environment}


def headrace(cluster: SlurmCluster, *arguments: str) -> str:
    done = subprocess.run(
        [*HEADRACE, *arguments], env=environment_of(cluster), capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def wait_for(condition: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else f"{log} never came"
        time.sleep(1.0)  # most conditions ask the scheduler, or look at every process


def queue(cluster: SlurmCluster, what: str) -> list[str]:
    """What squeue prints for each job that has not ended: nothing, for some formats, of one that waits."""
    return [line for line in cluster.run("squeue", "--noheader", f"--format={what}").splitlines() if line.strip()]


def on_both_nodes(cluster: SlurmCluster) -> bool:
    """Whether a study and its two solver jobs run, on two nodes."""
    nodes = queue(cluster, "%N")
    return len(nodes) == 3 and set(nodes) == {"n1", "n2"}


def samples(run: Path, since: float = 0.0) -> int:
    """Steps that the study has accepted, as it said last; 0 where it said nothing since a time."""
    try:
        last = json.loads((run / "intake.jsonl").read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return 0
    return last["steps_accepted"] if last["time"] > since else 0


def attempts(run: Path) -> int:
    """The most that a simulation has begun."""
    return max((one.attempts for one in Ledger(run / "ledger").simulations.values()), default=0)


def trainers_of(run: Path) -> set[str]:
    """The nodes, as the kernel names their networks, on which trainer workers of a run are now."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if "RayTrainWorker" in process.name() + " ".join(process.cmdline()):
                if any(str(run) in value for value in process.environ().values()):
                    found.add(os.readlink(f"/proc/{process.pid}/ns/net"))
    return found


def test_a_node_dies_the_time_limit_requeues_the_study_and_scancel_stops_it_in_order(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    """Its solver jobs are jobs of their own, one array on both nodes, which a stop cancels."""
    run, log = tmp_path / "run", tmp_path / "run.log"
    study = [*STUDY, "--simulations", "2000", "--jobs", "2", "--run-dir", str(run), "--jobs-apart"]
    study.append("--scheduler-options=--ntasks-per-node=2")
    said = headrace(cluster, "submit", *study, "--nodes", "1", "--cores", "2", "--minutes", "30", "--notice", "299")
    number = said.split()[1].rstrip(",")
    wait_for(lambda: samples(run) and on_both_nodes(cluster), log)
    if cluster.separate:
        home = cluster.run("squeue", "-h", "-j", number, "-o", "%N").strip()
        cluster.kill_node("n2" if home == "n1" else "n1")
        wait_for(lambda: attempts(run) >= 2, log)
        before = samples(run)
        cluster.start_missing_nodes()
        wait_for(lambda: samples(run) > before and on_both_nodes(cluster), log)
    # Slurm signals when less than the notice is left: at once, with four minutes or more to stop in order.
    elapsed = int(cluster.run("squeue", "-h", "-j", number, "-o", "%M").split(":")[-2])
    cluster.run("scontrol", "update", f"JobId={number}", f"TimeLimit={elapsed + 5}")
    requeued = "the time limit was near"
    wait_for(lambda: log.exists() and requeued in log.read_text(), log)
    wait_for(lambda: queue(cluster, "%T") == ["PENDING"], log)
    assert processes_with(run) == []
    requeue = time.time()
    cluster.run("scontrol", "update", f"JobId={number}", "TimeLimit=30")

    def begun() -> int:
        # Slurm holds a requeued job for two minutes; a node refuses it in the second in which it withdrew its key.
        if queue(cluster, "%T") == ["PENDING"]:
            time.sleep(3)
            cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now")
        return samples(run, since=requeue)

    wait_for(begun, log)
    cluster.run("scancel", "--batch", "--signal=TERM", number)
    wait_for(lambda: not queue(cluster, "%i"), log)
    wait_for(lambda: not processes_with(run), log)
    assert log.read_text().count("stopped in order") == 2
    ends = [text for path in sorted((run / "ledger").glob("study-*.log")) for text in path.read_text().splitlines()]
    assert sum('"stopped"' in text and "asked to stop" in text for text in ends) == 2
    assert audit(run).ok, audit(run).lines


def test_a_submitted_study_trains_on_each_node_and_has_solvers_as_steps(cluster: SlurmCluster, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "run.log"
    study = [*STUDY, "--simulations", "6", "--jobs", "2", "--run-dir", str(run), "--workers", "2", "--spread-workers"]
    headrace(cluster, "submit", *study, "--nodes", "2", "--cores", "4", "--minutes", "10")
    seen: set[str] = set()

    def ended() -> bool:
        seen.update(trainers_of(run))
        return not queue(cluster, "%i")

    wait_for(ended, log)
    assert (run / "report.html").exists(), log.read_text()
    assert audit(run).ok, audit(run).lines
    assert len(list((run / "ledger").glob("trainer-1-1-*.log"))) == 2
    if cluster.separate:
        assert len(seen) == 2  # one worker on each node, in processes and a network of its own
