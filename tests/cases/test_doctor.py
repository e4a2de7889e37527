"""The doctor: it runs, it notices what is wrong, and it says what to do."""

import os
import stat
import sys

import pytest
from rich.console import Console

from headrace.cases import doctor
from headrace.cases.doctor import Finding


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def test_every_check_gives_a_finding_and_every_trouble_an_advice(tmp_path):
    findings = doctor.examine(tmp_path)
    assert len(by_subject(findings)) == len(findings) >= 12
    for finding in findings:
        assert finding.text
        assert finding.level == "ok" or finding.advice, finding
    assert by_subject(findings)["MPI"].level == "ok", by_subject(findings)["MPI"]
    assert "two ranks said hello" in by_subject(findings)["MPI"].text


def test_files_of_the_current_folder_are_not_taken_for_modules(monkeypatch, tmp_path):
    for name in ("queue", "mpi4py"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is no library')")
    monkeypatch.chdir(tmp_path)
    assert "no library" not in doctor.check_mpi().text
    assert doctor._told_by("json", "import queue; told = [queue.__name__]") == ["queue"]


@pytest.mark.parametrize(("levels", "code"), [(["ok", "warn"], 0), (["ok", "fail"], 1)])
def test_only_a_failure_gives_exit_code_1(levels, code):
    with open(os.devnull, "w") as nothing:
        console = Console(file=nothing)
        findings = [Finding(subject=level, level=level, text="x", advice="do this") for level in levels]
        assert doctor.show(findings, console) == code


def test_a_missing_mpirun_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor.check_mpi()
    assert finding.level == "fail" and "headrace[mpich]" in finding.advice


def fake_mpirun(folder, script):
    path = folder / "mpirun"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return folder / "python"


def test_an_mpirun_that_belongs_to_another_mpi_is_a_failure(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(fake_mpirun(tmp_path, "echo ranks 1 Some MPI; echo ranks 1 Some MPI\n")))
    finding = doctor.check_mpi()
    assert finding.level == "fail" and "do not see each other" in finding.text


def test_an_mpirun_that_fails_is_a_failure_with_its_last_words(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(fake_mpirun(tmp_path, "echo no slots; exit 1\n")))
    finding = doctor.check_mpi()
    assert finding.level == "fail" and "no slots" in finding.text


@pytest.mark.parametrize(
    ("code", "said", "level"),
    [
        (0, 'starts\ntold ["2.60.1"]\n[2026-01-01 WARNING] what comes to mind last', "ok"),
        (0, 'told ["2.52.0"]', "fail"),
        (0, 'told ["3.0.0.dev0"]', "fail"),
        (0, "", "fail"),
        (1, "ModuleNotFoundError: No module named 'ray'", "fail"),
    ],
)
def test_a_ray_that_will_not_do_is_a_failure_whatever_it_says_beside(monkeypatch, code, said, level):
    monkeypatch.setattr(doctor, "_output", lambda command: (code, said))
    finding = doctor.check_ray()
    assert finding.level == level and ("headrace[train]" in finding.advice or "told" in said)


@pytest.mark.parametrize(
    ("variables", "level"),
    [
        ({}, "ok"),
        ({"http_proxy": "http://proxy:3128"}, "warn"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "127.0.0.1,localhost"}, "ok"),
        ({"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "ok"),
    ],
)
def test_a_proxy_that_would_catch_local_calls_is_noticed(variables, level, monkeypatch):
    for name in ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert doctor.check_proxies().level == level


def test_a_token_that_others_can_read_is_noticed(monkeypatch, tmp_path):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert doctor.check_token().level == "warn" and f"chmod 600 {token}" in doctor.check_token().advice
    token.chmod(stat.S_IRUSR | stat.S_IWUSR)
    assert doctor.check_token().level == "ok"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert doctor.check_token().level == "fail"


def test_a_small_shared_memory_is_noticed(monkeypatch):
    def usage(free):
        return lambda path: type("Usage", (), {"free": free, "total": 2 * free})

    for free, level in ((10**7, "fail"), (10**8, "warn"), (10**10, "ok")):
        monkeypatch.setattr(doctor.shutil, "disk_usage", usage(free))
        assert doctor.check_shared_memory().level == level
