"""From a folder to an endpoint that answers, or a message that says why it cannot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dropserve.errors import ServerError, UsageError
from dropserve.manifest import VersionManifest
from dropserve.serving.graphs import BACKENDS, Backend
from dropserve.serving.parameters import SUFFIX, Limits
from dropserve.serving.predictor import Predictor
from dropserve.serving.protocol import Codec
from dropserve.store import open_folder

LOAD_FAILED = "dropserve cannot load"  # the lifecycle looks for this line in the model's log
_MAX_RESPONSE = 6_500_000  # TorchServe's default bound is 6,553,500; an answer over it kills the worker
_WARM_ROUNDS = 3
_PLATFORMS: dict[Backend, str] = {"onnx": "onnx_onnxv1", "torchscript": "pytorch_torchscript"}


@dataclass(frozen=True)
class Loaded:
    """An endpoint that has answered.

    Attributes:
        predictor: its model.
        codec: speaks for it.
        max_response: bytes that one answer may have.
        platform: what computes it, as the Open Inference Protocol names it.
    """

    predictor: Predictor
    codec: Codec
    max_response: int
    platform: str


@dataclass(frozen=True)
class EndpointOptions:
    """The ``handler`` section of ``model-config.yaml``.

    Attributes:
        backend: what computes.
        threads: cores for it.
        max_response: bytes that one answer may have.
        limits: what one request may ask for.
    """

    backend: Backend
    threads: int
    max_response: int
    limits: Limits


def read_options(options: Mapping[str, Any]) -> EndpointOptions:
    """Read the ``handler`` section.

    Raises:
        UsageError: if an option is wrong.
    """
    rest = dict(options)
    backend, threads = _backend(rest.pop("backend", "onnx")), _threads(rest.pop("threads", "auto"))
    max_response = int(rest.pop("max_response_bytes", _MAX_RESPONSE))
    try:
        limits = Limits(**rest)
    except TypeError as error:
        known = ", ".join(["backend", "threads", "max_response_bytes", *vars(Limits())])
        raise UsageError(f"model-config.yaml, handler: {error}; expected {known}") from error
    return EndpointOptions(backend, threads, max_response, limits)


def load_endpoint(folder: Path, endpoint: str, options: Mapping[str, Any]) -> Loaded:
    """Verify, load and warm a model.

    Args:
        folder: an unpacked archive, or a version of the store.
        endpoint: the name that it is served under.
        options: the ``handler`` section of ``model-config.yaml``.

    Raises:
        CorruptStoreError: if a file is not what was published.
        UsageError: if an option is wrong.
        ServerError: if the model cannot be loaded, or fails on its own example row.
    """
    chosen = read_options(options)
    version = open_folder(folder, VersionManifest, strict=False)
    predictor = Predictor(version, backend=chosen.backend, threads=chosen.threads)
    both = predictor.has_plain and predictor.has_monte_carlo
    doubt = endpoint.endswith(SUFFIX) if both else predictor.has_monte_carlo
    codec = Codec(version.manifest, monte_carlo=doubt, limits=chosen.limits)
    loaded = Loaded(predictor, codec, chosen.max_response, _PLATFORMS[chosen.backend])
    _warm(loaded)
    return loaded


def _warm(loaded: Loaded) -> None:
    """Answer the example row until the runtime has settled; a model that cannot is not served."""
    call = loaded.codec.decode(loaded.predictor.example())
    for _ in range(_WARM_ROUNDS):
        for result in loaded.predictor.answer([call.query] * 2):
            if isinstance(result, Exception):
                raise ServerError(f"it fails on its own example row: {result}") from result
            call.encode(result)


def _backend(value: object) -> Backend:
    for backend in BACKENDS:
        if value == backend:
            return backend
    raise UsageError(f"model-config.yaml, handler: backend {value!r}; expected {' or '.join(BACKENDS)}")


def _threads(value: object) -> int:
    if value == "auto":  # `dropserve serve` shares the cores out; elsewhere, two endpoints share them
        return int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // 2))
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise UsageError(f"model-config.yaml, handler: threads {value!r}; expected auto or a whole number >= 1")
