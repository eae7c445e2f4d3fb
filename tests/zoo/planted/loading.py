"""Faults of what exports or loads a file, not of the file: each is in force within a ``with``."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from onnx import helper

from dropserve.export import exportable


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
