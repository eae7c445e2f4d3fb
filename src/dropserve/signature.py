"""What goes into a model and what comes out: names, dtypes and shapes per row.

Shapes leave out the batch axis, which is always axis 0 of what a server receives. An axis is a number,
or an :class:`Axis` with a name and a greatest length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dropserve.errors import UsageError

DType = Literal[
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip
_DTYPES: tuple[str, ...] = DType.__args__  # type: ignore[attr-defined]  # Literal's own record of its values

_AXIS = re.compile(r"(?P<name>[A-Za-z_]\w*)<=(?P<maximum>\d+)")


class Axis(BaseModel):
    """An axis whose length varies from request to request (not from row to row within one).

    Attributes:
        name: the same name means the same length, across inputs and sites.
        maximum: the greatest length; masks are drawn at this length and sliced.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z_]\w*$")
    maximum: int = Field(ge=1)

    def __str__(self) -> str:
        return f"{self.name}<={self.maximum}"


Shape = tuple[int | Axis, ...]


class TensorSpec(BaseModel):
    """One tensor: its name, dtype and shape per row (no batch axis)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(min_length=1)
    dtype: DType = "float32"
    shape: Shape = ()

    @property
    def numpy_dtype(self) -> np.dtype[np.generic]:
        """The dtype as numpy has it."""
        return np.dtype(self.dtype)

    def sized(self, lengths: dict[str, int] | None = None) -> tuple[int, ...]:
        """The shape with every variable axis set to ``lengths[name]``, or to its maximum."""
        lengths = lengths or {}
        return tuple(
            lengths.get(axis.name, axis.maximum) if isinstance(axis, Axis) else axis for axis in self.shape
        )

    def __str__(self) -> str:
        shape = ",".join(str(axis) for axis in self.shape)
        return f"{self.name}: {self.dtype}[{shape}]"


class Signature(BaseModel):
    """The inputs of a model, in the order of its ``forward``, and its outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def parse_input(text: str, *, name: str = "input") -> TensorSpec:
    """Read an input as the command line writes it: ``16``, ``1,28,28``, ``7:int64``, ``L<=64,16``.

    Args:
        text: sizes per row joined by commas (``NAME<=MAX`` for a variable one), then optionally a
            colon and a dtype; empty sizes (``:int64``) mean one number a row.
        name: the name of the resulting tensor.

    Raises:
        UsageError: if the text is not of that form.
    """
    sizes, _, dtype = text.partition(":")
    dtype = dtype or "float32"
    if dtype not in _DTYPES:
        raise UsageError(f"input {text!r}: dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    axes: list[int | Axis] = []
    for size in sizes.split(",") if sizes else []:
        size = size.strip()  # noqa: PLW2901  # the trimmed text is the size
        if match := _AXIS.fullmatch(size):
            axes.append(Axis(name=match["name"], maximum=int(match["maximum"])))
        elif size.isdigit() and int(size) > 0:
            axes.append(int(size))
        else:
            raise UsageError(
                f"input {text!r}: {size!r} is not a size. Write sizes per row without the batch axis: "
                "16, or 1,28,28, or L<=64,16 for a variable length; add :int64 for another dtype."
            )
    return TensorSpec(name=name, dtype=dtype, shape=tuple(axes))  # type: ignore[arg-type]  # checked above


def output_spec(name: str, dtype: str, shape: Shape) -> TensorSpec:
    """What a model returns, if clients can be sent it.

    Args:
        name: of the output.
        dtype: as torch or numpy call it, such as ``float32`` or ``torch.float32``.
        shape: per row.

    Raises:
        UsageError: for a dtype that the protocols do not have, such as bfloat16.
    """
    dtype = dtype.removeprefix("torch.")
    if dtype not in _DTYPES:
        raise UsageError(
            f"output {name!r} is {dtype}; expected one of {', '.join(_DTYPES)}, as clients cannot be sent "
            "others. Convert it at the end of forward, as in `return x.float()`."
        )
    return TensorSpec(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]  # checked above


def require_apart(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Refuse an output that is called like an input: they are tensors of one graph.

    Raises:
        UsageError: naming them.
    """
    both = sorted({spec.name for spec in inputs} & {spec.name for spec in outputs})
    if both:
        raise UsageError(
            f"an input and an output are both called {', '.join(both)}; expected different names, as they "
            "are tensors of one graph. Give the output another key in what forward returns."
        )


SiteKind = Literal["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"]


class Site(BaseModel):
    """One place where activations meet a random mask.

    Attributes:
        name: qualified by the module that calls it, unique in the model, such as ``layers.2`` or
            ``encoder.attention.dropout``; ``#2`` marks a second call from the same module.
        kind: which of torch's dropouts it is.
        p: probability that a unit is dropped, in [0, 1).
        shape: the shape of its mask per row, ``[256]`` or ``[32, 1, 1]``.
        scale: name of the graph input that multiplies the activations.
        shift: name of the graph input that is added afterwards (alpha dropout only).
        where: file and line of the call, as ``net.py:31``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: SiteKind
    p: float = Field(ge=0, lt=1)
    shape: Shape
    scale: str
    shift: str | None = None
    where: str = ""

    @property
    def units(self) -> int:
        """Random numbers that one sample of this site needs."""
        return int(np.prod([a.maximum if isinstance(a, Axis) else a for a in self.shape], initial=1))
