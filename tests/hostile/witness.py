"""Clients that ask without pause while something breaks, and remember every answer."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from wire import Reply, Request, send

# What a client sees where no answer comes, by what its own library raises.
SILENCE: tuple[tuple[type[Exception], str], ...] = (
    (ConnectionRefusedError, "refused"),
    (ConnectionResetError, "reset"),  # http.client's RemoteDisconnected is one
    (BrokenPipeError, "reset"),
    (http.client.IncompleteRead, "reset"),
    (TimeoutError, "timeout"),
)
_PAUSE = 0.02  # seconds after a failure


@dataclass(frozen=True)
class Question:
    """A request, and how its answer is judged: what is wrong with a 200, or nothing."""

    request: Request
    wrong: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Event:
    """One question asked: when, in seconds of the monotonic clock, and what came."""

    asked: float
    ended: float
    question: Question
    outcome: str
    reply: Reply | None

    @property
    def endpoint(self) -> str:
        """The path that was asked."""
        return self.question.request.path


class Witnesses:
    """Threads that ask one question after another until they are told to stop.

    Args:
        url: whom they ask.
        questions: what they ask; those of each path get ``threads`` threads of their own.
        threads: that many for each path.
        timeout: seconds that they wait for an answer.
    """

    def __init__(
        self, url: str, questions: Sequence[Question], *, threads: int = 4, timeout: float = 60.0
    ) -> None:
        self.events: list[Event] = []
        self._url = url
        self._timeout = timeout
        self._stop = threading.Event()
        by_path: dict[str, list[Question]] = {}
        for question in questions:
            by_path.setdefault(question.request.path, []).append(question)
        self._threads = [
            threading.Thread(target=self._ask, args=(asked[i % len(asked) :] + asked[: i % len(asked)],))
            for asked in by_path.values()
            for i in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, questions: list[Question]) -> None:
        for question in itertools.cycle(questions):
            if self._stop.is_set():
                return
            asked, reply = time.monotonic(), None
            try:
                reply = send(self._url, question.request, self._timeout)
                outcome = str(reply.status)
            except tuple(kind for kind, _ in SILENCE) as error:
                outcome = next(word for kind, word in SILENCE if isinstance(error, kind))
            self.events.append(Event(asked, time.monotonic(), question, outcome, reply))
            if outcome != "200":
                time.sleep(_PAUSE)

    def good_since(self, moment: float, path: str) -> int:
        """Good answers on this path to questions asked after a moment."""
        return sum(e.outcome == "200" and e.asked > moment and e.endpoint == path for e in list(self.events))

    def wait_for(self, moment: float, path: str, count: int, seconds: float) -> None:
        """Wait until so many good answers have come since.

        Raises:
            AssertionError: if they do not.
        """
        deadline = time.monotonic() + seconds
        while self.good_since(moment, path) < count:
            assert time.monotonic() < deadline, f"no {count} good answers of {path} in {seconds} s"
            time.sleep(0.05)

    def wrong(self) -> list[str]:
        """Every 200 recomputed: what is not as it must be, and every refusal without a reason."""
        found = []
        for event in self.events:
            if event.reply is None:
                continue
            if event.outcome != "200" and (event.reply.content_type or "text/plain").startswith("text/plain"):
                if not event.reply.body:  # Ray's HTTP proxy speaks so, in the place of a replica
                    found.append(f"{event.outcome} without a reason: {event.reply}")
                continue
            document = json.loads(event.reply.text)
            if event.outcome != "200":
                if not (document.get("error") or document.get("message")):
                    found.append(f"{event.outcome} without a reason: {event.reply}")
            elif problem := event.question.wrong(document):
                found.append(f"{event.endpoint}: {problem}")
        return found

    def outcomes(self, path: str) -> Counter[str]:
        """How the questions on this path ended."""
        return Counter(event.outcome for event in list(self.events) if event.endpoint == path)

    def silence(self, path: str, since: float) -> float:
        """Seconds of the longest time without a good answer on this path."""
        times = [
            e.ended for e in self.events if e.endpoint == path and e.outcome == "200" and e.ended > since
        ]
        marks = [since, *sorted(times)]
        return max(b - a for a, b in itertools.pairwise(marks))
