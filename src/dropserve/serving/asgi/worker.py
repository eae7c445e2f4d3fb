"""The process of one endpoint: loads its model, then answers batch after batch until the server is gone."""

from __future__ import annotations

import json
import logging
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from dropserve.serving.answering import Answering, Message
from dropserve.serving.asgi.frames import Reader, message_of, pack, pack_replies
from dropserve.serving.loaded import load_endpoint
from dropserve.serving.metadata import describe_model

log = logging.getLogger("dropserve.serving.asgi")
_READ = 1 << 20


def main() -> None:
    """``python -m dropserve.serving.asgi.worker SOCKET FOLDER ENDPOINT OPTIONS BATCH``."""
    number, folder, endpoint, options, batch = sys.argv[1:]
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
        answering = Answering(endpoint, loaded)
        for messages in _batches(server, int(batch)):
            replies = answering(messages)
            server.sendall(pack_replies(replies, answering.tally.take()))


def _batches(server: socket.socket, most: int) -> Iterator[list[Message]]:
    """All that waits, up to ``most`` at a time, until the server has gone; nothing waits for company."""
    reader = Reader()
    waiting: deque[Message] = deque()
    while True:
        if not waiting or select.select([server], [], [], 0)[0]:
            data = server.recv(_READ)
            if not data:
                return
            waiting += [message_of(head, rest) for head, rest in reader.feed(data)]
        if waiting:
            yield [waiting.popleft() for _ in range(min(most, len(waiting)))]


if __name__ == "__main__":
    main()
