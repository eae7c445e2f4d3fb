"""Two folders of images: what the benchmark measures, resumes and refuses."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from dropserve.cli import app
from dropserve.errors import DataError, UsageError
from dropserve.training.ood import bench
from dropserve.training.ood.bench import Setup, run
from dropserve.training.ood.images import read_part

QUICK = Setup(hidden=(64,), epochs=30, batch_size=20, learning_rate=0.01)


def write_idx(path: Path, array: NDArray[np.uint8]) -> None:
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.tobytes()))


def folder(path: Path, seed: int, *, side: int = 4) -> Path:
    """Two classes, bright above or bright below; of another seed's folder, bright left or right."""
    path.mkdir()
    random = np.random.default_rng(seed)
    for part, rows in (("train", 120), ("t10k", 40)):
        labels = random.integers(0, 2, rows).astype(np.uint8)
        images = random.integers(0, 60, (rows, side, side))
        for image, label in zip(images, labels, strict=True):
            half = slice(0, side // 2) if label else slice(side // 2, side)
            image[half] += 150
        images = images if seed == 0 else images.transpose(0, 2, 1)
        write_idx(path / f"{part}-images-idx3-ubyte.gz", images.astype(np.uint8))
        write_idx(path / f"{part}-labels-idx1-ubyte.gz", labels)
    return path


@pytest.fixture
def usual(tmp_path: Path) -> Path:
    return folder(tmp_path / "usual", 0)


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    return folder(tmp_path / "strange", 1)


def test_a_net_learns_its_folder_and_doubts_the_other(usual: Path, strange: Path, tmp_path: Path) -> None:
    told: list[float] = []
    found = run(usual, strange, tmp_path / "done", seeds=2, setup=QUICK, told=told.append)
    assert [each.seed for each in found] == [0, 1]
    assert told == sorted(told)
    assert told[-1] == 1
    for each in found:
        assert each.plain["accuracy"] > 0.95
        assert each.sampled["accuracy"] > 0.95
        assert set(each.auroc) == {
            "plain_max_probability",
            "plain_predictive_entropy",
            "max_probability",
            "predictive_entropy",
            "mutual_information",
        }
        # Of two classes, entropy and the largest probability put rows in one order.
        assert each.auroc["predictive_entropy"] == pytest.approx(each.auroc["max_probability"])
        assert each.auroc["predictive_entropy"] > 0.8
    assert found[0] != found[1]
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "done").iterdir()}
    again = run(usual, strange, tmp_path / "done", seeds=2, setup=QUICK)
    assert again == found
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "done").iterdir()}
    run(usual, strange, tmp_path / "done", seeds=1, setup=Setup(hidden=(16,), epochs=2))
    assert len(list((tmp_path / "done").iterdir())) == 3


def test_the_auroc_is_sklearns(
    usual: Path, strange: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []
    original = bench.detection

    def watch(inside: Any, outside: Any) -> Any:
        seen.append((inside, outside))
        return original(inside, outside)

    monkeypatch.setattr(bench, "detection", watch)
    (result,) = run(usual, strange, tmp_path / "done", seeds=1, setup=QUICK)
    assert len(seen) == len(result.auroc) == 5
    for (inside, outside), value in zip(seen, result.auroc.values(), strict=True):
        truth = np.repeat([0, 1], [len(inside), len(outside)])
        assert value == pytest.approx(roc_auc_score(truth, np.concatenate([inside, outside])))


def test_other_labels_are_not_needed_and_other_sizes_refused(usual: Path, tmp_path: Path) -> None:
    other = folder(tmp_path / "other", 1, side=6)
    with pytest.raises(DataError, match="expected one size"):
        run(usual, other, tmp_path / "done", setup=QUICK)
    bare = folder(tmp_path / "bare", 1)
    (bare / "t10k-labels-idx1-ubyte.gz").unlink()
    assert len(run(usual, bare, tmp_path / "done", seeds=1, setup=QUICK)) == 1
    with pytest.raises(DataError, match="no file t10k-labels"):
        run(bare, usual, tmp_path / "done", setup=QUICK)
    write_idx(usual / "t10k-labels-idx1-ubyte.gz", np.zeros(7, np.uint8))
    with pytest.raises(DataError, match="expected 40 class numbers"):
        read_part(usual, "test")
    with pytest.raises(UsageError, match="at least 1"):
        run(usual, usual, tmp_path, seeds=0)


def test_the_command_prints_and_labels_a_subset(usual: Path, strange: Path, tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    options = ["--seeds", "1", "--epochs", "1", "--rows", "60", "--json", str(target)]
    folders = ["--data", str(usual), "--other", str(strange), "--results", str(tmp_path / "done")]
    outcome = CliRunner().invoke(app, ["bench", "ood", *folders, *options], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    said = " ".join(outcome.output.split())
    assert "SUBSET: the first 60 training images" in said
    assert "No test image of either folder was used to choose anything" in said
    assert json.loads(target.read_text("utf-8"))["mean"]["auroc"]["mutual_information"] > 0
    with pytest.raises(UsageError, match="--other"):
        CliRunner().invoke(
            app, ["bench", "ood", "--data", str(usual), "--other", "nowhere"], catch_exceptions=False
        )
