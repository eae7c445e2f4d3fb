"""Means over seeds of the benchmark, on a terminal and as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table as Grid

from dropserve.training.ood.bench import SAMPLES, SeedResult, Setup

_CLEAN = (
    "No test image of either folder was used to choose anything: settings and epochs are fixed beforehand."
)


def grid(found: Sequence[SeedResult]) -> Grid:
    """Accuracy and calibration on the usual images, and the AUROC of each score."""
    table = Grid("figure", "dropout off", f"mean of {SAMPLES} samples")
    for name in found[0].plain:
        plain, sampled = (_mean([getattr(each, way)[name] for each in found]) for way in ("plain", "sampled"))
        table.add_row(name, plain, sampled)
    for name in (name for name in found[0].auroc if not name.startswith("plain_")):
        known = f"plain_{name}" in found[0].auroc
        plain = _mean([each.auroc[f"plain_{name}"] for each in found]) if known else "none"
        table.add_row(
            f"AUROC by {name.replace('_', ' ')}", plain, _mean([each.auroc[name] for each in found])
        )
    return table


def sentence(found: Sequence[SeedResult], usual: str, strange: str, rows: int | None) -> str:
    """How many nets, how long, and what was not done."""
    minutes = sum(each.seconds for each in found) / 60
    subset = "" if rows is None else f" SUBSET: the first {rows} training images."
    return (
        f"{usual} against {strange}: {len(found)} nets, {minutes:.1f} minutes in all; ± is the standard "
        f"error over nets.{subset} {_CLEAN}"
    )


def record(found: Sequence[SeedResult], setup: Setup, usual: str, strange: str) -> dict[str, Any]:
    """All of it as JSON."""
    return {
        "usual": usual,
        "strange": strange,
        "setup": asdict(setup),
        "statement": _CLEAN,
        "mean": {
            way: {name: float(np.mean([getattr(each, way)[name] for each in found])) for name in first}
            for way, first in (
                ("plain", found[0].plain),
                ("sampled", found[0].sampled),
                ("auroc", found[0].auroc),
            )
        },
        "nets": [asdict(each) for each in found],
    }


def _mean(values: Sequence[float]) -> str:
    array = np.asarray(values)
    error = f" ± {array.std(ddof=1) / math.sqrt(len(array)):.4f}" if len(array) > 1 else ""
    return f"{array.mean():.4f}{error}"
