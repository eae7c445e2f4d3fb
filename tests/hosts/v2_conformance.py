"""What the Open Inference Protocol's REST specification asks of a server, one function for each demand.

From https://github.com/kserve/open-inference-protocol: inference_rest.md and open_inference_rest.yaml.
They need a URL and the name of a model of one FP32 input with fixed sizes, whatever host serves it:

    python tests/hosts/v2_conformance.py URL MODEL
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

DATATYPES = {
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
    "BYTES",
}  # fmt: skip


@dataclass(frozen=True)
class Host:
    """A server, and one of its models.

    Attributes:
        http: a client with the server's address.
        model: the name of a model.
    """

    http: httpx.Client
    model: str

    def get(self, path: str) -> httpx.Response:
        return self.http.get(path)

    def infer(self, document: Any, path: str | None = None) -> httpx.Response:
        return self.http.post(path or f"/v2/models/{self.model}/infer", json=document)

    def metadata(self) -> dict[str, Any]:
        return self.get(f"/v2/models/{self.model}").json()

    def tensor(self, rows: int = 2, **changes: Any) -> dict[str, Any]:
        """A good input: numbers that grow, flat."""
        (spec,) = self.metadata()["inputs"]
        shape = [rows, *spec["shape"][1:]]
        data = [i / 64 for i in range(math.prod(shape))]
        return {"name": spec["name"], "shape": shape, "datatype": spec["datatype"], "data": data} | changes


Check = Callable[[Host], None]
CHECKS: list[Check] = []


def demand(check: Check) -> Check:
    CHECKS.append(check)
    return check


def versions(host: Host) -> Iterator[str]:
    """A model's path without and with each of its versions."""
    yield f"/v2/models/{host.model}"
    for version in host.metadata()["versions"]:
        yield f"/v2/models/{host.model}/versions/{version}"


def is_error(response: httpx.Response) -> None:
    """A failure has an error status and says why: an object with an ``error`` that is text."""
    assert 400 <= response.status_code < 500, f"{response.status_code} for what the client did wrong"
    assert response.headers["content-type"].split(";")[0] == "application/json"
    document = response.json()
    assert isinstance(document["error"], str)
    assert document["error"]


def is_tensor(entry: dict[str, Any]) -> None:
    assert isinstance(entry["name"], str)
    assert entry["datatype"] in DATATYPES
    assert all(type(size) is int for size in entry["shape"])


def is_answer(response: httpx.Response, host: Host) -> dict[str, Any]:
    """An inference response object; its outputs hold as many elements as their shapes say."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].split(";")[0] == "application/json"
    document = json.loads(response.content, parse_constant=no_constant)
    assert document["model_name"] == host.model
    assert isinstance(document.get("model_version", ""), str)
    assert isinstance(document.get("parameters", {}), dict)
    assert document["outputs"]
    for output in document["outputs"]:
        is_tensor(output)
        assert math.prod(output["shape"]) == len(flat(output["data"])), output["name"]
    return document


def no_constant(token: str) -> None:
    raise AssertionError(f"{token} is not JSON")


def flat(data: Any) -> list[Any]:
    return [number for part in data for number in flat(part)] if isinstance(data, list) else [data]


def outputs(document: dict[str, Any]) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in document["outputs"]}


@demand
def live(host: Host) -> None:
    """GET v2/health/live."""
    response = host.get("/v2/health/live")
    assert response.status_code == 200
    assert response.json()["live"] is True


@demand
def ready(host: Host) -> None:
    """GET v2/health/ready."""
    response = host.get("/v2/health/ready")
    assert response.status_code == 200
    assert response.json()["ready"] is True


@demand
def model_ready(host: Host) -> None:
    """GET v2/models/NAME[/versions/VERSION]/ready."""
    for path in versions(host):
        response = host.get(f"{path}/ready")
        assert response.status_code == 200
        assert response.json()["ready"] is True


@demand
def unknown_models_are_not_ready(host: Host) -> None:
    for path in ("/v2/models/nobody/ready", f"/v2/models/{host.model}/versions/999/ready"):
        is_error(host.get(path))


@demand
def server_metadata(host: Host) -> None:
    """GET v2: name, version and extensions."""
    for path in ("/v2", "/v2/"):
        response = host.get(path)
        assert response.status_code == 200
        document = response.json()
        assert isinstance(document["name"], str)
        assert isinstance(document["version"], str)
        assert all(isinstance(name, str) for name in document["extensions"])


@demand
def model_metadata(host: Host) -> None:
    """GET v2/models/NAME[/versions/VERSION]: name, versions, platform, inputs and outputs."""
    for path in versions(host):
        response = host.get(path)
        assert response.status_code == 200
        document = response.json()
        assert document["name"] == host.model
        assert document["versions"]
        assert all(isinstance(version, str) for version in document["versions"])
        assert "_" in document["platform"]
        assert document["inputs"]
        assert document["outputs"]
        for entry in (*document["inputs"], *document["outputs"]):
            is_tensor(entry)
            assert all(size >= -1 for size in entry["shape"]), "-1 is a size that varies"


@demand
def metadata_of_the_unknown(host: Host) -> None:
    for path in ("/v2/models/nobody", f"/v2/models/{host.model}/versions/999"):
        is_error(host.get(path))


@demand
def inference(host: Host) -> None:
    """POST v2/models/NAME[/versions/VERSION]/infer: all outputs of the metadata, as it describes them."""
    described = {entry["name"]: entry for entry in host.metadata()["outputs"]}
    found = []
    for path in versions(host):
        document = is_answer(host.infer({"inputs": [host.tensor(3)]}, f"{path}/infer"), host)
        assert document["model_version"] in host.metadata()["versions"]
        assert {output["name"] for output in document["outputs"]} == set(described)
        for output in document["outputs"]:
            expected = described[output["name"]]
            assert output["datatype"] == expected["datatype"]
            assert [3 if size == -1 else size for size in expected["shape"]] == output["shape"]
        found.append(outputs(document))
    assert all(answer == found[0] for answer in found)


@demand
def flat_and_nested_data_are_the_same(host: Host) -> None:
    """Tensor data, row-major: flattened or in nested arrays."""
    tensor = host.tensor(2)
    size = math.prod(tensor["shape"][1:])
    rows = [nest(tensor["data"][i * size : (i + 1) * size], tensor["shape"][1:]) for i in range(2)]
    answers = [
        is_answer(host.infer({"inputs": [tensor | {"data": d}]}), host) for d in (tensor["data"], rows)
    ]
    assert outputs(answers[0]) == outputs(answers[1])


def nest(data: list[Any], shape: list[int]) -> Any:
    if len(shape) == 1:
        return data
    size = len(data) // shape[0]
    return [nest(data[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]


@demand
def the_id_comes_back(host: Host) -> None:
    for identity in ("42", "", "ein Ärger \U0001f600"):
        document = is_answer(host.infer({"id": identity, "inputs": [host.tensor()]}), host)
        assert document["id"] == identity
    assert "id" not in is_answer(host.infer({"inputs": [host.tensor()]}), host)


@demand
def outputs_that_are_asked_for(host: Host) -> None:
    """``outputs`` chooses; without it, all are returned."""
    whole = outputs(is_answer(host.infer({"inputs": [host.tensor()]}), host))
    for name, data in whole.items():
        document = is_answer(host.infer({"inputs": [host.tensor()], "outputs": [{"name": name}]}), host)
        assert outputs(document) == {name: data}
    is_error(host.infer({"inputs": [host.tensor()], "outputs": [{"name": "nobody"}]}))


@demand
def parameters_of_others_do_no_harm(host: Host) -> None:
    """Parameters of requests, inputs and outputs are objects; a server leaves alone what it does not know."""
    own = {"tool": "conformance", "number": 3, "flag": True}
    name = host.metadata()["outputs"][0]["name"]
    document = {
        "parameters": own,
        "inputs": [host.tensor(parameters=own)],
        "outputs": [{"name": name, "parameters": own}],
    }
    is_answer(host.infer(document), host)


@demand
def whole_numbers_are_numbers(host: Host) -> None:
    tensor = host.tensor(1)
    count = len(tensor["data"])
    answers = [
        is_answer(host.infer({"inputs": [tensor | {"data": [one] * count}]}), host) for one in (1, 1.0)
    ]
    assert outputs(answers[0]) == outputs(answers[1])


@demand
def no_content_type(host: Host) -> None:
    """Triton's own client sends none."""
    body = json.dumps({"inputs": [host.tensor()]}).encode()
    request = host.http.build_request("POST", f"/v2/models/{host.model}/infer", content=body)
    request.headers.pop("content-type", None)
    is_answer(host.http.send(request), host)


@demand
def rows_are_answered_one_by_one(host: Host) -> None:
    """The first axis is the batch: rows asked alone are answered as they are together."""
    tensor = host.tensor(3)
    size = math.prod(tensor["shape"][1:])
    together = is_answer(host.infer({"inputs": [tensor]}), host)
    for row in range(3):
        own = tensor | {"shape": [1, *tensor["shape"][1:]], "data": tensor["data"][row * size :][:size]}
        alone = outputs(is_answer(host.infer({"inputs": [own]}), host))
        for output in together["outputs"]:
            width = math.prod(output["shape"][1:])
            assert output["data"][row * width :][:width] == alone[output["name"]], output["name"]


@demand
def what_is_wrong_is_an_error(host: Host) -> None:
    """Each of these is the client's fault, and said to be."""
    good = host.tensor()
    wrong: list[Any] = [
        [],
        {},
        {"inputs": {}},
        {"inputs": []},
        {"inputs": [good, good]},
        {"inputs": [good | {"name": "nobody"}]},
        {"inputs": [good | {"datatype": "INT64"}]},
        {"inputs": [good | {"datatype": None}]},
        {"inputs": [good | {"shape": [-1, *good["shape"][1:]]}]},
        {"inputs": [good | {"shape": [*good["shape"], 1]}]},
        {"inputs": [good | {"shape": []}]},
        {"inputs": [good | {"data": good["data"][1:]}]},
        {"inputs": [good | {"data": ["x"] * len(good["data"])}]},
        {"inputs": [{key: good[key] for key in ("name", "shape", "datatype")}]},
        {"inputs": [good], "outputs": {}},
        {"inputs": [good], "parameters": []},
        {"inputs": [good], "id": 5},
    ]
    for document in wrong:
        is_error(host.infer(document))
    for body in (b"", b"{", b"\xff", b'{"inputs": [NaN]}'):
        is_error(host.http.post(f"/v2/models/{host.model}/infer", content=body))


@demand
def inference_of_the_unknown(host: Host) -> None:
    document = {"inputs": [host.tensor()]}
    for path in ("/v2/models/nobody/infer", f"/v2/models/{host.model}/versions/999/infer"):
        is_error(host.infer(document, path))


@demand
def binary_tensors_if_they_are_advertised(host: Host) -> None:
    """The extension ``binary_tensor_data``, with its own header, there and back."""
    if "binary_tensor_data" not in host.get("/v2").json()["extensions"]:
        return
    import struct

    tensor = host.tensor()
    raw = struct.pack(f"<{len(tensor['data'])}f", *tensor.pop("data"))
    tensor["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    length = "Inference-Header-Content-Length"
    url = f"/v2/models/{host.model}/infer"
    response = host.http.post(url, content=head + raw, headers={length: str(len(head))})
    assert response.status_code == 200, response.text
    text = response.content[: int(response.headers[length])]
    found = json.loads(text)["outputs"]
    sizes = [output["parameters"]["binary_data_size"] for output in found]
    assert len(response.content) == len(text) + sum(sizes)
    expected = outputs(is_answer(host.infer({"inputs": [host.tensor()]}), host))
    position = len(text)
    for output, size in zip(found, sizes, strict=True):
        if output["datatype"] == "FP64":
            part = response.content[position : position + size]
            assert list(struct.unpack(f"<{size // 8}d", part)) == expected[output["name"]]
        position += size


@demand
def other_methods_are_refused(host: Host) -> None:
    assert host.get(f"/v2/models/{host.model}/infer").status_code == 405
    assert host.http.post("/v2/health/live").status_code == 405


def main() -> int:
    url, model = sys.argv[1:]
    failed = 0
    with httpx.Client(base_url=url) as http:
        for check in CHECKS:
            try:
                check(Host(http, model))
                print(f"passed  {check.__name__}")
            except (AssertionError, KeyError, ValueError) as error:
                failed += 1
                print(f"FAILED  {check.__name__}: {error!r}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
