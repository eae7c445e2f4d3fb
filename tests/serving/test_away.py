"""The way from a door to its replicas, which fail as we choose: nothing is lost or waits for ever."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import chain, cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropserve.serving.answering import Message
from dropserve.serving.asgi.lane import Tuning, awaited
from dropserve.serving.deployment import Endpoint
from dropserve.serving.protocol import Reply
from dropserve.serving.ray import away
from dropserve.serving.ray.away import Away, Failure

MLP = Endpoint(name="mlp", model="mlp", version=3, monte_carlo=False, workers=1)
TUNING = Tuning(batch=4, queue=1000, timeout=5)
Answer = tuple[str, list[Reply] | None]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are shorter here than in service."""
    monkeypatch.setattr(away, "_AGAIN", 0.005)
    monkeypatch.setattr(away, "_MARGIN", 0.2)
    monkeypatch.setattr(away, "_SLOW", 0.3)


class RayError(Exception):
    def __init__(self, how: Failure) -> None:
        self.how = how
        super().__init__(how)


def how(error: Exception) -> Failure:
    return error.how if isinstance(error, RayError) else "other"


async def somebody() -> None:
    """Is there, whenever it is looked for."""


def echo(messages: list[Message]) -> list[Reply]:
    return [Reply(200, message.body) for message in messages]


class Replicas:
    """What answers calls: a script of failures, then echoes."""

    def __init__(self, *failures: Failure | None, seconds: float = 0.0) -> None:
        self.failures = list(failures)
        self.seconds = seconds
        self.calls: list[list[str]] = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, name: str, version: int, messages: list[Message]) -> Answer:
        assert (name, version) == ("mlp", 3)
        self.calls.append([message.id for message in messages])
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.seconds)
        self.at_once -= 1
        if self.failures and (failure := self.failures.pop(0)):
            raise RayError(failure)
        return "r1", echo(messages)


def ask_all(
    replicas: Callable[[str, int, list[Message]], Awaitable[Answer]],
    count: int,
    tuning: Tuning = TUNING,
    stale: Callable[[], None] = lambda: None,
    probe: Callable[[], Awaitable[object]] | None = None,
) -> list[Reply]:
    """Ask so many at once; the replies in order."""

    async def run() -> list[Reply]:
        way = Away(MLP, tuning, replicas, probe or somebody, how, stale)
        replies = await asyncio.gather(*(awaited(way.ask, Message(b"%d" % i, str(i))) for i in range(count)))
        await way.close()
        assert way.queued == 0
        return replies

    return asyncio.run(run())


def test_what_comes_together_goes_out_together_and_no_more_than_a_batch() -> None:
    replicas = Replicas(seconds=0.01)
    replies = ask_all(replicas, 30)
    assert [reply.body for reply in replies] == [b"%d" % i for i in range(30)]
    assert sorted(chain(*replicas.calls)) == sorted(map(str, range(30)))
    assert max(map(len, replicas.calls)) == 4
    assert len(replicas.calls) == 8
    assert replicas.most_at_once == 4, "one replica is known, and it is given four calls at a time"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["gone", None]), max_size=6), st.integers(1, 12))
def test_whatever_is_lost_is_asked_again_and_answered(failures: list[Failure | None], count: int) -> None:
    """Up to three losses: a fourth that meets one request alone would be that request's."""
    for i in [i for i, failure in enumerate(failures) if failure][3:]:
        failures[i] = None
    replies = ask_all(Replicas(*failures), count)
    assert [(reply.status, reply.body) for reply in replies] == [(200, b"%d" % i) for i in range(count)]


def test_a_request_that_kills_costs_only_itself() -> None:
    class Fragile(Replicas):
        async def __call__(self, name: str, version: int, messages: list[Message]) -> Answer:
            await super().__call__(name, version, messages)
            if any(message.id == "5" for message in messages):
                raise RayError("gone")
            return "r1", echo(messages)

    replicas = Fragile(seconds=0.005)
    replies = ask_all(replicas, 12)
    assert [reply.status for reply in replies] == [500 if i == 5 else 200 for i in range(12)]
    times = Counter(chain(*replicas.calls))
    assert times["5"] == 4, "once in its batch, three times alone"
    assert max(times[str(i)] for i in range(12) if i != 5) == 2
    assert b"finds the cause in the log under 5" in replies[5].body


def test_nobody_has_room() -> None:
    (reply,) = ask_all(Replicas("busy"), 1)
    assert (reply.status, (reply.headers or {})["retry-after"]) == (503, "1")


def test_any_other_failure_is_told_and_not_repeated() -> None:
    replicas = Replicas("other")
    (reply,) = ask_all(replicas, 1)
    assert reply.status == 500
    assert len(replicas.calls) == 1


def test_the_queue_has_an_end() -> None:
    replies = ask_all(Replicas(seconds=0.01), 9, Tuning(batch=1, queue=5))
    assert Counter(reply.status for reply in replies) == {200: 5, 503: 4}
    assert json.loads(replies[8].body)["error"] == "5 requests are waiting for this model already; try again"


def test_who_is_not_answered_in_time_is_told_so() -> None:
    """Of six, four calls are with a replica that hangs: 504; two wait: 503."""
    replies = ask_all(Replicas(seconds=60), 6, Tuning(batch=1, timeout=0.5))
    assert Counter(reply.status for reply in replies) == {504: 4, 503: 2}
    for reply in replies:
        text = json.loads(reply.body)["error"]
        expected = (
            "did not answer within 0.5 s" if reply.status == 504 else "no answer could be begun within 0.5 s"
        )
        assert expected in text


def test_nothing_is_sent_while_nobody_is_there_and_it_waits_as_long_as_it_may() -> None:
    looked = 0

    async def nobody() -> None:
        nonlocal looked
        looked += 1
        raise RayError("gone")

    replicas = Replicas("gone")
    replies = ask_all(replicas, 3, Tuning(batch=3, timeout=0.4), probe=nobody)
    assert [reply.status for reply in replies] == [503] * 3
    assert b"no answer could be begun within 0.4 s" in replies[0].body
    assert len(replicas.calls) == 1
    assert looked > 3


def test_as_soon_as_somebody_is_there_it_goes_on() -> None:
    absent = 5

    async def later() -> None:
        nonlocal absent
        absent -= 1
        if absent > 0:
            raise RayError("gone")

    replicas = Replicas("gone")
    assert [reply.status for reply in ask_all(replicas, 6, probe=later)] == [200] * 6
    assert absent == 0


def test_a_version_that_is_gone_is_said_and_looked_up_again() -> None:
    looked: list[bool] = []

    async def newer(name: str, version: int, messages: list[Message]) -> Answer:
        return "r2", None

    (reply,) = ask_all(newer, 1, stale=lambda: looked.append(True))
    assert (reply.status, looked) == (503, [True])
    assert "another version" in json.loads(reply.body)["error"]


def test_more_replicas_get_more_calls() -> None:
    replicas, names = Replicas(seconds=0.01), cycle(["r1", "r2"])

    async def two(name: str, version: int, messages: list[Message]) -> Answer:
        _, replies = await replicas(name, version, messages)
        return next(names), replies

    ask_all(two, 64, Tuning(batch=1, queue=1000))
    assert replicas.most_at_once == 8


def test_one_that_takes_much_longer_than_others_is_asked_of_another_too() -> None:
    """A replica falls silent: what it holds is answered by the other soon; nothing is asked a third time."""
    names, asked = cycle(["r1", "r2"]), Counter[str]()

    async def run() -> list[float]:
        async def call(name: str, version: int, messages: list[Message]) -> Answer:
            asked.update(message.id for message in messages)
            who = next(names)
            await asyncio.sleep(30 if who == "r1" and messages[0].id.startswith("late") else 0.01)
            return who, echo(messages)

        way = Away(MLP, Tuning(batch=1, queue=100, timeout=20), call, somebody, how, lambda: None)
        await asyncio.gather(*(awaited(way.ask, Message(b"x", str(i))) for i in range(8)))
        loop, found = asyncio.get_running_loop(), []
        for i in range(4):
            began = loop.time()
            assert (await awaited(way.ask, Message(b"%d" % i, f"late{i}"))).body == b"%d" % i
            found.append(loop.time() - began)
        await way.close()
        return found

    assert max(asyncio.run(run())) < 2
    assert max(asked.values()) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_closing_waits_for_what_is_with_a_replica(count: int) -> None:
    async def run() -> list[int]:
        way = Away(MLP, TUNING, Replicas(seconds=0.2), somebody, how, lambda: None)
        asked = [awaited(way.ask, Message(b"x", str(i))) for i in range(count)]
        await asyncio.sleep(0.05)
        await way.close()
        return [(await one).status for one in asked]

    assert asyncio.run(run()) == [200] * count
