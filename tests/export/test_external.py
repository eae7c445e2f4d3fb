from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data
from torch import nn

from dropserve.export import external
from dropserve.export.artefacts import HEAD, MASKED, MODEL, TRUNK, build
from dropserve.export.external import data_file, files_of, loadable, with_weights
from dropserve.export.onnx import OnnxProgram
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.export.trunk import split
from dropserve.signature import parse_input

PARTS = (MODEL, MASKED, TRUNK, HEAD)


def subject() -> Subject:
    torch.manual_seed(0)
    layers = (nn.Linear(8, 40), nn.ReLU(), nn.Dropout(0.5), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3))
    return Subject("net", nn.Sequential(*layers).eval(), (parse_input("8"),))


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graphs of a model whose weights stand in second files."""
    folder = tmp_path_factory.mktemp("cut")
    build(subject(), folder, ExportSettings(formats=("onnx", "masked-onnx"), single_file_bytes=500))
    return folder


def outside(model: onnx.ModelProto) -> list[str]:
    return [tensor.name for tensor in model.graph.initializer if uses_external_data(tensor)]


def content(model: onnx.ModelProto) -> dict[str, bytes]:
    """Weights by name, and all else: what has been in a second file is marked differently, and no other."""
    found = {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}
    graph = onnx.GraphProto()
    graph.CopyFrom(model.graph)
    del graph.initializer[:]
    return found | {"graph": graph.SerializeToString()}


def test_graphs_with_second_files_are_those_without(cut: Path, tmp_path: Path) -> None:
    build(subject(), tmp_path, ExportSettings(formats=("onnx", "masked-onnx")))
    for part in PARTS:
        assert files_of(cut / part) == (cut / part, data_file(cut / part))
        assert files_of(tmp_path / part) == (tmp_path / part,)
        assert content(onnx.load(cut / part)) == content(onnx.load(tmp_path / part))
    assert {path.name for path in cut.iterdir()} == {n for part in PARTS for n in (part, f"{part}.data")}


def test_a_graph_is_cut_without_its_weights(cut: Path) -> None:
    rows = {"input": np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)}
    before = sorted(cut.iterdir())
    whole = split(onnx.load(cut / MASKED), ["mask_0"], rows)
    light = split(onnx.load(cut / MASKED, load_external_data=False), ["mask_0"], rows, cut)
    assert sorted(cut.iterdir()) == before, "what was written to run the trunk is gone"
    assert light.reason == whole.reason
    for with_them, without in ((whole.trunk, light.trunk), (whole.head, light.head)):
        assert with_them is not None
        assert without is not None
        assert outside(without)
        assert content(with_weights(without, cut)) == content(with_them)


def test_what_is_too_large_for_one_file_runs_and_has_its_weights_afterwards(
    cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(cut / MODEL)
    before = content(model)
    fed = {"input": np.ones((2, 8), np.float32)}
    with loadable(model) as source:
        assert source == model.SerializeToString()
        expected = OnnxProgram(source)(fed)["output"]
    monkeypatch.setattr(external, "SINGLE_FILE", 500)
    seen: list[Path] = []

    def use() -> None:
        with loadable(model) as source:
            assert isinstance(source, Path)
            seen.append(source)
            np.testing.assert_array_equal(OnnxProgram(source)(fed)["output"], expected)
            raise ZeroDivisionError  # whatever goes wrong meanwhile

    with pytest.raises(ZeroDivisionError):
        use()
    assert not seen[0].exists()
    assert content(model) == before
