"""From the bytes of an image file to the numbers of a row: one way, for training and for serving.

Training reads folders of images by it, and a server the images that requests bring; the manifest carries
what both must agree on (:class:`~dropserve.manifest.ImageRecord`). Needs Pillow, imported late.
"""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropserve.errors import MissingExtraError
from dropserve.manifest import ImageRecord

PHOTOGRAPHS = ("PNG", "JPEG")
"""What a server reads: no more decoders than needed stand open to whoever may ask."""
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}


class ImageError(ValueError):
    """The bytes are no image that can be used.

    The message goes on from the name of the image: "is animated". ``reason`` is a short word for metrics.
    """

    def __init__(self, message: str, *, reason: str = "image") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class PixelBudget:
    """How many pixels may still be decoded: a small file can hold a huge image."""

    left: int

    def take(self, width: int, height: int, *, least: int) -> None:
        """Account for an image, or for the ``least`` pixels that it will have.

        Raises:
            ImageError: if that is too much.
        """
        pixels = max(width * height, least)
        if pixels > self.left:
            raise ImageError(
                f"is too large: {width} x {height} pixels, resized to {least}; expected at most {self.left}, "
                "all images of a request together",
                reason="too_large",
            )
        self.left -= pixels


def kind_of(content: bytes) -> str | None:
    """``PNG`` or ``JPEG`` by the first bytes; None for anything else."""
    for start, kind in _SIGNATURES.items():
        if content.startswith(start):
            return kind
    return None


def require_pillow(extra: str) -> None:
    """Find out early whether Pillow is there.

    Args:
        extra: of dropserve, which installs it.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import PIL.Image  # noqa: PLC0415  # few models need it
    except ImportError as error:
        raise MissingExtraError("pillow", extra) from error
    PIL.Image.preinit()  # its decoders of PNG and JPEG: not in the middle of the first request


def read_image(
    content: bytes,
    record: ImageRecord,
    *,
    formats: tuple[str, ...] = PHOTOGRAPHS,
    budget: PixelBudget | None = None,
) -> NDArray[np.float32]:
    """Turn an image as its camera says, lay it on the ground, make it grey or RGB, and resize it.

    Transparent pixels show the ground by their alpha ("over", Porter and Duff 1984), before anything is
    resized, so that the colour beneath what is transparent never shows. Colour profiles (ICC) are ignored.

    Args:
        content: a file's bytes.
        record: size, colour and ground.
        formats: what may be decoded, in Pillow's words.
        budget: asked before any pixel is decoded; Pillow's own bound by default.

    Returns:
        ``[channels, height, width]``, 0 to 255.

    Raises:
        ImageError: if it is no such image, cut off, animated, too large, or has more than 8 bits a channel.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415  # see require_pillow

    with _refusing(), Image.open(io.BytesIO(content), formats=formats) as image:
        bits = _bits(image, content)
        _check(image, bits)
        if budget is not None:
            budget.take(*image.size, least=record.width * record.height)
        image.load()
        upright: Any = ImageOps.exif_transpose(image)
        if record.background is not None and upright.has_transparency_data:
            upright = _over(upright, record.background, bits)
        elif "transparency" in upright.info and upright.mode == "P":
            upright = upright.convert("RGBA")  # Pillow warns of going straight
        channels = upright.convert("RGB" if record.colour == "rgb" else "L")
        resized = channels.resize((record.width, record.height), Image.Resampling.BILINEAR)
        array = np.asarray(resized, np.float32)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def _over(image: Any, background: tuple[int, int, int], bits: int) -> Any:
    """An image with alpha or a transparent colour, over a ground of one colour; RGBA, all of it opaque."""
    from PIL import Image  # noqa: PLC0415  # see require_pillow

    if image.mode == "L" and 1 < bits < 8 and "transparency" in image.info:
        # A PNG tells it in its own bits. Pillow scales the pixels to 8 bits, but not this.
        image.info["transparency"] *= 255 // (2**bits - 1)
    ground = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(ground, image.convert("RGBA"))


def _bits(image: Any, content: bytes) -> int:
    """Bits a channel, as the file says: Pillow takes 16 for 8 without a word where there is colour."""
    if image.format == "PNG":
        return content[24]  # of IHDR, which comes first
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))  # BitsPerSample
    return 8


def _check(image: Any, bits: int) -> None:
    """What the head of the file tells, before anything is decoded."""
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a photograph and its preview
    if frames > 1:
        raise ImageError(f"is animated or has several pages ({frames}); expected one still image")
    if bits > 8 or image.mode.startswith(("I", "F")):
        raise ImageError(f"has {max(bits, 16)} bits a channel; expected 8. Convert it to 8 bits a channel")


@contextmanager
def _refusing() -> Generator[None]:
    """Whatever goes wrong in a decoder is the image's fault: its content is anybody's."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  # see require_pillow

    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"has too many pixels ({error})", reason="too_large") from error
    except UnidentifiedImageError as error:
        raise ImageError("cannot be read as an image (of no known format, or its head is damaged)") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, KeyError, ...
        raise ImageError(f"cannot be read as an image ({error})") from error
