"""A study on a Ray cluster that runs already, of two nodes with addresses, processes and /tmp of their own."""

import json
import socket
import sys
import time
from pathlib import Path

import pytest

from headrace.online_training.ray_nodes import free_ports
from headrace.online_training.ray_session import _connect, address_of_cluster
from headrace.online_training.run_directory import StudyError, write_secret
from headrace.online_training.settings import StudySettings
from tests.online_training.running_study import DRIVER
from tests.online_training.separate_nodes import SeparateNodes, why_not

PORT = 6379
STUDY = {"simulations": 4, "held_out": 0, "ranks": 2, "views": 1, "interface": "eth0"}
HEAD = """
python=$1 address=$2 run=$3
for attempt in 1 2 3; do  # it gives up after 30 s, which a busy node may take
    $python -m ray.scripts.scripts start --head --node-ip-address=$address --port={port} --num-cpus=0 \
        --include-dashboard=false --object-store-memory=100000000 && break
    $python -m ray.scripts.scripts stop --force
done
touch $run.head
$python -c "$4" "$@"
touch $run.done
sleep 600
"""
STUDY_AND_AFTER = """
import json, ray, subprocess, sys, time
python, address, run, _, driver, settings = sys.argv[1:]
settings = {{**json.loads(settings), 'ray_address': f'{{address}}:{port}'}}
ray.init(f'{{address}}:{port}', log_to_driver=False)
while sum(node['Alive'] for node in ray.nodes()) < 2:
    time.sleep(0.2)
code = subprocess.run([python, driver, run, 'new', json.dumps(settings)]).returncode
deadline = time.monotonic() + 240
while ray.available_resources().get('CPU') != 2 and time.monotonic() < deadline:
    time.sleep(0.2)
nodes, cpus = sum(node['Alive'] for node in ray.nodes()), ray.available_resources()['CPU']
actors = [one['name'] for one in ray.util.list_named_actors(all_namespaces=True)]
print('code', code, nodes, 'nodes', cpus, 'CPUs free', *actors, file=open(run + '.after', 'w'))
"""


def wait_for(path: Path, log: Path, seconds: float = 500.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(why_not()), reason=f"needs separate nodes: {why_not()}")
def test_a_study_trains_on_the_node_that_has_cpus_and_leaves_the_cluster_as_it_was(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "head.out"
    write_secret(tmp_path / "token", "5" * 64)
    environment = {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "SLURM_CPUS_ON_NODE": "2",
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    repository = Path(__file__).parents[2]
    shared = (tmp_path, repository, Path(sys.prefix), Path(sys.base_prefix))
    with SeparateNodes(tmp_path, ("head", "worker"), shared) as nodes:
        address = nodes.addresses["head"]
        script, program = HEAD.format(port=PORT), STUDY_AND_AFTER.format(port=PORT)
        study = str(DRIVER), json.dumps(STUDY)
        command = ["sh", "-c", script, "head", sys.executable, address, str(run), program, *study]
        nodes.start("head", command, environment)
        wait_for(Path(f"{run}.head"), log)
        join = [sys.executable, "-m", "headrace.online_training.ray_nodes", f"{address}:{PORT}", "eth0"]
        nodes.start("worker", join, environment)
        wait_for(Path(f"{run}.done"), log, 500.0)
    streamed_to = json.loads((run / "logs" / "supervisor-1.json").read_text())["environment"]["HEADRACE_ADDRESS"]
    assert f"tcp://{nodes.addresses['worker']}:" in streamed_to
    assert Path(f"{run}.after").read_text() == "code 0 2 nodes 2.0 CPUs free\n", log.read_text()


def test_ports_to_listen_on_later_are_none_that_connections_are_given() -> None:
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(50)
    assert len(set(ports)) == 50 and 1024 <= min(ports) and max(ports) < first_given
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_which_cluster_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_of_cluster(StudySettings()) == ""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_of_cluster(StudySettings()) == "10.0.0.1:6379"
    assert address_of_cluster(StudySettings(ray_address="10.0.0.2:6379")) == "10.0.0.2:6379"
    assert address_of_cluster(StudySettings(ray_address="slurm-nodes")) == ""


def test_an_address_of_ray_client_is_refused() -> None:
    with pytest.raises(StudyError, match="Ray Client"):  # said before anything of Ray is begun or ended
        _connect("ray://10.0.0.1:10001")
