"""A model trained elsewhere on a table comes in with the columns and the scaling that it was trained with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dropserve.errors import ModelSourceError, UsageError
from dropserve.export.archive import Stage
from dropserve.export.pipeline import export_run
from dropserve.export.settings import ExportSettings
from dropserve.project import packaged_stages
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.signature import TensorSpec
from dropserve.store import Store
from dropserve.training.import_model import Imported, import_model
from dropserve.training.preprocessing_file import read_preprocessing

SOURCE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, inputs: int = 5):
        super().__init__(nn.Linear(inputs, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 1))
"""
FILE: dict[str, Any] = {
    "columns": {
        "input": [
            {"name": "age", "fill": 40},
            {"name": "job", "categories": ["clerk", "nurse", "teacher"], "other": True, "fill": 1},
            {"name": "pay"},
        ]
    },
    "inputs": {"input": {"mean": [40, 0, 3], "scale": [10, 1, 2]}},
    "target": {"mean": [100], "scale": [7]},
}


def bring(folder: Path, content: Any, *, shape: str = "3") -> Imported:
    (folder / "net.py").write_text(SOURCE)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 1))
    save_file(net.state_dict(), folder / "w.safetensors")
    file = folder / "before.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    where = f"{folder / 'net.py'}:Net"
    weights, store = folder / "w.safetensors", Store(folder / "store")
    return import_model(store, where, weights, [shape], name="staff", task="regression", preprocessing=file)


def test_it_is_exported_and_asked_by_name(tmp_path: Path) -> None:
    imported = bring(tmp_path, FILE)
    serving = packaged_stages() / "serving"
    stage = Stage(serving / "handler.py", serving / "model-config.yaml")
    settings = ExportSettings(formats=("onnx",), batch_sizes=(1, 3))
    version = export_run(Store(tmp_path / "store"), imported.run, settings, stage)
    predictor, codec = Predictor(version), Codec(version.manifest, monte_carlo=False)
    rows = [{"age": None, "job": "teacher", "pay": 5}, {"age": 50, "job": "smith", "pay": 3}]
    call = codec.decode(json.dumps({"instances": rows}).encode())
    (answer,) = predictor.answer([call.query])
    assert not isinstance(answer, Exception)
    prepared = torch.tensor([[0.0, 0, 0, 1, 1], [1, 0, 0, 0, 0]])
    with torch.no_grad():
        expected = imported.model(prepared).numpy() * 7 + 100
    np.testing.assert_allclose(answer.values["output"], expected, rtol=1e-6)


def test_the_file_that_the_page_shows_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text("utf-8")
    (shown,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (tmp_path / "before.json").write_text(shown)
    found = read_preprocessing(tmp_path / "before.json", [TensorSpec(name="input", shape=(2,))])
    assert found.columns["input"][1].categories == ("thai", "vegan")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"columns": {"x": []}}, "columns: there is no input 'x'; there are input"),
        ({"inputs": {"x": {"mean": [0], "scale": [1]}}}, "inputs: there is no input 'x'"),
        (
            {"columns": {"input": [{"name": "age"}]}},
            "columns.input: 1 columns; the input is input: float32[3]",
        ),
        ({"columns": {"input": [{"name": "a"}] * 3}}, "columns.input: 'a' stands twice"),
        ({"columns": {"input": [{"nam": "a"}]}}, "columns.input.0.name: Field required"),
        ({"columns": {"input": [{"name": "a", "categories": ["x", "x"]}]}}, "a category stands twice"),
        (
            {"columns": {"input": [{"name": "a", "categories": ["x"], "fill": 1}]}},
            "the place of a category, 0 to 0",
        ),
        ({"columns": {"input": [{"name": "a", "other": True}]}}, "other without categories"),
        (
            {"inputs": {"input": {"mean": [0], "scale": [1]}}},
            "inputs.input: 1 means and 1 scales; expected 3",
        ),
        ({"target": {"mean": [0], "scale": [0]}}, "target: a scale is 0"),
        ({"target": {"mean": [0], "scale": []}}, "target: 1 means and 0 scales; expected 1 of each"),
        ({"heteroscedastic": True}, "heteroscedastic: Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        bring(tmp_path, FILE | change)
    assert expected in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Invalid JSON"):
        bring(tmp_path, "{")
    with pytest.raises(ModelSourceError, match="Net cannot take input: float32"):
        bring(tmp_path, {"columns": {"input": [{"name": str(n)} for n in range(4)]}}, shape="4")
