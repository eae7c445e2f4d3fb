"""Honest figures from rows that also calibrated.

A temperature judged on the rows that chose it looks better than it is. Here the rows are dealt into folds;
each is judged by a calibration made on the others. The version's own calibration uses all rows, so it is, if
anything, a little better than these figures say.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
LEAST = 20
"""Fewer rows than this are not worth a figure."""
Rows = NDArray[np.intp]


def folds(rows: int) -> Iterator[tuple[Rows, Rows]]:
    """Pairs of rows to calibrate on and rows to judge; each row is judged once. The same pairs every time."""
    order = np.random.default_rng(0).permutation(rows)
    for k in range(FOLDS):
        judged = np.zeros(rows, bool)
        judged[order[k::FOLDS]] = True
        yield np.flatnonzero(~judged), np.flatnonzero(judged)
