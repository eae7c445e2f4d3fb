from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from dropserve.errors import CorruptStoreError, ServerError
from dropserve.serving.external import external_files, require_safe

WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)
Published = Callable[..., object]


def outside(name: str, location: str) -> TensorProto:
    """A tensor whose numbers stand in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2, 3])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", "24")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def written(folder: Path, *tensors: TensorProto) -> Path:
    """A graph with weights: the first is multiplied with the input."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    node = helper.make_node("MatMul", ["x", tensors[0].name], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], list(tensors))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def everywhere() -> onnx.ModelProto:
    """A location in each place in which ONNX allows a tensor."""
    graph = helper.make_graph([], "inner", [], [], [outside("a", "in a subgraph")])
    sparse = onnx.SparseTensorProto(
        values=outside("b", "sparse values"), indices=outside("c", "sparse indices")
    )
    node = helper.make_node("If", ["x"], ["y"], then_branch=graph)
    node.attribute.append(onnx.AttributeProto(name="t", type=4, t=outside("d", "an attribute")))
    node.attribute.append(onnx.AttributeProto(name="ts", type=9, tensors=[outside("e", "attributes")]))
    node.attribute.append(onnx.AttributeProto(name="gs", type=10, graphs=[graph]))
    node.attribute.append(onnx.AttributeProto(name="s", type=11, sparse_tensor=sparse))
    outer = helper.make_graph([node], "g", [], [], [outside("f", "an initializer")])
    outer.sparse_initializer.append(sparse)
    model = helper.make_model(outer)
    inner = helper.make_node("Constant", [], ["y"], value=outside("g", "a function"))
    model.functions.append(
        helper.make_function("own", "F", [], ["y"], [inner], [helper.make_opsetid("", 18)])
    )
    return model


def test_every_place_for_a_tensor_is_looked_at(tmp_path: Path) -> None:
    model = everywhere()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    places = (
        "in a subgraph, sparse values, sparse indices, an attribute, attributes, an initializer, a function"
    )
    expected = set(places.split(", "))
    assert external_files(path) == expected


@settings(max_examples=30, deadline=None)
@given(names=st.lists(st.text(min_size=1, max_size=20), max_size=5), kept=st.booleans())
def test_it_agrees_with_onnx_itself(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], kept: bool
) -> None:
    tensors = [outside(f"w{i}", name) for i, name in enumerate(names)]
    if kept or not tensors:
        tensors.append(numpy_helper.from_array(WEIGHTS, "kept"))
    path = written(tmp_path_factory.mktemp("model"), *tensors)
    loaded = onnx.load(path, load_external_data=False)
    theirs = {ExternalDataInfo(t).location for t in loaded.graph.initializer if uses_external_data(t)}
    assert external_files(path) == theirs


def test_weights_beside_the_file_and_in_the_manifest_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, outside("w", "model.onnx.data"))
    (tmp_path / "model.onnx.data").write_bytes(WEIGHTS.tobytes())
    require_safe(path, {"model.onnx", "model.onnx.data"})
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"x": np.eye(2, dtype=np.float32)})
    np.testing.assert_array_equal(got, WEIGHTS)


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("../secret", "no plain name"),
        ("/etc/passwd", "no plain name"),
        ("sub/model.onnx.data", "no plain name"),
        ("", "no plain name"),
        ("..", "no plain name"),
        ("unlisted.data", "does not stand in the manifest"),
        ("link.data", "a symbolic link"),
    ],
)
def test_other_files_are_refused_and_named(tmp_path: Path, location: str, why: str) -> None:
    folder = tmp_path / "version"
    (folder / "sub").mkdir(parents=True)
    for file in (tmp_path / "secret", folder / "unlisted.data", folder / "sub/model.onnx.data"):
        file.write_bytes(WEIGHTS.tobytes())
    (folder / "link.data").symlink_to(tmp_path / "secret")
    path = written(folder, outside("w", location))
    with pytest.raises(CorruptStoreError, match=why) as caught:
        require_safe(path, {"model.onnx", "link.data"})
    assert repr(location) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\x3a", b"\x3a\x05abc", b"\x0b\x0b", b"\xff" * 40, b"\x3a\xff\xff\xff\x0f"]
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ServerError, match=r"cannot load .*(is empty|is no ONNX file)"):
        external_files(path)
