"""From what a graph gives to what an answer holds: float64, by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dropserve.dropout.engine import MonteCarlo, Prepared, Settings
from dropserve.dropout.statistics import (
    MINIMUM_BLOCKS,
    ClassificationStatistics,
    RegressionStatistics,
    classification,
    regression,
    softmax,
    standard_error,
)
from dropserve.errors import RequestError
from dropserve.manifest import Task, VersionManifest
from dropserve.serving.calibrated import Calibrator
from dropserve.serving.query import Array, Calibrated, Float
from dropserve.uncertainty.regression import split_head

_STEP = 5  # blocks run at once: rows that stop within them waste the rest, larger calls are faster
Statistics = ClassificationStatistics | RegressionStatistics


class Outcome(NamedTuple):
    """What the Monte Carlo graph says of B rows.

    Attributes:
        values: means over samples [B, ...] by output.
        statistics: by output.
        calibrated: what calibration adds; None if it does not apply.
        samples: how many each row took [B], where that may differ.
        noise: of a heteroscedastic regressor: standard deviations [B, 1] by output.
        finite: known to be so; otherwise nobody has looked.
    """

    values: Mapping[str, Float]
    statistics: Mapping[str, Statistics] = MappingProxyType({})
    calibrated: Calibrated | None = None
    samples: NDArray[np.int64] | None = None
    noise: Mapping[str, Float] = MappingProxyType({})
    finite: bool = False


def plain_outcome(outputs: Mapping[str, Array], manifest: VersionManifest) -> Outcome:
    """What the deterministic graph's outputs [B, ...] say: probabilities, or the numbers themselves."""
    classes = manifest.task == "classification"
    if not manifest.preprocessing.heteroscedastic and all(map(_surely_finite, outputs.values())):
        convert = softmax if classes else _exact
        return Outcome({name: convert(array) for name, array in outputs.items()}, finite=True)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused later, row by row
        if classes:
            return Outcome({name: softmax(array) for name, array in outputs.items()})
        if manifest.preprocessing.heteroscedastic:
            ((name, array),) = outputs.items()
            value, variance = (part[..., None] for part in split_head(array))
            return Outcome({name: value}, noise={name: np.sqrt(variance)})
    return Outcome({name: _exact(array) for name, array in outputs.items()})


def _exact(array: Array) -> Float:
    return array.astype(np.float64)


def _surely_finite(array: Array) -> bool:
    """Whether a sum of squares shows it, which takes a third of looking at each number."""
    flat = array.ravel()
    return array.dtype.kind == "f" and bool(flat.dot(flat) < np.inf)


def sampled(
    engine: MonteCarlo,
    prepared: Prepared,
    inputs: Mapping[str, Array],
    settings: Settings,
    manifest: VersionManifest,
    calibrator: Calibrator,
) -> Outcome:
    """The outcome of ``settings.samples`` samples of each row.

    Args:
        engine: draws the samples.
        prepared: B rows.
        inputs: the same rows, for the name of each input [B, ...].
        settings: how many, of which masks.
        manifest: of the version.
        calibrator: of the version.
    """
    rows, block, task = prepared.rows, engine.block(settings), manifest.task
    fed = {name: _with_companion(array, axis=0) for name, array in inputs.items()}
    values: dict[str, Float] = {}
    statistics: dict[str, Statistics] = {}
    calibrated: Calibrated | None = None
    noise: dict[str, Float] = {}
    for name, drawn in engine.continue_samples(prepared, settings).items():
        given = _with_companion(drawn, axis=1)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused later
            samples, variances = _parted(given, manifest)
            found = _statistics(samples, settings.scheme, block, task)
        values[name] = found.mean[:rows].reshape(rows, *samples.shape[2:])
        statistics[name] = found if given is drawn else take_rows(found, slice(0, rows))
        if variances is not None:
            noise[name] = _root_mean(variances)[:rows]
        if task != "raw":
            added = calibrator.apply(samples, found, fed, settings, variances)
            calibrated = added and added.take(slice(0, rows))
    finite = all(map(_surely_finite, (*values.values(), *noise.values())))
    return Outcome(values, statistics, calibrated, noise=noise, finite=finite)


def sampled_until(
    engine: MonteCarlo, prepared: Prepared, settings: Settings, manifest: VersionManifest, tolerance: float
) -> Outcome:
    """The outcome of as many samples as each row needs, up to ``settings.samples``.

    Args:
        engine: draws the samples.
        prepared: B rows.
        settings: the most samples, and which masks.
        manifest: of the version; it has one output.
        tolerance: a fraction of :func:`tolerance_unit`.
    """
    task, block = manifest.task, engine.block(settings)

    def numbers(given: Array) -> Float:
        samples, _ = _parted(given, manifest)
        flat = samples.reshape(*samples.shape[:2], -1)
        return softmax(flat) if task == "classification" else flat.astype(np.float64)

    with np.errstate(invalid="ignore", over="ignore"):
        limit = tolerance_unit(manifest) * tolerance
        samples, taken = _sample_until(engine, prepared, settings, numbers, limit)
        ((name, output),) = samples.items()
        parts: list[tuple[NDArray[np.intp], Statistics]] = []
        noise: dict[str, Float] = {}
        for count in np.unique(taken):
            index = np.flatnonzero(taken == count)
            twice = index if len(index) > 1 else np.repeat(index, 2)
            own, variances = _parted(output[:count, twice], manifest)
            found = _statistics(own, settings.scheme, block, task)
            parts.append((index, take_rows(found, slice(0, len(index)))))
            if variances is not None:
                found_noise = noise.setdefault(name, np.empty((prepared.rows, 1)))
                found_noise[index] = _root_mean(variances)[: len(index)]
    statistics = _scattered(parts, prepared.rows)
    shape = (1,) if noise else output.shape[2:]
    values = statistics.mean.reshape(prepared.rows, *shape)
    return Outcome({name: values}, {name: statistics}, None, taken, noise)


def _sample_until(
    engine: MonteCarlo,
    prepared: Prepared,
    settings: Settings,
    values: Callable[[Array], Float],
    tolerance: Float,
) -> tuple[dict[str, Array], NDArray[np.int64]]:
    """Run samples until each row's error is within the tolerance, or all of ``settings.samples`` are run.

    At the end of each block of samples, from the fifth on, a row stops whose standard error (from block
    means) is within the tolerance. Whether it stops depends on its own samples alone, so its answer does not
    depend on its batch-mates. With fewer than five block means the error is itself too uncertain to stop by.

    Args:
        engine: draws the samples.
        prepared: B rows.
        settings: the most samples, and which masks.
        values: from samples of the model's one output to the numbers whose means must be exact enough.
        tolerance: the greatest standard error of each of these numbers, [C].

    Returns:
        For each output's name [T, B, ...], where what is beyond a row's own number of samples is
        unspecified; and these numbers [B].
    """
    block = engine.block(settings)
    taken = np.full(prepared.rows, settings.samples, np.int64)
    active = np.arange(prepared.rows)
    samples: dict[str, Array] = {}
    done = 0
    while len(active) and done < settings.samples:
        until = min(settings.samples, done + _STEP * block)
        step = Settings(until, settings.seed, settings.scheme, settings.rate)
        for name, found in engine.continue_samples(prepared.take(active), step, done).items():
            if name not in samples:
                shape = (settings.samples, prepared.rows, *found.shape[2:])
                samples[name] = np.zeros(shape, found.dtype)
            samples[name][done:until, active] = found
        (output,) = samples.values()
        for boundary in range(done + block, until + 1, block):
            if boundary >= MINIMUM_BLOCKS * block and len(active):
                errors = _errors(values(output[:boundary, active]), settings.scheme, block)
                within = (errors <= tolerance).all(axis=-1)
                taken[active[within]] = boundary
                active = active[~within]
        done = until
    return samples, taken


def _errors(values: Float, scheme: str, block: int) -> Float:
    """Standard errors [B, C] of samples [T, B, C]."""
    errors = standard_error(_with_companion(values, axis=1), scheme=scheme, block=block)
    assert errors is not None  # noqa: S101  # there are MINIMUM_BLOCKS
    return errors[: values.shape[1]]


def tolerance_unit(manifest: VersionManifest) -> Float:
    """What a tolerance is a share of: 1 for probabilities, a target's standard deviation in training.

    Raises:
        RequestError: for a model of another task, or whose target has no known scale.
    """
    if manifest.task == "classification":
        return np.ones(1)
    target = manifest.preprocessing.target
    if manifest.task == "regression" and target is not None:
        return np.array(target.scale)
    raise RequestError(
        "mc_tolerance: nothing is known of the scale of this model's output; ask for mc_samples instead",
        reason="parameters",
    )


def _with_companion(array: Array, axis: int) -> Array:
    """At least two rows.

    A reduction over samples of a lone number takes numpy's pairwise path and rounds otherwise than one over
    several rows, so a lone row is given a companion.
    """
    return array if array.shape[axis] > 1 else np.repeat(array, 2, axis=axis)


def _parted(samples: Array, manifest: VersionManifest) -> tuple[Array, Float | None]:
    """Samples [T, B, ...], and what a heteroscedastic head says of the variance of their noise [T, B, 1]."""
    if not manifest.preprocessing.heteroscedastic:
        return samples, None
    values, variances = split_head(samples)
    return values[..., None], variances[..., None]


def _root_mean(variances: Float) -> Float:
    """Standard deviation [B, 1] of the noise of samples [T, B, 1], at least two rows."""
    return np.sqrt(np.ascontiguousarray(variances).sum(axis=0) / len(variances))


def _statistics(samples: Array, scheme: str, block: int, task: Task) -> Statistics:
    if task == "classification":
        return classification(softmax(samples), scheme=scheme, block=block)
    return regression(samples.reshape(*samples.shape[:2], -1), scheme=scheme, block=block)


def _scattered(parts: list[tuple[NDArray[np.intp], Statistics]], rows: int) -> Statistics:
    """One record of all rows from records of some; what one of them lacks, all lack."""
    first = parts[0][1]
    arrays: dict[str, Float] = {}
    missing: dict[str, None] = {}
    for name in vars(first):
        found = [getattr(statistics, name) for _, statistics in parts]
        if any(array is None for array in found):
            missing[name] = None
            continue
        arrays[name] = np.empty((rows, *found[0].shape[1:]))
        for (index, _), array in zip(parts, found, strict=True):
            arrays[name][index] = array
    return replace(first, **arrays, **missing)


def take_rows(statistics: Statistics, rows: slice) -> Statistics:
    """The statistics of some of the rows."""
    arrays: list[Any] = [None if array is None else array[rows] for array in vars(statistics).values()]
    return type(statistics)(*arrays)  # a dataclass keeps the order of its fields


def refuse_overflow(values: Mapping[str, Float]) -> None:
    """Never answer with NaN or Infinity.

    Raises:
        RequestError: naming the first row whose answer is not finite.
    """
    if all(np.isfinite(array).all() for array in values.values()):
        return
    finite = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in values.values()]
    rows = np.logical_and.reduce(finite)
    if not rows.all():
        raise RequestError(
            f"instance {int(np.argmin(rows))}: the model's answer is not a finite number, so its values "
            "are too large. Compare their scale with that of the data the model was trained on.",
            reason="overflow",
        )
