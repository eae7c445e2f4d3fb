"""Shared by tests of several packages: versions made by hand, in milliseconds, and a real server."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from pydantic import JsonValue

from dropserve.columns import Column
from dropserve.manifest import ImageRecord, Preprocessing, SourceRecord, Task, VersionManifest
from dropserve.serving import lifecycle
from dropserve.serving.deployment import Deployment, Options
from dropserve.serving.runtime import free_ports
from dropserve.signature import Signature, Site, TensorSpec
from dropserve.store import MANIFEST, MANIFEST_HASH, Store, Stored, hash_folder, write_manifest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

ROOT = Path(__file__).parents[1]
SOURCE = SourceRecord(spec="/x/net.py:Net", sha256="0" * 64, copy_file="source/net.py")
Floats = NDArray[np.float32]

settings.register_profile("shared", deadline=None)  # how long a test takes is the machine's, not the code's
settings.load_profile("shared")


@dataclass(frozen=True)
class Mlp:
    """relu(x W1 + b1) * mask W2 + b2: what the graphs compute, in numpy, as their oracle."""

    w1: Floats
    b1: Floats
    w2: Floats
    b2: Floats
    p: float = 0.5

    @classmethod
    def draw(cls, features: int, hidden: int, outputs: int, seed: int = 0) -> Mlp:
        r = np.random.default_rng(seed)
        parts = r.normal(size=(features, hidden)), r.normal(size=hidden), r.normal(size=(hidden, outputs))
        w1, b1, w2 = (part.astype(np.float32) / 2 for part in parts)
        return cls(w1, b1, w2, r.normal(size=outputs).astype(np.float32))

    @property
    def site(self) -> Site:
        shape = (len(self.b1),)
        return Site(name="drop", kind="dropout", p=self.p, shape=shape, scale="drop.scale", where="net.py:1")

    def hidden(self, x: Floats) -> Floats:
        return np.maximum(x @ self.w1 + self.b1, 0)

    def __call__(self, x: Floats, mask: Floats | None = None) -> Floats:
        hidden = self.hidden(x)
        return (hidden if mask is None else hidden * mask) @ self.w2 + self.b2

    def onnx(self, part: str) -> bytes:
        """``model``, ``trunk`` or ``head``."""
        features, outputs = self.w1.shape[0], self.w2.shape[1]
        first = [
            helper.make_node("Gemm", ["input", "w1", "b1"], ["g"]),
            helper.make_node("Relu", ["g"], ["h"]),
        ]
        last = helper.make_node("Gemm", ["m" if part == "head" else "h", "w2", "b2"], ["output"])
        x, out = _io("input", features), _io("output", outputs)
        hidden, mask = _io("h", len(self.b1)), _io("drop.scale", len(self.b1))
        if part == "model":
            nodes, ins, outs, names = [*first, last], [x], [out], ("w1", "b1", "w2", "b2")
        elif part == "trunk":
            nodes, ins, outs, names = first, [x], [hidden], ("w1", "b1")
        else:
            mul = helper.make_node("Mul", ["h", "drop.scale"], ["m"])
            nodes, ins, outs, names = [mul, last], [hidden, mask], [out], ("w2", "b2")
        weights = [numpy_helper.from_array(getattr(self, name), name) for name in names]
        return _model(nodes, ins, outs, weights)

    def torchscript(self, *, masked: bool) -> bytes:
        import torch

        w1, b1, w2, b2 = map(torch.from_numpy, (self.w1, self.b1, self.w2, self.b2))

        class Net(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.relu(x @ w1 + b1) @ w2 + b2

        class Masked(torch.nn.Module):
            def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                return (torch.relu(x @ w1 + b1) * mask) @ w2 + b2

        x, mask = torch.zeros(3, len(self.w1)), torch.ones(3, len(self.b1))
        traced = torch.jit.trace(Masked() if masked else Net(), (x, mask) if masked else (x,))
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        return buffer.getvalue()

    def files(self) -> dict[str, bytes]:
        graphs = {f"{part}.onnx": self.onnx(part) for part in ("model", "trunk", "head")}
        scripts = {
            "model.ts": self.torchscript(masked=False),
            "masked.ts": self.torchscript(masked=True),
        }
        return graphs | scripts


def _io(name: str, *shape: int, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ["N", *shape])


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    weights: list[onnx.TensorProto],
) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def publish(
    store: Store,
    name: str,
    files: Mapping[str, bytes],
    *,
    task: Task = "classification",
    inputs: tuple[TensorSpec, ...] = (TensorSpec(name="input", shape=(6,)),),
    outputs: tuple[TensorSpec, ...] = (TensorSpec(name="output", shape=(4,)),),
    labels: tuple[str, ...] = (),
    sites: tuple[Site, ...] = (),
    example: object = (0.5, -1.0, 0.25, 2.0, 0.0, 1.0),
    calibration: dict[str, JsonValue] | None = None,
    images: Mapping[str, ImageRecord] | None = None,
    columns: tuple[Column, ...] = (),
) -> Stored[VersionManifest]:
    """Publish a version with these graph files, an example and both archives, as export does."""
    with store.staging(name, VersionManifest) as staging:
        manifest = VersionManifest(
            name=name,
            task=task,
            labels=labels,
            signature=Signature(inputs=inputs, outputs=outputs),
            source=SOURCE,
            version=staging.number,
            run="by-hand",
            sites=sites,
            calibration=calibration,
            images=dict(images or {}),
            preprocessing=Preprocessing(columns={"input": columns} if columns else {}),
        )
        for file, content in files.items():
            (staging.folder / file).write_bytes(content)
        row = list(example) if isinstance(example, tuple) else example
        (staging.folder / "example.json").write_text(json.dumps({"instances": [row]}))
        archive(staging.folder, manifest, name, ("model.onnx", "model.ts"))
        if sites:
            archive(staging.folder, manifest, f"{name}-mc", ("trunk.onnx", "head.onnx", "masked.ts"))
        return store.publish(staging, manifest)


def archive(folder: Path, manifest: VersionManifest, endpoint: str, graphs: tuple[str, ...]) -> None:
    """Write ``<endpoint>.mar`` beside the graphs: an archive as the real archiver makes it."""
    payload = folder / f".{endpoint}"
    payload.mkdir()
    for name in (*graphs, "example.json"):
        if (folder / name).is_file():
            (payload / name).write_bytes((folder / name).read_bytes())
    (payload / "handler.py").write_bytes((ROOT / "serving" / "handler.py").read_bytes())
    write_manifest(payload, manifest.model_copy(update={"files": hash_folder(payload)}))
    entry = {
        "createdOn": "01/01/2026 00:00:00",
        "runtime": "python",
        "model": {
            "modelName": endpoint,
            "serializedFile": graphs[0],
            "handler": "handler.py",
            "modelVersion": str(manifest.version),
            "configFile": "model-config.yaml",
        },
        "archiverVersion": "0.12.0",
    }
    with zipfile.ZipFile(folder / f"{endpoint}.mar", "w") as mar:
        for name in (*hash_folder(payload), MANIFEST, MANIFEST_HASH):
            mar.write(payload / name, name)
        mar.write(ROOT / "serving" / "model-config.yaml", "model-config.yaml")
        mar.writestr("MAR-INF/MANIFEST.json", json.dumps(entry))
    for path in payload.iterdir():
        path.unlink()
    payload.rmdir()


MLP = Mlp.draw(6, 16, 4)


@pytest.fixture(scope="session")
def mlp() -> Mlp:
    """The network behind ``mlp_version``: 6 features, 16 hidden units, dropout 0.5, 4 classes."""
    return MLP


@pytest.fixture(scope="session")
def mlp_version(tmp_path_factory: pytest.TempPathFactory) -> Stored[VersionManifest]:
    """A classifier with labels a to d, in both formats."""
    store = Store(tmp_path_factory.mktemp("mlp") / "model_store")
    return publish(store, "mlp", MLP.files(), labels=("a", "b", "c", "d"), sites=(MLP.site,))


@pytest.fixture(scope="session")
def publish_version() -> Callable[..., Stored[VersionManifest]]:
    """:func:`publish`, for tests that need a version of their own."""
    return publish


@pytest.fixture(scope="session")
def embedding_version(tmp_path_factory: pytest.TempPathFactory) -> Stored[VersionManifest]:
    """output[N, 3] = table[input[N]] of 7 words: an index out of range fails inside the runtime."""
    table = np.arange(21, dtype=np.float32).reshape(7, 3)
    node = helper.make_node("Gather", ["table", "input"], ["output"])
    weights = [numpy_helper.from_array(table, "table")]
    graph = _model([node], [_io("input", kind=TensorProto.INT64)], [_io("output", 3)], weights)
    return publish(
        Store(tmp_path_factory.mktemp("words") / "model_store"),
        "words",
        {"model.onnx": graph},
        task="raw",
        inputs=(TensorSpec(name="input", dtype="int64"),),
        outputs=(TensorSpec(name="output", shape=(3,)),),
        example=4,
    )


PHOTOS = Mlp.draw(4 * 4 * 3, 16, 4, seed=1)
PHOTOS = replace(PHOTOS, w1=PHOTOS.w1 / 255)


@pytest.fixture(scope="session")
def photos() -> Mlp:
    """The network behind ``photos_version``: the pixels of an image, laid flat."""
    return PHOTOS


@pytest.fixture(scope="session")
def photos_version(tmp_path_factory: pytest.TempPathFactory) -> Stored[VersionManifest]:
    """A classifier of images, 4 x 4 pixels in colour."""
    return publish(
        Store(tmp_path_factory.mktemp("photos") / "model_store"),
        "photos",
        {f"{part}.onnx": PHOTOS.onnx(part) for part in ("model", "trunk", "head")},
        inputs=(TensorSpec(name="input", shape=(48,)),),
        labels=("a", "b", "c", "d"),
        sites=(PHOTOS.site,),
        example=(0.0,) * 48,
        images={"input": ImageRecord(height=4, width=4, colour="rgb")},
    )


STAFF = (
    Column(name="age", fill=41.5),
    Column(name="job", categories=("clerk", "nurse", "teacher")),
    Column(name="grade", categories=("1", "2", "3"), other=True, fill=1),
    Column(name="pay"),
)


@pytest.fixture(scope="session")
def staff_version(tmp_path_factory: pytest.TempPathFactory) -> Stored[VersionManifest]:
    """output[N, 1] = age + 100 job + 1000 grade + 10000 pay, with codes for categories and gaps filled."""
    weights = {
        "fill": np.array([41.5, 0, 1, 0], np.float32),
        "weight": np.array([[1], [100], [1000], [10000]], np.float32),
    }
    nodes = [
        helper.make_node("IsNaN", ["input"], ["gap"]),
        helper.make_node("Where", ["gap", "fill", "input"], ["whole"]),
        helper.make_node("MatMul", ["whole", "weight"], ["output"]),
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return publish(
        Store(tmp_path_factory.mktemp("staff") / "model_store"),
        "staff",
        {"model.onnx": _model(nodes, [_io("input", 4)], [_io("output", 1)], constants)},
        task="regression",
        inputs=(TensorSpec(name="input", shape=(4,)),),
        outputs=(TensorSpec(name="output", shape=(1,)),),
        example={"age": None, "job": "nurse", "grade": "7", "pay": 2},
        columns=STAFF,
    )


@pytest.fixture(scope="session")
def shared_versions(
    mlp_version: Stored[VersionManifest],
    embedding_version: Stored[VersionManifest],
    photos_version: Stored[VersionManifest],
    staff_version: Stored[VersionManifest],
) -> list[Stored[VersionManifest]]:
    """What the shared servers serve: mlp, mlp-mc, words, photos, photos-mc and staff."""
    return [mlp_version, embedding_version, photos_version, staff_version]


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, shared_versions: list[Stored[VersionManifest]]
) -> Iterator[Deployment]:
    """A real TorchServe; ``server.url`` is where it answers."""
    with ExitStack() as stack:
        with no_java_on_path():
            server = running_server(tmp_path_factory.mktemp("server"), shared_versions)
            deployment = stack.enter_context(server)
        yield deployment


@pytest.fixture(scope="session")
def asgi_server(
    tmp_path_factory: pytest.TempPathFactory, shared_versions: list[Stored[VersionManifest]]
) -> Iterator[Deployment]:
    """A real ASGI server with the same models."""
    with running_server(tmp_path_factory.mktemp("asgi"), shared_versions, engine="asgi") as deployment:
        yield deployment


@pytest.fixture(scope="session")
def ray_server(
    tmp_path_factory: pytest.TempPathFactory, shared_versions: list[Stored[VersionManifest]]
) -> Iterator[Deployment]:
    """A real Ray Serve with the same models, two replicas of each."""
    folder = tmp_path_factory.mktemp("ray")
    scaling = (ROOT / "serving" / "deploy" / "ray-serve.yaml").read_text("utf-8")
    assert "num_replicas: 1 " in scaling
    (folder / "ray-serve.yaml").write_text(scaling.replace("num_replicas: 1 ", "num_replicas: 2 "), "utf-8")
    with running_server(
        folder, shared_versions, engine="ray", scaling=folder / "ray-serve.yaml"
    ) as deployment:
        yield deployment


@pytest.fixture(scope="session")
def run_server() -> Any:
    """:func:`running_server`, for tests that need a server of their own."""
    return running_server


@contextmanager
def running_server(
    folder: Path, versions: list[Stored[VersionManifest]], tuning: str = "", **options: Any
) -> Iterator[Deployment]:
    """``dropserve serve`` on a free port, with the settings that are shipped, or others for all endpoints."""
    stage = ROOT / "serving"
    config = folder / "model-config.yaml"
    config.write_text(tuning or (stage / "model-config.yaml").read_text())
    chosen: dict[str, Any] = {
        "model_config": config,
        "properties": stage / "config.properties",
        "log_config": stage / "log4j2.xml",
        "port": free_ports(1)[0],
    }
    deployment = lifecycle.start(folder / ".run", versions, Options(**(chosen | options)))
    yield deployment
    assert lifecycle.stop(folder / ".run") is not None, "the server was gone before the tests ended"


@contextmanager
def no_java_on_path() -> Iterator[None]:
    """As on a machine without Java: nothing of the system's is found."""
    before = dict(os.environ)
    folders = os.environ["PATH"].split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(f for f in folders if not (Path(f) / "java").exists())
    os.environ.pop("JAVA_HOME", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
