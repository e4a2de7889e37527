"""`headrace certify`: what is right and wrong with a solver that is to stream into a study."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from headrace.online_training.conformance import Conformance, Finding
from headrace.online_training.conformance_probe import probe_fields
from headrace.online_training.conformance_trial import Subject
from headrace.online_training.layout import StreamLayout
from headrace.solvers.streaming import StreamingProgram

from .catalogue import BUILT_IN, find_case, parse_shape

if TYPE_CHECKING:
    from headrace.solvers.case_file import CaseReference

_COLOURS = {"ok": "green", "note": "yellow", "wrong": "red", "not run": "bright_black"}


def certify(
    subject: str, *, command: str = "", shape: str | None = None, ranks: str = "2,1,4", steps: int = 0,
    parameters: Sequence[str] = (),
) -> int:  # fmt: skip
    """Run the checks on a case, or on a command line, print each finding as it comes, and return 1 where one is wrong.

    command : in place of the case's own solver; {ranks} in it stands for the number of ranks.
    steps, parameters : for a command without a case: snapshots of one simulation, and NAME=LOW:HIGH.

    Raises
    ------
    ValueError : the subject is neither a case nor a command, or its flags are missing.
    """
    parts = [text.strip() for text in ranks.split(",")]
    counts = [int(text) for text in parts if text.isdecimal()]
    if len(counts) < len(parts) or min(counts) < 1:
        raise ValueError(f"--ranks {ranks!r} must be numbers of ranks, as 2,1,4.")
    with tempfile.TemporaryDirectory(prefix="headrace-certify-") as made:
        if _is_case(subject):
            reference = find_case(subject, None if shape is None else parse_shape(shape))
            tested, low, high = _of_case(reference, command, Path(made))
        else:
            tested, low, high = _of_command(subject, counts[0], steps, parameters)
        findings = Conformance(tested, low, high, ranks=counts).run(_show)
    wrong = sum(finding.verdict in ("wrong", "not run") for finding in findings)
    typer.echo("the solver conforms" if not wrong else f"{wrong} of {len(findings)} checks failed or were not run")
    return int(wrong > 0)


def _show(finding: Finding) -> None:
    typer.echo(typer.style(f"{finding.verdict:8}", fg=_COLOURS[finding.verdict]) + f"{finding.check}: {finding.said}")


def _is_case(subject: str) -> bool:
    return " " not in subject.strip() and (subject in BUILT_IN or ".py" in subject)


def _of_case(
    reference: CaseReference, command: str, folder: Path
) -> tuple[Subject, Mapping[str, float], Mapping[str, float]]:
    case = reference.load()
    own = [sys.executable, "-P", "-m", "headrace.online_training.solver_job", str(folder / "case.json")]
    (folder / "case.json").write_text(json.dumps(reference.to_dict()), encoding="utf-8")
    if command:
        case = replace(case, rhs=None, stiff=None, scheme=None, solver=_streaming(command))
    foreign = isinstance(case.solver, StreamingProgram)
    subject = Subject(
        command=(lambda ranks: case.solver.words(case, ranks)) if foreign else lambda ranks: own,
        own_mpirun=foreign, any_ranks=not foreign or any("{ranks}" in word for word in case.solver.command),
        layout=StreamLayout.of(case, window=1), times=case.times.tolist(),
    )  # fmt: skip
    # Not the corners: what a solver does there may be special.
    return subject, case.draw([0.25] * len(case.parameters)), case.draw([0.75] * len(case.parameters))


def _of_command(
    text: str, ranks: int, steps: int, parameters: Sequence[str]
) -> tuple[Subject, Mapping[str, float], Mapping[str, float]]:
    if steps < 3:
        raise ValueError("A command without a case needs --steps, the snapshots that one simulation sends, at least 3.")
    low, high = {}, {}
    for given in parameters:
        name, _, values = given.partition("=")
        try:
            low[name], high[name] = (float(value) for value in values.split(":"))
        except ValueError:
            raise ValueError(f"--parameter {given!r} must be NAME=LOW:HIGH, as nu=0.1:0.5.") from None
    program = _streaming(text)

    def command(count: int) -> list[str]:
        return [word.replace("{ranks}", str(count)) for word in program.command]

    fields = probe_fields(command(ranks))
    shapes = set(fields.values())
    if len(shapes) > 1:
        raise ValueError(f"A study needs fields of one shape; the solver declares {fields}.")
    layout = StreamLayout(
        fields=tuple(fields), shape=shapes.pop(), num_steps=steps, window=1, parameters=tuple(low)
    )  # fmt: skip
    return Subject(command=command, own_mpirun=True, any_ranks="{ranks}" in text, layout=layout), low, high


def _streaming(text: str) -> StreamingProgram:
    try:
        return StreamingProgram(equation="", command=tuple(shlex.split(text)))
    except ValueError as error:
        raise ValueError(f"The command {text!r} is not allowed: {error}.") from None
