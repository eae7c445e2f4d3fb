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
    with pytest.raises(ImageError, match="has 16 bits a channel; expected 8"):
        read_image(encode(Image.new("I;16", (3, 3))), RECORD)


WHITE, OCHRE = (255, 255, 255), (200, 120, 30)
ALPHA = np.random.default_rng(1).integers(0, 256, (12, 9), np.uint8)
ALPHA[:3] = 0
ALPHA[3:6] = 255


def png(depth: int, colour: int, line: bytes, transparent: bytes = b"", *, width: int = 4) -> bytes:
    """A PNG of one line, by the specification (ISO/IEC 15948)."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    palette = chunk(b"PLTE", bytes((9, 9, 9, 50, 60, 70, 255, 0, 0, 0, 0, 255))) if colour == 3 else b""
    alpha = chunk(b"tRNS", transparent) if transparent else b""
    body = chunk(b"IDAT", zlib.compress(b"\0" + line)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + alpha + body


@pytest.mark.parametrize("ground", [WHITE, OCHRE])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_the_ground_by_their_alpha(
    mode: str, kind: str, ground: tuple[int, int, int]
) -> None:
    image = PHOTO.convert(mode[:-1])
    pixels = np.asarray(image.convert("RGB"), np.float64)
    image.putalpha(Image.fromarray(ALPHA))
    file = encode(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    record = ImageRecord(height=12, width=9, colour="rgb", background=ground)
    found = read_image(file, record, formats=("PNG", "WEBP", "TIFF"))
    share = ALPHA[..., None] / 255
    expected = share * pixels + (1 - share) * np.array(ground)
    assert np.abs(found.transpose(1, 2, 0) - expected).max() <= 1
    dropped = read_image(file, ImageRecord(height=12, width=9, colour="rgb"), formats=(kind,))
    np.testing.assert_array_equal(dropped.transpose(1, 2, 0), pixels, "as old versions were trained")


def test_it_is_laid_on_the_ground_before_it_is_resized() -> None:
    """What is transparent has a colour too, here green, which must not bleed into its neighbours."""
    image = Image.new("RGBA", (8, 8), (0, 255, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    found = read_image(encode(image), ImageRecord(height=3, width=3, colour="rgb", background=WHITE))
    np.testing.assert_array_equal(found[0], found[1])
    grey = read_image(encode(image), ImageRecord(height=3, width=3, colour="grey", background=WHITE))
    np.testing.assert_array_equal(grey[0], found[0])


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (png(1, 0, b"\x50", b"\0\1"), [0, "T", 0, "T"]),
        (png(1, 0, b"\x50", b"\0\0"), ["T", 255, "T", 255]),
        (png(2, 0, b"\x1b", b"\0\2"), [0, 85, "T", 255]),
        (png(4, 0, b"\x0f\x3a", b"\0\3"), [0, 255, "T", 170]),
        (png(8, 0, b"\0\7\x08\xff", b"\0\7"), [0, "T", 8, 255]),
        (png(8, 2, bytes(range(12)), b"\0\3\0\4\0\5"), [(0, 1, 2), "T", (6, 7, 8), (9, 10, 11)]),
        (png(2, 3, b"\x1b", b"\xff\0"), [9, "T", (255, 0, 0), (0, 0, 255)]),
        (png(8, 3, b"\3\2\1\0"), [(0, 0, 255), (255, 0, 0), (50, 60, 70), 9]),
    ],
    ids=["1-bit white", "1-bit black", "2-bit", "4-bit", "8-bit", "colour", "palette", "opaque palette"],
)
def test_a_transparent_colour_is_the_ground(file: bytes, expected: list[Any]) -> None:
    record = ImageRecord(height=1, width=4, colour="rgb", background=OCHRE)
    colours = [OCHRE if value == "T" else value for value in expected]
    rows = [(value,) * 3 if isinstance(value, int) else value for value in colours]
    np.testing.assert_array_equal(read_image(file, record)[:, 0].T, rows)


def test_a_gif_with_a_transparent_colour_is_laid_on_the_ground() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    file = encode(image, "GIF", transparency=1)
    record = ImageRecord(height=1, width=3, colour="rgb", background=OCHRE)
    found = read_image(file, record, formats=("GIF",))
    np.testing.assert_array_equal(found[:, 0].T, [(10, 20, 30), OCHRE, (70, 80, 90)])


def test_it_is_turned_with_its_alpha() -> None:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    record = ImageRecord(height=4, width=2, colour="grey", background=WHITE)
    found = read_image(encode(image, exif=exif), record)
    assert np.argwhere(found[0] == 0).tolist() == [[0, 1]]


@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_a_png_of_16_bits_a_channel_is_refused(colour: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    with pytest.raises(ImageError, match="has 16 bits a channel; expected 8"):
        read_image(png(16, colour, b"\x80\1" * 4 * channels), RECORD)


def test_a_tiff_of_16_bits_a_channel_is_refused() -> None:
    for mode in ("I;16", "F"):
        with pytest.raises(ImageError, match=r"has (16|32) bits a channel; expected 8"):
            read_image(encode(Image.new(mode, (3, 3)), "TIFF"), RECORD, formats=("TIFF",))


def test_without_pillow_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dropserve\[serve\]'"):
        require_pillow("serve")
