"""Are masks what was drawn until they meet the activations? No rounding may come before."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from dropserve.export.artefacts import HEAD, MASKED, Artefacts

from .middle import moves, touched, value_types

_ARITHMETIC = frozenset({"Add", "Mul", "Sub", "Div"})
_LENGTHS = frozenset({"Shape", "Size"})


def masks_stay_exact(made: Artefacts) -> tuple[str, str]:
    """Whether each mask is moved about at most before it is multiplied, or added, in float32.

    0 is then 0, and 1/(1 - p) is the float32 that was drawn: what is dropped and what is kept is what the
    float32 graphs drop and keep, and each kept activation has the scale that theory asks for.

    Returns:
        What is wrong (empty if nothing is), and what was seen.
    """
    masks = [spec.name for spec in made.masks]
    met = 0
    for part in (HEAD, MASKED):
        if part not in made.paths:
            continue
        model = onnx.load(made.paths[part], load_external_data=False)
        types = value_types(model)
        for node in touched(model, masks):
            tensors = [*node.input, *node.output]
            narrow = [name for name in tensors if types.get(name) in {TensorProto.FLOAT16, TensorProto.UINT8}]
            if node.op_type in _LENGTHS:
                continue
            if narrow or not (moves(node) or node.op_type in _ARITHMETIC):
                what = f"{narrow[0]} is not float32" if narrow else "it is no product"
                return f"{part}: a mask goes into {node.op_type} {node.name or node.output[0]}: {what}", ""
            met += node.op_type in _ARITHMETIC
    return "", f"{len(masks)} masks meet the activations in {met} products and sums, all of them in float32"
