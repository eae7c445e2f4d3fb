"""What is published, and what a server makes of it, in every precision and with weights in second files."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dropserve.dropout.engine import Settings
from dropserve.errors import CheckFailedError, CorruptStoreError, ExportError, RecipeError, ServerError
from dropserve.export.archive import Stage
from dropserve.export.pipeline import Report, export_run
from dropserve.export.settings import ExportSettings, read_settings
from dropserve.manifest import RunManifest, VersionManifest
from dropserve.model import build_served
from dropserve.project import packaged_stages
from dropserve.serving.loaded import load_endpoint
from dropserve.serving.predictor import Predictor
from dropserve.serving.query import Query
from dropserve.signature import Axis, Signature, TensorSpec
from dropserve.store import Store, Stored, hash_folder, open_folder, write_manifest

STAGE = Stage(
    packaged_stages() / "serving" / "handler.py", packaged_stages() / "serving" / "model-config.yaml"
)
Publish = Callable[..., Stored[RunManifest]]
QUICK: dict[str, Any] = {"formats": ("onnx",), "batch_sizes": (1, 3), "torch_export": "never"}
ROWS = np.random.default_rng(0).normal(size=(120, 6)).astype(np.float32)


@pytest.fixture
def run(publish: Publish) -> Stored[RunManifest]:
    rows = {"input": ROWS, "target": np.arange(120) % 3}
    return publish(rows=rows, task="classification", labels=("a", "b", "c"))


def ask(predictor: Predictor, rows: np.ndarray, settings: Settings | None) -> Any:
    (answer,) = predictor.answer([Query({"input": rows}, settings)])
    assert not isinstance(answer, Exception), answer
    return answer


def graphs(version: Stored[VersionManifest]) -> set[str]:
    return {name for name in version.manifest.files if name.startswith(("model.", "trunk", "head", "masked"))}


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_a_version_in_a_lower_precision_is_proven_calibrated_and_steady(
    store: Store, run: Stored[RunManifest], tmp_path: Path, precision: str
) -> None:
    report = Report()
    version = export_run(store, run, ExportSettings(precision=precision, **QUICK), STAGE, report)
    manifest = version.manifest
    assert manifest.precision == precision
    assert graphs(version) == {"model.onnx", "trunk.onnx", "head.onnx"}
    names = [check.name for check in manifest.checks]
    assert len(names) == len(set(names))
    assert {c.verdict for c in manifest.checks if c.name.startswith("precision-")} == {"passed"}
    exported = json.loads(version.path("export.json").read_text())
    assert exported["parity"]["precision-monte-carlo"]["max"] > 1e-6
    assert f"What does {precision} cost?" in version.path("report.html").read_text()
    assert manifest.calibration is not None, "on what these graphs answer"

    predictor = Predictor(version)
    settings = Settings(seed=5)
    together = ask(predictor, ROWS[:11], settings)
    plain = ask(predictor, ROWS[:11], None).values["output"]
    for row in range(11):  # the same question, alone and in another place: the same bits
        mates = np.concatenate([ROWS[50 : 50 + row], ROWS[row : row + 1], 100 * ROWS[60:63]])
        for asked, at in ((ROWS[row : row + 1], 0), (mates, row)):
            found = ask(predictor, asked, settings).statistics["output"]
            assert found.mean[at].tobytes() == together.statistics["output"].mean[row].tobytes()
            assert ask(predictor, asked, None).values["output"][at].tobytes() == plain[row].tobytes()
    full = Predictor(export_run(store, run, ExportSettings(**QUICK), STAGE))
    reference = ask(full, ROWS[:11], settings).statistics["output"].mean
    difference = np.abs(together.statistics["output"].mean - reference).max()
    assert 0 < difference < {"fp16": 1e-3, "int8": 0.03}[precision]
    assert together.calibrated is not None


@pytest.mark.slow
def test_an_endpoint_loads_from_its_archive(store: Store, run: Stored[RunManifest], tmp_path: Path) -> None:
    version = export_run(store, run, ExportSettings(precision="int8", **QUICK), STAGE)
    for endpoint in ("net", "net-mc"):
        folder = tmp_path / endpoint
        with zipfile.ZipFile(io.BytesIO(version.path(f"{endpoint}.mar").read_bytes())) as archive:
            archive.extractall(folder)
        loaded = load_endpoint(folder, endpoint, {})
        assert loaded.predictor.manifest.precision == "int8"
        with pytest.raises(ServerError, match=r"export with --precision fp32: int8 is made for onnxruntime"):
            load_endpoint(folder, endpoint, {"backend": "torchscript"})


@pytest.mark.slow
def test_what_costs_too_much_is_not_published(store: Store, run: Stored[RunManifest]) -> None:
    tight = {"int8": {"typical": 1e-6}}
    report = Report()
    with pytest.raises(CheckFailedError, match=r"nothing was published\n(.*\n)*.*precision-monte-carlo"):
        export_run(store, run, ExportSettings(precision="int8", **tight, **QUICK), STAGE, report)
    assert store.versions("net") == []
    (check,) = [check for check in report.checks if check.name == "precision-monte-carlo"]
    assert "typically differ by" in check.evidence
    assert "(bound 1e-06)" in check.evidence
    assert not list(store.root.glob("net/.staging-*"))
    with pytest.raises(ExportError, match="held-out rows"):
        export_run(store, bare(run, store), ExportSettings(precision="int8", **QUICK), STAGE)


def bare(run: Stored[RunManifest], store: Store) -> Stored[RunManifest]:
    """The same run without validation rows, as an import makes it."""
    with store.staging("net", RunManifest) as staging:
        shutil.copytree(run.folder, staging.folder, dirs_exist_ok=True)
        for name in ("validation.npz", "manifest.json", "manifest.sha256"):
            (staging.folder / name).chmod(0o644)
            (staging.folder / name).unlink()
        return store.publish(staging, run.manifest.model_copy(update={"id": staging.id, "files": {}}))


@pytest.fixture
def wide(publish: Publish) -> Stored[RunManifest]:
    """Weights that are worth a second file."""
    rows = {"input": ROWS, "target": np.arange(120) % 3}
    return publish(("hidden=12", "hidden=400"), rows=rows, task="classification", labels=("a", "b", "c"))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_weights_in_a_second_file(
    store: Store, wide: Stored[RunManifest], tmp_path: Path, precision: str
) -> None:
    whole = export_run(store, wide, ExportSettings(precision=precision, **QUICK), STAGE)
    cut = export_run(store, wide, ExportSettings(precision=precision, single_file_bytes=500, **QUICK), STAGE)
    parts = {"model.onnx", "trunk.onnx", "head.onnx"}
    beside = {f"{name}.data" for name in parts}
    assert graphs(whole) == parts
    assert graphs(cut) == parts | beside
    settings = Settings(samples=10)
    answers = [ask(Predictor(v), ROWS[:4], settings).statistics["output"].mean for v in (whole, cut)]
    np.testing.assert_array_equal(*answers)
    folders: dict[str, Path] = {}
    for endpoint, own in (("net", {"model.onnx.data"}), ("net-mc", {"trunk.onnx.data", "head.onnx.data"})):
        folders[endpoint] = tmp_path / endpoint
        with zipfile.ZipFile(io.BytesIO(cut.path(f"{endpoint}.mar").read_bytes())) as archive:
            archive.extractall(folders[endpoint])
        assert own <= set(open_folder(folders[endpoint], VersionManifest, strict=False).manifest.files)
        load_endpoint(folders[endpoint], endpoint, {})
    tampered(folders["net"])


def tampered(folder: Path) -> None:
    """Weights that changed, or that nobody listed, are never loaded."""
    data = folder / "model.onnx.data"
    manifest = open_folder(folder, VersionManifest, strict=False).manifest
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptStoreError, match=r"model\.onnx\.data is not what was published"):
        load_endpoint(folder, "net", {})
    data.write_bytes(content)
    listed = {name: record for name, record in hash_folder(folder).items() if name in manifest.files}
    del listed["model.onnx.data"]
    write_manifest(folder, manifest.model_copy(update={"files": listed}))
    with pytest.raises(CorruptStoreError, match="does not stand in the manifest"):
        load_endpoint(folder, "net", {})
    data.rename(folder / "elsewhere")
    data.symlink_to(folder / "elsewhere")
    write_manifest(folder, manifest)
    with pytest.raises(CorruptStoreError, match="symbolic link"):
        load_endpoint(folder, "net", {})


@pytest.mark.slow
class TestTorchExport:
    # torch 2.11 warns of a buffer of its own when it reads the file.
    @pytest.mark.filterwarnings("ignore:The given buffer is not writable")
    def test_the_files_are_written_hashed_and_agree(self, store: Store, run: Stored[RunManifest]) -> None:
        import torch

        settings = ExportSettings(**{**QUICK, "torch_export": "always"})
        version = export_run(store, run, settings, STAGE)
        (check,) = [check for check in version.manifest.checks if check.name == "torch-export"]
        assert check.verdict == "passed"
        assert check.evidence.startswith("model.pt2 and masked.pt2: within")
        for endpoint in ("net", "net-mc"):
            with zipfile.ZipFile(version.path(f"{endpoint}.mar")) as archive:
                assert not [name for name in archive.namelist() if name.endswith(".pt2")], "never loaded"
        loaded = torch.export.load(version.path("model.pt2")).module()  # by a test alone
        x = torch.tensor(ROWS[:7])
        with torch.no_grad():
            np.testing.assert_allclose(loaded(x)[0], build_served(run)(x), atol=1e-6)

    def test_a_refusal_is_a_note_unless_the_files_were_asked_for(
        self, store: Store, publish: Publish
    ) -> None:
        """torch.export follows torch.lstm step by step, so its length is not free; ONNX has an operator."""
        run = publish(
            ("nn.Linear(6, hidden)", "nn.LSTM(6, hidden, batch_first=True)"),
            ("torch.relu(self.first(x))", "self.first(x)[0][:, -1]"),
            signature=Signature(
                inputs=(TensorSpec(name="input", shape=(Axis(name="L", maximum=5), 6)),), outputs=()
            ),
        )
        quick = {**QUICK, "torch_export": "if-possible"}
        version = export_run(store, run, ExportSettings(**quick), STAGE)
        (check,) = [check for check in version.manifest.checks if check.name == "torch-export"]
        assert check.verdict == "skipped"
        assert "torch.export refuses the model" in check.evidence
        assert not [name for name in version.manifest.files if name.endswith(".pt2")]
        with pytest.raises(CheckFailedError, match="torch-export"):
            export_run(store, run, ExportSettings(**{**quick, "torch_export": "always"}), STAGE)


def test_settings_say_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "checks.toml"
    file.write_text('precision = "int8"\n[int8]\nlargest = 0.5\n')
    settings = read_settings(file)
    assert (settings.bounds.largest, settings.bounds.typical) == (0.5, 0.03)
    assert read_settings(file, {"precision": "fp16", "opset": 20}).bounds == settings.fp16
    with pytest.raises(RecipeError, match=r"precision = 'int4': .*'fp32', 'fp16' or 'int8'"):
        read_settings(file, {"precision": "int4", "opset": None})
    file.write_text('precision = "fp16"\ntorch_export = "always"\n[fp16]\nlargst = 1\n')
    with pytest.raises(RecipeError, match=r"fp16\.largst: .* keys are largest, typical, accuracy"):
        read_settings(file)
    file.write_text('precision = "fp16"\ntorch_export = "always"\n')
    with pytest.raises(RecipeError, match='torch_export = "always" asks for fp32'):
        read_settings(file)
