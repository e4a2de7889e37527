"""Which Ray a study uses: its own, or a cluster that runs already."""

import os
from pathlib import Path

import pytest

from headrace.online_training.ray_session import address_of_cluster, ray_session
from headrace.online_training.run_directory import RunDirectory, StudyError
from headrace.online_training.settings import StudySettings


def test_which_cluster_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert address_of_cluster(StudySettings()) == ""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_of_cluster(StudySettings()) == "10.0.0.1:6379"
    assert address_of_cluster(StudySettings(ray_address="10.0.0.2:6379")) == "10.0.0.2:6379"
    assert address_of_cluster(StudySettings(ray_address="slurm-nodes")) == ""


def test_an_address_of_ray_client_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    settings = StudySettings(ray_address="ray://10.0.0.1:10001")
    with pytest.raises(StudyError, match="Ray Client"), ray_session(RunDirectory(tmp_path), settings):
        pass
