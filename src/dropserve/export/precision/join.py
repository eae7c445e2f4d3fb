"""Trunk and head as one graph again."""

from __future__ import annotations

from onnx import ModelProto, compose


def joined(trunk: ModelProto | None, head: ModelProto) -> ModelProto:
    """One graph that takes inputs and masks: what the trunk gives goes straight into the head.

    Args:
        trunk: None if there is none; the head is returned then.
        head: takes the trunk's outputs and the masks.
    """
    if trunk is None:
        return head
    crossing = [value.name for value in trunk.graph.output]
    first = compose.add_prefix(trunk, "trunk.", rename_inputs=False, rename_outputs=False)
    last = compose.add_prefix(head, "head.", rename_inputs=False, rename_outputs=False)
    whole = compose.merge_models(first, last, io_map=[(name, name) for name in crossing])
    order = {value.name: value for value in whole.graph.input}
    inputs = [value.name for value in trunk.graph.input]
    masks = [value.name for value in head.graph.input if value.name not in crossing]
    del whole.graph.input[:]
    whole.graph.input.extend(order[name] for name in dict.fromkeys([*inputs, *masks]))
    return whole
