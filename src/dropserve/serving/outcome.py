"""From what a graph gives to what an answer holds: float64, by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.statistics import (
    ClassificationStatistics,
    RegressionStatistics,
    classification,
    regression,
    softmax,
)
from dropserve.errors import RequestError
from dropserve.manifest import Task
from dropserve.serving.calibrated import Calibrator
from dropserve.serving.query import Array, Calibrated, Float

Statistics = ClassificationStatistics | RegressionStatistics


def plain_values(outputs: Mapping[str, Array], task: Task) -> dict[str, Float]:
    """Outputs [B, ...] of the deterministic graph: probabilities, or the numbers themselves."""
    if task == "classification":
        with np.errstate(invalid="ignore"):  # what is not finite is refused later, row by row
            return {name: softmax(array) for name, array in outputs.items()}
    return {name: array.astype(np.float64) for name, array in outputs.items()}


def monte_carlo_values(
    engine: MonteCarlo,
    inputs: Mapping[str, Array],
    settings: Settings,
    task: Task,
    calibrator: Calibrator,
) -> tuple[dict[str, Float], dict[str, Statistics], Calibrated | None]:
    """Means [B, ...] over samples, the statistics of each output, and what calibration adds to the one."""
    rows = len(next(iter(inputs.values())))
    # A reduction over samples of a lone number takes numpy's pairwise path and rounds otherwise than one
    # over several rows, so a lone row is given a companion.
    padded = inputs if rows > 1 else {name: np.concatenate([a, a]) for name, a in inputs.items()}
    block = engine.block(settings)
    values: dict[str, Float] = {}
    statistics: dict[str, Statistics] = {}
    calibrated: Calibrated | None = None
    for name, samples in engine.samples(padded, settings).items():
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused later
            found = _statistics(samples, settings.scheme, block, task)
        values[name] = found.mean[:rows].reshape(rows, *samples.shape[2:])
        statistics[name] = take_rows(found, slice(0, rows))
        if task != "raw" and (added := calibrator.apply(samples, found, padded, settings)) is not None:
            calibrated = added.take(slice(0, rows))
    return values, statistics, calibrated


def _statistics(samples: Array, scheme: str, block: int, task: Task) -> Statistics:
    if task == "classification":
        return classification(softmax(samples), scheme=scheme, block=block)
    return regression(samples.reshape(*samples.shape[:2], -1), scheme=scheme, block=block)


def take_rows(statistics: Statistics, rows: slice) -> Statistics:
    """The statistics of some of the rows."""
    arrays = {name: array[rows] for name, array in vars(statistics).items() if array is not None}
    return replace(statistics, **arrays)


def refuse_overflow(values: Mapping[str, Float]) -> None:
    """Never answer with NaN or Infinity.

    Raises:
        RequestError: naming the first row whose answer is not finite.
    """
    finite = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in values.values()]
    rows = np.logical_and.reduce(finite)
    if not rows.all():
        raise RequestError(
            f"instance {int(np.argmin(rows))}: the model's answer is not a finite number, so its values "
            "are too large. Compare their scale with that of the data the model was trained on.",
            reason="overflow",
        )
