"""What TorchServe runs in each worker: ``serving/handler.py`` of a project subclasses :class:`Handler`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from dropserve.serving.answering import BatchHandler, HttpRequest
from dropserve.serving.loaded import LOAD_FAILED, load_endpoint
from dropserve.serving.tally import start_reporting
from dropserve.serving.wire import read_in_pieces

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


def _headers(context: Any, index: int) -> dict[str, str]:
    """TorchServe mixes the headers of form fields in, as mappings."""
    found = context.get_all_request_header(index)
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _body(body: Any) -> bytes:
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    # A TorchServe that decodes JSON itself (decode_input_request=true) gives what it decoded.
    return body.encode("utf-8", "replace") if isinstance(body, str) else json.dumps(body).encode()
