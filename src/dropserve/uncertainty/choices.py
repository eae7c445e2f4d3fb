"""What a recipe's ``[uncertainty]`` chooses; a run without one has the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dropserve.errors import CorruptStoreError
from dropserve.uncertainty.conformal import Method
from dropserve.uncertainty.intervals import IntervalMethod
from dropserve.uncertainty.ood import ScoreName


@dataclass(frozen=True)
class Choices:
    """How a version is calibrated.

    Attributes:
        sets: score of the prediction sets.
        class_conditional: whether each class has a threshold of its own.
        intervals: method of the intervals.
        ood_score: by which rows are told from those of training.
        false_alarms: parts per thousand of usual rows that may be flagged.
    """

    sets: Method = "lac"
    class_conditional: bool = False
    intervals: IntervalMethod = "scaled"
    ood_score: ScoreName = "auto"
    false_alarms: int = 50

    @classmethod
    def of(cls, recipe: Mapping[str, Any]) -> Choices:
        """Those of a resolved recipe, as a run's manifest holds it.

        Raises:
            CorruptStoreError: if they are none that this dropserve knows.
        """
        try:
            return TypeAdapter(cls).validate_python(recipe.get("uncertainty", {}))
        except ValidationError as error:
            raise CorruptStoreError(f"[uncertainty] of the run's recipe: {error}") from error
