"""What is different about a node, beside the same node as the exporter writes it now."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from dropserve.export.comparison import Array

from .instrument import producers
from .measure import error, looks


@dataclass(frozen=True)
class Cause:
    """A reason for a difference.

    Attributes:
        text: in words.
        weights: name of the initialiser that is to blame, if one is.
        missing: name of a tensor that no node makes any more, if that is the reason.
    """

    text: str
    weights: str = ""
    missing: str = ""


def difference(model: ModelProto, fresh: ModelProto, tensor: str) -> Cause | None:
    """How the node that makes a tensor differs from the one that a fresh export has for it.

    None if they are the same, or the fresh export has no such tensor.
    """
    makers, right = producers(model), producers(fresh)
    node, other = makers[tensor], right.get(tensor)
    if other is None:
        return None
    if (node.op_type, node.domain) != (other.op_type, other.domain):
        return Cause(f"the graph has {node.op_type} where a fresh export has {other.op_type}", missing="")
    ours, theirs = _attributes(node), _attributes(other)
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            now, then = _shown(ours.get(name)), _shown(theirs.get(name))
            return Cause(f"attribute {name} of {node.op_type} is {now} where a fresh export has {then}")
    return _inputs(node, other, constants(model), constants(fresh), makers)


def constants(model: ModelProto) -> dict[str, Array]:
    """The values that stand in a graph."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _inputs(
    node: NodeProto,
    other: NodeProto,
    ours: Mapping[str, Array],
    theirs: Mapping[str, Array],
    makers: Mapping[str, NodeProto],
) -> Cause | None:
    if len(node.input) != len(other.input):
        return Cause(
            f"{node.op_type} has {len(node.input)} inputs where a fresh export has {len(other.input)}"
        )
    for mine, right in zip(node.input, other.input, strict=True):
        if mine in ours and right in theirs:
            if text := weights(theirs[right], ours[mine]):
                return Cause(f"{right!r} {text}", weights=right)
        elif mine != right:
            gone = right not in makers and right not in ours
            text = f"{node.op_type} reads {mine!r} where a fresh export has {right!r}"
            return Cause(text + (", which no node makes" if gone else ""), missing=right if gone else "")
    return None


def weights(expected: Array, got: Array) -> str:
    """How stored numbers differ; empty if they do not."""
    for axes in itertools.permutations(range(expected.ndim)):
        if np.array_equal(expected.transpose(axes), got, equal_nan=expected.dtype.kind == "f"):
            straight = axes == tuple(range(expected.ndim))
            return "" if straight else f"is transposed: its axes are {list(axes)} of the right ones"
    if expected.shape != got.shape:
        return f"has shape {list(got.shape)} where a fresh export has {list(expected.shape)}"
    if expected.dtype != got.dtype:
        return f"has dtype {got.dtype} where a fresh export has {expected.dtype}"
    what = f"{np.count_nonzero(expected != got)} of {expected.size} numbers"
    if expected.dtype.kind == "f":
        half = expected.astype(np.float16).astype(expected.dtype)
        if np.array_equal(half, got, equal_nan=True):
            return "is rounded to float16"
        what = looks(expected, got)
    return f"differs from the model's by {error(expected, got):.2g} of its scale: {what}"


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)[:80]
