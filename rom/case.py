"""A case of structural mechanics: a function from settings to a problem, and the times of its increments.

The command line turns every setting into `--set NAME=VALUE`, and a reduced model answers any settings that leave the
mesh, the laws, and the number and place of loads and supports as they were in training.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .mesh import Mesh
from .problem import Problem

MESH = "mesh"


@dataclass(frozen=True, kw_only=True, eq=False)
class RomCase:
    """A family of problems.

    Parameters
    ----------
    name : of the case.
    problem : function of keyword arguments with defaults, the settings, that returns the `Problem`. An argument named
        `mesh` is no setting: it is the mesh of the result files, or of the stored model.
    times : times of all increments, the start included; or a function of some of the same settings.

    Raises
    ------
    ValueError : settings without a default, or times that ask for others than the problem has.
    """

    name: str
    problem: Callable[..., Problem]
    times: np.ndarray | Callable[..., np.ndarray]

    def __post_init__(self) -> None:
        bare = [name for name, default in self.defaults.items() if default is inspect.Parameter.empty]
        if bare:
            raise ValueError(f"Case {self.name}: setting {bare[0]!r} of its problem needs a default.")
        if strange := [name for name in self._time_settings if name not in self.defaults]:
            raise ValueError(f"Case {self.name}: times depend on {strange[0]!r}, which is no setting of the problem.")

    @property
    def defaults(self) -> dict[str, Any]:
        """The settings and their defaults."""
        parameters = inspect.signature(self.problem).parameters
        return {name: p.default for name, p in parameters.items() if name != MESH}

    @property
    def takes_mesh(self) -> bool:
        """Whether the mesh is given to the problem."""
        return MESH in inspect.signature(self.problem).parameters

    @property
    def description(self) -> str:
        """The first line of what the case's file says of itself, or its problem's function."""
        module = inspect.getmodule(self.problem)
        return (inspect.getdoc(module) or inspect.getdoc(self.problem) or self.name).split("\n")[0]

    @property
    def _time_settings(self) -> list[str]:
        return list(inspect.signature(self.times).parameters) if callable(self.times) else []

    def build(self, settings: Mapping[str, Any], mesh: Mesh | None = None) -> tuple[Problem, np.ndarray]:
        """Return the problem of some settings, the others at their defaults, and its times.

        mesh : for a problem that takes one.

        Raises
        ------
        ValueError : no mesh for such a problem, a setting that the case does not have, times that do not increase, or
            what the case itself raises.
        """
        for name in settings:
            self._known(name)
        if self.takes_mesh and mesh is None:
            raise ValueError(f"Case {self.name} takes the mesh of files: name one with --mesh or --from.")
        every = {**self.defaults, **settings}
        try:
            times = self.times(**{n: every[n] for n in self._time_settings}) if callable(self.times) else self.times
            times = np.asarray(times, dtype=float)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(f"Case {self.name} has no times for the settings {dict(settings)}: {error}.") from error
        if times.ndim != 1 or len(times) < 2 or np.any(np.diff(times) <= 0):
            raise ValueError(f"Case {self.name}: times must be at least two, increasing; they are {times}.")
        try:
            return self.problem(**settings, **({MESH: mesh} if self.takes_mesh else {})), times
        except (AttributeError, TypeError, KeyError, IndexError) as error:
            raise ValueError(f"Case {self.name} does not take the settings {dict(settings)}: {error!r}.") from error

    def parse(self, texts: list[str]) -> dict[str, Any]:
        """Return settings from texts such as "cycles=20" or "hot_spot=0,5,10".

        Raises
        ------
        ValueError : no "=", an unknown name, or a value of another type than the default's.
        """
        settings = {}
        for text in texts:
            name, equals, value = (part.strip() for part in text.partition("="))
            if not equals:
                raise ValueError(f"Setting {text!r} is not allowed: write NAME=VALUE.")
            self._known(name)
            settings[name] = _value(name, value, self.defaults[name])
        return settings

    def _known(self, name: str) -> None:
        if name not in self.defaults:
            near = difflib.get_close_matches(name, self.defaults, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"Case {self.name} has no setting {name!r}.{hint} It has: {', '.join(self.defaults)}.")


def _value(name: str, text: str, default: Any) -> Any:
    """Return a value of the default's type; a setting whose default is None takes any."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, float) and number:
        return float(value)
    if isinstance(default, tuple) and not isinstance(value, tuple):
        value = (value,)
    same = isinstance(default, tuple) and len(value) == len(default) if isinstance(default, tuple) else True
    if default is not None and (not same or type(value) is not type(default)):
        raise ValueError(f"Setting {name}={text!r} is not allowed: it must be like its default, {default!r}.")
    return value
