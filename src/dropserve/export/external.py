"""ONNX files whose weights stand in a second file beside them: one file holds less than 2 GiB."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from .settings import SINGLE_FILE

SUFFIX = ".data"
_SMALL = 1024  # bytes: shapes and scalars stay inside, where shape inference can see them


def data_file(path: Path) -> Path:
    """Where the weights of an ONNX file stand if they do not stand in it."""
    return path.with_name(path.name + SUFFIX)


def weight_bytes(model: ModelProto) -> int:
    """Bytes of all tensors in a graph and its subgraphs."""
    return sum(_size(tensor) for tensor in _tensors(model.graph))


def save(model: ModelProto, path: Path, limit: int = SINGLE_FILE) -> None:
    """Write a model: as one file if its weights have at most ``limit`` bytes, else with a second one.

    The second file is named after the first and stands beside it. The model's own tensors are emptied then.
    """
    beside = data_file(path)
    beside.unlink(missing_ok=True)  # onnx would append to it
    if weight_bytes(model) <= limit:
        path.write_bytes(model.SerializeToString())
        return
    path.unlink(missing_ok=True)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=beside.name,
        size_threshold=_SMALL,
    )


def files_of(path: Path) -> tuple[Path, ...]:
    """An ONNX file and, if there is one, the file with its weights."""
    beside = data_file(path)
    return (path, beside) if beside.is_file() else (path,)


def with_weights(model: ModelProto, folder: Path) -> ModelProto:
    """The same model, with the weights that stood in a file of that folder."""
    load_external_data_for_model(model, str(folder))
    return model


@contextmanager
def loadable(model: ModelProto, folder: Path | None = None) -> Generator[Path | bytes]:
    """What onnxruntime can load a model in memory from: its bytes, or a temporary file if it is too large.

    Args:
        model: with its weights, or with the names of files that hold them.
        folder: where such files are.
    """
    if folder is not None and any(map(uses_external_data, _tensors(model.graph))):
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".onnx") as file:
            file.write(model.SerializeToString())
            file.flush()
            yield Path(file.name)
        return
    if weight_bytes(model) <= SINGLE_FILE:
        yield model.SerializeToString()
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        save(model, path)  # which empties its tensors
        try:
            yield path
        finally:
            with_weights(model, path.parent)


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.GRAPH:
                yield from _tensors(attribute.g)


def _size(tensor: TensorProto) -> int:
    if uses_external_data(tensor):
        return 0  # it is in another file already
    return len(tensor.raw_data) or tensor.ByteSize()
