"""All that was calibrated for one version of a model: what stands in its manifest under ``calibration``.

To raise the format: write the new record beside this one, and a reader that turns the old into the new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from pydantic import JsonValue, TypeAdapter, ValidationError

from dropserve.errors import CorruptStoreError, UsageError
from dropserve.uncertainty.calibration import Assumptions, Temperature, VarianceScaling
from dropserve.uncertainty.conformal import ConformalClassifier
from dropserve.uncertainty.intervals import ConformalRegressor
from dropserve.uncertainty.ood import OodThreshold
from dropserve.uncertainty.regression import Precision
from dropserve.uncertainty.scores import Scores

FORMAT = 1
T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """A version's calibration. What does not apply to the task is None or empty.

    Attributes:
        assumes: how the samples were made.
        rows: validation rows that all of it rests on.
        temperature: classification.
        before: classification: how good the probabilities were on these rows, uncalibrated.
        after: classification: the same calibrated, each row by a temperature from other rows; None of too
            few rows. Versions that were exported before these were kept have neither.
        sets: classification.
        ood: of classifiers; of regressors where the run kept training rows to compare with.
        precision: regression: the noise of each target; empty for a heteroscedastic head.
        scaling: regression: of the total standard deviation.
        intervals: regression.
        band: regression by ``cqr``: the central interval that is adjusted, in parts per thousand.
    """

    assumes: Assumptions
    rows: int
    temperature: Temperature | None = None
    sets: ConformalClassifier | None = None
    ood: OodThreshold | None = None
    precision: tuple[Precision, ...] = ()
    scaling: VarianceScaling | None = None
    intervals: ConformalRegressor | None = None
    band: int | None = None
    before: Scores | None = None
    after: Scores | None = None
    format: Literal[1] = FORMAT

    def notes(self) -> tuple[str, ...]:
        """What the number of rows meant for the temperature or the deviations, in words."""
        if self.temperature is not None:
            note = self.temperature.note(self.rows)
            return () if note is None else (note,)
        return () if self.scaling is None else tuple(self.scaling.notes(self.rows))

    def to_json(self) -> dict[str, JsonValue]:
        """As it stands in the manifest: a few kilobytes, at most about 11 for each target."""
        return cast("dict[str, JsonValue]", to_json(self))

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """Read what :meth:`to_json` wrote, exactly.

        Raises:
            CorruptStoreError: for another format or a content that does not fit.
        """
        number = content.get("format")
        if number != FORMAT:
            raise CorruptStoreError(
                f"calibration format {number!r}; this dropserve reads {FORMAT}. Upgrade dropserve, or "
                "export the model again."
            )
        return from_json(cls, content)


def to_json(record: object) -> JsonValue:
    """Any dataclass of this package as JSON."""
    return TypeAdapter(type(record)).dump_python(record, mode="json")


def from_json(kind: type[T], content: object) -> T:
    """A dataclass of this package from its JSON.

    Raises:
        CorruptStoreError: if the content does not fit.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except (ValidationError, UsageError) as error:
        raise CorruptStoreError(
            f"{kind.__name__} in the manifest: {error}. Export the model again."
        ) from error
