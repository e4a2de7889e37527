"""What tests of this folder share: intakes by each transport, and Ray, started once a process: what Ray Train leaves
running may outlive it.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

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


@pytest.fixture
def validated_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies of this process are validated at their end, and not by a process beside them (5 s of a core)."""
    from headrace.online_training.validator import ValidatorProcess

    monkeypatch.setattr(ValidatorProcess, "__enter__", lambda self: self)
    monkeypatch.setattr(ValidatorProcess, "__exit__", lambda self, *error: None)


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
