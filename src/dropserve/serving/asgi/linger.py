"""A server that is about to be asked stays awake: waking it may take as long as the answer of a small model.

A client that asks one question after another asks again some tens of microseconds after each answer. Where
the last questions have come so soon, the event loop looks for the next one for a moment before it sleeps, as
hypervisors do with halted processors (KVM's ``halt_poll_ns``, of the same length). Where they come later, it
sleeps at once: a client must have been quick several times for one look to be in vain.
"""

from __future__ import annotations

import asyncio
from time import perf_counter

from dropserve.serving.runtime import cores

SOON = 200e-6  # seconds
TRUST = 8  # questions in a row that came so soon


class Linger:
    """Counts questions without an answer, and keeps the loop awake for a moment after the last.

    Attributes:
        looks: looks taken so far.
    """

    def __init__(self) -> None:
        self.looks = 0
        self._able = cores() > 1
        self._waiting = 0
        self._quick = 0
        self._since = 0.0
        self._looking = False

    def asked(self) -> None:
        """A question came."""
        self._waiting += 1
        if self._waiting == 1:
            self._quick = self._quick + 1 if perf_counter() - self._since < SOON else 0

    def answered(self) -> None:
        """One was answered."""
        self._waiting -= 1
        if self._waiting:
            return
        self._since = perf_counter()
        if self._able and self._quick >= TRUST and not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        self._looking = not self._waiting and perf_counter() - self._since < SOON
        if self._looking:
            self.looks += 1
            asyncio.get_running_loop().call_soon(self._look)
