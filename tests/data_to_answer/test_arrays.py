"""npz, IDX and folders of images, from files to the answers of a real TorchServe, by a user's commands.

What the answers must be is computed eagerly: the run's own module in PyTorch on rows that numpy and Pillow
read, and with each dropout's output multiplied by the masks of the seed.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.special import softmax
from sklearn.datasets import load_digits

from dropserve.client import Client
from dropserve.dropout.masks import draw
from dropserve.manifest import RunManifest, VersionManifest
from dropserve.model import ServedModel, build_served
from dropserve.serving.runtime import free_ports
from dropserve.store import Store, Stored

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels, height, width, outputs):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Dropout2d(0.2))
        units = 6 * height * width
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(units, 24), nn.ReLU(), nn.Dropout(0.4))
        self.last = nn.Linear(24, outputs)

    def forward(self, x):
        return self.last(self.hidden(self.features(x)))
"""
RECIPE = """
name = "{name}"
task = "{task}"

[model]
class = "net.py:Net"
arguments = {{ channels = {shape[0]}, height = {shape[1]}, width = {shape[2]}, outputs = {outputs} }}

[data]
{data}

[training]
epochs = {epochs}
batch_size = 32

[optimiser]
learning_rate = 5e-3
"""
SAMPLES, SEED = 60, 7


def stripes(count: int, seed: int) -> Iterator[tuple[str, Image.Image]]:
    """Pictures 20 x 28 of stripes that lie or stand, in two colours and noise."""
    r = np.random.default_rng(seed)
    for _ in range(count):
        lies = bool(r.random() < 0.5)
        wave = np.sin(np.arange(20 if lies else 28) * r.uniform(0.7, 1.0) + r.uniform(0, 6)) > 0
        flat = np.broadcast_to(wave[:, None] if lies else wave[None], (20, 28))
        colours = r.integers(0, 256, (2, 3))
        pixels = np.where(flat[..., None], *colours) + r.normal(0, 12, (20, 28, 3))
        yield ("lying" if lies else "standing"), Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def write_images(folder: Path) -> None:
    for number, (label, image) in enumerate(stripes(160, 0)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        kind = ("PNG", "JPEG")[number % 2]
        (folder / label / f"{number}.{kind.lower()}").write_bytes(encode(image, kind))


def as_pillow_reads(file: bytes) -> np.ndarray:
    """``[3, 10, 14]``, as the recipe asks."""
    with Image.open(io.BytesIO(file)) as image:
        small = ImageOps.exif_transpose(image).convert("RGB").resize((14, 10), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32).transpose(2, 0, 1)


def write_npz(folder: Path) -> None:
    r = np.random.default_rng(0)
    x = r.normal(3, 2, (240, 2, 3, 4)).astype(np.float32)
    np.savez(folder / "rows.npz", inputs=x, price=20 + 5 * x[:, 0, 0, 0] - x[:, 1].sum((1, 2)))


def write_idx(folder: Path) -> None:
    """The head of an IDX file: two zeros, 8 for unsigned bytes, the number of axes, their lengths."""
    digits: Any = load_digits()
    pixels, labels = (digits.images[:500] * 15).astype(np.uint8), digits.target[:500].astype(np.uint8)
    for name, array in (("images", pixels), ("labels", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        (folder / name).write_bytes(head + array.tobytes())


PICTURES = [
    encode(next(stripes(1, 1))[1], "PNG"),
    encode(next(stripes(1, 2))[1], "JPEG"),
    encode(next(stripes(1, 3))[1], "JPEG", orientation=6),
]
SOURCES: dict[str, dict[str, Any]] = {
    "npz": {
        "name": "prices",
        "task": "regression",
        "shape": (2, 3, 4),
        "outputs": 1,
        "epochs": 15,
        "data": 'source = "npz"\nfile = "rows.npz"\nfeatures = "inputs"\ntarget = "price"',
    },
    "idx": {
        "name": "idx-digits",
        "task": "classification",
        "shape": (1, 8, 8),
        "outputs": 10,
        "epochs": 8,
        "data": 'source = "idx"\nfolder = "."\nfeatures = "images"\ntarget = "labels"',
    },
    "images": {
        "name": "stripes",
        "task": "classification",
        "shape": (3, 10, 14),
        "outputs": 2,
        "epochs": 12,
        "data": 'source = "images"\nfolder = "pictures"\nsize = [10, 14]\ncolour = "rgb"',
    },
}


def rows_of(source: str) -> np.ndarray:
    """Three rows that nobody trained on."""
    if source == "images":
        return np.stack([as_pillow_reads(file) for file in PICTURES])
    if source == "idx":
        digits: Any = load_digits()
        return (digits.images[-3:, None] * 15).astype(np.float32)
    return np.random.default_rng(9).normal(3, 2, (3, 2, 3, 4)).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """A trained and exported model, and what it must answer."""

    source: str
    run: Stored[RunManifest]
    version: Stored[VersionManifest]

    @property
    def name(self) -> str:
        return self.run.manifest.name

    @property
    def rows(self) -> np.ndarray:
        return rows_of(self.source)

    @cached_property
    def model(self) -> ServedModel:
        return build_served(self.run)

    def values(self) -> np.ndarray:
        """What the eager module says of the rows, in float64: probabilities, or prices."""
        with torch.inference_mode():
            out = self.model(torch.from_numpy(self.rows)).double().numpy()
        return softmax(out, axis=-1) if self.run.manifest.task == "classification" else out

    @cached_property
    def samples(self) -> np.ndarray:
        """The same for each sample of the seed, ``[T, rows, outputs]``."""
        sites = self.version.manifest.sites
        masks = draw(sites, SAMPLES, seed=SEED)
        now = [0]
        named = dict(self.model.model.named_modules())
        hooks = []
        for site in sites:
            scale = torch.from_numpy(np.array(masks[site.scale], np.float32))
            module = named[site.name.removeprefix("model.")]
            hooks.append(module.register_forward_hook(lambda _m, _i, out, scale=scale: out * scale[now[0]]))
        found = []
        for now[0] in range(SAMPLES):
            found.append(self.values())
        for hook in hooks:
            hook.remove()
        return np.array(found)


def dropserve(folder: Path, *words: str) -> str:
    line = [str(Path(sys.executable).parent / "dropserve"), *words]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("arrays")
    (folder / "net.py").write_text(NET)
    write_npz(folder)
    write_idx(folder)
    write_images(folder / "pictures")
    for source, keys in SOURCES.items():
        (folder / f"{source}.toml").write_text(RECIPE.format(**keys))
        dropserve(folder, "train", f"{source}.toml")
        dropserve(folder, "export", keys["name"])
    return folder


@pytest.fixture(scope="module")
def url(project: Path) -> Iterator[str]:
    """One TorchServe with all of them."""
    port = free_ports(1)[0]
    dropserve(project, "serve", *(keys["name"] for keys in SOURCES.values()), "--port", str(port))
    yield f"http://127.0.0.1:{port}"
    dropserve(project, "stop")


@pytest.fixture(scope="module", params=list(SOURCES))
def case(project: Path, request: pytest.FixtureRequest) -> Case:
    store, name = Store(project / "model_store"), SOURCES[request.param]["name"]
    return Case(request.param, store.run(name), store.version(name))


def figures(prediction: dict[str, Any]) -> list[float]:
    return (
        list(prediction["probabilities"].values()) if "probabilities" in prediction else [prediction["value"]]
    )


def spread(prediction: dict[str, Any]) -> list[float]:
    found = prediction["uncertainty"]["standard_deviation"]
    return list(found.values()) if isinstance(found, dict) else [found]


def near(found: Any, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(found, float), expected, rtol=2e-5, atol=2e-6)


def test_it_has_learned(case: Case) -> None:
    metrics = case.run.manifest.metrics
    learned = metrics["test_r2"] if case.source == "npz" else metrics["test_accuracy"]
    assert learned > 0.8, metrics
    assert len(case.version.manifest.sites) == 2


def test_the_plain_endpoint_answers_as_the_eager_model(case: Case, url: str) -> None:
    answer = httpx.post(f"{url}/predictions/{case.name}", json={"instances": case.rows.tolist()}, timeout=60)
    assert answer.status_code == 200, answer.text
    near([figures(row) for row in answer.json()["predictions"]], case.values())


def test_the_monte_carlo_endpoint_answers_as_the_eager_model_with_the_same_masks(
    case: Case, url: str
) -> None:
    body = {"instances": case.rows.tolist(), "parameters": {"mc_samples": SAMPLES, "mc_seed": SEED}}
    answer = httpx.post(f"{url}/predictions/{case.name}-mc", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    near([figures(row) for row in answer.json()["predictions"]], case.samples.mean(0))
    assert case.samples.std(0).max() > 1e-3, "the masks do something"
    if case.run.manifest.task == "classification":
        near([spread(row) for row in answer.json()["predictions"]], case.samples.std(0))


@pytest.mark.parametrize("case", ["images"], indirect=True)
@pytest.mark.parametrize("place", range(3))
def test_an_image_file_is_the_row_that_training_would_have_made(case: Case, url: str, place: int) -> None:
    file = PICTURES[place]
    kind = ("image/png", "image/jpeg", "application/octet-stream")[place]
    url = f"{url}/predictions/stripes"
    plain = httpx.post(url, content=file, headers={"content-type": kind}, timeout=60)
    assert plain.status_code == 200, plain.text
    near(figures(plain.json()["predictions"][0]), case.values()[place])
    encoded = base64.b64encode(file).decode()
    assert httpx.post(url, json={"instances": [{"b64": encoded}]}).json() == plain.json()
    settings = {"content-type": kind, "mc-samples": str(SAMPLES), "mc-seed": str(SEED)}
    doubt = httpx.post(f"{url}-mc", content=file, headers=settings, timeout=60)
    assert doubt.json()["parameters"]["mc_samples"] == SAMPLES
    near(figures(doubt.json()["predictions"][0]), case.samples.mean(0)[place])


@pytest.mark.parametrize("case", ["images"], indirect=True)
def test_every_client_sends_image_files(case: Case, url: str, project: Path) -> None:
    (project / "a.png").write_bytes(PICTURES[0])
    (project / "b.jpg").write_bytes(PICTURES[1])
    with Client(url) as client:
        both = client.predict(
            "stripes", [project / "a.png", PICTURES[1]], mc=True, samples=SAMPLES, seed=SEED
        )
        assert client.predict("stripes", project / "a.png", mc=True, samples=SAMPLES, seed=SEED)[0] == both[0]
    near([list((row.probabilities or {}).values()) for row in both], case.samples.mean(0)[:2])
    said = dropserve(project, "predict", "--model", "stripes", "--input", "b.jpg", "--json")
    near(figures(json.loads(said)["predictions"][0]), case.values()[1])


def test_the_manifest_says_how_images_become_rows(project: Path) -> None:
    store = Store(project / "model_store")
    record = store.version("stripes").manifest.images["input"]
    assert (record.height, record.width, record.colour) == (10, 14, "rgb")
    assert not store.version("idx-digits").manifest.images
