"""What passes between the server and a worker's process: a JSON head and bytes behind it, on a socket.

A frame is the length of its head and of all bytes that follow (two numbers of four bytes), the head, and the
bodies, whose lengths stand in the head. Both ends run the same code, so there is no version in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import orjson

from dropserve.serving.answering import Message
from dropserve.serving.protocol import Reply
from dropserve.serving.tally import Sums

_LENGTHS = struct.Struct("<II")
Head = dict[str, Any]


def pack(head: Head, bodies: Sequence[bytes] = ()) -> bytes:
    """One frame."""
    text = orjson.dumps(head)
    return b"".join((_LENGTHS.pack(len(text), sum(map(len, bodies))), text, *bodies))


class Reader:
    """Puts frames together from bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Head, bytes]]:
        """Whole frames: head, and the bytes behind it."""
        self._buffer += data
        while len(self._buffer) >= _LENGTHS.size:
            head, rest = _LENGTHS.unpack_from(self._buffer)
            end = _LENGTHS.size + head + rest
            if len(self._buffer) < end:
                return
            frame = bytes(memoryview(self._buffer)[_LENGTHS.size : end])
            del self._buffer[:end]
            yield orjson.loads(frame[:head]), frame[head:]


def pack_message(message: Message) -> bytes:
    """One request."""
    return pack({"id": message.id, "headers": message.headers}, [message.body])


def message_of(head: Head, rest: bytes) -> Message:
    """A request as it was packed."""
    return Message(rest, head["id"], head["headers"])


def pack_replies(replies: Sequence[Reply], sums: Sums) -> bytes:
    """The answers to a batch, and what was done since the last."""
    entries = [(len(r.body), r.status, r.content_type, r.headers) for r in replies]
    return pack(
        {"replies": entries, "sums": [(*key, value) for key, value in sums.items()]},
        [reply.body for reply in replies],
    )


def replies_of(head: Head, rest: bytes) -> tuple[list[Reply], Sums]:
    """The answers as they were packed."""
    replies: list[Reply] = []
    position = 0
    for length, status, kind, headers in head["replies"]:
        replies.append(Reply(status, rest[position : position + length], kind, headers))
        position += length
    return replies, {tuple(key): value for *key, value in head["sums"]}
