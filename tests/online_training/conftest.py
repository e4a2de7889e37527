"""Ray for the tests of this folder: started once in a process, because what Ray Train leaves running may outlive it."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from .study_driver import HOLD


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
