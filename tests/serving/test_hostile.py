"""Generated hostile requests among good ones (``siege.py``), against a real TorchServe.

The answers of TorchServe's own frontend are named in docs/bad-input.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from attacks import huge
from siege import Siege, lay
from wire import JSON, Reply, Request, send

from dropserve.manifest import VersionManifest
from dropserve.serving import lifecycle
from dropserve.serving.deployment import Deployment, Options
from dropserve.serving.frontend import private_client
from dropserve.serving.runtime import free_ports
from dropserve.store import Stored

pytestmark = pytest.mark.slow  # generated anew each time: a find must not stop an unrelated change

STAGE = Path(__file__).parents[2] / "serving"

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


class TorchServeHost:
    """TorchServe, whose frontend answers some requests before any of our code runs."""

    def __init__(self, deployment: Deployment) -> None:
        self.url = deployment.url
        self._deployment = deployment

    def workers(self) -> set[tuple[str, int, str]]:
        """Endpoint, pid and status of every worker, from TorchServe's own books."""
        found = set()
        with private_client(self._deployment, 5) as management:
            for endpoint in self._deployment.endpoints:
                for worker in management.get(f"/models/{endpoint.name}").json()[0]["workers"]:
                    found.add((endpoint.name, worker["pid"], worker["status"]))
        return found

    def log(self) -> str:
        return (self._deployment.logs / "model_log.log").read_text("utf-8", "replace")

    def own(self, reply: Reply) -> str | None:
        if not reply.body:
            assert any(answer.matches(reply) for answer in FRONTEND), "no body, and no reason known"
            return f"frontend {reply.status}"
        document = json.loads(reply.text)
        if "code" not in document:
            return None
        assert set(document) == {"code", "type", "message"}
        assert any(answer.matches(reply) for answer in FRONTEND), f"that nobody has named: {document}"
        return f"frontend {reply.status} {document['type']}"


def test_hostile_requests_harm_nobody(server: Deployment) -> None:
    siege = Siege(TorchServeHost(server))
    lay(siege, 13, afresh=False)
    siege.end(200)


@pytest.mark.slow
def test_two_thousand_hostile_requests_harm_nobody(server: Deployment) -> None:
    siege = Siege(TorchServeHost(server))
    lay(siege, 130)
    siege.end(2000)


@pytest.mark.slow
def test_hostile_requests_harm_nobody_on_torchscript(
    tmp_path: Path, mlp_version: Stored[VersionManifest], embedding_version: Stored[VersionManifest]
) -> None:
    files = STAGE / "model-config.yaml", STAGE / "config.properties", STAGE / "log4j2.xml"
    options = Options(*files, port=free_ports(1)[0], backend="torchscript")
    deployment = lifecycle.start(tmp_path / ".run", [mlp_version], options)
    try:
        siege = Siege(TorchServeHost(deployment), exact=False)
        lay(siege, 25)
        siege.end(400)
    finally:
        lifecycle.stop(tmp_path / ".run")
