"""What every host does with a batch of requests: decode, compute, encode, count; one reply each."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dropserve.errors import RequestError
from dropserve.serving.loaded import Loaded
from dropserve.serving.protocol import NO_HEADERS, Call, Reply, error_reply, failure_reply
from dropserve.serving.query import Answer
from dropserve.serving.tally import Tally

WARM_HEADER = "x-dropserve-warm"
log = logging.getLogger("dropserve.serving")


class Message(NamedTuple):
    """A request as it came.

    Attributes:
        body: its bytes.
        id: names it in the log, should it fail.
        headers: those of the protocol and :data:`WARM_HEADER`; others are ignored.
        refused: what already made it none of ours.
    """

    body: bytes
    id: str
    headers: Mapping[str, str] = NO_HEADERS
    refused: RequestError | None = None


class Answering:
    """Answers batches for one endpoint, whatever the host: whatever is wrong with one request costs that one.

    Args:
        endpoint: the name that it is served under.
        loaded: its model and codec.

    Attributes:
        tally: what it has done.
    """

    def __init__(self, endpoint: str, loaded: Loaded) -> None:
        self._predictor, self._codec = loaded.predictor, loaded.codec
        self._max_response = loaded.max_response
        self.tally = Tally(endpoint, loaded.predictor.manifest.version)

    def __call__(self, messages: Sequence[Message]) -> list[Reply]:
        """One reply a message, in order."""
        calls = [self._decode(message) for message in messages]
        queries = [call.query for call in calls if isinstance(call, Call)]
        start = time.perf_counter()
        results = iter(self._predictor.answer(queries))
        self.tally.worked(time.perf_counter() - start)
        return [
            self._reply(call, next(results), message) if isinstance(call, Call) else call
            for call, message in zip(calls, messages, strict=True)
        ]

    def _decode(self, message: Message) -> Call | Reply:
        try:
            if message.refused is not None:
                raise message.refused  # noqa: TRY301  # like any other
            return self._codec.decode(message.body, message.headers)
        except Exception as error:  # noqa: BLE001  # one request must not cost the batch
            return self._refusal(error, message.id)

    def _reply(self, call: Call, result: Answer | Exception, message: Message) -> Reply:
        if isinstance(result, Exception):
            return self._refusal(result, message.id)
        try:
            reply = self._bounded(call.encode(result))
            if WARM_HEADER not in message.headers:  # warming is no traffic
                self.tally.answered(result)
        except Exception as error:  # noqa: BLE001  # one request must not cost the batch
            return self._refusal(error, message.id)
        return reply

    def _refusal(self, error: Exception, request_id: str) -> Reply:
        if isinstance(error, RequestError):
            self.tally.rejected(error.reason)
            return error_reply(error)
        self.tally.failed()
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
