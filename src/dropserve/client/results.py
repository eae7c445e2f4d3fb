"""What a server answers, typed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

Number = float | list[Any]


@dataclass(frozen=True)
class Uncertainty:
    """What Monte Carlo dropout says about one prediction. Entropies are in nats.

    Attributes:
        standard_deviation: spread over samples: by label, by output, or of the value.
        standard_error: Monte Carlo error of what is reported (more samples make it smaller), in the same
            shape; None if the samples were too few to tell.
        predictive_entropy: classification: total uncertainty.
        expected_entropy: classification: the part that lies in the data.
        mutual_information: classification: the part that lies in the model.
        variation_ratio: classification: share of samples that did not vote for the most voted class.
        samples: with a tolerance: how many samples this row took.
        aleatoric: heteroscedastic regression: standard deviation of the noise.
        total: heteroscedastic regression: of the noise and over samples together.
    """

    standard_deviation: Any
    standard_error: Any
    predictive_entropy: float | None = None
    expected_entropy: float | None = None
    mutual_information: float | None = None
    variation_ratio: float | None = None
    samples: int | None = None
    aleatoric: Number | None = None
    total: Number | None = None


@dataclass(frozen=True)
class Prediction:
    """The answer to one row; what its task does not have is None.

    Attributes:
        label: classification: the most probable class.
        probabilities: classification: by label.
        value: regression: in the unit of the target; a list if there are several targets.
        standard_deviation: heteroscedastic regression without Monte Carlo: of the noise.
        outputs: any other task: by name.
        uncertainty: with Monte Carlo.
        calibrated: with Monte Carlo, as the server sent it: calibrated probabilities and a prediction set, or
            deviations and an interval; ``out_of_distribution`` with its score and, of a flagged row, its
            reason. None where :attr:`Answer.calibration` says why.
    """

    label: str | None = None
    probabilities: dict[str, float] | None = None
    value: Number | None = None
    outputs: dict[str, Number] | None = None
    uncertainty: Uncertainty | None = None
    calibrated: Mapping[str, Any] | None = None
    standard_deviation: Number | None = None


@dataclass(frozen=True)
class Answer(Sequence[Prediction]):
    """The answer to a request: a sequence of predictions, one a row.

    Attributes:
        predictions: in the order of the instances.
        parameters: effective Monte Carlo settings; empty without Monte Carlo.
        calibration: what the calibrated fields rest on; its ``reason`` says why there are none.
    """

    predictions: tuple[Prediction, ...]
    parameters: Mapping[str, int | float | str]
    calibration: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Prediction, ...]: ...
    def __getitem__(self, index: int | slice) -> Prediction | tuple[Prediction, ...]:
        return self.predictions[index]

    def __len__(self) -> int:
        return len(self.predictions)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.predictions)


def read_answer(document: Mapping[str, Any]) -> Answer:
    """Turn a V1 answer into types. A newer server may say more than this client knows.

    Raises:
        KeyError, TypeError, AttributeError: if it is no such answer.
    """
    predictions = tuple(_prediction(entry) for entry in document["predictions"])
    return Answer(predictions, document.get("parameters", {}), document.get("calibration", {}))


def _prediction(entry: Mapping[str, Any]) -> Prediction:
    doubt = entry.get("uncertainty")
    known = Uncertainty.__dataclass_fields__
    return Prediction(
        label=entry.get("label"),
        probabilities=entry.get("probabilities"),
        value=entry.get("value"),
        outputs=entry.get("outputs"),
        uncertainty=doubt and Uncertainty(**{k: v for k, v in doubt.items() if k in known}),
        calibrated=entry.get("calibrated"),
        standard_deviation=entry.get("standard_deviation"),
    )
