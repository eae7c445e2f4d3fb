"""Generated hostile requests among good ones, against a real TorchServe.

What must hold: no 5xx, but for the answers of TorchServe's own frontend that are named here; always a body
that says what was wrong; the same worker processes afterwards; and good requests in the same batches answered
as if they were alone.
"""

from __future__ import annotations

import json
import random
import re
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from attacks import attacks, dump, huge, tensor
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from wire import JSON, Reply, Request, send

from dropserve.manifest import VersionManifest
from dropserve.serving import torchserve
from dropserve.serving.deployment import Deployment, Options
from dropserve.serving.runtime import free_ports
from dropserve.store import Stored

pytestmark = pytest.mark.slow  # generated anew each time: a find must not stop an unrelated change

STAGE = Path(__file__).parents[2] / "serving"
AT_ONCE = 16  # hostile requests of one volley, and as many good ones among them

PAGE = (Path(__file__).parents[2] / "docs" / "bad-input.md").read_text("utf-8")
FORM = ("Content-Type", "application/x-www-form-urlencoded")


@dataclass(frozen=True)
class Named:
    """An answer that TorchServe's frontend gives by itself, as the page names it."""

    status: int
    kind: str
    message: str

    def matches(self, reply: Reply) -> bool:
        if self.message == "*no body*":
            return reply.status == self.status and not reply.body
        document = json.loads(reply.body) if reply.body else {}
        pattern = re.escape(self.message.strip("`")).replace(re.escape("..."), ".*")
        known = (reply.status, document.get("code"), document.get("type")) == (
            self.status,
            self.status,
            self.kind,
        )
        return known and re.fullmatch(pattern, document["message"], re.DOTALL) is not None


def named() -> Iterator[Named]:
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].isdigit():
            yield Named(int(cells[0]), cells[1], cells[2])


FRONTEND = list(named())


def upload(more: str) -> Request:
    headers = (("Content-Type", f"multipart/form-data; {more}"),)
    return Request("upload", "/predictions/mlp", b"--x--\r\n", headers)


def post(path: str) -> Request:
    return Request("post", path, b"{}")


EXAMPLES = {
    (400, "BadRequestException", "Invalid"): post("/predictions/" + "a" * 9000),
    (400, "BadRequestException", "Paramet"): post("/invocations"),
    (403, "IllegalArgumentException", "..."): post("/predictions/%zz"),
    (403, "UnsupportedCharsetException", "..."): upload("boundary=x; charset=nope"),
    (403, "IllegalCharsetNameException", "..."): upload("boundary=x; charset=%"),
    (404, "ModelNotFoundException", "Model n"): post("/predictions/nobody"),
    (404, "ModelVersionNotFoundException", "Model v"): post("/predictions/mlp/9"),
    (404, "ResourceNotFoundException", "Request"): post("/v2"),
    (405, "MethodNotAllowedException", "Request"): post("/"),
    (413, "", "*no bod"): huge(),
    (417, "", "*no bod"): Request("", "/predictions/mlp", b"{}", (JSON, ("Expect", "nonsense"))),
    (500, "ErrorDataDecoderException", "..."): Request("", "/predictions/mlp", b"a=%zz", (FORM,)),
    (500, "StringIndexOutOfBoundsException", "..."): upload("boundary="),
    (500, "ArrayIndexOutOfBoundsException", "..."): post("/v2/models/%3A/infer"),
}


@pytest.mark.parametrize("answer", FRONTEND, ids=lambda answer: f"{answer.status} {answer.kind}")
def test_each_answer_of_the_frontend_that_the_page_names(server: Deployment, answer: Named) -> None:
    """The list is not longer than it must be."""
    request = EXAMPLES[answer.status, answer.kind, answer.message.strip("`")[:7]]
    reply = send(server.url, request)
    assert answer.matches(reply), reply


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


def workers(deployment: Deployment) -> set[tuple[str, int, str]]:
    """Endpoint, pid and status of every worker, from TorchServe's own books."""
    management = f"http://127.0.0.1:{deployment.management_port}"
    found = set()
    for endpoint in deployment.endpoints:
        for worker in httpx.get(f"{management}/models/{endpoint.name}").json()[0]["workers"]:
            found.add((endpoint.name, worker["pid"], worker["status"]))
    return found


def no_constant(token: str) -> None:
    raise AssertionError(f"bare {token} in an answer")


def judge(request: Request, reply: Reply) -> str:
    """How a request was answered, in a word for the count.

    Raises:
        AssertionError: if it was answered as no request may be.
    """
    if not reply.body:
        assert any(answer.matches(reply) for answer in FRONTEND), "no body, and no reason known"
        return f"frontend {reply.status}"
    document = json.loads(reply.text, parse_constant=no_constant)
    if reply.status == 200:
        assert reply.content_type in {"application/json", "application/octet-stream"}
        assert {"predictions", "outputs"} & set(document), "neither V1 nor V2"
        return "200"
    assert reply.content_type == "application/json"
    if set(document) == {"error"}:
        assert 400 <= reply.status < 500, "input never makes an error of ours"
        assert len(document["error"]) > 20, "it says what was wrong"
        assert "Traceback" not in document["error"]
        assert len(document["error"]) < 1500, "it does not give back what came"
        return str(reply.status)
    assert set(document) == {"code", "type", "message"}
    if any(answer.matches(reply) for answer in FRONTEND):
        return f"frontend {reply.status} {document['type']}"
    raise AssertionError(f"an answer of the frontend that nobody has named: {document}")


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

    def __init__(self, deployment: Deployment, *, exact: bool = True) -> None:
        self.deployment = deployment
        self.exact = exact
        self.good = Good(deployment.url, list(good_requests()))
        self.sent: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.before = workers(deployment)
        self._turns = random.Random(0)

    def fire(self, hostile: list[Request]) -> None:
        """Send hostile requests among as many good ones, all at once, and judge every answer."""
        chosen = [self._turns.randrange(len(self.good.requests)) for _ in hostile]
        volley = [*hostile, *(self.good.requests[i] for i in chosen)]
        order = self._turns.sample(range(len(volley)), len(volley))
        with ThreadPoolExecutor(len(volley)) as pool:
            pending = {i: pool.submit(send, self.deployment.url, volley[i]) for i in order}
        replies = [pending[i].result() for i in range(len(volley))]
        for request, reply in zip(hostile, replies, strict=False):
            try:
                self.answered[judge(request, reply)] += 1
            except (AssertionError, ValueError) as error:
                raise AssertionError(f"{error}\n{request}\n{reply.status} {reply.body[:500]!r}") from error
            self.sent[request.kind] += 1
        for i, reply in zip(chosen, replies[len(hostile) :], strict=True):
            alone = self.good.answers[i]
            if not same(reply, alone, exact=self.exact):
                raise AssertionError(f"{self.good.requests[i]}\nalone: {alone}\nhere:  {reply}")

    def end(self, least: int) -> None:
        """Nobody died, and the siege was one."""
        assert workers(self.deployment) == self.before, "the same workers, READY"
        assert sum(self.sent.values()) >= least
        assert len(self.sent) >= 10, f"every kind was sent: {self.sent}"
        refused = sum(count for answer, count in self.answered.items() if answer != "200")
        assert refused > 0.8 * least, f"most were refused: {self.answered}"
        log = (self.deployment.logs / "model_log.log").read_text("utf-8", "replace")
        assert "Traceback" not in log, "no request got as far as an exception of ours"
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


def test_hostile_requests_harm_nobody(server: Deployment) -> None:
    siege = Siege(server)
    lay(siege, 13, afresh=False)
    siege.end(200)


@pytest.mark.slow
def test_two_thousand_hostile_requests_harm_nobody(server: Deployment) -> None:
    siege = Siege(server)
    lay(siege, 130)
    siege.end(2000)


@pytest.mark.slow
def test_hostile_requests_harm_nobody_on_torchscript(
    tmp_path: Path, mlp_version: Stored[VersionManifest], embedding_version: Stored[VersionManifest]
) -> None:
    files = STAGE / "model-config.yaml", STAGE / "config.properties", STAGE / "log4j2.xml"
    options = Options(*files, port=free_ports(1)[0], backend="torchscript")
    deployment = torchserve.start(tmp_path / ".run", [mlp_version], options)
    try:
        siege = Siege(deployment, exact=False)
        lay(siege, 25)
        siege.end(400)
    finally:
        torchserve.stop(tmp_path / ".run")
