"""Each row of docs/bad-input.md, sent to a real server: the page and the server cannot part."""

from __future__ import annotations

import base64
import fnmatch
import io
import json
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from python_hosts import PYTHON_HOSTS

PAGE = (Path(__file__).parents[2] / "docs" / "bad-input.md").read_text("utf-8")
ROW = "[0, 0, 0, 0, 0, 0]"
JSON = {"content-type": "application/json"}
LENGTH = "Inference-Header-Content-Length"


def binary(values: list[float], length: int | None = None) -> dict[str, Any]:
    raw = struct.pack(f"<{len(values)}f", *values)
    entry = {"name": "input", "shape": [1, 6], "datatype": "FP32"}
    text = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
    return {"content": text + raw, "headers": {LENGTH: str(length or len(text))}}


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
PNG, JPEG, GIF = (encode(PHOTO, kind) for kind in ("PNG", "JPEG", "GIF"))
FLAT = base64.b64encode(encode(Image.new("1", (1000, 1000)))).decode()
IMAGES: dict[str, dict[str, Any]] = {
    "text as image/png": {"content": b"hello", "type": "image/png"},
    "a GIF as image/gif": {"content": GIF, "type": "image/gif"},
    "a GIF as application/octet-stream": {"content": GIF, "type": "application/octet-stream"},
    "nothing as image/png": {"content": b"", "type": "image/png"},
    "half a PNG": {"content": PNG[: len(PNG) // 2], "type": "image/png"},
    "half a JPEG": {"content": JPEG[: len(JPEG) // 2], "type": "image/jpeg"},
    "a PNG with a wrong checksum": {"content": PNG[:29] + b"\0\0\0\0" + PNG[33:], "type": "image/png"},
    "an animated PNG": {
        "content": encode(PHOTO, save_all=True, append_images=[PHOTO.rotate(180)]),
        "type": "image/png",
    },
    "a PNG of 16 bits": {"content": encode(Image.new("I;16", (9, 9))), "type": "image/png"},
    "a PNG of 8,000 x 8,000 pixels": {"content": encode(Image.new("1", (8000, 8000))), "type": "image/png"},
    "30 PNGs of 1,000 x 1,000 pixels": {"content": json.dumps({"instances": [{"b64": FLAT}] * 30}).encode()},
    "a PNG": {"content": PNG, "type": "image/png"},
    "a PNG with the header mc-samples: 50": {"content": PNG, "headers": {"mc-samples": "50"}},
    "a PNG with the header mc-sample: 50": {"content": PNG, "headers": {"mc-sample": "50"}},
    "a PNG with the header mc-samples: many": {"content": PNG, "headers": {"mc-samples": "many"}},
    "JSON with the header mc-samples: 50": {
        "content": f'{{"instances": [{ROW}]}}'.encode(),
        "headers": {"mc-samples": "50"},
    },
}
SPECIAL: dict[str, dict[str, Any]] = IMAGES | {
    "nothing": {"content": b""},
    "the bytes ff fe": {"content": b"\xff\xfe"},
    "100,000 opening brackets": {"content": b"[" * 100_000},
    "one number of 400 digits": {"content": b'{"instances": [[' + b"9" * 400 + b", 0, 0, 0, 0, 0]]}"},
    "300 rows with 1,000 samples": {
        "content": json.dumps({"instances": [[0] * 6] * 300, "parameters": {"mc_samples": 1000}}).encode()
    },
    "a form": {"content": f'{{"instances": [{ROW}]}}'.encode(), "type": "application/x-www-form-urlencoded"},
    "JSON as text/plain": {
        "content": f'{{"instances": [{ROW}]}}'.encode(),
        "type": "text/plain; charset=utf-8",
    },
    "an upload": {"files": {"data": b"[1, 2]"}},
    "GET": {"content": b"", "method": "GET"},
    "a binary tensor cut short": binary([0] * 5),
    "a binary tensor with a NaN": binary([0, 0, float("nan"), 0, 0, 0]),
    "a JSON length of 9,999": binary([0] * 6, 9999),
    "7,000,000 blanks": {"content": b" " * 7_000_000},
}

STAFF = "V2 with "  # a good request to the model staff, but for one column
STAFF_ROW = {
    "age": {"shape": [1], "datatype": "FP32", "data": [3]},
    "job": {"shape": [1], "datatype": "BYTES", "data": ["clerk"]},
    "grade": {"shape": [1], "datatype": "BYTES", "data": ["1"]},
    "pay": {"shape": [1], "datatype": "FP64", "data": [5]},
}


@dataclass(frozen=True)
class Case:
    wrong: str
    endpoint: str
    body: str
    status: int
    error: str


def cases(text: str) -> Iterator[Case]:
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 5 and cells[3].isdigit():
            wrong, endpoint, body, status, error = cells
            yield Case(wrong.strip(), endpoint, body, int(status), error.strip(" |"))


ELSEWHERE = "## Without TorchServe"
CASES = list(cases(PAGE.partition(ELSEWHERE)[0]))
OTHERWISE = {(case.endpoint, case.body): case for case in cases(PAGE.partition(ELSEWHERE)[2])}
ON_PYTHON = [OTHERWISE.get((case.endpoint, case.body), case) for case in CASES]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=60, limits=httpx.Limits(max_connections=16)) as client:
        yield client


def send(http: httpx.Client, url: str, case: Case) -> httpx.Response:
    address = f"{url}/predictions/{case.endpoint}"
    if not case.body.startswith("*"):
        return http.post(address, content=case.body.strip("`").encode(), headers=JSON)
    if (change := case.body.strip("*")).startswith(STAFF):
        name, _, entry = change.removeprefix(STAFF).partition(": ")
        columns = [{"name": name} | keys for name, keys in (STAFF_ROW | {name: json.loads(entry)}).items()]
        return http.post(address, content=json.dumps({"inputs": columns}).encode(), headers=JSON)
    how = SPECIAL[case.body.strip("*")]
    if "files" in how:
        return http.post(address, files=how["files"])
    headers = {"content-type": how.get("type", "application/json")} | how.get("headers", {})
    return http.request(how.get("method", "POST"), address, content=how["content"], headers=headers)


def matches(text: str, pattern: str) -> bool:
    """``...`` in the page stands for any text; nothing else is special."""
    literal = re.sub(r"([*?\[])", r"[\1]", pattern.strip("`"))
    return fnmatch.fnmatchcase(text, literal.replace("...", "*"))


def test_the_page_has_its_rows() -> None:
    assert len(CASES) > 45
    assert len({case.body for case in CASES}) > 40
    assert len(OTHERWISE) == len(set(OTHERWISE) & {(case.endpoint, case.body) for case in CASES}) >= 4


@pytest.mark.parametrize("case", CASES, ids=[f"{case.endpoint}: {case.wrong}" for case in CASES])
def test_bad_input_gets_what_the_page_says(server: Any, http: httpx.Client, case: Case) -> None:
    check(send(http, server.url, case), case)


@pytest.mark.parametrize("host", PYTHON_HOSTS)
@pytest.mark.parametrize("case", ON_PYTHON, ids=[f"{case.endpoint}: {case.wrong}" for case in ON_PYTHON])
def test_bad_input_gets_the_same_on_hosts_in_python(
    host: str, request: pytest.FixtureRequest, http: httpx.Client, case: Case
) -> None:
    check(send(http, request.getfixturevalue(host).url, case), case)


def check(response: httpx.Response, case: Case) -> None:
    assert response.status_code == case.status, response.text
    if case.error == "*an answer*":
        assert "predictions" in response.json()
        return
    if case.error == "*no body*":
        assert not response.content
        return
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    own = set(document) == {"error"}
    assert own or set(document) == {"code", "type", "message"}
    text = document["error" if own else "message"]
    assert matches(text, case.error), text


def test_good_requests_among_bad_ones_are_answered_as_if_alone(server: Any, http: httpx.Client) -> None:
    """All at once on many connections, so that TorchServe mixes them into batches."""
    good = [json.dumps({"instances": [[i / 10, -1, 0.25, 2, 0, 1]]}).encode() for i in range(40)]
    url = f"{server.url}/predictions/mlp"
    alone = [http.post(url, content=body, headers=JSON).content for body in good]
    bad = [case for case in CASES if case.endpoint == "mlp" and case.status == 400]
    with ThreadPoolExecutor(16) as pool:
        refused = [pool.submit(send, http, server.url, case) for case in bad]
        answers = list(pool.map(lambda body: http.post(url, content=body, headers=JSON).content, good))
    assert answers == alone
    assert [r.result().status_code for r in refused] == [400] * len(bad)
