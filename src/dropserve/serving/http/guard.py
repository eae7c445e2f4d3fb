"""Bounds on what a connection may send before the application sees it: clocks and bytes.

uvicorn takes a class of asyncio protocol by its setting ``http``. This one hands everything on to uvicorn's
own and looks at what passes. A request that is not there in time, a head that is too long and trailers
without end close the connection. uvicorn itself has a clock between two requests only.

A request that offers another protocol (``Upgrade: h2c``, as Java's client and ``curl --http2`` do) is
answered in HTTP/1.1, as RFC 9110 allows in section 7.8. uvicorn's parser would stop behind the head of such a
request and lose its body, so the offer is taken out of the head.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Any, ClassVar, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEAD_TIMEOUT_S = 30.0  # seconds from the first byte, or from the connection, to the end of a head
_HALF_CLOSED_S = 1.0  # seconds that a caller who sends no more is taken to wait for its answer
_READ_S = 0.05  # seconds in which the application reads what has come
_HEAD = 65_536  # bytes of a head
_UNREAD = 131_072  # bytes of a request that bring the application nothing: trailers, extensions of chunks
_KEY = "dropserve.connection"
_OFFER = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
_START = re.compile(rb"[A-Z]+ [^\r\n ]+ HTTP/1\.1\r\n")
_BODY = (b"content-length", b"transfer-encoding")
_NAMES = (b"upgrade", b"http2-settings")


class _WholeAnswers:
    """A transport that writes head and body of an answer at once.

    uvicorn writes them one after the other: two system calls, each of which wakes the caller.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write, or keep the head of an answer until its body comes."""
        if self._head:
            parts, self._head = (self._head, data), b""
            self._transport.writelines(parts)
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):  # 100 has no body
            self._head = data
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write a head that no body has followed."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close it behind what was written."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class GuardedConnection(asyncio.Protocol):
    """One connection, and uvicorn's protocol behind it.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: what the scope of each request holds as ``state``.
        _loop: uvicorn's.

    Attributes:
        newcomers: connections on which nothing was asked yet.
    """

    newcomers: ClassVar[set[GuardedConnection]] = set()

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        made: Any = AutoHTTPProtocol
        self._state = {**app_state, _KEY: self}
        self._inner: asyncio.Protocol = made(config, server_state, self._state, _loop)
        self._loop = _loop or asyncio.get_event_loop()
        self._transport: asyncio.Transport | None = None
        self._answers: _WholeAnswers | None = None
        self._clock: asyncio.TimerHandle | None = None
        self._busy = False  # the application answers a request
        self._whole = True  # it has read all of it
        self._pipelined = False  # where a request begins is not known any more
        self._unread = 0
        self._half_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody has connected."""
        self._transport = cast("asyncio.Transport", transport)
        self._answers = _WholeAnswers(self._transport)
        self._inner.connection_made(cast("asyncio.Transport", self._answers))
        self.newcomers.add(self)
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._busy:
            self._pipelined |= self._whole
            most = _UNREAD
        else:
            most = _HEAD
            if not self._unread:
                if not self._pipelined:
                    data = _without_offer(data)
                if self._clock is None:
                    self._start_clock()
        if self._unread > most:
            self._refuse(b"400 Bad Request", b"The headers are too long.")
            return
        self._unread += len(data)
        self._inner.data_received(data)

    def begin(self) -> None:
        """The application has been given a request."""
        self._busy, self._whole, self._unread = True, False, 0
        if self._clock is not None:
            self._stop_clock()
            self.newcomers.discard(self)

    def progress(self, message: Message) -> None:
        """The application has been given a part of its body."""
        self._unread = 0
        self._whole = not message.get("more_body")

    def end(self, scope: Scope) -> None:
        """The application has answered it; a body that it has not read may still come."""
        self._pipelined |= not self._whole and any(name in _BODY for name, _ in scope["headers"])
        self._busy, self._unread = False, 0
        if self._answers is not None:
            self._answers.flush()
        if self._half_closed and self._transport is not None:
            self._transport.close()

    def _start_clock(self) -> None:
        self._clock = self._loop.call_later(HEAD_TIMEOUT_S, self._expire)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _expire(self) -> None:
        self._clock = None
        if not self._busy:
            self._refuse(b"408 Request Timeout", b"No request arrived in time.")

    def _refuse(self, status: bytes, text: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        head = b"HTTP/1.1 %b\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % (
            status,
            len(text),
        )
        if not self._busy:
            self._transport.write(head + b"connection: close\r\n\r\n" + text)
        self._transport.close()

    def eof_received(self) -> bool | None:
        """The caller will send no more, or has gone: nobody can tell, so an answer has a moment to come."""
        self._inner.eof_received()
        tls = self._transport is not None and self._transport.get_extra_info("sslcontext") is not None
        self._half_closed = (self._busy or self._unread > 0) and not tls
        if self._half_closed and self._transport is not None:
            self._loop.call_later(_READ_S, self._close_unless_whole)
            self._loop.call_later(_HALF_CLOSED_S, self._transport.close)
        return self._half_closed or None

    def _close_unless_whole(self) -> None:
        """What the application has not read by now will never be whole."""
        if not (self._busy and self._whole) and self._transport is not None:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._stop_clock()
        self.newcomers.discard(self)
        self._state.clear()  # or the two would hold each other, until the collector comes
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The caller reads too slowly."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._inner.resume_writing()


class Patience:
    """Calls back for what lasts too long: one timer for all, as one for each costs more.

    Args:
        seconds: from :meth:`wait` until a call-back is due.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due: dict[object, tuple[float, Callable[[], object]]] = {}  # the oldest first
        self._ticking = False

    def wait(self, key: object, on_late: Callable[[], object]) -> None:
        """Begin to wait for something, unless :meth:`end` is called in time."""
        self._due[key] = (time.monotonic() + self._seconds, on_late)
        if not self._ticking:
            self._tick()

    def end(self, key: object) -> bool:
        """It has come; False if its call-back was called."""
        return self._due.pop(key, None) is not None

    def _tick(self) -> None:
        self._ticking = True
        asyncio.get_running_loop().call_later(min(1.0, self._seconds / 2), self._sweep)

    def _sweep(self) -> None:
        while self._due:
            key, (due, on_late) = next(iter(self._due.items()))
            if due > time.monotonic():
                self._tick()
                return
            del self._due[key]
            on_late()
        self._ticking = False


def guarded(app: ASGIApp) -> ASGIApp:
    """An application that tells the guard of its connection, where there is one, how far it is."""

    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        connection: GuardedConnection | None = scope.get("state", {}).get(_KEY)
        if connection is None:
            await app(scope, receive, send)
            return

        async def read() -> Message:
            message = await receive()
            connection.progress(message)
            return message

        connection.begin()
        try:
            await app(scope, read, send)
        finally:
            connection.end(scope)

    return tell


def _without_offer(data: bytes) -> bytes:
    """A request without the lines that offer another protocol; websockets are none of ours either."""
    if not _START.match(data):
        return data
    end = data.find(b"\r\n\r\n")
    if end < 0 or not _OFFER.search(data, 0, end):
        return data
    kept: list[bytes] = []
    for line in data[:end].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() in _NAMES:
            continue
        if name.lower() == b"connection":
            options = [o for o in value.split(b",") if o.strip().lower() not in _NAMES]
            if not options:
                continue
            line = name + b":" + b",".join(options)  # noqa: PLW2901  # what is left of it
        kept.append(line)
    return b"\r\n".join(kept) + data[end:]
