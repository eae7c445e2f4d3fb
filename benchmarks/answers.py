"""What is wrong with an answer: it is compared with the direct computation, eager PyTorch in float64.

Each maker gives a judge: from a decoded answer and the number of its question to what is wrong, empty if
nothing is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_CLOSE = 1e-5  # float32 in every server

Judge = Callable[[Any, int], str]


@dataclass(frozen=True)
class Oracle:
    """The direct computation: probabilities [questions, classes], and samples [T, questions, classes]."""

    probabilities: np.ndarray
    samples: np.ndarray


def read_by(read: Callable[[Any], list[float]], oracle: Oracle) -> Judge:
    """Of answers whose probabilities ``read`` finds."""

    def judge(document: Any, question: int) -> str:
        try:
            found = read(document)
        except (LookupError, TypeError) as error:
            return f"{error!r} in {document}"
        return _off(found, oracle.probabilities[question])

    return judge


def plain(oracle: Oracle) -> Judge:
    """Of our deterministic endpoint."""
    return read_by(lambda document: list(document["predictions"][0]["probabilities"].values()), oracle)


def mc(oracle: Oracle) -> Judge:
    """Of our Monte Carlo endpoint, which uses the masks that the oracle used."""

    def judge(document: Any, question: int) -> str:
        (prediction,) = document["predictions"]
        samples = oracle.samples[:, question]
        mean = _off(list(prediction["probabilities"].values()), samples.mean(0))
        return mean or _off(list(prediction["uncertainty"]["standard_deviation"].values()), samples.std(0))

    return judge


def drawn_anew(oracle: Oracle) -> Judge:
    """Of a Monte Carlo endpoint with masks of its own: within six standard errors of our mean."""

    def judge(document: Any, question: int) -> str:
        (found,) = document["predictions"]
        samples = oracle.samples[:, question]
        tolerance = 6 * samples.std(0) * (2 / len(samples)) ** 0.5 + _CLOSE
        return _off(found["mean"], samples.mean(0), tolerance)

    return judge


def _off(found: object, expected: np.ndarray, tolerance: float | np.ndarray = _CLOSE) -> str:
    try:
        values = np.array(found, np.float64)
    except (TypeError, ValueError):
        return f"{found} where the direct computation gives {expected}"
    if values.shape != expected.shape or not (np.abs(values - expected) <= tolerance).all():
        return f"{values} where the direct computation gives {expected}"
    return ""
