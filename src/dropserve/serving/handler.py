"""What TorchServe runs in each worker: ``serving/handler.py`` of a project subclasses :class:`Handler`."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from dropserve.errors import RequestError
from dropserve.serving.loaded import load_endpoint
from dropserve.serving.protocol import Call, Codec, Reply, error_reply, failure_reply
from dropserve.serving.query import Answer
from dropserve.serving.tally import Tally, start_reporting

LOAD_FAILED = "dropserve cannot load"  # the lifecycle looks for this line in the model's log
WARM_HEADER = "x-dropserve-warm"
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
        self._predictor, self._codec = loaded.predictor, loaded.codec
        self._max_response = loaded.max_response
        self._tally = Tally(endpoint, loaded.predictor.manifest.version)
        start_reporting(self._tally)
        logging.getLogger().setLevel(logging.WARNING)  # TorchServe logs each request at INFO, to a pipe

    def handle(self, data: list[Mapping[str, Any]], context: Any) -> list[bytes]:
        """Answer a batch.

        Args:
            data: one mapping a request, its body under ``body``.
            context: takes each request's status and headers.

        Returns:
            One encoded body a request, in order.
        """
        replies = self._replies(data, context)
        for index, reply in enumerate(replies):
            context.set_response_status(reply.status, HTTPStatus(reply.status).phrase, index)
            context.set_response_content_type(index, reply.content_type)
            for name, value in reply.headers.items():
                context.set_response_header(index, name, value)
        return [reply.body for reply in replies]

    def _replies(self, data: list[Mapping[str, Any]], context: Any) -> list[Reply]:
        ids = [str(context.get_request_id(index)) for index in range(len(data))]
        replies: dict[int, Reply] = {}
        calls: dict[int, Call] = {}
        warming: set[int] = set()  # they are no traffic
        for index, row in enumerate(data):
            try:
                headers = _headers(context, index)
                calls[index] = self._codec.decode(_body(row, self._codec), headers)
                if WARM_HEADER in headers:
                    warming.add(index)
            except Exception as error:  # noqa: BLE001  # one request must not cost the batch
                replies[index] = self._refusal(error, ids[index])
        start = time.perf_counter()
        results = self._predictor.answer([call.query for call in calls.values()])
        self._tally.worked(time.perf_counter() - start)
        for (index, call), result in zip(calls.items(), results, strict=True):
            replies[index] = self._reply(call, result, ids[index], counts=index not in warming)
        return [replies[index] for index in range(len(data))]

    def _reply(self, call: Call, result: Answer | Exception, request_id: str, *, counts: bool) -> Reply:
        if isinstance(result, Exception):
            return self._refusal(result, request_id)
        try:
            reply = self._bounded(call.encode(result))
            if counts:
                self._tally.answered(result)
        except Exception as error:  # noqa: BLE001  # one request must not cost the batch
            return self._refusal(error, request_id)
        return reply

    def _refusal(self, error: Exception, request_id: str) -> Reply:
        if isinstance(error, RequestError):
            self._tally.rejected(error.reason)
            return error_reply(error)
        self._tally.failed()
        cause = "".join(traceback.format_exception(error))
        log.error("%s", json.dumps({"event": "failed", "request_id": request_id, "cause": cause}))
        return failure_reply(request_id)

    def _bounded(self, reply: Reply) -> Reply:
        size = len(reply.body)
        if size > self._max_response:
            raise RequestError(
                f"the answer has {size} bytes; expected at most {self._max_response}. Send fewer instances "
                "in one request",
                status=413,
                reason="too_large",
            )
        return reply


def _headers(context: Any, index: int) -> dict[str, str]:
    """TorchServe mixes the headers of form fields in, as mappings."""
    found = context.get_all_request_header(index)
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _body(row: Mapping[str, Any], codec: Codec) -> bytes:
    if "body" not in row:
        raise codec.refuse_form()
    body = row["body"]
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    # A TorchServe that decodes JSON itself (decode_input_request=true) gives what it decoded.
    return body.encode("utf-8", "replace") if isinstance(body, str) else json.dumps(body).encode()
