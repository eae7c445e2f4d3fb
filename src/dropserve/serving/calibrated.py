"""What a version's calibration adds to its Monte Carlo answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import common_block, site_rates
from dropserve.dropout.rows import Program
from dropserve.dropout.statistics import (
    ClassificationStatistics,
    RegressionStatistics,
    classification,
    softmax,
)
from dropserve.manifest import VersionManifest
from dropserve.serving.query import Array, Calibrated, Float
from dropserve.uncertainty.answers import calibrated_classes, calibrated_values
from dropserve.uncertainty.distances import CATEGORY, OVERALL
from dropserve.uncertainty.ood import GRAPHS, NEAREST
from dropserve.uncertainty.record import Calibration

_STRANGEST = 2.0  # of ``nearest``: for rows so large that their activations are no numbers


class Calibrator:
    """Applies the calibration that stands in a manifest.

    Args:
        manifest: the version's.
        nearest: the graph of the out-of-distribution scores ``auto`` and ``nearest``; needed only to
            apply one.

    Raises:
        CorruptStoreError: if its calibration is of another format.
    """

    def __init__(self, manifest: VersionManifest, nearest: Program | None = None) -> None:
        self._nearest = nearest
        content = manifest.calibration
        self._record = None if content is None else Calibration.from_json(content)
        self._sites = manifest.sites
        self._task = manifest.task
        self._columns = _names(manifest)

    @property
    def needs_nearest(self) -> bool:
        """Whether the out-of-distribution score has a graph of its own."""
        return self._record is not None and self._record.ood is not None and self._record.ood.score in GRAPHS

    def reason(self, settings: Settings) -> str | None:
        """Why answers with these settings are not calibrated, in words; None if they are."""
        if self._record is None:
            return "this version was exported without held-out rows, so nothing was calibrated"
        return self._record.assumes.difference(settings, self._sites)

    def apply(
        self,
        samples: Array,
        statistics: ClassificationStatistics | RegressionStatistics,
        inputs: Mapping[str, Array],
        settings: Settings,
        variances: Float | None = None,
    ) -> Calibrated | None:
        """Calibrated answers, or None where :meth:`reason` says why there are none.

        Args:
            samples: what the graph gave, [T, B, ...]; rows that are not finite are refused elsewhere.
            statistics: of these samples.
            inputs: for the name of each input [B, ...].
            settings: how they were sampled.
            variances: of the noise [T, B, 1], from a heteroscedastic head.
        """
        if self._record is None or self.reason(settings) is not None:
            return None
        block = common_block(site_rates(self._sites, settings.rate))
        flat = samples.reshape(*samples.shape[:2], -1).astype(np.float64)
        sound = np.asarray(np.isfinite(flat).all(axis=(0, 2)))
        if not sound.all():
            flat = np.where(sound[:, None], flat, 0.0)
        if self._task != "classification":
            if variances is not None:  # a variance that is not finite, or 0, is refused elsewhere too
                variances = np.where(np.isfinite(variances) & (variances > 0), variances, 1.0)
            return calibrated_values(
                self._record,
                flat,
                block=block,
                variances=variances,
                nearest=self._compared(inputs),
                columns=self._columns,
            )
        if not sound.all() or not isinstance(statistics, ClassificationStatistics):
            statistics = classification(softmax(flat), scheme=settings.scheme, block=block)
        nearest = self._compared(inputs)
        return calibrated_classes(
            self._record, flat, statistics, inputs, settings.seed, nearest, self._columns
        )

    def _compared(self, inputs: Mapping[str, Array]) -> Float | None:
        """What the graph that compares rows with training rows gives; None if the score needs none."""
        if (
            self._record is None
            or self._record.ood is None
            or not self.needs_nearest
            or self._nearest is None
        ):
            return None
        ((_, given),) = self._nearest(dict(inputs)).items()
        values = given.astype(np.float64)
        if self._record.ood.score != NEAREST:
            return values
        return np.where(np.isfinite(values), values, _STRANGEST)


def _names(manifest: VersionManifest) -> tuple[str, ...]:
    """What the values that are held against training ranges are called."""
    (spec, *others) = manifest.signature.inputs
    if others:
        return ()
    if len(spec.shape) > 1:
        return OVERALL
    columns = manifest.preprocessing.columns.get(spec.name, ())
    if columns:
        return tuple(f"{CATEGORY if c.categories else ''}column {c.name!r}" for c in columns)
    found = manifest.data.get("columns")
    return tuple(f"column {name!r}" for name in found) if isinstance(found, list) else ()
