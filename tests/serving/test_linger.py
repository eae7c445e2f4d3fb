"""Staying awake: for clients that ask again at once, and for nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dropserve.serving.asgi import linger
from dropserve.serving.asgi.linger import SOON, TRUST, Linger


class Clock:
    """Time that passes when it is told to, and a little with every look at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += SOON / 1000
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(linger, "perf_counter", clock)
    return clock


def looks(clock: Clock, pauses: list[float], then: Callable[[Linger], None] = lambda _: None) -> int:
    """The looks that are taken after the last of questions that come after such pauses."""

    async def run() -> int:
        kept = Linger()
        for pause in pauses:
            clock.now += pause
            kept.asked()
            kept.answered()
        then(kept)
        before = kept.looks
        for _ in range(5000):
            await asyncio.sleep(0)
        return kept.looks - before

    return asyncio.run(run())


def test_a_quick_client_is_looked_for_and_only_for_a_moment(clock: Clock) -> None:
    """Each look takes a thousandth of the time that is looked for, here."""
    assert looks(clock, [1.0] + [0.0] * (TRUST - 1)) == 0
    assert 990 < looks(clock, [1.0] + [0.0] * TRUST) < 1010


@pytest.mark.parametrize("pauses", [[SOON * 1.1] * 50, ([0.0] * (TRUST - 1) + [1.0]) * 5])
def test_a_slow_client_is_never_looked_for(clock: Clock, pauses: list[float]) -> None:
    assert looks(clock, pauses) == 0


def test_while_somebody_waits_for_an_answer_there_is_nothing_to_look_for(clock: Clock) -> None:
    assert looks(clock, [0.0] * 30, then=Linger.asked) == 0


def test_a_lone_core_is_left_to_others(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "cores", lambda: 1)
    assert looks(clock, [0.0] * 30) == 0
