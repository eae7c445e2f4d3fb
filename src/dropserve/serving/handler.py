"""What TorchServe runs in each worker: ``serving/handler.py`` of a project subclasses :class:`Handler`.

``dropserve serve`` has TorchServe import :func:`verified_handle`, which runs an archive's own ``handler.py``
only after every file of the archive has been verified. Elsewhere TorchServe imports that file by itself.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from dropserve.errors import ServerError
from dropserve.manifest import VersionManifest
from dropserve.serving.answering import BatchHandler, HttpRequest
from dropserve.serving.loaded import LOAD_FAILED, load_endpoint
from dropserve.serving.tally import start_reporting
from dropserve.serving.wire import read_in_pieces
from dropserve.store import open_folder

log = logging.getLogger("dropserve.serving")


class Handler:
    """Answers one endpoint.

    TorchServe calls :meth:`initialize` once and :meth:`handle` with a batch of requests. Each request gets
    its own status, content type and body: whatever is wrong with one costs that one alone.
    """

    def initialize(self, context: Any) -> None:
        """Verify, load and warm the model.

        Args:
            context: TorchServe's; its ``model_yaml_config`` may hold a ``handler`` section.

        Raises:
            RuntimeError: if the model cannot be served; the cause stands in one line of the log.
        """
        endpoint = str(context.model_name)
        try:
            options: dict[str, Any] = dict((context.model_yaml_config or {}).get("handler") or {})
            loaded = load_endpoint(Path(context.system_properties["model_dir"]), endpoint, options)
        except Exception as error:
            text = " ".join(f"{error}".split()) or type(error).__name__
            log.exception("%s %s: %s", LOAD_FAILED, endpoint, text)
            raise RuntimeError(text) from error
        self._codec = loaded.codec
        self._batch_handler = BatchHandler(endpoint, loaded)
        start_reporting(self._batch_handler.tally)
        read_in_pieces()
        logging.getLogger().setLevel(logging.WARNING)  # TorchServe logs each request at INFO, to a pipe

    def handle(self, data: list[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch.

        Args:
            data: one mapping a request, its body under ``body``.
            context: takes each request's status and headers.

        Returns:
            One encoded body a request, in order.
        """
        replies = self._batch_handler([self._request(row, context, index) for index, row in enumerate(data)])
        for index, reply in enumerate(replies):
            context.set_response_status(reply.status, HTTPStatus(reply.status).phrase, index)
            context.set_response_content_type(index, reply.content_type)
            for name, value in reply.headers.items():
                context.set_response_header(index, name, value)
        return [reply.body for reply in replies]

    def _request(self, row: Mapping[str, Any], context: Any, index: int) -> HttpRequest:
        identity, headers = str(context.get_request_id(index)), _headers(context, index)
        if "body" not in row:
            return HttpRequest(b"", identity, headers, self._codec.refuse_form())
        return HttpRequest(_body(row["body"]), identity, headers)


_verified: list[Any] = []  # the archive's handler, once it has been verified


def verified_handle(data: list[Mapping[str, Any]] | None, context: Any) -> list[bytes] | None:
    """Verify the archive and load its ``handler.py`` at first, then answer by it.

    Args:
        data: None when TorchServe initialises the worker, then a batch of requests.
        context: TorchServe's.

    Raises:
        RuntimeError: if a file is not what was published, or the handler cannot be loaded; the cause stands
            in one line of the log.
    """
    if not _verified:
        folder = Path(context.system_properties["model_dir"])
        try:
            open_folder(folder, VersionManifest, strict=False)
            handler = _handler_class(folder / "handler.py")()
        except Exception as error:
            text = " ".join(f"{error}".split()) or type(error).__name__
            log.exception("%s %s: %s", LOAD_FAILED, context.model_name, text)
            raise RuntimeError(text) from error
        handler.initialize(context)
        _verified.append(handler)
    return None if data is None else _verified[0].handle(data, context)


def _handler_class(file: Path) -> type[Any]:
    """The one class that is defined in the file."""
    spec = importlib.util.spec_from_file_location("handler", file)
    if spec is None or spec.loader is None:
        raise ServerError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler"] = module
    spec.loader.exec_module(module)
    found = [
        each for each in vars(module).values() if isinstance(each, type) and each.__module__ == "handler"
    ]
    if len(found) != 1:
        raise ServerError(f"{file} defines {len(found)} classes; expected exactly one, a subclass of Handler")
    return found[0]


def _headers(context: Any, index: int) -> dict[str, str]:
    """TorchServe mixes the headers of form fields in, as mappings."""
    found = context.get_all_request_header(index)
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _body(body: Any) -> bytes:
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    # A TorchServe that decodes JSON itself (decode_input_request=true) gives what it decoded.
    return body.encode("utf-8", "replace") if isinstance(body, str) else json.dumps(body).encode()
