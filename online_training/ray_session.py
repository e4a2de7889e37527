"""Ray for one study: its own, on this node or on all of an allocation, or a cluster that is there already."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .interface import AUTO, address_of, is_local
from .ray_nodes import OBJECT_STORE_BYTES, allocated_cpus, ray_on_other_nodes
from .run_directory import RunDirectory, StudyError, write_secret
from .settings import RAY_NODES, StudySettings

_ATTACHED = "RAY_ADDRESS"
# Ray's switch for other systems, on which its ports would be asked about: off, they are all on 127.0.0.1.
_SEVERAL_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_STARTS = 3
_UNUSED_PROCESSES = ("start_log_monitor", "start_monitor", "start_api_server")
_HANDLER_SECONDS = 0.05


@contextlib.contextmanager
def ray_session(directory: RunDirectory, settings: StudySettings) -> Iterator[None]:
    """Bring up Ray for the length of a block, or use the one that the settings or RAY_ADDRESS name.

    A Ray of the study's own has a token of its own, free ports and a short temporary folder, and is stopped again.
    A cluster that was there is left as it is, but for the study's actors. Where this process is connected already,
    that connection is used.

    Raises
    ------
    StudyError : the cluster cannot be reached, or a node does not join.
    """
    prepare_environment(directory, settings)
    import ray

    if ray.is_initialized():
        yield
    elif address := address_of_cluster(settings):
        with _in_a_thread(partial(_connect, address)):
            yield
    else:
        with _own(directory, settings):
            yield


def address_of_cluster(settings: StudySettings) -> str:
    """Return HOST:PORT of the running Ray that is to be used, or "" where the study starts its own."""
    if settings.ray_address == RAY_NODES:
        return ""
    return settings.ray_address or os.environ.get(_ATTACHED, "")


@contextlib.contextmanager
def _own(directory: RunDirectory, settings: StudySettings) -> Iterator[None]:
    _remove_left_over(directory)
    # Unix sockets live below this folder, and their paths may not exceed 107 bytes: run directories can be too deep.
    folder = tempfile.mkdtemp(prefix="hr-")
    (directory.secrets / "ray-folder").write_text(folder)
    over_nodes = settings.ray_address == RAY_NODES
    where: dict[str, Any] = {"num_cpus": settings.max_workers + 1}
    if over_nodes:
        where = {"num_cpus": max(allocated_cpus(), settings.max_workers + 1), "_node_ip_address": _reachable(settings)}
    begin = partial(
        _patiently, "local", **where, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES, _temp_dir=folder,
    )  # fmt: skip
    try:
        with contextlib.ExitStack() as stack:
            context = stack.enter_context(_in_a_thread(begin))
            if over_nodes:
                log = directory.logs / "ray-nodes.log"
                head = context.address_info["gcs_address"]
                try:
                    stack.enter_context(ray_on_other_nodes(head, settings.interface, log, _count_nodes))
                except RuntimeError as error:
                    raise StudyError(str(error)) from error
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _count_nodes() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


@contextlib.contextmanager
def _in_a_thread(begin: Callable[[], Any]) -> Iterator[Any]:
    """Let another thread initialise Ray, and shut it down after the block; gives what `begin` returns.

    In the main thread Ray puts a handler of its own in place of the study's, which exits from wherever SIGTERM finds
    it: a stop asked for in these seconds would be lost, or leave Ray half begun. The thread stays until the end,
    because the kernel kills Ray's processes with the thread that started them.
    """
    import ray

    begun, over = threading.Event(), threading.Event()
    results: list[Any] = []
    errors: list[BaseException] = []

    def hold() -> None:
        try:
            results.append(begin())
        except BaseException as error:
            errors.append(error)
        begun.set()
        over.wait()
        ray.shutdown()

    thread = threading.Thread(target=hold, name="headrace-ray", daemon=True)
    thread.start()
    try:
        while not begun.wait(_HANDLER_SECONDS):
            _take_sigterm_back()
        _take_sigterm_back()
        if errors:
            raise errors[0]
        yield results[0]
    finally:
        over.set()
        thread.join()


def _take_sigterm_back() -> None:
    """Put this process's handler where the kernel looks: Ray's core puts one there that aborts, in whatever thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _patiently(*arguments: Any, **settings: Any) -> Any:
    """Call `ray.init`, again where it gave up: it waits 30 s, which a node that reads Python from a slow file system,
    or is busy, may take the first time.

    Raises
    ------
    StudyError : Ray did not start at the third time either.
    """
    import ray

    for attempt in range(1, _STARTS + 1):
        try:
            with _few_processes_apart():
                return ray.init(*arguments, **settings)
        except Exception as error:  # Ray raises the bare class here
            ray.shutdown()
            if "timed out during startup" not in str(error) or attempt == _STARTS:
                raise StudyError(f"Ray does not start on {socket.gethostname()}: {error}") from error


@contextlib.contextmanager
def _few_processes_apart() -> Iterator[None]:
    """Let `ray.init` in the block start nothing that copies logs to the driver, asks an autoscaler for nodes, or serves
    Ray's dashboard, which without its pages only sends statistics home, and which `ray.init` waits for; and what it
    starts, in a session of its own. `timeout`, batch systems and a closed terminal send their signal to all processes
    of a group: it is the driver's to answer, which cannot stop in order without its Ray.

    `ray start` has switches for the first two, `ray.init` has none.
    """
    from ray._private import services
    from ray._private.node import Node

    kept: dict[tuple[Any, str], Any] = {
        (Node, name): getattr(Node, name) for name in _UNUSED_PROCESSES if hasattr(Node, name)
    }
    for owner, name in kept:
        setattr(owner, name, lambda self, **unused: None)
    if hasattr(services, "ConsolePopen"):
        kept[services, "ConsolePopen"] = services.ConsolePopen
        services.ConsolePopen = partial(services.ConsolePopen, start_new_session=True)
    try:
        yield
    finally:
        for (owner, name), value in kept.items():
            setattr(owner, name, value)


def _reachable(settings: StudySettings) -> str:
    address = address_of(settings.interface)
    if is_local(address) or address == "*":
        raise StudyError(
            f"--interface {settings.interface} is no address by which other nodes reach this one, as Ray over several "
            f"nodes needs. Give --interface {AUTO}, or an interface's name."
        )
    return address


def _connect(address: str) -> None:
    import ray

    if "://" in address:
        raise StudyError(
            f"{address} is an address of Ray Client, which a study cannot use. Start the study on a node of that "
            "cluster, and give HOST:PORT or auto."
        )
    try:
        ray.init(
            address=address, log_to_driver=False, logging_level=logging.ERROR,
            runtime_env={"env_vars": {name: os.environ[name] for name in _DEFAULTS}},
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
        raise StudyError(
            f"The Ray cluster at {address} cannot be used: {error} Start the study on a node of the cluster, with "
            "RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH as the cluster was started with."
        ) from error


_DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # The controller looks at its workers this often; the default of 2 s delays every restart.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Nothing of ours asks for what this actor finds out, and its start takes 3 s of a core.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # As Ray Train would set it for its controller, which would then need a process for an environment of its own.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
}


def prepare_environment(directory: RunDirectory, settings: StudySettings) -> None:
    """Set what Ray reads from the environment when it is imported: a token per run, no statistics sent home.

    A Ray of this node alone listens on the node alone. In a process that imported Ray earlier its own defaults hold,
    among them a token in the user's home. The token of a running cluster is its owner's matter.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ and not address_of_cluster(settings):
        token = directory.secrets / "ray"
        write_secret(token, secrets.token_hex(32))
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
    if not address_of_cluster(settings) and settings.ray_address != RAY_NODES:
        os.environ[_SEVERAL_NODES] = "0"
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def _remove_left_over(directory: RunDirectory) -> None:
    """Remove the folder of a Ray whose driver was killed."""
    note = directory.secrets / "ray-folder"
    if note.exists():
        folder = Path(note.read_text().strip())
        if folder.name.startswith("hr-") and folder.parent == Path(tempfile.gettempdir()):
            shutil.rmtree(folder, ignore_errors=True)
        note.unlink()
