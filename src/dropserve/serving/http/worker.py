"""The process of one endpoint: loads its model, then answers until the server is gone.

Requests and replies pass on a socket, in frames: the lengths of a JSON head and of the bytes behind it (four
bytes each), the head, the bytes. Both ends run the same code, so a frame has no version.

Short requests that wait are computed together, up to ``batchSize``. A long one (many rows times samples) is
cut into chunks of rows. One chunk is computed between two batches, of each long request in turn, so that
nobody waits for the whole of it. A request whose caller has gone is dropped before its next chunk.
"""

from __future__ import annotations

import json
import logging
import select
import signal
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from dropserve.serving.answering import BatchHandler, HttpRequest, Job
from dropserve.serving.loaded import load_endpoint
from dropserve.serving.metadata import describe_model
from dropserve.serving.protocol import Reply
from dropserve.serving.tally import Sums

log = logging.getLogger("dropserve.serving.http")
_READ = 1 << 20
_LENGTHS = struct.Struct("<II")
Head = dict[str, Any]


def pack(head: Head, bodies: Sequence[bytes] = ()) -> bytes:
    """One frame."""
    text = orjson.dumps(head)
    return b"".join((_LENGTHS.pack(len(text), sum(map(len, bodies))), text, *bodies))


class FrameReader:
    """Puts frames together from bytes as they come."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size, self._needed = 0, _LENGTHS.size

    def feed(self, data: bytes) -> Iterator[tuple[Head, memoryview]]:
        """Whole frames: head, and the bytes behind it."""
        self._parts.append(data)
        self._size += len(data)
        if self._size < self._needed:
            return
        view = memoryview(data if len(self._parts) == 1 else b"".join(self._parts))
        self._needed = _LENGTHS.size
        while len(view) >= _LENGTHS.size:
            head, rest = _LENGTHS.unpack_from(view)
            begin = _LENGTHS.size + head
            self._needed = begin + rest
            if len(view) < self._needed:
                break
            yield orjson.loads(view[_LENGTHS.size : begin]), view[begin : self._needed]
            view = view[self._needed :]
            self._needed = _LENGTHS.size
        self._parts, self._size = [bytes(view)] if view else [], len(view)


def pack_requests(requests: Sequence[tuple[int, HttpRequest]]) -> bytes:
    """Requests with their numbers; their replies have the same ones."""
    entries = [(number, len(r.body), r.id, r.headers) for number, r in requests]
    return pack({"requests": entries}, [request.body for _, request in requests])


def unpack_requests(head: Head, rest: memoryview) -> Iterator[tuple[int, HttpRequest]]:
    """Requests as they were packed."""
    position = 0
    for number, length, name, headers in head["requests"]:
        yield number, HttpRequest(bytes(rest[position : position + length]), name, headers)
        position += length


def pack_replies(replies: Sequence[tuple[int, Reply]], sums: Sums) -> bytes:
    """Replies with their numbers, and what was done since the last."""
    entries = [(number, len(r.body), r.status, r.content_type, r.headers) for number, r in replies]
    return pack(
        {"replies": entries, "sums": [(*key, value) for key, value in sums.items()]},
        [reply.body for _, reply in replies],
    )


def unpack_replies(head: Head, rest: memoryview) -> tuple[list[tuple[int, Reply]], Sums]:
    """Replies as they were packed."""
    replies: list[tuple[int, Reply]] = []
    position = 0
    for number, length, status, kind, headers in head["replies"]:
        replies.append((number, Reply(status, bytes(rest[position : position + length]), kind, headers)))
        position += length
    return replies, {tuple(key): value for *key, value in head["sums"]}


class _Work:
    """What waits in this process, and what is computed of it next."""

    def __init__(self, server: socket.socket, handle: BatchHandler, batch_size: int) -> None:
        self._server, self._handle, self._batch_size = server, handle, batch_size
        self._reader = FrameReader()
        self._waiting: deque[tuple[int, HttpRequest]] = deque()
        self._jobs: deque[tuple[int, Job]] = deque()

    def run(self) -> None:
        """Answer until the server has gone."""
        while self._receive():
            replies = [*self._batch(), *self._chunk()]
            # An empty frame tells the server that this process is at work.
            self._server.sendall(pack_replies(replies, self._handle.tally.take()))

    def _receive(self) -> bool:
        """Take what has come, and wait for it if there is nothing to do; False once the server has gone."""
        busy = bool(self._waiting or self._jobs)
        while not busy or select.select([self._server], [], [], 0)[0]:
            data = self._server.recv(_READ)
            if not data:
                return False
            for head, rest in self._reader.feed(data):
                busy = True
                if "cancel" in head:
                    self._drop(head["cancel"])
                else:
                    self._waiting.extend(unpack_requests(head, rest))
        return True

    def _drop(self, number: int) -> None:
        self._waiting = deque(each for each in self._waiting if each[0] != number)
        self._jobs = deque(each for each in self._jobs if each[0] != number)

    def _batch(self) -> list[tuple[int, Reply]]:
        """Answers to short requests; long ones among them become jobs."""
        count = min(self._batch_size, len(self._waiting))
        batch = [self._waiting.popleft() for _ in range(count)]
        replies = self._handle.begin([request for _, request in batch])
        found: list[tuple[int, Reply]] = []
        for (number, _), reply in zip(batch, replies, strict=True):
            if isinstance(reply, Job):
                self._jobs.append((number, reply))
            else:
                found.append((number, reply))
        return found

    def _chunk(self) -> list[tuple[int, Reply]]:
        """One chunk of the long request whose turn it is; its answer if that was the last one."""
        if not self._jobs:
            return []
        number, job = self._jobs.popleft()
        reply = job.step()
        if reply is not None:
            return [(number, reply)]
        self._jobs.append((number, job))
        return []


def main() -> None:
    """``python -m dropserve.serving.http.worker SOCKET FOLDER ENDPOINT OPTIONS BATCH_SIZE``."""
    number, folder, endpoint, options, batch_size = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the server, which drains
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with socket.socket(fileno=int(number)) as server:
        try:
            loaded = load_endpoint(Path(folder), endpoint, json.loads(options))
            found = describe_model(endpoint, loaded)
        except Exception as error:  # whatever it was, the server says it
            log.exception("loading failed")
            server.sendall(pack({"failed": " ".join(f"{error}".split()) or type(error).__name__}))
            sys.exit(1)
        server.sendall(pack({"metadata": found}))
        _Work(server, BatchHandler(endpoint, loaded), int(batch_size)).run()


if __name__ == "__main__":
    main()
