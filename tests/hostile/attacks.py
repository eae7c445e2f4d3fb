"""Hostile requests, generated: strategies for hypothesis, one for each way to be wrong.

They aim at a classifier ``mlp`` of 6 numbers a row, its Monte Carlo endpoint ``mlp-mc``, ``words``, which
takes one int64 a row and knows 7 of them, and ``photos`` and ``photos-mc`` of images. Now and then one is
right by chance; that is for the caller to see.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from typing import Any
from urllib.parse import quote

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from wire import JSON, Request

LENGTH = "Inference-Header-Content-Length"
ENDPOINTS = ("mlp", "mlp-mc", "words")
DATATYPES = (
    "FP32",
    "FP64",
    "FP16",
    "BF16",
    "INT64",
    "INT8",
    "UINT8",
    "UINT64",
    "BOOL",
    "BYTES",
    "fp32",
    "",
    "X",
)
LITERALS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e39", "9" * 400, "-0", "1e-999", "0x1", "01",
    "1.", "+1",
)  # fmt: skip


def photo(kind: str, **options: Any) -> bytes:
    """A small image file."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


PHOTOS = (photo("PNG"), photo("JPEG"), photo("JPEG", progressive=True), photo("GIF"), photo("TIFF"))
endpoints = st.sampled_from(ENDPOINTS)
any_text = st.text(max_size=30)  # every character there is but lone surrogates, which UTF-8 cannot carry
numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from((0, -1, 1)),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, any_text)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=7),
        st.dictionaries(
            st.one_of(
                any_text, st.sampled_from(("instances", "inputs", "parameters", "name", "data", "shape"))
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=15,
)
sizes = st.one_of(
    st.integers(-3, 9), st.sampled_from((-(2**63), -(2**31), 2**31, 2**62, 2**64, 2**200)), scalars
)


@st.composite
def paths(draw: st.DrawFn) -> str:
    """An existing endpoint, by any of its routes."""
    name = draw(endpoints)
    return draw(
        st.sampled_from((f"/predictions/{name}", f"/v1/models/{name}:predict", f"/v2/models/{name}/infer"))
    )


def dump(document: Any) -> bytes:
    """JSON, with what Python adds to it (NaN, Infinity)."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")


def tensor(**changes: Any) -> dict[str, Any]:
    """A good V2 input for mlp, but for the changes."""
    return {"name": "input", "shape": [1, 6], "datatype": "FP32", "data": [0, 1, 2, 3, 4, 5]} | changes


GOOD_BODIES = (
    dump({"instances": [[0.5, -1, 0.25, 2, 0, 1]]}),
    dump({"instances": [[0.5, -1, 0.25, 2, 0, 1]] * 3, "parameters": {"mc_samples": 20}}),
    dump({"id": "x", "inputs": [tensor()]}),
)


@st.composite
def malformed_json(draw: st.DrawFn) -> Request:
    """A good body cut, stretched or altered, or no JSON from the start."""
    body = bytearray(draw(st.sampled_from(GOOD_BODIES)))
    how = draw(st.sampled_from(("cut", "bytes", "insert", "replace", "repeat")))
    at = draw(st.integers(0, len(body) - 1))
    if how == "cut":
        del body[at:]
    elif how == "bytes":
        body = bytearray(draw(st.binary(max_size=60)))
    elif how == "insert":
        body[at:at] = draw(st.binary(min_size=1, max_size=8))
    elif how == "replace":
        body[at] = draw(st.integers(0, 255))
    else:
        body *= 2
    return Request("malformed JSON", draw(paths()), bytes(body))


@st.composite
def odd_documents(draw: st.DrawFn) -> Request:
    """JSON, but of any form."""
    document = draw(documents)
    key = draw(st.sampled_from(("", "instances", "inputs", "parameters")))
    if key:
        document = {"instances": [[0, 0, 0, 0, 0, 0]], key: document}
    return Request("any document", draw(paths()), dump(document))


@st.composite
def odd_rows(draw: st.DrawFn) -> Request:
    """Instances of any shape and of anything."""
    rows = draw(
        st.lists(st.one_of(st.lists(scalars, max_size=9), st.lists(st.lists(numbers, max_size=6)), scalars))
    )
    return Request("shapes of instances", draw(paths()), dump({"instances": rows}))


@st.composite
def odd_tensors(draw: st.DrawFn) -> Request:
    """V2 with negative, huge or absurd dimensions, datatypes, names and data."""
    entry = tensor()
    for key in draw(
        st.sets(st.sampled_from(("name", "shape", "datatype", "data", "parameters")), min_size=1)
    ):
        values: dict[str, st.SearchStrategy[Any]] = {
            "name": scalars,
            "shape": st.one_of(st.lists(sizes, max_size=40), scalars),
            "datatype": st.one_of(st.sampled_from(DATATYPES), scalars),
            "data": st.one_of(st.lists(scalars, max_size=9), documents),
            "parameters": st.one_of(documents, st.fixed_dictionaries({"binary_data_size": sizes})),
        }
        entry[key] = draw(values[key])
    document: dict[str, Any] = {"inputs": [entry] * draw(st.integers(0, 2))}
    if draw(st.booleans()):
        document["outputs"] = draw(st.one_of(documents, st.lists(st.fixed_dictionaries({"name": scalars}))))
    if draw(st.booleans()):
        document["id"] = draw(scalars)
    return Request("tensors", draw(paths()), dump(document))


@st.composite
def not_numbers(draw: st.DrawFn) -> Request:
    """NaN, Infinity and numbers that are none, among good ones."""
    row = ["0"] * 6
    row[draw(st.integers(0, 5))] = draw(st.sampled_from(LITERALS))
    text = f"[{', '.join(row)}]"
    form = draw(st.sampled_from(('{"instances": [%s]}', '{"inputs": [%s]}')))
    if "inputs" in form:
        text = dump(tensor(data="HERE")).decode().replace('"HERE"', text)
    return Request("not a number", draw(paths()), (form % text).encode())


@st.composite
def nesting_bombs(draw: st.DrawFn) -> Request:
    """Brackets without end, closed or not."""
    depth = draw(st.sampled_from((7, 500, 1023, 1024, 1025, 5_000, 200_000)))
    left, right = draw(st.sampled_from((("[", "]"), ('{"instances":', "}"), ('{"a":[', "]}"))))
    text = left * depth + (draw(st.sampled_from(("", "0"))) + right * depth) * draw(st.booleans())
    form = draw(
        st.sampled_from(("%s", '{"instances": %s}', '{"inputs": [{"data": %s}]}', '{"parameters": %s}'))
    )
    return Request("nesting", draw(paths()), (form % text).encode())


@st.composite
def content_types(draw: st.DrawFn) -> Request:
    """Good and bad bodies under any Content-Type, forms and uploads among them, and odd encodings."""
    boundary = draw(
        st.sampled_from(
            ("", "; boundary=x", "; boundary=\u00ff", "; charset=nope", "; boundary=x; charset=utf-7")
        )
    )
    types = st.sampled_from((
        "text/plain", "application/xml", "application/octet-stream", "application/json; charset=utf-16",
        "image/png", "application/x-www-form-urlencoded", "multipart/form-data", "\u00ff\u00fe",
        "a" * 3000, "", ";", "*/*",
    ))  # fmt: skip
    part = b'--x\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n%s\r\n--x--\r\n'
    bodies = st.one_of(
        st.sampled_from(GOOD_BODIES),
        st.binary(max_size=40),
        st.builds(
            lambda *f: part % f, *[st.sampled_from((b"body", b"data", b"", b"\xff", b'"', b"../x"))] * 3
        ),
        st.sampled_from((b"a=%zz", b"body=%7B", b"a=1&a=2&=&&", b"body=1&data=2", b"%")),
    )
    extra = st.sampled_from(
        ((), (("Content-Encoding", "gzip"),), (("Accept", "x/y"),), (("Content-Encoding", "a b"),))
    )
    headers = (("Content-Type", draw(types) + boundary), *draw(extra))
    return Request("content type", draw(paths()), draw(bodies), headers)


@st.composite
def cut_binary(draw: st.DrawFn) -> Request:
    """V2 with binary tensors whose lengths do not add up, or which hold NaN."""
    values = draw(st.lists(st.floats(width=32), min_size=0, max_size=8))
    raw = struct.pack(f"<{len(values)}f", *values)
    size = draw(st.one_of(st.just(len(raw)), st.integers(-1, 30), sizes))
    shape = draw(st.one_of(st.just([1, 6]), st.lists(sizes, max_size=4)))
    entry = tensor(shape=shape, parameters={"binary_data_size": size})
    if draw(st.integers(0, 3)):
        del entry["data"]
    document: dict[str, Any] = {"inputs": [entry]}
    if draw(st.booleans()):
        document["parameters"] = {"binary_data_output": draw(st.one_of(st.booleans(), scalars))}
    text = dump(document)
    lengths = st.one_of(
        st.integers(-2, len(text) + 40), st.sampled_from(("", "x", "1.5", "9" * 50, "1e3", "\u00b2"))
    )
    length = draw(st.one_of(st.just(len(text)), lengths))
    body = (text + raw)[: draw(st.one_of(st.none(), st.integers(0, len(text) + len(raw))))]
    headers = (("Content-Type", "application/octet-stream"), (LENGTH, str(length)))
    return Request("binary tensors", draw(paths()), body, headers)


@st.composite
def odd_images(draw: st.DrawFn) -> Request:
    """PNG and JPEG files cut, damaged or mistaken for each other; in every form that takes one."""
    file = bytearray(draw(st.sampled_from(PHOTOS)))
    for _ in range(draw(st.integers(0, 3))):
        file[draw(st.integers(0, len(file) - 1))] = draw(st.integers(0, 255))
    content = bytes(file[: draw(st.one_of(st.none(), st.integers(0, len(file))))])
    name = draw(st.sampled_from(("photos", "photos-mc", "mlp")))
    route = f"/v1/models/{name}:predict"
    text = base64.b64encode(content).decode()[: draw(st.one_of(st.none(), st.integers(0, 40)))]
    form = draw(st.sampled_from(("body", "b64", "mixed", "BYTES")))
    if form == "b64":
        return Request("images", route, dump({"instances": [{"b64": text}, {"b64": draw(scalars)}]}))
    if form == "mixed":
        return Request("images", route, dump({"instances": [{"input": {"b64": text}}, [0] * 48]}))
    if form == "BYTES":
        entry = {"name": "input", "shape": draw(st.lists(sizes, max_size=3)), "datatype": "BYTES"}
        return Request("images", f"/v2/models/{name}/infer", dump({"inputs": [entry | {"data": [text]}]}))
    kinds = ("image/png", "image/jpeg", "image/gif", "image/", "application/octet-stream", "text/plain")
    setting = draw(
        st.sampled_from(((), ("mc-samples", "1e9"), ("mc-seed", "-3"), ("mc-", "1"), ("mc-scheme", "x")))
    )
    headers = (("Content-Type", draw(st.sampled_from(kinds))), *((setting,) if setting else ()))
    return Request("images", route, content, headers)


@st.composite
def settings(draw: st.DrawFn) -> Request:
    """Monte Carlo settings out of range, of other types, unknown, or to an endpoint without."""
    names = st.one_of(
        st.sampled_from(("mc_samples", "mc_seed", "mc_scheme", "mc_tolerance", "mc_coverage", "mc_")),
        any_text,
    )
    values = st.one_of(
        st.sampled_from((0, 1, 2, 10**9, 2**53, 2**63, 2**64, -2, 1e308, "50", "iid", "fast", True)),
        documents,
    )
    parameters = draw(st.one_of(st.dictionaries(names, values, min_size=1, max_size=4), documents))
    body = {"parameters": parameters} | draw(
        st.sampled_from(
            ({"instances": [[0] * 6]}, {"instances": [[0] * 6] * 300}, {"inputs": [tensor()]}, {})
        )
    )
    return Request("settings", draw(paths()), dump(body))


@st.composite
def odd_names(draw: st.DrawFn) -> Request:
    """Names of models, versions, inputs and outputs in every script there is."""
    name = draw(
        st.one_of(
            any_text,
            st.text(min_size=200, max_size=400),
            st.sampled_from(("\u202emlp", "mlp\x00", "..", "%", ":", "mlp\n", "mlp-mc-mc")),
        )
    )
    encoded = quote(name, safe="")
    places = st.sampled_from((
        f"/predictions/{encoded}", f"/v2/models/{encoded}/infer", f"/v1/models/{encoded}:predict",
        f"/predictions/mlp/{encoded}", f"/v2/models/mlp/versions/{encoded}/infer",
    ))  # fmt: skip
    document = draw(
        st.sampled_from(
            (
                {"instances": [{name: [0] * 6}]},
                {"inputs": [tensor(name=name)], "id": name},
                {"inputs": [tensor()], "outputs": [{"name": name}]},
                {name: [[0] * 6]},
                {"instances": [[0] * 6], "parameters": {name: name}},
            )
        )
    )
    path = draw(st.one_of(places, paths()))
    return Request("names", path, dump(document))


@st.composite
def odd_calls(draw: st.DrawFn) -> Request:
    """Other methods and routes."""
    method = draw(st.sampled_from(("GET", "PUT", "DELETE", "PATCH", "TRACE", "HACK", "POST")))
    routes = st.sampled_from((
        "/", "/predictions", "/models", "/models/mlp", "/invocations", "/v1/models/mlp",
        "/v2/models/mlp/ready", "/predictions/%zz", "/predictions/mlp/../..", "//predictions/mlp",
    ))  # fmt: skip
    path = draw(st.one_of(paths(), routes))
    return Request("calls", path, draw(st.sampled_from((b"", b"{}", GOOD_BODIES[0]))), (JSON,), method)


def huge() -> Request:
    """More bytes than a request may have."""
    return Request("huge", "/predictions/mlp", b" " * 7_000_000)


attacks = st.one_of(
    malformed_json(), odd_documents(), odd_rows(), odd_tensors(), not_numbers(), nesting_bombs(),
    content_types(), cut_binary(), odd_images(), settings(), odd_names(), odd_calls(),
)  # fmt: skip
