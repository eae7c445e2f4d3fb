"""Discrepancies planted in exported files, and where each of them is.

A plant changes a file after the export, or what loads it; whoever looks for it is told nothing. Each knows
the check that must fail, the tensor that is the first to differ, and the module that it belongs to.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto

from dropserve.export.artefacts import Artefacts, build
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject

from .edits import (
    attribute,
    code,
    dropped,
    half,
    lstm_weight,
    mask_added,
    nothing,
    of,
    on_graph,
    one_number,
    operator,
    script_weights,
    softmax_axis,
    stored,
    stored_of,
    sum_rereads,
    tanh_gelu,
)
from .loading import broken_fusion, careless_optimiser, wrong_translation
from .models import MODELS, subject

__all__ = ["MODELS", "PLANTS", "Plant"]

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
)  # fmt: skip  # fmt: skip
