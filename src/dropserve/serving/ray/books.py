"""What all replicas have done together: a deployment of its own, so that each answers ``/metrics`` alike."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from dropserve.serving.asgi.figures import Figures
from dropserve.serving.deployment import Endpoint
from dropserve.serving.ray.inside import keep_inside
from dropserve.serving.tally import Sums

_STALE = 10.0  # seconds without a word after which nothing waits with somebody any more


@dataclass(frozen=True)
class Entry:
    """What one process says of one endpoint.

    Attributes:
        sums: what was done since it last said something.
        waiting: requests without an answer now.
        restarts: how often a worker had to be started again since then.
    """

    sums: Sums = field(default_factory=dict[tuple[str, ...], float])
    waiting: int = 0
    restarts: int = 0


Entries = dict[str, Entry]


class Page:
    """The figures of one endpoint, of all processes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.restarts = 0
        self._sums: defaultdict[tuple[str, ...], float] = defaultdict(float)
        self._waiting: dict[str, tuple[float, int]] = {}

    def add(self, who: str, entry: Entry) -> None:
        """Take what a process says."""
        for key, value in entry.sums.items():
            self._sums[key] += value
        self.restarts += entry.restarts
        self._waiting[who] = (time.monotonic(), entry.waiting)

    @property
    def waiting(self) -> int:
        """Requests without an answer yet, wherever they wait."""
        now = time.monotonic()
        self._waiting = {who: told for who, told in self._waiting.items() if now - told[0] < _STALE}
        return sum(count for _, count in self._waiting.values())

    def take(self) -> Sums:
        """What was done since the last time."""
        sums, self._sums = self._sums, defaultdict(float)
        return sums


class Books:
    """Adds up what replicas and doors say.

    Args:
        endpoints: what is served.
    """

    def __init__(self, endpoints: list[Endpoint]) -> None:
        keep_inside()
        self._pages = {endpoint.name: Page(endpoint) for endpoint in endpoints}
        self._figures = Figures(list(self._pages.values()))

    async def add(self, who: str, entries: Entries) -> None:
        """Take what a process says."""
        for name, entry in entries.items():
            if name in self._pages:
                self._pages[name].add(who, entry)

    async def text(self) -> bytes:
        """In Prometheus's text format."""
        return self._figures.text()
