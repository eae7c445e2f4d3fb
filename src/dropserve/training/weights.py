"""Weights of a model trained elsewhere: safetensors, or a torch checkpoint read without its code."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dropserve.errors import UsageError
from dropserve.model import non_finite, parameter_names

_NESTED = ("state_dict", "model_state_dict", "model")  # where trainers put the weights in a checkpoint
_PREFIXES = ("model.", "module.", "_orig_mod.", "net.")  # Lightning, DataParallel, torch.compile, habit
_SHOWN = 8


@dataclass(frozen=True)
class LoadedWeights:
    """What was done to the weights of a file for them to fit.

    Attributes:
        prefix: taken off every key, such as ``module.``; mostly empty.
        converted: ``bfloat16 to float32: 12 tensors``, one for each pair of dtypes; mostly empty.
    """

    prefix: str
    converted: tuple[str, ...]


def load_weights(model: nn.Module, path: Path) -> LoadedWeights:
    """Load a file's weights into a model; each key of one has to be in the other, with the same shape.

    Floating-point numbers are converted to the model's precision. Integers are converted to another width
    where every value is kept. Any other change of dtype is refused, as are NaN, and infinity in a parameter.

    Args:
        model: changed in place.
        path: a ``.safetensors`` file, or what ``torch.save`` wrote (read with ``weights_only=True``; nothing
            in it is ever executed).

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
    # Converted first: a number of float64 may be infinite in float32.
    state = {key: value.to(wanted[key].dtype) for key, value in stripped.items()}
    if wrong := non_finite(state, parameter_names(model)):
        lines = "\n".join(f"  - {line}" for line in _cut(wrong, "tensors"))
        raise UsageError(f"the weights in {path} cannot be used:\n{lines}\n{_WHOLE}")
    model.load_state_dict(stripped)
    pairs = Counter(
        f"{_dtype(value)} to {_dtype(wanted[key])}"
        for key, value in stripped.items()
        if value.dtype != wanted[key].dtype
    )
    return LoadedWeights(prefix, tuple(f"{pair}: {n} tensor{'s' * (n > 1)}" for pair, n in pairs.items()))


_ADVICE = "Give the constructor's arguments with --arg NAME=VALUE, or the weights of this very class."
_WHOLE = "Expected finite numbers; a training that diverged leaves NaN. Give the weights of an earlier epoch."


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        UsageError: if there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise UsageError(f"weights {path}: there is no such file")
    with path.open("rb") as file:
        begin = file.read(9)
    if len(begin) < 9:  # no format has a header as short
        held = f"the file has {len(begin)} bytes and holds no weights" if begin else "the file is empty"
        raise UsageError(f"weights {path}: {held}. Copy or save it again.")
    if begin[8:9] == b"{" or path.suffix == ".safetensors":  # eight bytes of length, then JSON
        try:
            return load_file(path)
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            size = path.stat().st_size
            raise UsageError(
                f"weights {path}: not a whole safetensors file ({size} bytes): {error}"
            ) from error
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
    both = [(key, found[key], wanted[key]) for key in wanted if key in found]
    shapes = [
        f"{key}: the file has {list(a.shape)}, the model {list(b.shape)}"
        for key, a, b in both
        if a.shape != b.shape
    ]
    dtypes = [
        f"{key}: the file has {_dtype(a)}, the model {_dtype(b)}"
        for key, a, b in both
        if not _convertible(a, b)
    ]
    problems = [f"{_some(missing)}: in the model, missing from the file"] if missing else []
    problems += [f"{_some(unknown)}: in the file, unknown to the model"] if unknown else []
    return problems + _cut(shapes, "shapes") + _cut(dtypes, "dtypes")


_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_INTEGERS = frozenset({torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64})


def _convertible(given: Tensor, wanted: Tensor) -> bool:
    """Whether a conversion keeps the meaning; float8 and integers for weights are codes that need a scale."""
    if given.dtype == wanted.dtype:
        return not given.is_quantized
    if given.dtype in _INTEGERS and wanted.dtype in _INTEGERS:
        return torch.equal(given.to(wanted.dtype).to(given.dtype), given)
    return given.dtype in _FLOATS and wanted.dtype in _FLOATS


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _cut(lines: list[str], what: str) -> list[str]:
    return lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more {what}"] if lines[_SHOWN:] else [])


def _some(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
