"""IDX files, the format of MNIST (its page: yann.lecun.com/exdb/mnist), from a folder or fetched once.

Two zero bytes, a type, the number of axes, each axis as a big-endian 32-bit number, then the values.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropserve.errors import DataError
from dropserve.store import hash_file
from dropserve.training.array_table import array_table
from dropserve.training.recipe import IdxData
from dropserve.training.table import OPEN, TEST, Table

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_SECONDS = 60  # without an answer


def read_idx(data: IdxData, folder: Path, *, task: str) -> Table:
    """Read images and labels; pixels keep their range, images become ``[1, height, width]``.

    Args:
        data: the recipe's ``[data]``.
        folder: the recipe's, which ``data.folder`` is relative to.
        task: ``classification`` reads the target as class names, ``regression`` as numbers.

    Raises:
        DataError: for what cannot be fetched, read or learned from.
    """
    pairs = [(data.features, data.target)]
    if data.test_features and data.test_target:
        pairs.append((data.test_features, data.test_target))
    read = [[read_file(_find(data, folder / data.folder, name)) for name in pair] for pair in pairs]
    shapes = [features.shape[1:] for features, _ in read]
    if len(set(shapes)) > 1:
        raise DataError(f"{folder / data.folder}: rows of {shapes[0]} and, for the test, of {shapes[1]}")
    for (features, target), names in zip(read, pairs, strict=True):
        if len(features) != len(target):
            raise DataError(
                f"{folder / data.folder}: {names[0]} holds {len(features)} rows, {names[1]} {len(target)}"
            )
    features, target = (np.concatenate([pair[at] for pair in read]) for at in (0, 1))
    if features.ndim == 3:
        features = features[:, None]
    table = array_table(str(folder / data.folder), features, target, task=task, shape=data.shape)
    if len(read) == 1:
        return table
    parts = np.repeat(np.array([OPEN, TEST], np.int8), [len(target) for _, target in read])
    return replace(table, parts=parts)


def _find(data: IdxData, folder: Path, name: str) -> Path:
    if data.url is not None:
        return fetch(f"{data.url.rstrip('/')}/{name}", data.sha256[name], folder / name)
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise DataError(f"{folder}: no file {name}, nor {name}.gz")
    expected = data.sha256.get(name)
    if expected and (found := hash_file(path).sha256) != expected:
        raise DataError(f"{path}: its SHA-256 is {found}; data.sha256 says {expected}")
    return path


def fetch(url: str, sha256: str, path: Path) -> Path:
    """Download a file unless it is there; its hash decides in either case.

    Raises:
        DataError: if it cannot be fetched or is not what was expected; nothing is left of it then.
    """
    import pooch  # noqa: PLC0415  # few recipes need it

    downloader: Any = pooch.HTTPDownloader(timeout=_SECONDS)  # its own type does not fit retrieve's
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        pooch.retrieve(
            url,
            known_hash=f"sha256:{sha256}",
            fname=path.name,
            path=path.parent,
            downloader=downloader,
        )
    except OSError as error:  # those of requests are among them
        if (response := getattr(error, "response", None)) is not None:
            response.close()  # pooch leaves it open
        raise DataError(f"{url}: cannot be fetched into {path.parent}: {error}") from error
    except ValueError as error:
        raise DataError(
            f"{url}: what came is not what data.sha256 expects for {path.name} ({sha256}); correct the "
            "recipe if the file was replaced on purpose"
        ) from error
    finally:
        logger.setLevel(level)
    return path


def read_file(path: Path) -> NDArray[Any]:
    """Read one IDX file, compressed by gzip or not.

    Raises:
        DataError: if it is no such file, or too short or too long.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    dtype = _TYPES.get(content[2]) if len(content) >= 4 and content[:2] == b"\0\0" else None
    if dtype is None or not content[3]:
        raise DataError(f"{path}: not an IDX file (it begins with {content[:4].hex(' ') or 'nothing'})")
    axes, begin = content[3], 4 + 4 * content[3]
    shape = struct.unpack(f">{axes}I", content[4:begin]) if len(content) >= begin else None
    size = None if shape is None else math.prod(shape) * np.dtype(dtype).itemsize
    if shape is None or size is None or begin + size != len(content):
        wanted = f"{axes} axes" if size is None else f"{begin + size} bytes, {list(shape or ())}"
        raise DataError(
            f"{path}: {len(content)} bytes, but its head announces {wanted}; it is cut off or damaged: "
            "fetch it again"
        )
    values = np.frombuffer(content, dtype, offset=begin).reshape(shape)
    return values.astype(values.dtype.newbyteorder("="))
