"""Where intake and trainers run, and on which address they listen."""

import socket

import psutil
import pytest

from headrace.online_training.interface import AUTO, address_of, is_local
from headrace.online_training.placement import choose_place
from headrace.online_training.run_directory import StudyError
from headrace.online_training.settings import StudySettings


def node(name: str, cpus: float, gpus: float = 0, *, alive: bool = True) -> dict:
    resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
    return {"NodeID": name, "NodeManagerAddress": f"10.0.0.{name}", "Alive": alive, "Resources": resources}


def place(nodes: list[dict], **settings: object) -> tuple[str, str]:
    chosen = choose_place(nodes, "1", StudySettings(**settings))
    assert chosen.resources() == {f"node:10.0.0.{chosen.node}": 0.001}
    return chosen.node, chosen.device


def test_trainers_and_their_reservoir_go_to_one_node_the_one_with_gpus() -> None:
    nodes = [node("1", 4), node("2", 8, 2), node("3", 8, 4), node("4", 64, 8, alive=False)]
    assert place(nodes) == ("3", "cuda")
    assert place(nodes, workers=4) == ("3", "cuda")
    assert place(nodes, device="cpu") == ("1", "cpu")  # the driver's own
    assert place(nodes, workers=8) == ("1", "cpu")  # no node has eight: auto takes none
    assert place([node("1", 0), node("2", 2), node("3", 4)]) == ("3", "cpu")


def test_workers_are_on_several_nodes_where_one_has_not_enough_or_when_asked_to() -> None:
    def apart(nodes: list[dict], **settings: object) -> tuple[str, str, bool]:
        chosen = choose_place(nodes, "1", StudySettings(**settings))
        return chosen.node, chosen.device, chosen.apart

    nodes = [node("1", 4), node("2", 8, 2), node("3", 8, 4)]
    assert apart(nodes, workers=4) == ("3", "cuda", False)
    assert apart(nodes, workers=6) == ("3", "cuda", True)
    assert apart(nodes, workers=30, device="cpu") == ("1", "cpu", True)
    assert apart(nodes, workers=2, spread_workers=True, device="cpu") == ("1", "cpu", True)
    assert apart(nodes[:1], workers=2, spread_workers=True) == ("1", "cpu", False)
    # A GPU without a CPU for its worker is none.
    assert apart([node("1", 4), node("2", 0.5, 2), node("3", 8, 4)], workers=6) == ("1", "cpu", False)


def test_what_the_nodes_have_not_is_said_with_what_they_have() -> None:
    nodes = [node("1", 4), node("2", 8, 2)]
    with pytest.raises(StudyError, match=r"3 workers on cuda.*10.0.0.2: 8 CPUs, 2 GPUs"):
        place(nodes, workers=3, device="cuda")
    with pytest.raises(StudyError, match=r"26 workers need 13 CPUs.*10.0.0.1: 4 CPUs"):
        place(nodes, workers=26, batch_size=40)


def test_an_interface_is_an_address_a_name_or_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert address_of("10.1.2.3") == "10.1.2.3" and address_of("*") == "*"
    loopback = next(
        name for name, some in psutil.net_if_addrs().items()
        if any(one.family == socket.AF_INET and one.address == "127.0.0.1" for one in some)
    )  # fmt: skip
    assert address_of(loopback) == "127.0.0.1" and is_local(address_of(loopback))
    with pytest.raises(ValueError, match=rf"no interface 'ib7' .*{loopback} \(127.0.0.1\)"):
        address_of("ib7")
    own = [one.address for some in psutil.net_if_addrs().values() for one in some if one.family == socket.AF_INET]
    reachable = [address for address in own if not is_local(address)]
    if reachable:
        monkeypatch.setattr(socket, "gethostbyname", lambda name: {"n7": reachable[0]}.get(name, "127.0.1.1"))
        monkeypatch.setenv("SLURMD_NODENAME", "n7")
        assert address_of(AUTO) == reachable[0]
