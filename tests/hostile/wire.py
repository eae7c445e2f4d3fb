"""One request on a connection of its own, exactly as given: no client mends it on the way."""

from __future__ import annotations

import contextlib
import http.client
from dataclasses import dataclass, field
from urllib.parse import urlsplit

JSON = ("Content-Type", "application/json")


@dataclass(frozen=True)
class Request:
    """What is sent.

    Attributes:
        kind: what is wrong with it, for messages.
        path: percent-encoded.
        body: the bytes.
        headers: in order; Content-Length is added.
        method: of HTTP.
    """

    kind: str
    path: str
    body: bytes = field(repr=False)
    headers: tuple[tuple[str, str], ...] = (JSON,)
    method: str = "POST"

    def __str__(self) -> str:
        shown = repr(self.body if len(self.body) < 300 else self.body[:300])
        return f"{self.kind}: {self.method} {self.path} {self.headers} {shown} ({len(self.body)} bytes)"


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    content_type: str | None
    body: bytes
    json_length: int | None = None

    @property
    def text(self) -> bytes:
        """The JSON of an answer that may end in binary tensors."""
        return self.body[: self.json_length]


def send(url: str, request: Request, timeout: float = 60.0) -> Reply:
    """Send one request, read one answer.

    Raises:
        OSError, http.client.HTTPException: if no answer came.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
    with contextlib.closing(connection):
        connection.putrequest(request.method, request.path, skip_accept_encoding=True)
        for name, value in request.headers:
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(request.body)))
        connection.putheader("Connection", "close")
        # A server may refuse from the headers alone, and close before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.endheaders()
            connection.send(request.body)
        response = connection.getresponse()
        body = response.read()
        length = response.getheader("Inference-Header-Content-Length")
        return Reply(response.status, response.getheader("Content-Type"), body, length and int(length))  # type: ignore[arg-type]
