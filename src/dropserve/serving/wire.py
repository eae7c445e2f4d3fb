"""What TorchServe sends to a worker, read in large pieces.

TorchServe's worker reads a batch field by field, each with system calls of its own: some forty for a request,
which is more than everything that we do for it (``benchmarks/wire_cost.py``). The form of the messages is
that of ``ts/protocol/otf_message_handler.py``; TorchServe is no longer developed, so it will not change.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

KNOWN = "0.12.0"  # whose messages these are
MODULE, FUNCTION = "ts.protocol.otf_message_handler", "_retrieve_inference_msg"
_PIECE = 2**18
_SIZE = struct.Struct("!i")
log = logging.getLogger("dropserve.serving")


def read_in_pieces() -> bool:
    """Let this process, a worker of TorchServe, read batches so.

    Returns:
        False, after a warning, if this TorchServe is another than the one whose messages are known: it goes
        on reading by itself, which is slower and nothing else.
    """
    if (found := version("torchserve")) != KNOWN:
        log.warning(
            "torchserve %s: expected %s; its own code reads the requests, which is slower", found, KNOWN
        )
        return False
    vars(import_module(MODULE))[FUNCTION] = read_batch
    return True


def read_batch(connection: socket.socket) -> list[dict[str, Any]]:
    """Read the requests of one batch.

    Args:
        connection: to the frontend, just behind the command byte; it sends nothing after a batch until it
            has the answers.

    Returns:
        For each request ``requestId``, ``headers`` (each ``name`` and ``value``) and ``parameters`` (each
        ``name``, ``contentType`` and ``value``: bytes as they came).

    Raises:
        RuntimeError: if more came than a batch.
        SystemExit: if the frontend is gone, as TorchServe's own code does.
    """
    fields = _Fields(connection)
    field, text = fields.next, fields.text
    batch: list[dict[str, Any]] = []
    while (identity := field()) is not None:
        headers: list[dict[str, bytes | None]] = []
        while (name := field()) is not None:
            headers.append({"name": name, "value": field()})
        parameters: list[dict[str, Any]] = []
        while (name := field()) is not None:
            parameters.append({"name": name.decode(), "contentType": text(), "value": field()})
        batch.append({"requestId": identity, "headers": headers, "parameters": parameters})
    if fields.left:
        raise RuntimeError(f"{fields.left} bytes follow a batch; expected none until it is answered")
    return batch


class _Fields:
    """Fields of a message, each a length and so many bytes; a negative length ends a list."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._data = b""
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that have come and were not asked for."""
        return len(self._data) - self._at

    def next(self) -> bytes | None:
        """The next field; None at the end of a list."""
        start = self._at + _SIZE.size
        if start > len(self._data):
            self._receive(start)
        (size,) = _SIZE.unpack_from(self._data, self._at)
        if size < 0:
            self._at = start
            return None
        self._at = start + size
        if self._at > len(self._data):
            self._receive(self._at)
        return self._data[start : self._at]

    def text(self) -> str:
        """The next field, as text."""
        return (self.next() or b"").decode()

    def _receive(self, needed: int) -> None:
        """Wait until there are so many bytes in all."""
        parts, have = [self._data], len(self._data)
        while have < needed:
            piece = self._connection.recv(max(_PIECE, needed - have))
            if not piece:
                log.info("the frontend is gone")
                sys.exit(0)
            parts.append(piece)
            have += len(piece)
        self._data = b"".join(parts)
