"""`headrace new-case` writes a case that solves and a test that passes, and fails where the case is wrong."""

import subprocess
import sys

import pytest

from headrace.cases.new_case_command import write_new_case


def run_test(folder, name: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"test_{name}.py"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_new_case_solves_and_its_test_can_fail(tmp_path) -> None:
    case, _ = write_new_case("my_case", tmp_path)
    solved = subprocess.run(
        [sys.executable, str(case), "solve", "--shape", "16x16", "--output", "one.h5", "--plain"], cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert solved.returncode == 0 and (tmp_path / "one.h5").exists(), solved.stderr
    passed = run_test(tmp_path, "my_case")
    assert passed.returncode == 0 and "2 passed" in passed.stdout, passed.stdout
    case.write_text(case.read_text().replace("d.laplacian(u)\n", "d.laplacian(u) + 0.1 * u\n"))
    assert "1 failed" in run_test(tmp_path, "my_case").stdout


def test_nothing_is_overwritten(tmp_path) -> None:
    write_new_case("mine", tmp_path)
    (tmp_path / "mine.py").unlink()
    with pytest.raises(FileExistsError, match="test_mine"):
        write_new_case("mine", tmp_path)
    assert not (tmp_path / "mine.py").exists()


@pytest.mark.parametrize("name", ["numpy", "random", "headrace"])
def test_a_name_that_would_hide_a_module_is_refused(tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.py would hide the module"):
        write_new_case(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["My", "2d", "class", "a-b", ""])
def test_names_are_identifiers(tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        write_new_case(name, tmp_path)
