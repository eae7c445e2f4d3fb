"""Image files: read as Pillow reads them, or refused; nothing in between."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dropserve.errors import MissingExtraError
from dropserve.images import ImageError, PixelBudget, kind_of, read_image, require_pillow
from dropserve.manifest import ImageRecord

RECORD = ImageRecord(height=6, width=5, colour="rgb")
NOISE = np.random.default_rng(0).integers(0, 256, (12, 9, 3), np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PHOTO = Image.fromarray(NOISE)
FILES = {"PNG": encode(PHOTO), "JPEG": encode(PHOTO, "JPEG")}


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_pillows(kind: str) -> None:
    with Image.open(io.BytesIO(FILES[kind])) as image:
        small = np.asarray(image.convert("RGB").resize((5, 6), Image.Resampling.BILINEAR))
    found = read_image(FILES[kind], RECORD)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, small.transpose(2, 0, 1))
    assert kind_of(FILES[kind]) == kind


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_becomes_grey_or_colour(mode: str) -> None:
    image = PHOTO.convert(mode)
    file = encode(
        image, "JPEG" if mode == "CMYK" else "PNG", **({"transparency": b"\0\7"} if mode == "P" else {})
    )
    for colour, letters in (("grey", "L"), ("rgb", "RGB")):
        whole = ImageRecord(height=12, width=9, colour=colour)  # type: ignore[arg-type]  # one of its two
        found = read_image(file, whole)
        assert found.shape == (len(letters), 12, 9)
        with Image.open(io.BytesIO(file)) as read:
            via = read.convert("RGBA") if mode == "P" else read
            expected = np.asarray(via.convert(letters), np.float32)
        np.testing.assert_array_equal(
            found, expected[None] if colour == "grey" else expected.transpose(2, 0, 1)
        )


@given(st.sampled_from(sorted(FILES)), st.integers(0, 3000))
def test_cut_anywhere_it_is_refused_or_whole(kind: str, length: int) -> None:
    """A file whose last pixel has come may be read; never are pixels invented for missing bytes."""
    try:
        found = read_image(FILES[kind][:length], RECORD)
    except ImageError:
        return
    np.testing.assert_array_equal(found, read_image(FILES[kind], RECORD))


@given(
    st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1)
)
def test_damaged_it_is_refused_or_read_in_the_right_shape(kind: str, edits: list[tuple[int, int]]) -> None:
    content = bytearray(FILES[kind])
    for place, value in edits:
        content[place % len(content)] = value
    try:
        found = read_image(bytes(content), RECORD, budget=PixelBudget(10_000))
    except ImageError:
        return
    assert found.shape == (3, 6, 5)
    assert found.min() >= 0
    assert found.max() <= 255


def test_the_preview_of_a_photograph_is_no_animation() -> None:
    turned = PHOTO.rotate(90)
    phone = encode(PHOTO, "MPO", save_all=True, append_images=[turned])
    np.testing.assert_array_equal(read_image(phone, RECORD), read_image(FILES["JPEG"], RECORD))
    animated = encode(PHOTO, save_all=True, append_images=[turned])
    with pytest.raises(ImageError, match=r"is animated or has several pages \(2\)"):
        read_image(animated, RECORD)


def bomb(width: int, height: int) -> bytes:
    """A PNG of one colour, and of few bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width // 8 + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_what_is_too_large_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    file = bomb(8000, 8000)
    assert len(file) < 20_000
    with pytest.raises(ImageError, match="is too large: 8000 x 8000 pixels") as caught:
        read_image(file, RECORD, budget=PixelBudget(10_000_000))
    assert caught.value.reason == "too_large"
    with pytest.raises(ImageError, match="has too many pixels"):
        read_image(bomb(20_000, 20_000), RECORD)  # by Pillow's own bound


def test_a_budget_is_shared_and_counts_what_images_become() -> None:
    budget = PixelBudget(30 + 12 * 9)
    read_image(encode(PHOTO.resize((1, 1))), RECORD, budget=budget)
    assert budget.left == 12 * 9, "one pixel became 30"
    read_image(FILES["PNG"], RECORD, budget=budget)
    with pytest.raises(ImageError, match="expected at most 0, all images of a request together"):
        read_image(FILES["PNG"], RECORD, budget=budget)


def test_only_the_formats_asked_for_are_read() -> None:
    gif = encode(PHOTO, "GIF")
    assert kind_of(gif) is None
    with pytest.raises(ImageError, match="of no known format"):
        read_image(gif, RECORD)
    assert read_image(gif, RECORD, formats=("PNG", "GIF")).shape == (3, 6, 5)
    with pytest.raises(ImageError, match="mode I;16; convert it to 8 bits"):
        read_image(encode(Image.new("I;16", (3, 3))), RECORD)


def test_without_pillow_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dropserve\[serve\]'"):
        require_pillow("serve")
