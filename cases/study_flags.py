"""Flags of `headrace train`, made from the typed settings of a study."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ValidationError

from headrace.online_training.settings import StudySettings


def flag(name: str) -> str:
    """Return the flag of a setting: held_out is --held-out."""
    return "--" + name.replace("_", "-")


def setting_parameters() -> list[inspect.Parameter]:
    """Return one keyword parameter for every field of `StudySettings`, as Typer reads them.

    Every flag defaults to None, "not given": a resumed study keeps its own value then. The range of a
    value is checked by the settings model alone.
    """
    parameters = []
    for name, field in StudySettings.model_fields.items():
        kind: Any = field.annotation
        allowed = get_args(kind) if get_origin(kind) is Literal else ()
        option = typer.Option(
            f"{flag(name)}/--no-{flag(name)[2:]}" if kind is bool else flag(name),
            help=f"{field.description} Default: {_said(field.default)}.",
            show_default=False,
            metavar="|".join(allowed) or None,
        )
        annotation = Annotated[(str if allowed else kind) | None, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))
    return parameters


def _said(default: Any) -> str:
    return "no" if default is False else "none" if default == "" else str(default)


def check_settings(given: dict[str, Any]) -> StudySettings:
    """Return the settings with the given values.

    Raises
    ------
    ValueError : one line for the first value that is not allowed, named by its flag.
    """
    try:
        return StudySettings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        # What does not fit together is of all flags; the reason names them.
        what = f"{flag(str(first['loc'][0]))} {first['input']!r}" if first["loc"] else "What these flags say together"
        raise ValueError(f"{what} is not allowed: {first['msg'].removeprefix('Value error, ')}") from error
