"""Images in requests: by every way there is the same row, and settings beside them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from dropserve.client import AsyncClient, Client
from dropserve.errors import MissingExtraError, RequestError, UsageError
from dropserve.images import read_image
from dropserve.manifest import ImageRecord, VersionManifest
from dropserve.serving.parameters import Limits
from dropserve.serving.protocol import Codec
from dropserve.signature import Signature, TensorSpec
from dropserve.store import Stored

Version = Stored[VersionManifest]
RECORD = ImageRecord(height=4, width=4, colour="rgb")
LENGTH = "Inference-Header-Content-Length"


def photo(seed: int = 0, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


PNG, JPEG = photo(), photo(1, "JPEG")
ROW = read_image(PNG, RECORD).reshape(1, 48)
ROWS = np.stack([read_image(file, RECORD) for file in (PNG, JPEG)]).reshape(2, 48)


def b64(file: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(file).decode()}


@pytest.fixture
def codec(photos_version: Version) -> Codec:
    return Codec(photos_version.manifest, monte_carlo=False)


@pytest.fixture
def doubtful(photos_version: Version) -> Codec:
    return Codec(photos_version.manifest, monte_carlo=True)


def decode(codec: Codec, body: bytes | dict[str, Any], headers: dict[str, str] | None = None) -> np.ndarray:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return codec.decode(content, headers or {}).query.inputs["input"]


@pytest.mark.parametrize(
    "kind", ["image/png", "image/jpeg", "IMAGE/PNG", "application/octet-stream", "", "x"]
)
def test_the_first_bytes_of_a_body_say_what_it_is(codec: Codec, kind: str) -> None:
    np.testing.assert_array_equal(decode(codec, PNG, {"Content-Type": kind}), ROW)
    np.testing.assert_array_equal(decode(codec, JPEG, {"Content-Type": kind}), ROWS[1:])


@pytest.mark.parametrize(
    "instances",
    [
        [b64(PNG), b64(JPEG)],
        [{"input": b64(PNG)}, b64(JPEG)],
        [b64(PNG), ROWS[1].tolist()],
        [{"input": ROWS[0].tolist()}, b64(JPEG)],
        ROWS.tolist(),
    ],
)
def test_v1_takes_files_and_numbers_side_by_side(codec: Codec, instances: list[Any]) -> None:
    found = decode(codec, {"instances": instances})
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, ROWS)


def test_v2_takes_files_as_bytes(codec: Codec) -> None:
    entry: dict[str, Any] = {"name": "input", "shape": [2], "datatype": "BYTES"}
    texts = [b64(PNG)["b64"], b64(JPEG)["b64"]]
    np.testing.assert_array_equal(decode(codec, {"inputs": [entry | {"data": texts}]}), ROWS)
    column = entry | {"shape": [2, 1], "data": [[text] for text in texts]}
    np.testing.assert_array_equal(decode(codec, {"inputs": [column]}), ROWS)
    raw = b"".join(len(file).to_bytes(4, "little") + file for file in (PNG, JPEG))
    text = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
    np.testing.assert_array_equal(decode(codec, text + raw, {LENGTH: str(len(text))}), ROWS)
    for wrong, said in ((raw[:-1], "row 1: .* are announced"), (raw + b"\0\0\0\0", "more than 2 images")):
        text = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": len(wrong)}}]}).encode()
        with pytest.raises(RequestError, match=said):
            decode(codec, text + wrong, {LENGTH: str(len(text))})


def test_images_by_name_among_several_inputs(photos_version: Version) -> None:
    inputs = (TensorSpec(name="photo", shape=(3, 4, 4)), TensorSpec(name="age", dtype="int64"))
    signature = Signature(inputs=inputs, outputs=photos_version.manifest.signature.outputs)
    changes = {"signature": signature, "images": {"photo": RECORD}}
    codec = Codec(photos_version.manifest.model_copy(update=changes), monte_carlo=False)
    body = {
        "instances": [{"photo": b64(PNG), "age": 3}, {"photo": ROWS[1].reshape(3, 4, 4).tolist(), "age": 4}]
    }
    found = codec.decode(json.dumps(body).encode()).query.inputs
    np.testing.assert_array_equal(found["photo"], ROWS.reshape(2, 3, 4, 4))
    assert found["age"].tolist() == [3, 4]
    with pytest.raises(RequestError, match="the body is a PNG image; photos takes numbers"):
        codec.decode(PNG)


def test_settings_of_a_lone_image_are_headers(doubtful: Codec) -> None:
    headers = {
        "MC-Samples": "20",
        "mc-seed": "7",
        "mc-scheme": "iid",
        "mc-coverage": "0.8",
        "mc-tolerance": "1e-05",
    }
    query = doubtful.decode(PNG, headers).query
    assert query.settings is not None
    assert (query.settings.samples, query.settings.seed, query.settings.scheme) == (20, 7, "iid")
    assert (query.coverage, query.tolerance) == (800, 1e-05)
    assert doubtful.decode(PNG, {"mc-coverage": "800"}).query.coverage == 800
    for text in ("1.0", "nan", "0.9.1", "\u0660.9"):
        with pytest.raises(RequestError, match=r"mc_coverage is .*expected a fraction"):
            doubtful.decode(PNG, {"mc-coverage": text})
    usual = doubtful.decode(PNG).query.settings
    assert usual is not None
    assert (usual.samples, usual.seed, usual.scheme) == (50, 0, "balanced")


def test_every_image_of_a_request_counts(photos_version: Version) -> None:
    codec = Codec(photos_version.manifest, monte_carlo=False, limits=Limits(max_image_pixels=100))
    decode(codec, {"instances": [b64(PNG)]})
    with pytest.raises(RequestError, match="instance 1 is too large: 9 x 7 pixels") as caught:
        decode(codec, {"instances": [b64(PNG), b64(JPEG)]})
    assert caught.value.reason == "too_large"


def test_a_host_without_pillow_says_so_when_it_loads(
    photos_version: Version, mlp_version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    Codec(mlp_version.manifest, monte_carlo=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'dropserve\[serve\]'"):
        Codec(photos_version.manifest, monte_carlo=False)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_a_real_server_reads_them(server: Any, photos: Callable[..., Any], tmp_path: Path) -> None:
    expected = softmax(photos(ROWS))
    (tmp_path / "cat.png").write_bytes(PNG)
    with Client(server.url) as client:
        answers = [
            client.predict("photos", PNG)[0],
            client.predict("photos", tmp_path / "cat.png")[0],
            client.predict("photos", [PNG, tmp_path / "cat.png"])[1],
            client.predict("photos", [{"input": PNG}, JPEG])[0],
            client.predict("photos", ROWS)[0],
        ]
        assert all(answer == answers[0] for answer in answers)
        np.testing.assert_allclose(list((answers[0].probabilities or {}).values()), expected[0], atol=1e-5)
        assert client.predict("photos", JPEG)[0] == client.predict("photos", ROWS)[1]
        doubt = client.predict("photos", PNG, mc=True, samples=60, seed=7)
        assert doubt.parameters["mc_samples"] == 60
        assert doubt == client.predict("photos", ROW, mc=True, samples=60, seed=7)
        with pytest.raises(RequestError, match="the body is no PNG or JPEG image"):
            client.predict("photos", photo(0, "GIF"))
        with pytest.raises(UsageError, match=r"missing.png cannot be read: No such file"):
            client.predict("photos", [tmp_path / "missing.png"])
        with pytest.raises(UsageError, match="the image is empty"):
            client.predict("photos", b"")

    async def again() -> Any:
        async with AsyncClient(server.url) as client:
            return await client.predict("photos", PNG)

    assert asyncio.run(again())[0] == answers[0]


def test_curl_uploads_one(server: Any, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(JPEG)
    url = f"{server.url}/v1/models/photos:predict"
    expected = httpx.post(url, content=JPEG).content
    for words in (["-T", "cat.jpg"], ["-H", "content-type: image/jpeg", "--data-binary", "@cat.jpg"]):
        done = subprocess.run(["curl", "-s", *words, url], cwd=tmp_path, capture_output=True, check=True)
        assert done.stdout == expected
    assert b"predictions" in expected


def test_the_command_line_reads_one(server: Any, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG)
    (tmp_path / "cat.gif").write_bytes(photo(0, "GIF"))
    code = "from dropserve.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", "--url", server.url, "--model", "photos", "--json"]

    def ask(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, *words],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            check=False,
            env=os.environ | {"COLUMNS": "300"},
        )

    by_file, by_pipe = ask("--input", "cat.png", "--mc", "--seed", "3"), ask("--mc", "--seed", "3", stdin=PNG)
    assert by_file.returncode == 0, by_file.stderr
    assert by_file.stdout == by_pipe.stdout
    assert json.loads(by_file.stdout)["parameters"]["mc_seed"] == 3
    refused = ask("--input", "cat.gif")
    assert refused.returncode == 2
    assert b"or a PNG or JPEG image" in refused.stderr
