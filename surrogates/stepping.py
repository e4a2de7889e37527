"""How an autoregressive surrogate steps and is trained: what it sees, what it gives, how far it is rolled out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from typing import Any

TARGETS = ("delta", "direct", "linear")
INPUTS = ("parameters", "time", "position")
CONDITIONINGS = ("channels", "film")


@dataclass(frozen=True, kw_only=True)
class Stepping:
    """The training form of an autoregressive surrogate.

    history : known states that the network sees.
    bundle : states that one call of the network gives (temporal bundling, Brandstetter et al. 2022).
    unroll : calls rolled out in training, all of them in the loss and in the gradient.
    pushforward : calls before those, without loss and gradient, so that the network learns from states of its own
        making (ibid.). Each training batch draws how many, 0 to this number; outside training all are made.
    target : "delta", the network gives the change since the last known state; "direct", it gives the state; or
        "linear", it sees what the best linear step makes of the last known state and gives what that lacks, on
        periodic axes (`LinearStep`, fitted to the first batch).
    noise : deviation of normal noise on the known states in training, in deviations of the fields.
    rates : whether the network sees, in the place of each known state before the last one, the mean rate of change from
        it to that one, (u_last - u) history / steps between them. States that follow one another closely are nearly
        equal, and what tells of the equation is their small differences, which a network is slow to learn to take.
    inputs : what the network sees beside the known states, of `INPUTS`: the parameters, the time of the first wanted
        state, the position in the box (sine and cosine on periodic axes). Leave out what the equation lacks.
    conditioning : how parameters and time enter: "channels", at every point as input channels, or "film", in every
        layer as a scale and a shift of its channels (Perez et al. 2018); message passing puts them in its messages.
    """

    history: int = 1
    bundle: int = 1
    unroll: int = 1
    pushforward: int = 0
    target: str = "delta"
    noise: float = 0.0
    rates: bool = False
    inputs: tuple[str, ...] = INPUTS
    conditioning: str = "channels"

    def __post_init__(self) -> None:
        for name, least in {"history": 1, "bundle": 1, "unroll": 1, "pushforward": 0}.items():
            object.__setattr__(self, name, whole(getattr(self, name), f"Stepping {name}", least=least))
        if self.target not in TARGETS:
            raise ValueError(f"Stepping target {self.target!r} is not one of {', '.join(TARGETS)}.")
        if self.conditioning not in CONDITIONINGS:
            raise ValueError(f"Stepping conditioning {self.conditioning!r} is not one of {', '.join(CONDITIONINGS)}.")
        if isinstance(self.inputs, str) or not set(self.inputs) <= set(INPUTS):
            raise ValueError(f"Stepping inputs {self.inputs!r} must be a selection of {INPUTS}.")
        if self.linear and self.bundle > 1:
            raise ValueError(f"Stepping target 'linear' gives one state at a time; bundle {self.bundle} must be 1.")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"Stepping noise {self.noise} must be finite and not negative.")
        if self.rates and self.history < 2:
            raise ValueError(f"Stepping rates need a history of 2 or more known states; history is {self.history}.")

    @classmethod
    def of(cls, value: Stepping | Mapping[str, Any] | None) -> Stepping:
        """Return a stepping, also from the plain data of `to_dict`; without any, `ONE_STEP`.

        Raises
        ------
        ValueError : a name that no stepping has, or a value out of range.
        """
        if value is None or isinstance(value, cls):
            return value or ONE_STEP
        unknown = set(value) - {field.name for field in fields(cls)}
        if unknown:
            known = ", ".join(field.name for field in fields(cls))
            raise ValueError(f"Stepping has no {', '.join(sorted(unknown))}; it has {known}.")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for config.json."""
        return {**asdict(self), "inputs": list(self.inputs)}

    @property
    def linear(self) -> bool:
        """Whether a linear step is taken before the network's."""
        return self.target == "linear"

    @property
    def window(self) -> int:
        """Consecutive steps of one training window."""
        return self.history + self.bundle * (self.pushforward + self.unroll)


def whole(value: Any, name: str, *, least: int) -> int:
    """Return a whole number of any type, numpy's too, as Python's own, which config.json takes.

    Raises
    ------
    ValueError : it is none, or too small; the name says of what.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} {value!r} must be a whole number, at least {least}.")
    return int(value)


ONE_STEP = Stepping()
"""One known state, one step: what a model does when nothing else is said."""
