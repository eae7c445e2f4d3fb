"""When inputs are images, and the PNG that shows them, read back by Pillow."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest

from dropserve.report.pictures import as_pictures, data_uri

RNG = np.random.default_rng(0)


def whole(*shape: int, high: int = 16) -> np.ndarray:
    return RNG.integers(0, high + 1, (5, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        (whole(64), (8, 8)),
        (whole(784, high=255), (28, 28)),
        (whole(784, high=255) / 255, (28, 28)),
        (whole(28, 28), (28, 28)),
        (RNG.normal(size=(5, 1, 28, 28)), (28, 28)),
        (RNG.normal(size=(5, 28, 28, 1)), (28, 28)),
        (RNG.normal(size=(5, 3, 32, 32)), (32, 32, 3)),
        (whole(32, 40, 3), (32, 40, 3)),
    ],
)
def test_images(rows: np.ndarray, shape: tuple[int, ...]) -> None:
    found = as_pictures({"x": rows})
    assert found is not None
    assert found.shape == (5, *shape)
    assert (found.min(), found.max()) == (0, 1)


@pytest.mark.parametrize(
    "rows",
    [
        RNG.normal(size=(5, 64)),  # standardised features that happen to be a square number
        whole(64) - 1,
        whole(64, high=1000),
        whole(63),
        whole(16),
        RNG.normal(size=(5, 20, 16)),  # a sequence
        whole(4, 32, 32),
        RNG.normal(size=(5, 2, 32, 32)),
        np.zeros((5, 64)),
        np.full((5, 64), np.nan),
        RNG.integers(0, 2, (5, 64)).astype(bool),
        np.zeros(5),
    ],
)
def test_no_images(rows: np.ndarray) -> None:
    assert as_pictures({"x": rows}) is None


def test_two_inputs_are_no_image() -> None:
    assert as_pictures({"x": whole(64), "y": whole(64)}) is None


@pytest.mark.parametrize("shape", [(9, 13), (8, 11, 3)])
def test_a_png_holds_its_pixels(shape: tuple[int, ...]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads the pictures back")
    pixels = RNG.integers(0, 256, shape).astype(np.uint8)
    kind, _, content = data_uri(pixels / 255).partition(",")
    assert kind == "data:image/png;base64"
    with image.open(io.BytesIO(base64.b64decode(content))) as read:
        read.load()
        assert np.array_equal(np.asarray(read), pixels)


def test_channels_first_keep_their_colours() -> None:
    rows = np.zeros((2, 3, 8, 8))
    rows[:, 0] = 1
    found = as_pictures({"x": rows})
    assert found is not None
    assert np.array_equal(found[0, 0, 0], [1, 0, 0])
