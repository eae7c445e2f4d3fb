"""Discrepancies planted in exported files, and where each of them is.

A plant changes a file after the export, or what loads it; whoever looks for it is told nothing. Each knows
the check that must fail, the tensor that is the first to differ, and the module that it belongs to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import nn

from dropserve.export import exportable
from dropserve.export.artefacts import Artefacts, build
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.signature import parse_input


class Dense(nn.Module):
    """Square layers, so that weights may be transposed and not be noticed by any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.leaky, self.drop, self.out = nn.LeakyReLU(0.1), nn.Dropout(0.3), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.leaky(self.first(x))
        x = torch.relu(self.second(self.drop(x)))
        x = x + torch.tanh(self.third(x))
        return self.out(self.drop(x))


class Pictures(nn.Module):
    """Convolutions, a normalisation that no exporter can fold away, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.drop, self.out = nn.BatchNorm2d(6), nn.Dropout2d(0.25), nn.Linear(6, 3)
        nn.init.uniform_(self.norm.running_var, 0.01, 0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(torch.relu(self.one(x)))
        x = x + self.drop(torch.relu(self.two(x)))
        return self.out(x.mean((2, 3)))


class Sequences(nn.Module):
    """A transformer with GELU, of any length up to 7."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, "gelu", batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(8, 2)
        for part in self.body.parameters():  # the layers are copies: of one another no more
            nn.init.normal_(part, 0.0, 0.3) if part.dim() > 1 else nn.init.normal_(part, 0.5, 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.body(x).mean(1))


class Recurrent(nn.Module):
    """Two layers of LSTM, dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(5, 6, 2, dropout=0.3, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Simple(nn.Module):
    """A plain recurrent layer, whose translation is our own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.RNN(5, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.rnn(x)[0][:, -1])


class Deciding(nn.Module):
    """Does something else for few rows: an exporter sees one of the two, and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(x))
        if x.shape[0] < 3:
            h = h * 1.5
        return self.out(h)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dense": (Dense, "12"),
    "pictures": (Pictures, "2,6,6"),
    "sequences": (Sequences, "L<=7,8"),
    "recurrent": (Recurrent, "6,5"),
    "simple": (Simple, "6,5"),
    "deciding": (Deciding, "5"),
}


def subject(name: str) -> Subject:
    make, shape = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    return Subject(name, module.eval(), (parse_input(shape),))


Graph = Callable[[ModelProto], None]
Loading = Callable[[], contextlib.AbstractContextManager[object]]


@dataclasses.dataclass(frozen=True)
class Plant:
    """A discrepancy.

    Attributes:
        what: in words.
        model: in which of ``MODELS``.
        file: which of its files is changed.
        change: how, given the path.
        check: the parity check that it must fail.
        tensor: the first tensor that it reaches, by name or as found in the sound graph; for TorchScript,
            whose tensors have no lasting names, the operator that makes it.
        place: the module (or, for the model's own forward, its class) that must be named.
        around: what must be in force while the file is loaded; and while it is exported, if ``exporting``.
        opset: of the ONNX files.
    """

    what: str
    model: str
    file: str
    change: Callable[[Path], None]
    check: str
    tensor: str | Callable[[ModelProto], str]
    place: str
    around: Loading = contextlib.nullcontext
    exporting: bool = False
    opset: int = 18

    @property
    def settings(self) -> ExportSettings:
        """How the model is exported and judged."""
        return ExportSettings(batch_sizes=(2, 3), opset=self.opset)

    def first(self, sound: Artefacts) -> str:
        """The name of the first tensor that it reaches."""
        return self.tensor if isinstance(self.tensor, str) else self.tensor(onnx.load(sound.paths[self.file]))

    def export(self, folder: Path) -> tuple[Subject, Artefacts]:
        """The sound model and its files (or, if ``exporting``, unsound ones)."""
        sound = subject(self.model)
        with self.around() if self.exporting else contextlib.nullcontext():
            return sound, build(sound, folder, self.settings)

    def planted(self, sound: Artefacts, folder: Path) -> Artefacts:
        """Copies of the files, this one changed."""
        paths = {key: Path(shutil.copy(path, folder)) for key, path in sound.paths.items()}
        self.change(paths[self.file])
        return dataclasses.replace(sound, folder=folder, paths=paths)


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


@contextlib.contextmanager
def careless_optimiser() -> Iterator[None]:
    """onnxruntime puts an approximation in the place of GELU: its own pass, which is off by default."""
    make = ort.SessionOptions

    def options() -> ort.SessionOptions:
        made = make()
        made.add_session_config_entry("optimization.enable_gelu_approximation", "1")
        return made

    ort.SessionOptions = options
    try:
        yield
    finally:
        ort.SessionOptions = make


@contextlib.contextmanager
def broken_fusion() -> Iterator[None]:
    """onnxruntime fuses a convolution and a ReLU into a convolution and a leaky ReLU."""
    make = ort.InferenceSession

    def session(content: Any, options: ort.SessionOptions, **others: Any) -> ort.InferenceSession:
        if options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_DISABLE_ALL:
            return make(content, options, **others)
        with tempfile.TemporaryDirectory() as folder:
            asked = options.optimized_model_filepath
            options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
            make(content, options, **others)
            model = onnx.load(options.optimized_model_filepath)
        for node in model.graph.node:
            for held in node.attribute:
                if held.name == "activation" and held.s == b"Relu":
                    held.s = b"LeakyRelu"
                    node.attribute.append(helper.make_attribute("activation_params", [0.01]))
        if asked:
            onnx.save(model, asked)
        plain = ort.SessionOptions()
        plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        plain.log_severity_level = 4
        return make(model.SerializeToString(), plain, **others)

    ort.InferenceSession = session
    try:
        yield
    finally:
        ort.InferenceSession = make


@contextlib.contextmanager
def wrong_translation() -> Iterator[None]:
    """The exporter writes a recurrent layer with another activation than it has."""
    table = exportable.TRANSLATIONS
    key = torch.ops.dropserve.rnn_tanh.default
    right = table[key]
    table[key] = table[torch.ops.dropserve.rnn_relu.default]
    try:
        yield
    finally:
        table[key] = right


def nothing(path: Path) -> None:
    """The file stays as it is."""


ONNX = "parity-onnx"
PLANTS: tuple[Plant, ...] = (
    Plant("one wrong weight", "dense", "model.onnx", stored("model.second.weight", one_number),
          ONNX, "linear_1", "second (Linear)"),
    Plant("transposed weights", "dense", "model.onnx", stored("model.third.weight", np.transpose),
          ONNX, "linear_2", "third (Linear)"),
    Plant("another slope of a leaky ReLU", "dense", "model.onnx", attribute("leaky_relu", alpha=0.11),
          ONNX, "leaky_relu", "leaky (LeakyReLU)"),
    Plant("a swapped activation", "dense", "model.onnx", operator("tanh", "Sigmoid"),
          ONNX, "tanh", "Dense"),
    Plant("a dropped ReLU", "dense", "model.onnx", dropped("relu"),
          ONNX, "linear_2", "Dense"),
    Plant("a sum that reads another tensor", "dense", "model.onnx", sum_rereads,
          ONNX, of("Add"), "Dense"),
    Plant("weights rounded to float16", "pictures", "model.onnx", stored("model.two.weight", half),
          ONNX, "conv2d_1", "two (Conv2d)"),
    Plant("padding on one side alone", "pictures", "model.onnx", attribute("conv2d_1", pads=[0, 0, 2, 2]),
          ONNX, "conv2d_1", "two (Conv2d)"),
    Plant("another epsilon of BatchNorm", "pictures", "model.onnx", attribute("getitem", epsilon=1e-4),
          ONNX, "getitem", "norm (BatchNorm2d)"),
    Plant("max in the place of mean", "pictures", "model.onnx", operator("mean", "ReduceMax"),
          ONNX, "mean", "Pictures"),
    Plant("another epsilon of LayerNorm", "sequences", "model.onnx", attribute("layer_norm_1", epsilon=1e-3),
          ONNX, "layer_norm_1", "body.layers.0.norm2 (LayerNorm)"),
    Plant("softmax over another axis", "sequences", "model.onnx", softmax_axis,
          ONNX, of("Softmax"), "body.layers.0.self_attn (MultiheadAttention)"),
    Plant("GELU by its approximation", "sequences", "model.onnx", on_graph(tanh_gelu),
          ONNX, "gelu", "body.layers.0 (TransformerEncoderLayer)"),
    Plant("a wrong weight of an LSTM's second layer", "recurrent", "model.onnx",
          lstm_weight(1), ONNX, of("LSTM", 1), "rnn (LSTM)"),
    Plant("a wrong weight in the trunk", "pictures", "trunk.onnx", stored("model.one.weight", one_number),
          "parity-trunk-and-head", "conv2d", "one (Conv2d)"),
    Plant("a mask that is added", "pictures", "head.onnx", mask_added,
          "parity-trunk-and-head", of("Mul"), "drop (Dropout2d)"),
    Plant("a wrong weight in the head of a transformer", "sequences", "head.onnx",
          stored_of("output", 1, one_number), "parity-trunk-and-head", "output", "out (Linear)"),
    Plant("a wrong recurrent weight under masks", "recurrent", "masked.onnx",
          lstm_weight(0), "parity-masked-onnx", of("LSTM"), "rnn (LSTM)"),
    Plant("an optimiser that approximates", "sequences", "model.onnx", nothing,
          ONNX, "gelu", "body.layers.0 (TransformerEncoderLayer)", careless_optimiser,
          opset=20),
    Plant("a fusion that is broken", "pictures", "model.onnx", nothing,
          ONNX, "relu", "Pictures", broken_fusion),
    Plant("a translation that is wrong", "simple", "model.onnx", nothing,
          ONNX, "getitem", "rnn (RNN)", wrong_translation, exporting=True),
    Plant("a decision by the number of rows", "deciding", "model.onnx", nothing,
          ONNX, "linear_1", "Deciding", exporting=True),
    Plant("TorchScript: a decision by the number of rows", "deciding", "model.ts", nothing,
          "parity-torchscript", "aten::linear", "Deciding", exporting=True),
    Plant("TorchScript: one wrong weight", "recurrent", "model.ts", script_weights("model.rnn.weight_hh_l0"),
          "parity-torchscript", "aten::lstm", "rnn (LSTM)"),
    Plant("TorchScript: a swapped activation", "dense", "model.ts",
          code("torch.tanh(", "torch.sigmoid(", "planted"), "parity-torchscript", "aten::sigmoid", "Dense"),
    Plant("TorchScript: another slope", "dense", "model.ts",
          code("0.10000000000000001", "0.11", "activation"),
          "parity-torchscript", "aten::leaky_relu", "leaky (LeakyReLU)"),
    Plant("TorchScript: another epsilon under masks", "sequences", "masked.ts",
          code("[8], weight, bias)", "[8], weight, bias, 0.001)", "normalization"),
          "parity-masked-torchscript", "aten::layer_norm", "body.layers.0.norm1 (LayerNorm)"),
    Plant("TorchScript: a dropped ReLU", "pictures", "model.ts",
          code("torch.relu(", "torch.clone(", "planted"), "parity-torchscript", "aten::clone", "Pictures"),
)  # fmt: skip
