"""Usual requests, answered where they are parsed.

uvicorn makes a scope, a cycle and a task for each request and passes messages to and fro, which takes longer
than the answer of a small model. What is usual goes without: it computes, carries the token, says how long it
is, comes whole with at most 64 KiB, and is alone on its connection. All others go through the application,
which reads, waits and refuses; here nothing is refused.

And who offers another protocol beside HTTP/1.1, as Java's client does with each request, is answered in
HTTP/1.1 (RFC 9110, section 7.8). uvicorn would answer too, and lose the body.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from dropserve.serving.answering import Message
from dropserve.serving.asgi.front import CLOSE, Answers, Front, given, read_headers
from dropserve.serving.asgi.linger import Linger
from dropserve.serving.protocol import Reply

_WHOLE = 65_536  # bytes of a body that may come in one piece
_LINE = b"%b: %b\r\n"
_OFFER = {b"upgrade", b"http2-settings"}


class _Nobody:
    """Waits for no message."""

    def set(self) -> None:
        """Nothing."""


class _Exchange:
    """A request that is being answered, as uvicorn looks at it: it knows one a connection, its ``cycle``."""

    message_event = _Nobody()

    def __init__(self) -> None:
        self.response_complete = self.disconnected = False
        self.keep_alive = True  # uvicorn takes it back when it shuts down


class Direct(HttpToolsProtocol):
    """uvicorn's protocol, with a shorter way for usual requests.

    Args:
        front: knows who computes; called once a connection, None where all goes through the application.
        linger: told of each question and answer.
        given: what uvicorn gives.
    """

    def __init__(self, *, front: Callable[[], Front | None], linger: Linger, **given: Any) -> None:
        super().__init__(**given)
        self._front = front()
        self._linger = linger
        self._desk: Answers | None = None  # of the usual request that is being read
        self._fields: dict[str, str] = {}
        self._body = b""
        self._offered = False  # the request that is being read offers another protocol

    def on_message_begin(self) -> None:
        """A request begins; its scope is made if it turns out to be needed."""
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_headers_complete(self) -> None:
        """Its headers are whole: which way does it go?"""
        self._offered = self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)
        if self._offered:
            return
        if (front := self._front) is None or not self._usual(front):
            self._pass_on()

    def _usual(self, front: Front) -> bool:
        """Whether it goes the short way, as far as its headers tell."""
        parser, cycle = self.parser, cast("RequestResponseCycle | None", self.cycle)
        desk = front.desk(parser.get_method().decode("ascii"), self.url.decode("ascii", "replace"))
        if desk is None or parser.get_http_version() != "1.1":
            return False
        if not parser.should_keep_alive() or self.expect_100_continue:
            return False
        if self.flow.write_paused or (cycle is not None and not cycle.response_complete):
            return False
        fields, length = read_headers(self.headers)
        if not 0 <= length <= min(_WHOLE, front.policy.longest) or not front.may(self.headers):
            return False
        self._desk, self._fields, self._body = desk, fields, b""
        return True

    def _pass_on(self) -> None:
        """Begin uvicorn's way with what has been read."""
        url, headers, expected = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expected
        self.headers += headers  # the scope holds this list
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        if self._desk is None:
            super().on_body(body)
        else:
            self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._offered:
            return
        if self._desk is None or self._front is None:
            super().on_message_complete()
            return
        desk, self._desk = self._desk, None
        exchange = _Exchange()
        self.cycle = exchange  # type: ignore[assignment]  # what is asked of one, it has
        self._linger.asked()
        identity = self._front.identity()
        message = Message(self._body, identity or given(self.headers), self._fields)
        desk.ask(message, lambda reply: self._tell(exchange, identity, reply))

    def data_received(self, data: bytes) -> None:
        """Bytes came; a request that they do not complete is not usual."""
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._desk is not None and not self.transport.is_closing():
            self._desk = None
            self._pass_on()
            if self._body:
                super().on_body(self._body)

    def _feed(self, data: bytes) -> None:
        left = memoryview(data)
        while True:
            try:
                self.parser.feed_data(left)
            except httptools.HttpParserUpgrade as pause:  # the parser stops behind the headers
                if self._offered:
                    left = left[pause.args[0] :]
                    self._decline()
                    continue
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
            return

    def _decline(self) -> None:
        """Read the headers again as if nothing had been offered, and the body behind them."""
        told = [part.strip() for n, value in self.headers if n == b"connection" for part in value.split(b",")]
        kept = [(name, value) for name, value in self.headers if name not in {*_OFFER, b"connection"}]
        kept += [(b"connection", part) for part in told if part.lower() not in _OFFER]
        version = self.parser.get_http_version().encode()
        first = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        self._offered = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
        with contextlib.suppress(httptools.HttpParserUpgrade):  # a tunnel is asked for all the same
            self.parser.feed_data(b"".join((first, *(_LINE % pair for pair in kept), b"\r\n")))

    def _tell(self, exchange: _Exchange, identity: str, reply: Reply) -> None:
        """Write the answer."""
        assert self._front is not None  # noqa: S101  # it was asked
        if not exchange.disconnected and not self.transport.is_closing():
            head = self._front.head(reply, identity)
            if not exchange.keep_alive and CLOSE not in head:
                head.append(CLOSE)
            lines = [_LINE % pair for pair in head]
            self.transport.write(b"".join((STATUS_LINE[reply.status], *lines, b"\r\n", reply.body)))
            exchange.response_complete = True
            if CLOSE in head:
                self.transport.close()
            self.on_response_complete()
        self._linger.answered()
