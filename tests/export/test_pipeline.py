from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from dropserve.dropout.masks import draw
from dropserve.errors import (
    CheckFailedError,
    ExportError,
    RecipeError,
    SourceChangedError,
)
from dropserve.export import artefacts
from dropserve.export.archive import Stage
from dropserve.export.onnx import OnnxProgram, export_onnx
from dropserve.export.pipeline import Report, export_run
from dropserve.export.settings import ExportSettings
from dropserve.manifest import Preprocessing, RunManifest, Scaling, VersionManifest
from dropserve.model import build_served
from dropserve.project import packaged_stages
from dropserve.store import Store, Stored, open_folder

STAGE = Stage(
    packaged_stages() / "serving" / "handler.py", packaged_stages() / "serving" / "model-config.yaml"
)
QUICK = ExportSettings(formats=("onnx",), batch_sizes=(1, 3))
Publish = Callable[..., Stored[RunManifest]]
Version = Stored[VersionManifest]


def contents(store: Store) -> list[str]:
    """Everything in the store, but for locks and runs."""
    root = store.root / "net"
    return sorted(p.relative_to(root).as_posix() for p in root.glob("*") if p.name not in {".lock", "runs"})


def test_a_version_holds_what_a_server_needs(store: Store, publish: Publish) -> None:
    rows = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    run = publish(rows={"input": rows, "target": np.zeros(30)}, task="classification", labels=("a", "b", "c"))
    report = Report()
    version = export_run(store, run, ExportSettings(), STAGE, report)
    manifest = version.manifest
    assert (version.folder.name, manifest.version, manifest.run) == ("1", 1, run.manifest.id)
    graphs = {"model.onnx", "model.ts", "head.onnx", "trunk.onnx", "masked.ts", "model.pt2", "masked.pt2"}
    others = {"example.json", "export.json", "report.html", "net.mar", "net-mc.mar"}
    assert set(manifest.files) == graphs | others
    assert store.version("net").manifest == manifest, "verified by the store's own reader"
    assert [str(spec) for spec in manifest.signature.outputs] == ["output: float32[3]"]
    assert [site.name for site in manifest.sites] == ["drop"]
    assert (manifest.labels, manifest.metrics) == (("a", "b", "c"), {"test_accuracy": 0.5})
    assert manifest.checks == tuple(report.checks)
    assert {check.verdict for check in manifest.checks} <= {"passed", "skipped"}
    (instance,) = json.loads(version.path("example.json").read_text())["instances"]
    assert any(np.array_equal(np.float32(instance), row) for row in rows)
    exported = json.loads(version.path("export.json").read_text())
    assert [check["name"] for check in exported["checks"]] == [check.name for check in report.checks]
    assert exported["parity"]["parity-onnx"]["max"] < 1e-5
    assert {"load", "export", "compare"} <= set(exported["seconds"])


def test_versions_count_up(store: Store, publish: Publish) -> None:
    run = publish()
    settings = QUICK
    assert [export_run(store, run, settings, STAGE).manifest.version for _ in range(2)] == [1, 2]
    assert contents(store) == ["1", "2"]
    assert "model.ts" not in store.version("net").manifest.files


def unpacked(version: Version, name: str, tmp_path: Path) -> tuple[Version, dict[str, Any], set[str]]:
    folder = tmp_path / name
    with zipfile.ZipFile(io.BytesIO(version.path(name).read_bytes())) as archive:
        archive.extractall(folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    entry = json.loads((folder / "MAR-INF/MANIFEST.json").read_text())["model"]
    return open_folder(folder, VersionManifest, strict=False), entry, files


def test_archives_hold_one_endpoint_each_and_verify(store: Store, publish: Publish, tmp_path: Path) -> None:
    version = export_run(store, publish(), ExportSettings(), STAGE)
    common = {"example.json", "handler.py", "model-config.yaml", "manifest.json", "manifest.sha256"}
    common.add("MAR-INF/MANIFEST.json")
    graphs = {"net": {"model.onnx", "model.ts"}, "net-mc": {"head.onnx", "trunk.onnx", "masked.ts"}}
    for endpoint, own in graphs.items():
        payload, entry, files = unpacked(version, f"{endpoint}.mar", tmp_path)
        assert files == common | own
        assert set(payload.manifest.files) == own | {"example.json", "handler.py"}
        for name in own:
            assert payload.manifest.files[name] == version.manifest.files[name], "the bytes that were checked"
        assert entry["modelName"] == endpoint
        assert entry["handler"] == "handler.py"
        assert entry["configFile"] == "model-config.yaml"
        assert entry["modelVersion"] == "1"


def test_scaling_stands_inside_the_graphs(store: Store, publish: Publish) -> None:
    scaling = Preprocessing(
        inputs={"input": Scaling(mean=(5.0,) * 6, scale=(2.0,) * 6)},
        target=Scaling(mean=(100.0, 0.0, 0.0), scale=(10.0, 1.0, 1.0)),
    )
    run = publish(preprocessing=scaling)
    version = export_run(store, run, QUICK, STAGE)
    x = np.random.default_rng(1).normal(5, 2, size=(4, 6)).astype(np.float32)
    plain = build_served(run).model
    with torch.no_grad():
        expected = plain((torch.tensor(x) - 5) / 2).numpy() * [10, 1, 1] + [100, 0, 0]
    got = OnnxProgram(version.path("model.onnx"))({"input": x})["output"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


ACTIVE = ("self.drop(torch.relu", "nn.functional.dropout(torch.relu")
LOST = (
    "return self.last(self.drop(torch.relu(self.first(x))))",
    "h = self.last(self.drop(torch.relu(self.first(x))))\n        return h + 1e-3 * (x.shape[0] == 3)",
)


@pytest.mark.parametrize(
    ("source", "names"),
    [(ACTIVE, {"torch-random-state", "random-operators"}), (LOST, {"batch-sizes"})],
    ids=["dropout that eval does not stop", "an answer that depends on the batch size"],
)
def test_a_failed_check_publishes_nothing(
    store: Store, publish: Publish, source: tuple[str, str], names: set[str]
) -> None:
    report = Report()
    with pytest.raises(CheckFailedError, match="nothing was published") as caught:
        export_run(store, publish(source), QUICK, STAGE, report)
    failed = {check.name for check in report.checks if check.verdict == "failed"}
    assert names <= failed
    assert all(f"- {name}: " in str(caught.value) for name in failed)
    assert contents(store) == []


def test_a_failing_comparison_publishes_nothing_and_tells_the_figures(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dropserve.export import pipeline

    real = pipeline.build

    def tampered(*args: Any, **kwargs: Any) -> Any:
        artefacts = real(*args, **kwargs)
        model = onnx.load(artefacts.paths["model.onnx"])
        bias = next(t for t in model.graph.initializer if t.name.endswith("last.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 1, bias.name))
        onnx.save(model, artefacts.paths["model.onnx"])
        return artefacts

    monkeypatch.setattr(pipeline, "build", tampered)
    report = Report()
    with pytest.raises(CheckFailedError, match="parity-onnx"):
        export_run(store, publish(), QUICK, STAGE, report)
    assert contents(store) == []
    assert report.as_json()["parity"]["parity-onnx"]["problem"] == "difference"


RANDOM_DEPTH = (
    "return self.last(",
    "if self.training and torch.rand(()) < 0.5:\n            x = x * 2\n        return self.last(",
)


def test_what_cannot_be_masked_can_be_waived(store: Store, publish: Publish) -> None:
    run = publish(RANDOM_DEPTH)
    with pytest.raises(CheckFailedError, match=r'(?s)dropout-maskable.*waive = \["dropout-maskable"\]'):
        export_run(store, run, QUICK, STAGE)
    assert contents(store) == []
    settings = QUICK.model_copy(update={"waive": ("dropout-maskable",)})
    version = export_run(store, run, settings, STAGE)
    waived = [check.name for check in version.manifest.checks if check.verdict == "waived"]
    assert waived == ["dropout-maskable"]
    assert "net-mc.mar" not in version.manifest.files
    assert version.manifest.sites == ()


def test_sites_of_several_rates_pass_the_audit(store: Store, publish: Publish) -> None:
    """Their balanced blocks are of 10, 12 and together of 20 samples: no check may confuse them."""
    both = (
        "self.drop(torch.relu(self.first(x)))",
        "F.dropout(F.dropout(self.first(x).relu(), 0.25, self.training), 0.1, self.training)",
    )
    name = ("import torch\n", "import torch\nimport torch.nn.functional as F\n")
    version = export_run(store, publish(name, both), QUICK, STAGE)
    assert [site.p for site in version.manifest.sites] == [0.25, 0.1]


def test_a_waiver_of_no_check_is_refused(store: Store, publish: Publish) -> None:
    with pytest.raises(RecipeError, match=r"there is no check 'parity'; there are .*parity-onnx"):
        export_run(store, publish(), ExportSettings(waive=("parity",)), STAGE)


def test_a_changed_source_is_refused(store: Store, publish: Publish, tmp_path: Path) -> None:
    run = publish()
    file = tmp_path / "net.py"
    file.write_text(file.read_text().replace("torch.relu", "torch.tanh"))
    with pytest.raises(SourceChangedError, match="has changed since run"):
        export_run(store, run, QUICK, STAGE)
    assert contents(store) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "classification", "labels": ("a", "b")}, r"2 labels needs an output of shape \[2\]"),
        ({"task": "regression"}, "regression needs one output, the model returns 2"),
    ],
)
def test_outputs_must_be_able_to_hold_what_the_task_promises(
    store: Store, publish: Publish, changes: dict[str, Any], message: str
) -> None:
    two = [("return self.last", "return x, self.last")] if changes["task"] == "regression" else []
    run = publish(*two, **changes)
    with pytest.raises(ExportError, match=message):
        export_run(store, run, QUICK, STAGE)
    assert contents(store) == []


def test_a_missing_stage_file_is_named(store: Store, publish: Publish, tmp_path: Path) -> None:
    stage = Stage(tmp_path / "handler.py", STAGE.config)
    with pytest.raises(ExportError, match=r"there is no .*handler\.py; `dropserve init`"):
        export_run(store, publish(), ExportSettings(formats=("onnx",)), stage)
    assert contents(store) == []


def test_masks_are_those_of_the_published_sites(store: Store, publish: Publish) -> None:
    """What a server that knows only the version computes is what the model computes under those masks."""
    run = publish()
    version = export_run(store, run, QUICK, STAGE)
    masks = draw(version.manifest.sites, 6, seed=11)
    x = np.random.default_rng(2).normal(size=(1, 6)).astype(np.float32)
    tiled = np.repeat(x, 6, axis=0)
    head = OnnxProgram(version.path("head.onnx"))
    trunk = OnnxProgram(version.path("trunk.onnx"))
    got = head(trunk({"input": tiled}) | masks)["output"]
    net = build_served(run).model
    with torch.no_grad():
        hidden = torch.relu(net.first(torch.tensor(tiled))) * torch.tensor(masks["mask_0"])  # type: ignore[operator,union-attr]
        expected = net.last(hidden)  # type: ignore[operator]
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-6)


def command(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    code = "from dropserve.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow  # what publishes at once is tested fast in tests/test_store.py
def test_two_exports_at_once_publish_two_whole_versions(
    store: Store, publish: Publish, tmp_path: Path
) -> None:
    publish()
    (tmp_path / "export").mkdir()
    (tmp_path / "export/checks.toml").write_text('formats = ["onnx"]\nbatch_sizes = [1, 3]\n')
    both = [command(tmp_path, "export", "net") for _ in range(2)]
    outputs = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert contents(store) == ["1", "2"]
    for number in (1, 2):
        version = store.version("net", number)
        assert version.manifest.version == number
        for name in ("net.mar", "net-mc.mar"):
            _, entry, _ = unpacked(version, name, tmp_path / str(number))
            assert entry["modelVersion"] == str(number)
    assert all("make serve" in out.splitlines()[-1] for out, _ in outputs)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)], ids=["ctrl-c", "kill"]
)
def test_an_interrupted_export_leaves_nothing_half_written(
    store: Store, publish: Publish, tmp_path: Path, number: signal.Signals
) -> None:
    publish()
    process = command(tmp_path, "export", "net")
    deadline = time.monotonic() + 120
    while not list((store.root / "net").glob(".staging-*/model.onnx")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert store.versions("net") == []
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "nothing was published" in err
        assert "Traceback" not in out + err
        assert contents(store) == []
    with store.staging("net", VersionManifest) as staging:  # the next export sweeps up, and is number 1
        assert staging.number == 1
        assert contents(store) == [".staging-1"]


def test_a_graph_that_differs_is_refused_with_the_line_where_it_does(
    store: Store, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(*args: Any, **kwargs: Any) -> None:
        export_onnx(*args, **kwargs)
        path = args[4]
        model = onnx.load(path)
        for node in model.graph.node:
            node.op_type = {"Relu": "Softplus"}.get(node.op_type, node.op_type)
        onnx.save(model, path)

    monkeypatch.setattr(artefacts, "export_onnx", careless)
    report = Report()
    with pytest.raises(CheckFailedError, match="nothing was published"):
        export_run(store, publish(), QUICK, STAGE, report)
    failed = {check.name: check for check in report.checks if check.verdict == "failed"}
    assert set(failed) == {
        "parity-onnx",
        "parity-round-trip",
        "parity-masked-onnx",
        "parity-identity-masks",
        "parity-trunk-and-head",
    }
    for check in failed.values():
        assert check.where == "Net at net.py:12", check
        assert "(Softplus 'node_relu')" in check.evidence
        assert "the graph has Softplus where a fresh export has Relu" in check.evidence
    details = json.loads(json.dumps(report.as_json(), allow_nan=False))
    found = details["parity"]["parity-trunk-and-head"]["bisection"]
    assert (found["graph"], found["tensor"], found["others"]) == ("trunk.onnx", "relu", [])
    assert found["mended"] is None, "a trunk has no outputs of the model's"
    assert details["parity"]["parity-onnx"]["bisection"]["mended"] <= QUICK.tolerance
    assert contents(store) == []
