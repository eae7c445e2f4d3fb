"""Answers that do not depend on how many rows are computed together.

Matrix kernels choose by the number of rows, and kernels round differently. Filling each call up to whole
quanta of rows keeps every row on the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

QUANTUM = 8


def run_padded(
    program: Callable[[dict[str, Array]], Mapping[str, Array]], inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """Run a program on rows filled up to a whole quantum, and give back the rows asked for.

    Args:
        program: maps names to arrays whose axis 0 is the row; each output row depends on its own row alone.
        inputs: arrays [N, ...], N at least 1.

    Returns:
        For each output's name, [N, ...]; bit-equal for a row whatever the other rows are.
    """
    rows = len(next(iter(inputs.values())))
    missing = -rows % QUANTUM
    if not missing:
        return dict(program(dict(inputs)))
    # The last row again: a row of zeros might divide by zero.
    padded = {name: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for name, a in inputs.items()}
    return {name: array[:rows] for name, array in program(padded).items()}
