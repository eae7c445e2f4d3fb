"""An ONNX file alone: what it is, and how to sample it, with numpy and onnxruntime."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from dropserve.dropout.engine import Settings
from dropserve.export.archive import Stage
from dropserve.export.pipeline import export_run
from dropserve.export.settings import ExportSettings
from dropserve.manifest import RunManifest, VersionManifest
from dropserve.project import packaged_stages
from dropserve.serving.predictor import Predictor
from dropserve.serving.query import Query
from dropserve.store import Store, Stored, hash_file

STAGE = Stage(
    packaged_stages() / "serving" / "handler.py", packaged_stages() / "serving" / "model-config.yaml"
)
Publish = Callable[..., Stored[RunManifest]]

# What a stranger writes from the steps in the file; nothing of dropserve or onnx is in its process.
STRANGER = """
import hashlib, json, math, sys
import numpy as np
import onnxruntime as ort

folder, files, scheme, *numbers = sys.argv[1:]
masked, (seed, samples) = files == "whole", map(int, numbers)


def load(name):
    session = ort.InferenceSession(f"{folder}/{name}", providers=["CPUExecutionProvider"])
    return session, session.get_modelmeta().custom_metadata_map


def words(generator, rows, units):
    n = rows * units
    raw = generator.random_raw(math.ceil(n / 2))
    pairs = np.stack([raw & np.uint64(2**32 - 1), raw >> np.uint64(32)], 1)
    return pairs.reshape(-1)[:n].reshape(rows, units)


def draw(how, about):
    site, p, block = about["site"], about["p"], how["iid_block" if scheme == "iid" else "block"]
    shape = [axis["maximum"] if isinstance(axis, dict) else axis for axis in about["shape"]]
    units = math.prod(shape)
    number = int.from_bytes(hashlib.blake2b(site.encode("utf-8"), digest_size=8).digest(), "little")
    blocks = []
    for i in range(math.ceil(samples / block)):
        counter = np.array([0, 0, how["stream"][scheme], i], np.uint64)
        generator = np.random.Philox(key=np.array([seed, number], np.uint64), counter=counter)
        if scheme == "iid":
            blocks.append(words(generator, block, units) >= round(p * 2**32))
            continue
        w = words(generator, block + 1, units).astype(object)
        whole, part = divmod(block * (1 - p) + 1e-9, 1)
        left = int(whole) + (w[block] < round(max(0, part - 1e-9) * 2**32))
        keep = np.empty((block, units), bool)
        for r in range(block):
            keep[r] = [(word * (block - r)) >> 32 < l for word, l in zip(w[r], left)]
            left = left - keep[r]
        blocks.append(keep)
    keep = np.concatenate(blocks)[:samples].reshape(samples, *shape)
    a = 1 / math.sqrt((1 - p) * (1 + p * how["alpha"] ** 2))
    b = -a * p * how["alpha"]
    if about["role"] == "shift":
        return np.where(keep, np.float32(b), np.float32(a * how["alpha"] + b))
    with_shift = any(i["site"] == site and i["role"] == "shift" for i in how["inputs"].values())
    return keep * np.float32(a if with_shift else 1 / (1 - p))


x = np.load(f"{folder}/x.npy")
session, about = load("masked.onnx" if masked else "head.onnx")
how, description = json.loads(about["dropserve.masks"]), json.loads(about["dropserve.description"])
(spec,) = description["signature"]["inputs"]
fixed = {spec["name"]: x}
if not masked:
    trunk, _ = load("trunk.onnx")
    names = [o.name for o in trunk.get_outputs()]
    fixed = dict(zip(names, trunk.run(names, fixed)))
fed = {name: np.concatenate([array] * samples) for name, array in fixed.items()}
for name, mask in how["inputs"].items():
    fed[name] = np.repeat(draw(how, mask), len(x), axis=0)
(output,) = session.run(None, fed)
np.save(f"{folder}/samples.npy", output.reshape(samples, len(x), *output.shape[1:]))
assert not {"dropserve", "onnx", "torch"} & set(sys.modules)
print(json.dumps([about["dropserve.use"], description]))
"""


def stranger(folder: Path, x: np.ndarray, *arguments: str) -> tuple[np.ndarray, list[object]]:
    np.save(folder / "x.npy", x)
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(folder), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "samples.npy"), json.loads(done.stdout)


def carried(version: Stored[VersionManifest], folder: Path) -> Path:
    """The ONNX files alone, elsewhere."""
    folder.mkdir()
    for path in version.folder.glob("*.onnx"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(params=["dropout", pytest.param("alpha", marks=pytest.mark.slow)])
def version(request: pytest.FixtureRequest, store: Store, publish: Publish) -> Stored[VersionManifest]:
    edits = [("nn.Dropout(0.5)", "nn.AlphaDropout(0.3)")] if request.param == "alpha" else []
    run = publish(*edits, task="classification", labels=("a", "b", "c"))
    settings = ExportSettings(formats=("onnx", "masked-onnx"), batch_sizes=(1, 3), torch_export="never")
    return export_run(store, run, settings, STAGE)


def test_a_file_alone_describes_itself_and_a_stranger_reproduces_a_monte_carlo_answer(
    version: Stored[VersionManifest], store: Store, tmp_path: Path
) -> None:
    describes_itself(version, store)
    x = np.random.default_rng(5).normal(size=(3, 6)).astype(np.float32)
    folder = carried(version, tmp_path / "elsewhere")
    for files, scheme, seed in (("whole", "balanced", 7), ("parts", "iid", 2**40 + 1)):
        samples, (use, description) = stranger(folder, x, files, scheme, str(seed), "25")
        query = Query({"input": x}, Settings(samples=25, seed=seed, scheme=scheme))
        (answer,) = Predictor(version).answer([query])
        assert not isinstance(answer, Exception), answer
        exponentials = np.exp(samples.astype(np.float64))
        mean = (exponentials / exponentials.sum(-1, keepdims=True)).mean(0)
        np.testing.assert_allclose(mean, answer.statistics["output"].mean, rtol=0, atol=1e-6)
        assert "T x B rows" in str(use)
        assert description["labels"] == ["a", "b", "c"]


def describes_itself(version: Stored[VersionManifest], store: Store) -> None:
    """Every file says what the manifest says, and names the run's manifest by its hash."""
    content = json.loads((version.folder / "manifest.json").read_text())
    run = store.run("net", version.manifest.run)
    for name in ("model.onnx", "trunk.onnx", "head.onnx", "masked.onnx"):
        session = ort.InferenceSession(version.path(name), providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map
        description = json.loads(about["dropserve.description"])
        outside = {"columns": {}, "heteroscedastic": False}
        assert description == {key: content[key] for key in description} | {"preprocessing": outside}
        for key in ("name", "version", "task", "labels", "signature", "sites", "precision", "built_with"):
            assert key in description
        assert about["dropserve.part"] == name
        assert about["dropserve.run_manifest_sha256"] == hash_file(run.folder / "manifest.json").sha256
        assert ("dropserve.masks" in about) == (name != "model.onnx")
