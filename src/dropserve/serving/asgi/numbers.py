"""JSON schemas of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np


def floating(dtype: str) -> dict[str, Any]:
    """What a floating-point dtype can hold: what is rounded to infinity is refused.

    That begins half a step beyond the greatest number, not at it.
    """
    limits = np.finfo(dtype)
    with np.errstate(over="ignore"):
        most = float(limits.max) + 2.0 ** (int(limits.maxexp) - int(limits.nmant) - 2)
    if not np.isfinite(most):
        return {"type": "number"}  # of a double, JSON itself can say no more
    return {"type": "number", "exclusiveMinimum": -most, "exclusiveMaximum": most}
