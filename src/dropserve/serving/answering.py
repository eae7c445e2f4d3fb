"""What every host does with a batch of requests: decode, compute, encode, count; one reply each."""

from __future__ import annotations

import json
import logging
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np

from dropserve.errors import RequestError
from dropserve.serving.loaded import Loaded
from dropserve.serving.protocol import NO_HEADERS, Call, Reply, error_reply, failure_reply
from dropserve.serving.query import Answer, Query
from dropserve.serving.tally import Tally
from dropserve.uncertainty.ood import OutOfDistribution

WARM_HEADER = "x-dropserve-warm"
_SHORT = 1024  # rows times samples of a request that is computed whole, together with others
_CHUNK_S = 0.01  # seconds that a chunk of a long request shall take
log = logging.getLogger("dropserve.serving")


class HttpRequest(NamedTuple):
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


class BatchHandler:
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
        self._least_bytes = _least_bytes(loaded)
        self.tally = Tally(endpoint, loaded.predictor.manifest.version)

    def __call__(self, requests: Sequence[HttpRequest]) -> list[Reply]:
        """One reply a request, in order."""
        calls = [self._decode(request) for request in requests]
        queries = [call.query for call in calls if isinstance(call, Call)]
        results = iter(self.compute(queries))
        return [
            self.reply(call, next(results), request) if isinstance(call, Call) else call
            for call, request in zip(calls, requests, strict=True)
        ]

    def begin(self, requests: Sequence[HttpRequest]) -> list[Reply | Job]:
        """As a call, but a long request is not computed yet: it is a job, to be done in steps."""
        found: list[Reply | Job | Call] = []
        for request in requests:
            call = self._decode(request)
            long = isinstance(call, Call) and _passes(call) > _SHORT and call.query.rows > 1
            found.append(Job(self, request, call) if long and isinstance(call, Call) else call)
        results = iter(self.compute([call.query for call in found if isinstance(call, Call)]))
        return [
            self.reply(call, next(results), request) if isinstance(call, Call) else call
            for call, request in zip(found, requests, strict=True)
        ]

    def compute(self, queries: Sequence[Query]) -> list[Answer | Exception]:
        """The answers, and what was wrong with single ones; the time is counted."""
        if not queries:
            return []
        start = time.perf_counter()
        results = self._predictor.answer(queries)
        self.tally.worked(time.perf_counter() - start)
        return results

    def _decode(self, request: HttpRequest) -> Call | Reply:
        try:
            if request.refused is not None:
                raise request.refused  # noqa: TRY301  # like any other
            call = self._codec.decode(request.body, request.headers)
            self._refuse_early(call)
        except Exception as error:  # noqa: BLE001  # one request must not cost the batch
            return self.refusal(error, request.id)
        return call

    def _refuse_early(self, call: Call) -> None:
        """Refuse what surely has too long an answer before it is computed."""
        least = call.query.rows * self._least_bytes
        if least > self._max_response and not call.v2:
            raise _too_long(f"more than {least}", self._max_response)

    def reply(self, call: Call, result: Answer | Exception, request: HttpRequest) -> Reply:
        """The reply to a decoded request; it is counted."""
        if isinstance(result, Exception):
            return self.refusal(result, request.id)
        try:
            reply = call.encode(result)
            if len(reply.body) > self._max_response:
                raise _too_long(f"{len(reply.body)}", self._max_response)  # noqa: TRY301  # like any other
            if WARM_HEADER not in request.headers:  # warming is no traffic
                self.tally.answered(result)
        except Exception as error:  # noqa: BLE001  # one request must not cost the batch
            return self.refusal(error, request.id)
        return reply

    def refusal(self, error: Exception, request_id: str) -> Reply:
        """The reply where there is no answer; what is not the request's fault is logged."""
        if isinstance(error, RequestError):
            self.tally.rejected(error.reason)
            return error_reply(error)
        self.tally.failed()
        cause = "".join(traceback.format_exception(error))
        log.error("%s", json.dumps({"event": "failed", "request_id": request_id, "cause": cause}))
        return failure_reply(request_id)


class Job:
    """A long request, computed in chunks of its rows: their answers are those of the whole.

    Args:
        handler: of its endpoint.
        request: as it came.
        call: the same, decoded.
    """

    def __init__(self, handler: BatchHandler, request: HttpRequest, call: Call) -> None:
        self._handler, self._request, self._call = handler, request, call
        samples = call.query.settings.samples if call.query.settings else 1
        self._done, self._rows = 0, max(1, _SHORT // samples)
        self._parts: list[Answer] = []

    def step(self) -> Reply | None:
        """Compute the next chunk; the reply after the last one."""
        query, first = self._call.query, self._done
        rows = slice(first, first + self._rows)
        inputs = {name: array[rows] for name, array in query.inputs.items()}
        start = time.perf_counter()
        (result,) = self._handler.compute([query._replace(inputs=inputs)])
        seconds = time.perf_counter() - start
        if isinstance(result, Exception):
            return self._handler.refusal(_of_whole(result, first), self._request.id)
        self._parts.append(result)
        self._done += self._rows
        if self._done >= query.rows:
            return self._handler.reply(self._call, _joined(self._parts), self._request)
        self._rows = max(1, min(2 * self._rows, round(self._rows * _CHUNK_S / max(seconds, 1e-6))))
        return None


def _passes(call: Call) -> int:
    return call.query.rows * (call.query.settings.samples if call.query.settings else 1)


def _of_whole(error: Exception, first: int) -> Exception:
    """An error of a chunk, with the number that its instance has in the request."""
    if not isinstance(error, RequestError):
        return error
    text = re.sub(r"^instance (\d+)", lambda found: f"instance {int(found[1]) + first}", str(error))
    return RequestError(text, status=error.status, reason=error.reason)


def _joined(parts: Sequence[Answer]) -> Answer:
    """One answer of answers to consecutive rows."""
    first = parts[0]
    statistics = calibrated = None
    if first.statistics is not None:
        statistics = {n: _joined_rows([(p.statistics or {})[n] for p in parts]) for n in first.statistics}
    if first.calibrated is not None:
        calibrated = _joined_rows([part.calibrated for part in parts])
    return first._replace(
        values={n: np.concatenate([part.values[n] for part in parts]) for n in first.values},
        noise={n: np.concatenate([part.noise[n] for part in parts]) for n in first.noise},
        samples=None
        if first.samples is None
        else np.concatenate([part.samples for part in parts if part.samples is not None]),
        statistics=statistics,
        calibrated=calibrated,
    )


def _joined_rows(records: Sequence[Any]) -> Any:
    """One record of rows: arrays and records of rows in it are joined, the rest is the same in all."""
    first = records[0]
    joined: dict[str, Any] = {}
    for name in (each.name for each in fields(first)):
        values = [getattr(record, name) for record in records]
        if isinstance(values[0], np.ndarray):
            joined[name] = np.concatenate(values)
        elif isinstance(values[0], OutOfDistribution):
            joined[name] = _joined_rows(values)
    return replace(first, **joined)


def _too_long(size: str, most: int) -> RequestError:
    return RequestError(
        f"the answer has {size} bytes; expected at most {most}. Send fewer instances in one request",
        status=413,
        reason="too_large",
    )


def _least_bytes(loaded: Loaded) -> int:
    """Bytes that a row of a V1 answer takes at least: those of the example's, each number one digit long."""
    call = loaded.codec.decode(loaded.predictor.example())
    result = loaded.predictor.answer([call.query])[0]
    if isinstance(result, Exception):
        raise result
    bodies = (call.encode(each).body for each in (result, _joined([result] * 2)))
    one, two = (len(re.sub(rb"[-+.0-9eE]+", b"0", body)) for body in bodies)
    return two - one
