"""Surrogates by the name a person types, with arguments from the command line."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from .catalogue import unknown_name

if TYPE_CHECKING:
    from headrace.solvers.case_file import CaseReference
    from headrace.surrogates import Surrogate

MODELS = {
    "mlp": "MLP", "fno": "FNO", "unet": "UNet", "convnet": "ConvNet", "mp-pde": "MessagePassing", "lpinn": "LPINN",
    "neuralstagger": "NeuralStagger",
}  # fmt: skip
"""Name on the command line and class in `headrace.surrogates`."""


def make_model(name: str, arguments: list[str], reference: CaseReference | None = None) -> Surrogate:
    """Return a surrogate with arguments such as "modes=12" or "hidden=256,256".

    name : one of `MODELS`, or the name of a surrogate class in the file of the case.

    Raises
    ------
    ValueError : unknown model or argument, or a value that the model refuses.
    """
    from headrace.surrogates import Stepping

    model = _model_class(name, reference)
    defaults = {
        key: None if parameter.default is parameter.empty else parameter.default
        for key, parameter in inspect.signature(model).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    # The training form of models that step is one argument in Python and flat here: unroll=3.
    stepping = Stepping.of(defaults.pop("stepping")).to_dict() if "stepping" in defaults else {}
    defaults |= {key: tuple(value) if isinstance(value, list) else value for key, value in stepping.items()}
    known = list(defaults)
    values = {}
    for text in arguments:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ValueError(f"--architecture {text!r} is not allowed: write NAME=VALUE, e.g. {key}=...")
        if key not in known:
            raise ValueError(unknown_name(f"argument of {model.__name__} named", key, known))
        single = _value(value)
        _require_kind(key, value, single, defaults[key])
        values[key] = (single,) if isinstance(defaults[key], tuple) and not isinstance(single, tuple) else single
    if stepping:
        values["stepping"] = stepping | {key: values.pop(key) for key in list(values) if key in stepping}
    try:
        return model(**values)
    except TypeError as error:
        raise ValueError(f"--architecture does not fit {model.__name__}: {error}") from error


def _model_class(name: str, reference: CaseReference | None) -> type[Surrogate]:
    import headrace.surrogates
    from headrace.surrogates.files import surrogate_classes

    own = {} if reference is None else {model.__name__: model for model in surrogate_classes(reference.load_module())}
    if name not in own and name.lower() in MODELS:
        return getattr(headrace.surrogates, MODELS[name.lower()])
    if name not in own:
        raise ValueError(unknown_name("model", name, [*MODELS, *own]))
    return own[name]


_KINDS = {bool: (bool, "true or false"), int: (int, "a whole number"), float: ((int, float), "a number")}


def _require_kind(key: str, text: str, value: Any, default: Any) -> None:
    """See that each part of a value is of the kind of the default's parts; a default of None allows anything."""
    example = default[0] if isinstance(default, tuple) and default else default
    if type(example) not in _KINDS:
        return
    kind, words = _KINDS[type(example)]
    for part in value if isinstance(value, tuple) else (value,):
        if not isinstance(part, kind) or (isinstance(part, bool) and kind is not bool):
            raise ValueError(
                f"--architecture {key}={text} is not allowed: {part!r} is not {words}; the default is "
                f"{key}={','.join(map(str, default)) if isinstance(default, tuple) else default}."
            )


def _value(text: str) -> Any:
    """Return a number, true or false, a tuple of those where commas part them, else the text itself."""
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part.strip())
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()
