"""Monte Carlo dropout over any runtime: numpy dictionaries in, samples out.

A masked program has no notion of T: Monte Carlo is N = T x B rows, sample-major. The trunk (what no mask
reaches) runs once on the B rows; its outputs are tiled, and the head runs on chunks of bounded size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dropserve.dropout.cache import ByteCache
from dropserve.dropout.feeding import assembled, axis_lengths, repeat, row_count, tile
from dropserve.dropout.held import Array, Arrays, Held, Program
from dropserve.dropout.masks import SCHEMES, SEED_LIMIT, common_block, draw, site_rates
from dropserve.dropout.rows import (
    ALONE,
    QUANTUM,
    Steady,
    run_padded,
    side_by_side,
    whole,
)
from dropserve.errors import UsageError
from dropserve.signature import Axis, Site, TensorSpec

CHUNK_ELEMENTS = 2**19  # 2 MiB of float32: what is fed stays in the cache of a core
_KEPT_ELEMENTS = 2**22  # of the last masks, kept ready beside the cache of draws
_HELD_BYTES = 2**25  # of calls whose masks are laid out; a batch of another size is another call


@dataclass(frozen=True)
class Settings:
    """How one request is sampled.

    Attributes:
        samples: T, at least 2 (one sample has no spread).
        seed: 0 <= seed < 2**53; the same seed gives the same masks everywhere.
        scheme: ``balanced`` or ``iid``.
        rate: dropout rate in place of every site's own; None keeps them.
    """

    samples: int = 50
    seed: int = 0
    scheme: str = "balanced"
    rate: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range.

        Raises:
            UsageError: naming the setting, what came and what is allowed.
        """
        if not _whole(self.samples) or self.samples < 2:
            raise UsageError(f"samples {self.samples!r}: expected a whole number of at least 2")
        if not _whole(self.seed) or not 0 <= self.seed < SEED_LIMIT:
            raise UsageError(f"seed {self.seed!r}: expected a whole number from 0 to 2**53 - 1")
        if self.scheme not in SCHEMES:
            raise UsageError(f"mask scheme {self.scheme!r}: expected one of {', '.join(SCHEMES)}")
        if self.rate is not None and not (_real(self.rate) and 0 <= self.rate < 1):
            raise UsageError(
                f"dropout rate {self.rate!r}: expected a number from 0 up to, but not including, 1"
            )


class Prepared(NamedTuple):
    """Rows that the trunk has run on.

    Attributes:
        rows: B.
        fixed: what the head takes besides masks, [B, ...] by name.
        lengths: the length of each variable axis.
    """

    rows: int
    fixed: Mapping[str, Array]
    lengths: Mapping[str, int]

    def take(self, index: NDArray[np.intp]) -> Prepared:
        """Some of the rows, in the order of ``index``."""
        return Prepared(len(index), {name: a[index] for name, a in self.fixed.items()}, self.lengths)


class MonteCarlo:
    """Draws samples from a masked program.

    A row's samples depend on the row and the settings alone: all rows share the masks of the seed, and calls
    are shaped so that batch-mates do not change a bit (see ``rows.py``).

    Args:
        sites: the dropout sites, as the manifest lists them.
        head: maps names to arrays [N, ...]; takes masks and tiled tensors, gives the outputs.
        trunk: maps the inputs [B, ...] to the tensors [B, ...] that the head takes; None if the head takes
            the inputs themselves.
        head_inputs: names of the tensors that the head takes besides masks; all that there are if None.
        specs: the inputs' specs; needed only if a site has a variable axis.
        chunk_elements: bound on the numbers fed to the head in one call (float32: four bytes each), but for
            a least number of rows that always goes.
        workers: calls that run side by side. Programs compute on one thread each.
        steady: keep answers free of their batch-mates to the last bit; without it, to rounding only.
        least_quanta: of head and trunk, for ``steady``; see :class:`~dropserve.dropout.rows.Steady`.
    """

    def __init__(  # noqa: PLR0913  # each is a matter of its own
        self,
        sites: Sequence[Site],
        head: Program,
        trunk: Program | None = None,
        *,
        head_inputs: Collection[str] | None = None,
        specs: Sequence[TensorSpec] = (),
        chunk_elements: int = CHUNK_ELEMENTS,
        workers: int = 1,
        steady: bool = True,
        least_quanta: tuple[int, int] = (1, 1),
    ) -> None:
        self.sites = tuple(sites)
        self._head = head
        self._trunk = trunk
        self._head_inputs = None if head_inputs is None else tuple(dict.fromkeys(head_inputs))
        self._specs = tuple(specs)
        self._chunk_elements = chunk_elements
        self._workers = workers
        self._variable = any(isinstance(axis, Axis) for site in self.sites for axis in site.shape)
        self._last_masks: tuple[object, dict[str, NDArray[np.float32]]] = None, {}
        self._held: ByteCache[Held] = ByteCache(_HELD_BYTES)
        self._last: object = None
        self._steady_head = Steady(head, least=least_quanta[0]) if steady else None
        self._steady_trunk = trunk
        if steady and trunk is not None:
            self._steady_trunk = Steady(trunk, workers=workers, least=least_quanta[1])

    def block(self, settings: Settings) -> int:
        """The block size that the statistics of such samples need."""
        return common_block(site_rates(self.sites, settings.rate))

    def samples(self, inputs: Arrays, settings: Settings) -> dict[str, Array]:
        """Run T samples of B rows.

        Args:
            inputs: for each input's name, [B, ...].
            settings: how many, of which masks.

        Returns:
            For each output's name, [T, B, ...].

        Raises:
            UsageError: if the rows of the inputs differ in number, there are none, or the masks needed
                exceed the bound of one draw.
        """
        return self.continue_samples(self.prepare(inputs), settings)

    def prepare(self, inputs: Arrays) -> Prepared:
        """Run the trunk: what all samples of these rows share, whatever their settings.

        Raises:
            UsageError: if the rows of the inputs differ in number, or there are none.
        """
        rows = row_count(inputs)
        lengths = axis_lengths(inputs, self._specs) if self._variable else {}
        found: Arrays = {} if self._steady_trunk is None else self._steady_trunk(dict(inputs))
        names = self._head_inputs if self._head_inputs is not None else inputs.keys() | found.keys()
        fixed = {name: found[name] if name in found else inputs[name] for name in names}
        return Prepared(rows, fixed, lengths)

    def continue_samples(self, prepared: Prepared, settings: Settings, first: int = 0) -> dict[str, Array]:
        """Run the samples from ``first`` up to T, where those before are there already.

        Args:
            prepared: B rows, as :meth:`prepare` gave them, or some of them.
            settings: T, and which masks.
            first: the first sample to run, below T.

        Returns:
            For each output's name, [T - first, B, ...].

        Raises:
            UsageError: if the masks needed exceed the bound of one draw.
        """
        rows, fixed, count = prepared.rows, prepared.fixed, settings.samples - first
        key = settings, first, rows, tuple(prepared.lengths.items())
        held = self._held.get(key)
        if held is not None and (found := held(fixed)) is not None:
            return found
        masks = {name: mask[first:] for name, mask in self._masks(prepared.lengths, settings).items()}
        quantum = 1 if self._steady_head is None else self._steady_head.quantum({**fixed, **masks})

        def feed(some: slice, these: slice) -> dict[str, Array]:
            fed = {name: tile(array[these], some.stop - some.start) for name, array in fixed.items()}
            width = these.stop - these.start
            return fed | {name: repeat(array[some], width) for name, array in masks.items()}

        def run(chunk: tuple[slice, slice]) -> tuple[slice, slice, dict[str, Array]]:
            return *chunk, run_padded(self._head, feed(*chunk), max(1, quantum))

        chunks = list(self._chunks(rows, count, {**fixed, **masks}, quantum))
        parts = side_by_side(run, chunks, self._workers)
        if len(chunks) == 1:
            if key == self._last:  # asked for twice in a row: likely again
                fed = whole(feed(*chunks[0]), max(1, quantum))
                held = Held(self._head, fed, self._head(fed), fixed, (count, rows))
                self._held.put(key, held, held.nbytes)
            self._last = key
        return {name: assembled(name, parts, count, rows) for name in parts[0][2]}

    def _masks(self, lengths: Mapping[str, int], settings: Settings) -> dict[str, NDArray[np.float32]]:
        key, masks = self._last_masks
        if key != (settings, lengths):
            masks = self._drawn(settings, lengths)
            if sum(mask.size for mask in masks.values()) <= _KEPT_ELEMENTS:
                self._last_masks = (settings, lengths), masks  # one assignment: threads see old or new
        return masks

    def _drawn(self, settings: Settings, lengths: Mapping[str, int]) -> dict[str, NDArray[np.float32]]:
        s = settings
        masks = draw(self.sites, s.samples, seed=s.seed, scheme=s.scheme, rate=s.rate)
        for site in self.sites if lengths else ():
            cut = tuple(slice(lengths[a.name] if isinstance(a, Axis) else a) for a in site.shape)
            for name in (site.scale, site.shift):
                if name is not None:
                    masks[name] = np.ascontiguousarray(masks[name][:, *cut])
        return masks

    def _chunks(self, rows: int, samples: int, fed: Arrays, quantum: int) -> Iterator[tuple[slice, slice]]:
        """Slices (samples, rows) that cover all, each within the bound of one call."""
        per_row = sum(array[:1].size for array in fed.values())
        most = max(QUANTUM, self._chunk_elements // max(1, per_row))
        # All samples of one row are one call if rows must not meet: a sample's place in it is its own.
        wide = 1 if quantum == ALONE else min(rows, most, max(QUANTUM, -(-rows // self._workers)))
        for row in range(0, rows, wide):
            these = slice(row, min(row + wide, rows))
            deep = max(1, most // (these.stop - these.start))
            for sample in range(0, samples, deep):
                yield slice(sample, min(sample + deep, samples)), these


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, int | float | np.floating) and not isinstance(value, bool)
