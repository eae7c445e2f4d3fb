"""Which files of a version make up its graphs, for either backend."""

from __future__ import annotations

from collections.abc import Sequence

from dropserve.dropout.engine import MonteCarlo
from dropserve.dropout.held import Program
from dropserve.dropout.rows import Steady
from dropserve.errors import ServerError
from dropserve.manifest import VersionManifest
from dropserve.serving.external import require_safe
from dropserve.serving.graphs import Backend, Graph, OnnxGraph, TorchScriptGraph
from dropserve.store import Stored


class GraphFiles:
    """Loads the graphs of a version; each is None where its file is absent.

    Args:
        version: a verified version, or an unpacked archive with one endpoint's files.
        backend: which of the files to load.
        threads: cores for it: threads of a call in TorchScript, calls side by side in onnxruntime.
    """

    def __init__(self, version: Stored[VersionManifest], backend: Backend, threads: int) -> None:
        self._version = version
        self._backend: Backend = backend
        self._threads = threads

    def plain(self) -> Program | None:
        """The deterministic graph."""
        graph = self._load("model", self._inputs())
        if graph is None or self._backend != "onnx":
            return graph  # TorchScript runs on several threads, and keeps to rounding
        return Steady(graph, workers=self._threads, least=self._least_quantum("model"))

    def monte_carlo(self) -> MonteCarlo | None:
        """The masked graph: trunk and head in ONNX, one undivided graph in TorchScript."""
        manifest = self._version.manifest
        masks = [n for site in manifest.sites for n in (site.scale, site.shift) if n is not None]
        if self._backend == "onnx":
            head, trunk = self._load("head"), self._load("trunk")
        else:
            head, trunk = self._load("masked", [*self._inputs(), *masks]), None
        if head is None:
            return None
        return MonteCarlo(
            manifest.sites,
            head,
            trunk,
            head_inputs=[name for name in head.input_names if name not in masks],
            specs=manifest.signature.inputs,
            workers=self._threads if self._backend == "onnx" else 1,
            steady=self._backend == "onnx",
            least_quanta=(self._least_quantum("head"), self._least_quantum("trunk")),
        )

    def nearest(self) -> Program | None:
        """The graph of the out-of-distribution score ``nearest``."""
        graph = self._load("nearest", self._inputs(), ["nearest"])
        return graph if graph is None or self._backend != "onnx" else Steady(graph, workers=self._threads)

    def _least_quantum(self, stem: str) -> int:
        return self._version.manifest.row_quanta.get(f"{stem}.onnx", 1)

    def none_found(self) -> ServerError:
        """What to tell an operator whose version has no graph for this backend."""
        listed = ", ".join(sorted(self._version.manifest.files)) or "nothing"
        precision = self._version.manifest.precision
        mend = 'add "torchscript" to formats in export/checks.toml and export'
        if precision != "fp32":
            mend = f"export with --precision fp32: {precision} is made for onnxruntime alone"
        return ServerError(
            f"{self._version.folder} has no graph for the backend {self._backend!r} (it has {listed}). "
            f"Choose the other backend, or {mend}."
        )

    def _inputs(self) -> list[str]:
        return [spec.name for spec in self._version.manifest.signature.inputs]

    def _load(self, stem: str, inputs: Sequence[str] = (), outputs: Sequence[str] = ()) -> Graph | None:
        file = f"{stem}.{'onnx' if self._backend == 'onnx' else 'ts'}"
        if file not in self._version.manifest.files:
            return None
        path = self._version.path(file)
        if self._backend == "onnx":
            require_safe(path, self._version.manifest.files)
            return OnnxGraph(path)
        own = [spec.name for spec in self._version.manifest.signature.outputs]
        return TorchScriptGraph(path, self._threads, inputs, outputs or own)
