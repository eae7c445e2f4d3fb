"""Folders of images, one folder for each class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dropserve.errors import DataError
from dropserve.images import ImageError, read_image, require_pillow
from dropserve.manifest import ImageRecord
from dropserve.training.array_table import array_table
from dropserve.training.recipe import ImagesData
from dropserve.training.table import OPEN, TEST, VALIDATION, FloatArray, Table

_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
_GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}
_PARTS = {"train": OPEN, "validation": VALIDATION, "val": VALIDATION, "test": TEST}


def read_images(data: ImagesData, folder: Path) -> Table:
    """Read every image as ``[channels, height, width]``, values 0 to 255.

    Args:
        data: the recipe's ``[data]``.
        folder: the recipe's, which ``data.folder`` is relative to.

    Raises:
        DataError: if there are no images, or one cannot be read; the message names it.
    """
    root = folder / data.folder
    found: list[tuple[Path, str, int]] = []  # file, class, part
    if data.parts == "folders":
        known = [path for path in _folders(root) if path.name in _PARTS]
        if "train" not in {path.name for path in known}:
            raise DataError(
                f"{root}: no folder train (data.parts is folders); expected train/CLASS/IMAGE, "
                "test/CLASS/IMAGE and perhaps validation/CLASS/IMAGE. Or set "
                'data.parts = "seeded" for CLASS/IMAGE'
            )
        for part in known:
            found += [(file, label, _PARTS[part.name]) for file, label in _classes(part)]
    else:
        found += [(file, label, OPEN) for file, label in _classes(root)]
    if not found:
        raise DataError(
            f"{root}: no images; expected a folder for each class, with files that end in "
            f"{', '.join(sorted(_ENDINGS))}"
        )
    require_pillow("train")
    record = image_record(data)
    pixels = np.empty((len(found), 3 if data.colour == "rgb" else 1, *data.size), np.float32)
    for place, (file, _, _) in enumerate(found):
        pixels[place] = _read(file, record)
    labels = [label for _, label, _ in found]
    parts = np.array([part for _, _, part in found], np.int8) if data.parts == "folders" else None
    table = array_table(str(root), pixels, np.array(labels), task="classification", shape=data.shape)
    return replace(table, parts=parts)


def image_record(data: ImagesData) -> ImageRecord:
    """What a server must know to read an image as it is read here."""
    height, width = data.size
    given = data.background
    red, green, blue = _GROUNDS[given] if isinstance(given, str) else given
    return ImageRecord(height=height, width=width, colour=data.colour, background=(red, green, blue))


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _classes(root: Path) -> list[tuple[Path, str]]:
    """Images and their classes, in the order of their names: the seed of the split counts on it."""
    return [
        (file, folder.name)
        for folder in _folders(root)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in _ENDINGS and not file.name.startswith(".")
    ]


def _read(file: Path, record: ImageRecord) -> FloatArray:
    try:
        return read_image(file.read_bytes(), record, formats=_FORMATS)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror or error}") from error
    except ImageError as error:
        raise DataError(f"{file}: {error}; replace it, or remove it") from error
