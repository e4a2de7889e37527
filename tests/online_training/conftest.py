"""What tests of this folder share: intakes by each transport, and Ray, started once a process: what Ray Train leaves
running may outlive it.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .intake_setup import make_layout, running_intake, use_environment
from .study_driver import HOLD


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs this folder's Ray, so that all of it can run in one process and the rest in another."""
    for item in items:
        if "ray_here" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(scope="session")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """Ray in this process, with one CPU; studies that are run in this process find it and start none of their own.

    It has no token. Its workers look at the file named by HEADRACE_TEST_HOLD, as `study_driver` says.
    """
    from headrace.online_training.ray_session import _DEFAULTS, _SEVERAL_NODES, _patiently

    hold = tmp_path_factory.mktemp("ray") / "hold"
    variables = {**_DEFAULTS, _SEVERAL_NODES: "0", "RAY_AUTH_MODE": "disabled", HOLD: str(hold)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        import ray

        _patiently(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
        yield ray
        ray.shutdown()


class WorkerHere:
    """In the place of Ray Train's trainer: one worker, in the thread that asks for it, that nobody starts again."""

    def __init__(self, work: Callable[[dict[str, Any]], None], *, train_loop_config: dict[str, Any], **_: Any) -> None:
        self._work, self._config = work, train_loop_config

    def fit(self) -> None:
        """Train."""
        self._work(self._config)


@pytest.fixture
def trainer_here(ray_here: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies of this process train in it, and not in a process of Ray Train's: for what says nothing of Ray Train.

    They are validated at their end alone. It saves each of them some 20 s of a core.
    """
    import ray.train.torch

    from headrace.online_training import session

    monkeypatch.setattr(session, "ValidatorProcess", lambda run_dir: nullcontext())
    monkeypatch.setattr(ray.train.torch, "TorchTrainer", WorkerHere)
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)


@pytest.fixture
def validated_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline studies of this process are validated at their end, and not by a process beside them (5 s of a core)."""
    from headrace.online_training import offline_study

    monkeypatch.setattr(offline_study, "ValidatorProcess", lambda run_dir: nullcontext())


@pytest.fixture(params=["shm", "ipc", "tcp"])
def study(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes intakes whose environment is this process's; ranks send their blocks by this transport."""
    stack = []

    def make(layout=None, **changes):
        context = running_intake(tmp_path, layout or make_layout(), transport=request.param, **changes)
        intake = context.__enter__()
        stack.append(context)
        use_environment(intake, monkeypatch)
        return intake

    yield make
    for context in stack:
        context.__exit__(None, None, None)
