"""A batch scheduler as data: its commands, how to read their answers, and the script of a job, in one TOML file."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import jinja2

from .local_launcher import clean_environment

STEPS = "slurm-steps"
"""Instead of a scheduler's name: jobs are steps of the surrounding Slurm allocation."""

_FOLDER = Path(__file__).with_name("schedulers")
_COMMAND_SECONDS = 60.0
_NOT_HERE = "{program} is not on PATH here. Load the scheduler's module, or use its login node."
_ARRAY = dict.fromkeys(("option", "index", "element"), "")
_KEPT = (
    "SLURM_CONF",
    "PBS_CONF_FILE",
    "PBS_EXEC",
    "PBS_SERVER",
    "PBS_DEFAULT",
)  # how the commands find their scheduler


class SchedulerError(RuntimeError):
    """A scheduler's command failed; the message has its words."""


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """How to talk to one batch scheduler; every field is a key of its TOML file.

    Parameters
    ----------
    submit : command that submits; {script}, {user}, {shell} are filled in, here and below.
    job_id : regular expression whose first group finds the job's identity in what submit prints.
    states : command that lists the user's jobs.
    state : regular expression with the groups `id` and `state`, found once for each job listed.
    ended : states of jobs that will not run again.
    cancel : command that ends the job {id}.
    script : jinja2 template of the job's script; it sees name, ranks, log, options and body.
    array : how several jobs are submitted as one; may be left out. `option` is the directive, with the {last} index in
        it, `index` the variable that tells a job its index, `element` a job's identity from {id}, that of the array,
        and {index}.
    """

    submit: Sequence[str]
    job_id: str
    states: Sequence[str]
    state: str
    ended: Sequence[str]
    cancel: Sequence[str]
    script: str
    array: Mapping[str, str] | None = None

    @classmethod
    def load(cls, name: str) -> Scheduler:
        """Return a scheduler by name, or from the path of a TOML file.

        Raises
        ------
        ValueError : there is no such scheduler, or its file lacks a key; names what exists.
        """
        known = sorted(path.stem for path in _FOLDER.glob("*.toml"))
        path = _FOLDER / f"{name}.toml" if name in known else Path(name)
        if not path.is_file():
            raise ValueError(f"No scheduler {name!r}; there are {', '.join(known)}, or give the path of a TOML file.")
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # also what bytes that are not UTF-8 raise
            raise ValueError(f"Scheduler file {path} is no TOML: {error}.") from error
        needed = {field.name for field in fields(cls)} - {"array"}
        if set(content) - {"array"} != needed:
            lacking, unknown = sorted(needed - set(content)), sorted(set(content) - needed - {"array"})
            raise ValueError(f"Scheduler file {path} lacks the keys {lacking} and has the unknown ones {unknown}.")
        array = content.get("array", _ARRAY)
        if set(array) != set(_ARRAY):
            raise ValueError(f"Table array of {path} has the keys {sorted(array)}, not {sorted(_ARRAY)}.")
        return cls(**content)

    def render(self, values: Mapping[str, object]) -> str:
        """Return the script of a job.

        Raises
        ------
        ValueError : the template uses a name that does not exist.
        """
        environment = jinja2.Environment(
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
        )
        try:
            return environment.from_string(self.script.lstrip()).render(values) + "\n"
        except jinja2.UndefinedError as error:
            raise ValueError(f"The scheduler's script template cannot be filled in: {error}.") from error

    def element_of(self, identity: str, index: int) -> str:
        """Return the identity of one job of an array."""
        return self.array["element"].format(id=identity, index=index)

    def require_commands(self) -> None:
        """Find out before anything is started whether the scheduler can be spoken to from here.

        Raises
        ------
        SchedulerError : one of its programs is not there.
        """
        path = submission_environment().get("PATH")
        for command in (self.submit, self.states, self.cancel):
            program = _filled(command[0])
            if shutil.which(program, path=path) is None:
                raise SchedulerError(_NOT_HERE.format(program=program))

    def submit_script(self, script: Path) -> str:
        """Submit a script and return the identity of its job.

        Raises
        ------
        SchedulerError : the command failed, or said something without an identity.
        """
        answer = _run(self.submit, script=str(script))
        found = re.search(self.job_id, answer)
        if found is None:
            raise SchedulerError(f"{self.submit[0]} printed no job's identity: {answer.strip()!r}.")
        return found[1]

    def list_states(self) -> dict[str, str]:
        """Return the states of the user's jobs by identity.

        Raises
        ------
        SchedulerError : the scheduler does not answer; that says nothing about the jobs.
        """
        answer = _run(self.states)
        return {found["id"]: found["state"] for found in re.finditer(self.state, answer)}

    def cancel_job(self, identity: str) -> None:
        """End a job.

        Raises
        ------
        SchedulerError : the scheduler refused, or does not answer.
        """
        _run(self.cancel, id=identity)


def submission_environment() -> dict[str, str]:
    """Return this process's environment without what a surrounding batch job, mpirun or Ray put there."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**clean_environment(os.environ), **kept}


def _filled(word: str, **values: str) -> str:
    return word.format(user=getpass.getuser(), shell="/bin/sh", **values)


def _run(command: Sequence[str], **values: str) -> str:
    words = [_filled(word, **values) for word in command]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL,
            env=submission_environment(),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise SchedulerError(_NOT_HERE.format(program=words[0])) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SchedulerError(f"{' '.join(words)}: {error}") from error
    if done.returncode:
        reason = (done.stderr or done.stdout).strip()[-500:]
        raise SchedulerError(f"{' '.join(words)} ended with code {done.returncode}: {reason}")
    return done.stdout
