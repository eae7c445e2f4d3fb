"""What an imported model's rows go through first: columns and scaling, as a manifest has them, in JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from dropserve.columns import Column
from dropserve.errors import UsageError
from dropserve.manifest import Preprocessing, Scaling
from dropserve.signature import Axis, TensorSpec


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    columns: dict[str, tuple[Column, ...]] = {}
    inputs: dict[str, Scaling] = {}
    target: Scaling | None = None


def read_preprocessing(path: Path, inputs: Sequence[TensorSpec]) -> Preprocessing:
    """Read the file and hold it against the inputs.

    Args:
        path: JSON with ``columns``, ``inputs`` and ``target``, each of which may be left out.
        inputs: of the model as requests see it.

    Raises:
        UsageError: with everything that does not fit.
    """
    try:
        found = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--preprocessing {path}: {error.strerror}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise UsageError("\n  - ".join([f"--preprocessing {path}:", *lines])) from error
    if problems := list(_problems(found, {spec.name: spec for spec in inputs})):
        raise UsageError("\n  - ".join([f"--preprocessing {path}:", *problems]))
    return Preprocessing(columns=found.columns, inputs=found.inputs, target=found.target)


def _problems(file: _File, specs: dict[str, TensorSpec]) -> Iterator[str]:
    for key, names in (("columns", file.columns), ("inputs", file.inputs)):
        for name in (name for name in names if name not in specs):
            yield f"{key}: there is no input {name!r}; there are {', '.join(specs)}"
    for name, columns in file.columns.items():
        spec = specs.get(name)
        if spec is not None and (spec.shape != (len(columns),) or spec.dtype != "float32"):
            yield f"columns.{name}: {len(columns)} columns; the input is {spec}"
        names = [column.name for column in columns]
        for twice in sorted({each for each in names if names.count(each) > 1}):
            yield f"columns.{name}: {twice!r} stands twice"
    for name, scaling in file.inputs.items():
        yield from _scaling_problems(f"inputs.{name}", scaling, specs.get(name))
    if file.target is not None:
        yield from _scaling_problems("target", file.target, None)


def _scaling_problems(where: str, scaling: Scaling, spec: TensorSpec | None) -> Iterator[str]:
    counts = len(scaling.mean), len(scaling.scale)
    sizes = () if spec is None else spec.shape
    fixed = not any(isinstance(size, Axis) for size in sizes)
    expected = counts[0] if spec is None or not fixed else math.prod(spec.sized())
    if not fixed:
        yield f"{where}: the lengths of {spec} vary, so its elements have no scaling of their own"
    elif counts != (expected, expected):
        yield f"{where}: {counts[0]} means and {counts[1]} scales; expected {expected} of each"
    if not all(scaling.scale):
        yield f"{where}: a scale is 0, which would divide by nothing"
