"""Weights of a model trained elsewhere: safetensors, or a torch checkpoint read without its code."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dropserve.errors import UsageError

_NESTED = ("state_dict", "model_state_dict", "model")  # where trainers put the weights in a checkpoint
_PREFIXES = ("model.", "module.", "_orig_mod.", "net.")  # Lightning, DataParallel, torch.compile, habit
_SHOWN = 8


def load_weights(model: nn.Module, path: Path) -> str:
    """Load a file's weights into a model; each key of one has to be in the other, with the same shape.

    Args:
        model: changed in place.
        path: a ``.safetensors`` file, or what ``torch.save`` wrote (read with ``weights_only=True``; nothing
            in it is ever executed).

    Returns:
        the prefix that had to be taken off every key, such as ``module.``; mostly empty.

    Raises:
        UsageError: if the file cannot be read or does not fit; the message lists the keys.
    """
    found = read_weights(path)
    wanted = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    stripped, prefix = _without_prefix(found, wanted)
    problems = _differences(stripped, wanted)
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UsageError(f"the weights in {path} do not fit {type(model).__name__}:\n{lines}\n{_ADVICE}")
    model.load_state_dict(stripped)
    return prefix


_ADVICE = "Give the constructor's arguments with --arg NAME=VALUE, or the weights of this very class."


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        UsageError: if there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UsageError(f"weights {path}: there is no such file")
    with path.open("rb") as file:
        begin = file.read(9)
    if begin[8:9] == b"{":  # eight bytes of length, then JSON
        try:
            return load_file(path)
        except SafetensorError as error:
            raise UsageError(f"weights {path}: not a whole safetensors file: {error}") from error
    return _state_dict(path, _load_checkpoint(path))


def _load_checkpoint(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes about old formats; the content is checked by us
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f" (it asks for {culprit[1]})" if culprit else ""
        raise UsageError(
            f"weights {path}: it holds more than tensors, and pickled objects are never loaded, as they can "
            f"run any code{found}. Where it was trained, save the weights alone: "
            "torch.save(model.state_dict(), 'weights.pt'), or safetensors.torch.save_file(...)."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(
            f"weights {path}: neither safetensors nor a torch checkpoint ({type(error).__name__}: {error})"
        ) from error


def _state_dict(path: Path, content: object) -> dict[str, Tensor]:
    """The state dictionary in a checkpoint, however deep its trainer put it."""
    for key in ("", *_NESTED):
        inner = content.get(key) if key and isinstance(content, Mapping) else content
        if isinstance(inner, Mapping) and inner and all(isinstance(v, Tensor) for v in inner.values()):
            return {str(name): cast("Tensor", value) for name, value in inner.items()}
    kind = type(content).__name__
    keys = f" with the keys {', '.join(map(str, content))}" if isinstance(content, Mapping) else ""
    raise UsageError(
        f"weights {path}: expected tensors by name (a state_dict, or one under {', '.join(_NESTED)}), "
        f"found a {kind}{keys}"
    )


def _without_prefix(found: dict[str, Tensor], wanted: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Take off what wrappers put before each key, if the keys then fit."""
    prefix, keys = "", set(found)
    while not keys & set(wanted):
        common = next((p for p in _PREFIXES if keys and all(key.startswith(p) for key in keys)), None)
        if common is None:
            return found, ""
        prefix, keys = prefix + common, {key.removeprefix(common) for key in keys}
    return {key.removeprefix(prefix): value for key, value in found.items()}, prefix


def _differences(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    missing = [key for key in wanted if key not in found]
    unknown = [key for key in found if key not in wanted]
    shapes = [
        f"{key}: the file has {list(found[key].shape)}, the model {list(wanted[key].shape)}"
        for key in wanted
        if key in found and found[key].shape != wanted[key].shape
    ]
    problems = [f"{_some(missing)}: in the model, missing from the file"] if missing else []
    problems += [f"{_some(unknown)}: in the file, unknown to the model"] if unknown else []
    return (
        problems + shapes[:_SHOWN] + ([f"and {len(shapes) - _SHOWN} more shapes"] if shapes[_SHOWN:] else [])
    )


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
