"""Generated hostile requests among good ones, against a real server of any host.

What must hold: no 5xx, but for the answers that a host is known to give by itself; always a body that says
what was wrong; the same workers afterwards; and good requests answered as if they were alone.
"""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from attacks import attacks, dump, huge, tensor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from wire import Reply, Request, send

AT_ONCE = 16  # hostile requests of one volley, and as many good ones among them


@dataclass
class Good:
    """Good requests with the bytes of their answers when nobody else asked."""

    url: str
    requests: list[Request]
    answers: list[Reply] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Ask one after another."""
        self.answers = [send(self.url, request) for request in self.requests]
        assert [answer.status for answer in self.answers] == [200] * len(self.requests)


def good_requests() -> Iterator[Request]:
    """V1 and V2, JSON and binary, plain and Monte Carlo."""
    for i in range(4):
        row = [i / 10, -1, 0.25, 2, 0, 1]
        raw = struct.pack("<12f", *row, *row)
        entry = tensor(shape=[2, 6], parameters={"binary_data_size": len(raw)})
        del entry["data"]
        head = dump({"inputs": [entry], "parameters": {"binary_data_output": True}})
        binary = (
            ("Content-Type", "application/octet-stream"),
            ("Inference-Header-Content-Length", str(len(head))),
        )
        for name in ("mlp", "mlp-mc"):
            yield Request("good", f"/predictions/{name}", dump({"instances": [row] * (i + 1)}))
            yield Request(
                "good", f"/v2/models/{name}/infer", dump({"id": f"{i}", "inputs": [tensor(data=row)]})
            )
            yield Request("good", f"/v2/models/{name}/infer", head + raw, binary)
        seeded = {"instances": [row], "parameters": {"mc_seed": i, "mc_samples": 20 + i, "mc_scheme": "iid"}}
        yield Request("good", "/v1/models/mlp-mc:predict", dump(seeded))


def no_constant(token: str) -> None:
    raise AssertionError(f"bare {token} in an answer")


class Host(Protocol):
    """A server under siege."""

    url: str

    def workers(self) -> Any:
        """Who works there: the same before and after."""
        ...

    def log(self) -> str:
        """What its workers have logged."""
        ...

    def own(self, reply: Reply) -> str | None:
        """A word for an answer that the host gives by itself and may; None for any other.

        Raises:
            AssertionError: if it is an answer of the host's own that it may not give.
        """
        ...


def judge(host: Host, reply: Reply) -> str:
    """How a request was answered, in a word for the count.

    Raises:
        AssertionError: if it was answered as no request may be.
    """
    word = host.own(reply)
    if word is not None:
        return word
    document = json.loads(reply.text, parse_constant=no_constant)
    if reply.status == 200:
        assert reply.content_type in {"application/json", "application/octet-stream"}
        assert {"predictions", "outputs"} & set(document), "neither V1 nor V2"
        return "200"
    assert reply.content_type == "application/json"
    assert set(document) == {"error"}
    assert 400 <= reply.status < 500, "input never makes an error of ours"
    assert len(document["error"]) > 20, "it says what was wrong"
    assert "Traceback" not in document["error"]
    assert len(document["error"]) < 1500, "it does not give back what came"
    return str(reply.status)


def same(found: Reply, alone: Reply, *, exact: bool) -> bool:
    """Equal to the last byte, or within 1e-6 of scale."""
    if exact or found.status != alone.status:
        return found == alone
    if found.json_length is not None:
        return found.text == alone.text and close(floats(found), floats(alone))
    return close(*(json.loads(reply.text) for reply in (found, alone)))


def floats(reply: Reply) -> list[float]:
    """The doubles in the tail of a binary answer whose labels have one letter each."""
    tail = reply.body[reply.json_length :]
    offset = len(tail) % 8
    return list(struct.unpack_from(f"<{(len(tail) - offset) // 8}d", tail, offset))


def close(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return set(a) == set(b) and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b, strict=True))
    return abs(a - b) <= 1e-6 * max(1.0, abs(b)) if isinstance(a, float) else a == b


class Siege:
    """Volleys at one server; counts what was sent and how it was answered."""

    def __init__(self, host: Host, *, exact: bool = True) -> None:
        self.host = host
        self.exact = exact
        self.good = Good(host.url, list(good_requests()))
        self.sent: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.before = host.workers()
        self._turns = random.Random(0)

    def fire(self, hostile: list[Request]) -> None:
        """Send hostile requests among as many good ones, all at once, and judge every answer."""
        chosen = [self._turns.randrange(len(self.good.requests)) for _ in hostile]
        volley = [*hostile, *(self.good.requests[i] for i in chosen)]
        order = self._turns.sample(range(len(volley)), len(volley))
        with ThreadPoolExecutor(len(volley)) as pool:
            pending = {i: pool.submit(send, self.host.url, volley[i]) for i in order}
        replies = [pending[i].result() for i in range(len(volley))]
        for request, reply in zip(hostile, replies, strict=False):
            try:
                self.answered[judge(self.host, reply)] += 1
            except (AssertionError, ValueError) as error:
                raise AssertionError(f"{error}\n{request}\n{reply.status} {reply.body[:500]!r}") from error
            self.sent[request.kind] += 1
        for i, reply in zip(chosen, replies[len(hostile) :], strict=True):
            alone = self.good.answers[i]
            if not same(reply, alone, exact=self.exact):
                raise AssertionError(f"{self.good.requests[i]}\nalone: {alone}\nhere:  {reply}")

    def end(self, least: int) -> None:
        """Nobody died, and the siege was one."""
        assert self.host.workers() == self.before, "the same workers, and they are ready"
        assert sum(self.sent.values()) >= least
        assert len(self.sent) >= 10, f"every kind was sent: {self.sent}"
        refused = sum(count for answer, count in self.answered.items() if answer != "200")
        assert refused > 0.8 * least, f"most were refused: {self.answered}"
        assert "Traceback" not in self.host.log(), "no request got as far as an exception of ours"
        print(f"\nsent {sum(self.sent.values())}: {dict(self.sent)}\nanswered: {dict(self.answered)}")


def lay(siege: Siege, volleys: int, *, afresh: bool = True) -> None:
    """Let hypothesis choose what is sent, each time anew or the same for ever."""

    @settings(
        max_examples=volleys,
        deadline=None,
        database=None,
        derandomize=not afresh,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(attacks, min_size=AT_ONCE, max_size=AT_ONCE))
    def volley(hostile: list[Request]) -> None:
        siege.fire(hostile)

    volley()
    siege.fire([huge()])
