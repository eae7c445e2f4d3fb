"""Samples until the Monte Carlo error is small enough, each row on its own.

At the end of each block of samples, from the fifth on, a row stops whose standard error (from block means)
is within the tolerance. Whether it stops depends on its own samples alone, so its answer does not depend on
its batch-mates. With fewer than five block means the error is itself too uncertain to stop by.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dropserve.dropout.engine import MonteCarlo, Prepared, Settings
from dropserve.dropout.statistics import MINIMUM_BLOCKS, standard_error
from dropserve.serving.query import Array, Float

_STEP = 5  # blocks run at once: rows that stop within them waste the rest, larger calls are faster

Count = NDArray[np.int64]


def sample_until(
    engine: MonteCarlo,
    prepared: Prepared,
    settings: Settings,
    values: Callable[[Array], Float],
    tolerance: Float,
) -> tuple[dict[str, Array], Count]:
    """Run samples until each row's error is within the tolerance, or all of ``settings.samples`` are run.

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
    # A lone number would be summed in another order than one of several (see serving.outcome).
    padded = values if values.shape[1] > 1 else np.concatenate([values, values], axis=1)
    errors = standard_error(padded, scheme=scheme, block=block)
    assert errors is not None  # noqa: S101  # there are MINIMUM_BLOCKS
    return errors[: values.shape[1]]
