"""The scripts about MNIST: their changes of the recipe take effect; a smaller setting says that it is one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mnist_error
import numpy as np
import overfit_study
import pytest

from dropserve.training.recipe_file import load_recipe


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder like MNIST's, of 600 images of noise with a bright spot for each class."""
    folder, random = tmp_path / "mnist", np.random.default_rng(0)
    folder.mkdir()
    for part, rows in (("train", 600), ("t10k", 50)):
        labels = np.arange(rows, dtype=np.uint8) % 10
        pixels = random.integers(0, 60, (rows, 28, 28), np.uint8)
        pixels[np.arange(rows), 14, labels * 2] = 255
        for name, array in ((f"{part}-images-idx3-ubyte", pixels), (f"{part}-labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (folder / name).write_bytes(head + array.tobytes())
    return folder


def test_the_plain_net_is_the_same_without_dropout(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = tmp_path / "out.json", tmp_path / "results"
    options = [
        "--data",
        images,
        "--seeds",
        2,
        "--epochs",
        2,
        "--hidden",
        8,
        "--json",
        out,
        "--results",
        results,
    ]
    monkeypatch.setattr(sys, "argv", ["mnist_error.py", *map(str, options)])
    mnist_error.main()
    figures = json.loads(out.read_text())["figures"]
    assert figures["not_run"] == "a smaller setting than the promised one"
    assert {0 <= figures[f"{way}_error"] <= 100 for way in ("dropout", "plain")} == {True}
    assert capsys.readouterr().out.count("\ndropout ") == 2, "a line for each seed"
    assert len(list(results.glob("*.json"))) == 4, "what is done is kept"
    plain = load_recipe(mnist_error.RECIPE, {"data.folder": str(images), **mnist_error.WAYS["plain"]})
    given = load_recipe(mnist_error.RECIPE, {"data.folder": str(images)})
    rates = {"dropout": 0.0, "input_dropout": 0.0}
    assert plain.recipe.model.arguments == {**given.recipe.model.arguments, **rates}


def test_the_study_takes_a_smaller_net_of_relu(images: Path) -> None:
    recipe = load_recipe(mnist_error.RECIPE, {**overfit_study.MNIST, "data.folder": str(images)}).recipe
    assert recipe.model.arguments["hidden"] == [512, 512]
    assert recipe.model.arguments["pieces"] == 1
    assert recipe.training.monitor == "loss"
    assert recipe.training.precision == "32"
