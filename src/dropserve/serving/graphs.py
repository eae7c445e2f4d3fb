"""The two runtimes behind one shape: a graph maps names to arrays and gives arrays by name.

onnxruntime and torch are imported where they are used, so that a host needs only the one it serves with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dropserve.dropout.held import Array, Arrays, aligned
from dropserve.errors import MissingExtraError, ServerError

Backend = Literal["onnx", "torchscript"]
BACKENDS: tuple[Backend, ...] = ("onnx", "torchscript")
_CHUNK_ROWS = 1024  # rows of one run: bounds the memory of activations


class Graph(Protocol):
    """A loaded graph; ``input_names`` says what it takes."""

    input_names: tuple[str, ...]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run on arrays that share axis 0; names it does not take are ignored."""
        ...


class OnnxGraph:
    """A graph in onnxruntime, on one thread: on several, some operators round by where the work was cut.

    More threads are more calls side by side (``dropout.rows``).

    Args:
        path: the ``.onnx`` file.

    Raises:
        MissingExtraError: if onnxruntime is not installed.
        ServerError: if onnxruntime refuses the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime as ort  # noqa: PLC0415  # a TorchScript host has none
        except ModuleNotFoundError as error:
            raise MissingExtraError("onnxruntime", "serve") from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # a request that it refuses raises here; stderr need not hear of it
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ServerError(f"onnxruntime {ort.__version__} cannot load {path}: {error}") from error
        self.input_names = tuple(node.name for node in self._session.get_inputs())
        self._outputs = [node.name for node in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph."""
        results = self._session.run(self._outputs, {name: feeds[name] for name in self.input_names})
        return dict(zip(self._outputs, map(np.asarray, results), strict=True))

    def hold(self, feeds: Arrays, outputs: Arrays) -> _OnnxCall:
        """A call at fixed addresses (``dropout.held``)."""
        return _OnnxCall(self._session, {name: feeds[name] for name in self.input_names}, outputs)


class _OnnxCall:
    """Inputs and outputs of a session, bound once."""

    def __init__(self, session: Any, feeds: Arrays, outputs: Arrays) -> None:
        from onnxruntime import OrtValue  # noqa: PLC0415  # there is a session, so it is installed

        self.inputs = {name: aligned(array) for name, array in feeds.items()}
        self.outputs = {name: aligned(array) for name, array in outputs.items()}
        self._session = session
        self._binding = session.io_binding()
        self._values: list[Any] = []  # share the memory of the arrays, and must live as long
        for bind, arrays in (
            (self._binding.bind_ortvalue_input, self.inputs),
            (self._binding.bind_ortvalue_output, self.outputs),
        ):
            for name, array in arrays.items():
                self._values.append(OrtValue.ortvalue_from_numpy(array))
                bind(name, self._values[-1])

    def __call__(self) -> None:
        """Run the graph."""
        self._session.run_with_iobinding(self._binding)


class TorchScriptGraph:
    """A graph in TorchScript.

    Args:
        path: the ``.ts`` file.
        threads: threads of torch in this process.
        inputs: names in the order of ``forward``.
        outputs: names in the order of what ``forward`` gives.

    Raises:
        MissingExtraError: if torch is not installed.
        ServerError: if torch refuses the file.
    """

    def __init__(self, path: Path, threads: int, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        try:
            import torch  # noqa: PLC0415  # an onnxruntime host has none
        except ModuleNotFoundError as error:
            raise MissingExtraError("torch", "torchserve") from error
        self._torch = torch
        torch.set_num_threads(threads)
        try:
            self._module = torch.jit.load(path, map_location="cpu").eval()
        except Exception as error:
            raise ServerError(f"torch {torch.__version__} cannot load {path}: {error}") from error
        # The profiling executor recompiles for each new batch size: seconds, and answers that drift.
        torch._C._jit_set_profiling_executor(False)  # pyright: ignore[reportPrivateUsage]  # no public switch
        self.input_names = tuple(inputs)
        self._outputs = tuple(outputs)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph."""
        rows = len(feeds[self.input_names[0]])
        parts = [self._run(feeds, first) for first in range(0, rows, _CHUNK_ROWS)]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in self._outputs}

    def _run(self, feeds: Mapping[str, Array], first: int) -> dict[str, Array]:
        chunk = (feeds[name][first : first + _CHUNK_ROWS] for name in self.input_names)
        tensors = [self._torch.from_numpy(np.ascontiguousarray(array)) for array in chunk]
        with self._torch.inference_mode():
            result = self._module(*tensors)
        return {name: t.numpy() for name, t in zip(self._outputs, _flatten(result), strict=True)}


def _flatten(result: Any) -> list[Any]:
    """The tensors of an output in the order of the signature."""
    if isinstance(result, Mapping):
        return list(result.values())
    return list(result) if isinstance(result, tuple | list) else [result]
