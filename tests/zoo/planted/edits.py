"""Changes to an exported file, given its path."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper

Graph = Callable[[ModelProto], None]


def on_graph(edit: Graph) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        model = onnx.load(path)
        edit(model)
        onnx.save(model, path)

    return change


def maker(model: ModelProto, tensor: str) -> NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)


def stored(name: str, new: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Change the numbers of an initialiser."""

    def edit(model: ModelProto) -> None:
        held = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        changed = np.ascontiguousarray(new(numpy_helper.to_array(held).copy()))
        held.CopyFrom(numpy_helper.from_array(changed, name))

    return on_graph(edit)


def stored_of(tensor: str, position: int, new: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    """Change the numbers that the node behind a tensor reads at a position."""

    def change(path: Path) -> None:
        stored(maker(onnx.load(path), tensor).input[position], new)(path)

    return change


def one_number(array: np.ndarray) -> np.ndarray:
    array[tuple(size // 2 for size in array.shape)] += 0.3
    return array


def attribute(tensor: str, **values: Any) -> Callable[[Path], None]:
    """Set attributes of the node behind a tensor."""

    def edit(model: ModelProto) -> None:
        node = maker(model, tensor)
        kept = [a for a in node.attribute if a.name not in values]
        del node.attribute[:]
        node.attribute.extend([*kept, *(helper.make_attribute(k, v) for k, v in values.items())])

    return on_graph(edit)


def operator(tensor: str, name: str) -> Callable[[Path], None]:
    """Another operator in the place of the one behind a tensor."""

    def edit(model: ModelProto) -> None:
        maker(model, tensor).op_type = name

    return on_graph(edit)


def dropped(tensor: str) -> Callable[[Path], None]:
    """The node behind a tensor is gone: who read it reads what it read."""

    def edit(model: ModelProto) -> None:
        node = maker(model, tensor)
        for other in model.graph.node:
            for index, name in enumerate(other.input):
                if name == tensor:
                    other.input[index] = node.input[0]
        model.graph.node.remove(node)

    return on_graph(edit)


def reread(tensor: str, position: int, other: str) -> Callable[[Path], None]:
    """The node behind a tensor reads something else."""

    def edit(model: ModelProto) -> None:
        maker(model, tensor).input[position] = other

    return on_graph(edit)


def tanh_gelu(model: ModelProto) -> None:
    """The first GELU by its approximation: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    node = maker(model, "gelu")
    root = next(n for n in model.graph.node if n.op_type == "Erf")
    x = maker(model, root.input[0]).input[0]
    numbers = {"c_cube": 0.044715, "c_root": np.sqrt(2 / np.pi), "c_one": 1.0, "c_half": 0.5}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.float32(value), name) for name, value in numbers.items()
    )
    steps = [
        ("Mul", [x, x], "g_square"), ("Mul", ["g_square", x], "g_cube"), ("Mul", ["g_cube", "c_cube"], "g_1"),
        ("Add", [x, "g_1"], "g_2"), ("Mul", ["g_2", "c_root"], "g_3"), ("Tanh", ["g_3"], "g_4"),
        ("Add", ["g_4", "c_one"], "g_5"), ("Mul", [x, "c_half"], "g_6"), ("Mul", ["g_5", "g_6"], "gelu"),
    ]  # fmt: skip
    place = [*model.graph.node].index(node)
    model.graph.node.remove(node)
    for offset, (kind, inputs, output) in enumerate(steps):
        model.graph.node.insert(
            place + offset, helper.make_node(kind, inputs, [output], name=f"approx_{offset}")
        )


def softmax_axis(path: Path) -> None:
    attribute(of("Softmax")(onnx.load(path)), axis=-2)(path)


def of(kind: str, which: int = 0) -> Callable[[ModelProto], str]:
    """What the first (or another) node of a kind makes."""
    return lambda model: [node.output[0] for node in model.graph.node if node.op_type == kind][which]


def lstm_weight(which: int) -> Callable[[Path], None]:
    """Change a recurrent weight of one of the LSTMs."""
    return lambda path: stored_of(of("LSTM", which)(onnx.load(path)), 2, one_number)(path)


def mask_added(path: Path) -> None:
    operator(of("Mul")(onnx.load(path)), "Add")(path)


def sum_rereads(path: Path) -> None:
    reread(of("Add")(onnx.load(path)), 1, "relu")(path)


def half(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16).astype(np.float32)


def code(old: str, new: str, part: str) -> Callable[[Path], None]:
    """Change the code inside a TorchScript file, once."""

    def change(path: Path) -> None:
        target, done = io.BytesIO(), 0
        with zipfile.ZipFile(path) as before, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as after:
            for entry in before.infolist():
                content = before.read(entry)
                if f"/{part}" in entry.filename and old.encode() in content and not done:
                    content, done = content.replace(old.encode(), new.encode(), 1), 1
                after.writestr(entry, content)
        assert done, f"{old!r} stands in no {part}"
        path.write_bytes(target.getvalue())

    return change


def script_weights(name: str) -> Callable[[Path], None]:
    """Change one number of a weight inside a TorchScript file."""

    def change(path: Path) -> None:
        module = torch.jit.load(str(path))
        with torch.no_grad():
            dict(module.named_parameters())[name].view(-1)[7] += 0.3
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        path.write_bytes(buffer.getvalue())

    return change


def nothing(path: Path) -> None:
    """The file stays as it is."""
