"""Inputs that are images, as PNG data URIs.

When is an input an image? Never by its name. A model with one input, whose rows (axes of length 1 left out)
are one of:

- [H, W, 3] or [3, H, W], H and W at least 8: in colour;
- [H, W], H and W at least 8, or a square number of values from 64 up taken row by row: in grey, if the
  values are *pixel-like*: none below 0, and either none above 1 or whole numbers up to 255 everywhere.
  A picture with a channel axis of length 1 needs no such values: scaled images are usual there.

Anything else is shown as numbers.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from .evidence import Array

LEAST = 8
MOST = 512  # pixels a side, beyond which a picture weighs more than it tells
Pixels = NDArray[np.float64]


def as_pictures(inputs: Mapping[str, Array]) -> Pixels | None:
    """Inputs [B, ...] as pictures [B, H, W] or [B, H, W, 3] in 0 to 1; None if they are not images."""
    if len(inputs) != 1:
        return None
    (raw,) = inputs.values()
    if raw.dtype.kind not in "fiu":
        return None
    values = raw.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low + high) or low == high:
        return None
    shaped = _shaped(values)
    return None if shaped is None else (shaped - low) / (high - low)


def _shaped(values: Pixels) -> Pixels | None:
    channel = values.ndim == 4 and 1 in values.shape[1:]
    rows = values.reshape(len(values), *(n for n in values.shape[1:] if n != 1))
    if rows.ndim == 4:
        if rows.shape[1] == 3 and rows.shape[3] != 3:
            rows = np.moveaxis(rows, 1, 3)
        return rows if rows.shape[3] == 3 and _sides(rows) else None
    if rows.ndim == 2:
        side = math.isqrt(rows.shape[1])
        if side * side != rows.shape[1]:
            return None
        rows = rows.reshape(-1, side, side)
    if rows.ndim != 3 or not _sides(rows):
        return None
    return rows if channel or _pixel_like(values) else None


def _sides(rows: Pixels) -> bool:
    return min(rows.shape[1:3]) >= LEAST and max(rows.shape[1:3]) <= MOST


def _pixel_like(values: Pixels) -> bool:
    if values.min() < 0:
        return False
    return bool(values.max() <= 1 or (values.max() <= 255 and (values == np.round(values)).all()))


def data_uri(picture: Pixels) -> str:
    """One picture [H, W] or [H, W, 3] in 0 to 1 as a PNG (ISO/IEC 15948) of 8 bits a channel."""
    pixels = np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    colour = 2 if pixels.ndim == 3 else 0
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(lines, 9)),
            _chunk(b"IEND", b""),
        )
    )
    return f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
