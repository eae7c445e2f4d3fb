"""Dropout masks that are a function of (seed, site, scheme, sample), and if balanced of the block size.

A counter-based generator (Philox 4x64-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) is keyed by the seed and by a hash of the site's *name*, and its counter starts at the block. So a
mask is the same on every host, and asking for more samples keeps the earlier ones. The other sites of the
model never change an ``iid`` mask. They change a ``balanced`` one only by way of the block size b, which all
sites share: it is 10 where 10(1 - p) is whole for every rate, and may grow to 20 for rates such as 0.25
(:func:`common_block`). Only raw 64-bit words are taken from numpy and all decisions are made in integers:
numpy promises the words of a bit generator, but not what its distributions make of them.

Two schemes. ``iid`` keeps each unit with probability 1 - p, independently. ``balanced`` draws samples in
blocks of b, in which each unit is kept exactly floor or ceil of b(1 - p) times; which times is drawn anew
for each unit. A single balanced mask is an iid mask; the masks of one block repel each other.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dropserve.dropout.cache import ByteCache
from dropserve.errors import UsageError
from dropserve.signature import Site

SCHEMES = ("balanced", "iid")
BLOCK = 10
LARGEST_BLOCK = 20
SEED_LIMIT = 2**53  # JSON numbers are exact below it
DRAW_LIMIT = 2**26  # mask elements of one draw: 256 MiB of float32

_WORD = 2**32
# The value that alpha dropout puts in place of a dropped unit: minus scale * alpha of SELU.
ALPHA = -1.7580993408473766
STREAM = {"balanced": 0, "iid": 1}

_cache: ByteCache[list[NDArray[np.float32]]] = ByteCache(2**27)


def block_size(p: float) -> int:
    """Samples in a balanced block for one rate: the least b in 10..20 with b(1 - p) whole, else 10."""
    return common_block([p])


def common_block(rates: Sequence[float]) -> int:
    """The block size that sites with these rates share.

    Blocks must begin and end together, or means over a block would not be independent of each other and
    the standard error taken from them would be wrong. The least b in 10..20 with b(1 - p) whole for every
    rate; 10 if there is none.
    """
    for size in range(BLOCK, LARGEST_BLOCK + 1):
        if all(abs(size * (1 - p) - round(size * (1 - p))) < 1e-9 for p in rates):
            return size
    return BLOCK


def site_rates(sites: Sequence[Site], rate: float | None = None) -> list[float]:
    """The rate that each site runs at: its own, or the override.

    Raises:
        UsageError: if the override is not in [0, 1).
    """
    if rate is None:
        return [site.p for site in sites]
    if not 0 <= rate < 1:
        raise UsageError(f"dropout rate {rate!r}: expected a number from 0 up to, but not including, 1")
    return [rate] * len(sites)


def draw(
    sites: Sequence[Site], samples: int, *, seed: int, scheme: str = "balanced", rate: float | None = None
) -> dict[str, NDArray[np.float32]]:
    """Masks for all sites, ready for the graph.

    Args:
        sites: the sites of one model.
        samples: T, how many masks of each.
        seed: 0 <= seed < 2**53.
        scheme: ``balanced`` or ``iid``.
        rate: overrides the rate of every site.

    Returns:
        For the name of each graph input (``site.scale``, and ``site.shift`` where there is one) an array
        [samples, *shape], variable axes at their maximum. The arrays are shared and read-only.

    Raises:
        UsageError: for a seed, count, scheme or rate out of range, or a draw above ``DRAW_LIMIT``.
    """
    _check(sites, samples, seed, scheme)
    rates = site_rates(sites, rate)
    block = common_block(rates) if scheme == "balanced" else BLOCK
    masks: dict[str, NDArray[np.float32]] = {}
    for site, p in zip(sites, rates, strict=True):
        shape = tuple(axis if isinstance(axis, int) else axis.maximum for axis in site.shape)
        for name, values in _site_arrays(site, p, samples, seed, scheme, block).items():
            masks[name] = values[:samples].reshape(samples, *shape)
    return masks


def keep_masks(
    name: str, units: int, p: float, samples: int, *, seed: int, scheme: str, block: int = BLOCK
) -> NDArray[np.bool_]:
    """Which units each sample keeps, [samples, units]: the draw itself, without cache or scaling.

    ``block`` is that of :func:`common_block` for ``balanced``, and ``BLOCK`` for ``iid``, as :func:`draw` has
    it: the draws of an ``iid`` mask are independent, but which word decides which unit follows the block.
    """
    blocks = _blocks(name, units, p, seed, scheme, block, 0, -(-samples // block))
    return np.concatenate([*blocks, np.empty((0, units), np.bool_)])[:samples]


def _check(sites: Sequence[Site], samples: int, seed: int, scheme: str) -> None:
    if scheme not in SCHEMES:
        raise UsageError(f"mask scheme {scheme!r}: expected one of {', '.join(SCHEMES)}")
    if not 0 <= seed < SEED_LIMIT:
        raise UsageError(f"seed {seed!r}: expected a whole number from 0 to 2**53 - 1")
    if samples < 1:
        raise UsageError(f"samples {samples!r}: expected at least 1")
    elements = samples * sum(site.units for site in sites)
    if elements > DRAW_LIMIT:
        most = DRAW_LIMIT // max(1, elements // samples)
        raise UsageError(
            f"{samples} samples of {elements // samples} mask units are {elements} numbers, more than "
            f"{DRAW_LIMIT}. This model allows at most {most} samples at once: ask for fewer."
        )


def _site_arrays(
    site: Site, p: float, samples: int, seed: int, scheme: str, block: int
) -> dict[str, NDArray[np.float32]]:
    """Scale and shift of one site, [whole blocks of samples, units]; drawn blocks are never redrawn."""
    wanted = -(-samples // block)
    names = [site.scale] if site.shift is None else [site.scale, site.shift]
    key = (site.name, site.kind, site.units, p, seed, scheme, block)
    held = _cache.get(key)
    done = 0 if held is None else held[0].shape[0] // block
    if held is None or done < wanted:
        keep = np.concatenate([*_blocks(site.name, site.units, p, seed, scheme, block, done, wanted)])
        fresh = _values(keep, p, alpha=site.shift is not None)
        held = fresh if held is None else [np.concatenate(pair) for pair in zip(held, fresh, strict=True)]
        for array in held:
            array.flags.writeable = False
        _cache.put(key, held, sum(array.nbytes for array in held))
    return dict(zip(names, held, strict=True))


def _values(keep: NDArray[np.bool_], p: float, *, alpha: bool) -> list[NDArray[np.float32]]:
    if not alpha:
        return [keep * np.float32(1 / (1 - p))]
    # Klambauer et al., "Self-normalizing neural networks", 2017: mean and variance are kept.
    a = 1 / math.sqrt((1 - p) * (1 + p * ALPHA**2))
    b = -a * p * ALPHA
    return [keep * np.float32(a), np.where(keep, np.float32(b), np.float32(a * ALPHA + b))]


def _blocks(
    name: str, units: int, p: float, seed: int, scheme: str, block: int, first: int, last: int
) -> Iterator[NDArray[np.bool_]]:
    """Blocks ``first`` to ``last`` (excluded) of a site, each [block, units]."""
    site_key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    for index in range(first, last):
        # The counter's low half counts draws; its high half holds what keys the stream.
        counter = np.array([0, 0, STREAM[scheme], index], dtype=np.uint64)
        philox = np.random.Philox(key=np.array([seed, site_key], dtype=np.uint64), counter=counter)
        if scheme == "iid":
            yield _words(philox, block, units) >= np.uint64(round(p * _WORD))
        else:
            yield _balanced(philox, units, p, block)


def _words(philox: np.random.Philox, rows: int, units: int) -> NDArray[np.uint64]:
    """Uniform integers below 2**32, [rows, units]; two from each 64-bit word, low half first."""
    count = rows * units
    raw = philox.random_raw(-(-count // 2))
    words = np.empty((raw.size, 2), np.uint64)
    words[:, 0] = raw & np.uint64(_WORD - 1)
    words[:, 1] = raw >> np.uint64(32)
    return words.reshape(-1)[:count].reshape(rows, units)


def _balanced(philox: np.random.Philox, units: int, p: float, block: int) -> NDArray[np.bool_]:
    """One block: a uniform choice, for each unit, of the samples that keep it.

    Selection sampling (Knuth, TAOCP 2, algorithm S): a sample is chosen with probability (still to be
    kept) / (still to be seen), which makes every subset of the right size equally likely.
    """
    words = _words(philox, block + 1, units)
    whole, part = divmod(block * (1 - p) + 1e-9, 1)
    part = max(0.0, part - 1e-9)
    left = np.uint64(whole) + (words[block] < np.uint64(round(part * _WORD)))
    keep = np.empty((block, units), np.bool_)
    for row in range(block):
        unseen = np.uint64(block - row)
        np.less((words[row] * unseen) >> np.uint64(32), left, out=keep[row])
        left -= keep[row]
    return keep
