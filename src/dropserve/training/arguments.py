"""A model's arguments held against its constructor, before it is called."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from dropserve.training.problems import did_you_mean, shown

_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def argument_problems(cls: type, arguments: Mapping[str, Any], where: str) -> list[str]:
    """What a constructor would refuse: unknown names, missing ones, plain types that differ.

    Args:
        cls: the model's class.
        arguments: by name.
        where: what stands before a name in the messages, such as ``model.arguments.``.
    """
    signature = _signature(cls)
    parameters = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    }
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    problems: list[str] = []
    for name, value in arguments.items():
        if name in parameters:
            wanted = parameters[name].annotation
            if wanted in _PLAIN and not _fits(value, wanted):
                problems.append(f"{where}{name}: got {shown(value)}; allowed: {_PLAIN[wanted]}")
        elif not takes_any:
            hint = did_you_mean(name, parameters)
            allowed = ", ".join(parameters) or "no arguments"
            what = f"unknown argument, value {shown(value)}{hint}"
            problems.append(f"{where}{name}: {what}; {cls.__name__} takes: {allowed}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            kind = f" ({_PLAIN[parameter.annotation]})" if parameter.annotation in _PLAIN else ""
            problems.append(f"{where}{name}: missing; the constructor of {cls.__name__} needs it{kind}")
    return problems


def _signature(cls: type) -> inspect.Signature:
    try:
        return inspect.signature(cls, eval_str=True)
    except Exception:  # noqa: BLE001  # an annotation can be any expression; without it there is less to check
        return inspect.signature(cls)


def _fits(value: object, wanted: type) -> bool:
    if isinstance(value, bool):
        return wanted is bool
    return isinstance(value, int | float) if wanted is float else isinstance(value, wanted)
