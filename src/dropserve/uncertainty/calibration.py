"""One number that makes Monte Carlo answers honest: a temperature for classes, a factor for deviations.

Both are chosen on rows that were not trained on, and hold for answers made as theirs were: with the same
number of samples, scheme and dropout rates (:class:`Assumptions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import site_rates
from dropserve.dropout.statistics import softmax
from dropserve.errors import UsageError
from dropserve.signature import Site
from dropserve.uncertainty.checks import Float, Whole, as_float, as_labels
from dropserve.uncertainty.search import End, maximise

LOWEST, HIGHEST = 0.02, 50.0


@dataclass(frozen=True)
class Assumptions:
    """How the samples were made that a calibration rests on. The seed is free: it only draws other masks.

    Attributes:
        samples: T.
        scheme: of the masks.
        rates: dropout rate by name of the site.
    """

    samples: int
    scheme: str
    rates: dict[str, float]

    @classmethod
    def of(cls, settings: Settings, sites: Sequence[Site]) -> Assumptions:
        """What a run with these settings assumes."""
        names = [site.name for site in sites]
        return cls(
            settings.samples, settings.scheme, dict(zip(names, site_rates(sites, settings.rate), strict=True))
        )

    def difference(self, settings: Settings, sites: Sequence[Site]) -> str | None:
        """Why answers with these settings are not calibrated, in words; None if they are."""
        other = Assumptions.of(settings, sites)
        found: list[str] = []
        if other.samples != self.samples:
            found.append(f"{other.samples} samples where calibration assumed {self.samples}")
        if other.scheme != self.scheme:
            found.append(f"scheme {other.scheme} where calibration assumed {self.scheme}")
        if other.rates != self.rates:
            found.append("dropout rates other than those that calibration assumed")
        return "; ".join(found) or None


@dataclass(frozen=True)
class Temperature:
    """Temperature scaling of Monte Carlo answers (Guo et al., "On calibration", ICML 2017).

    The logits of *every sample* are divided by the temperature, then the probabilities are averaged: the
    result is again a mean over samples.

    Attributes:
        value: above 1 makes answers less confident; 1 changes nothing.
        nll_before: mean negative log-likelihood in nats, at temperature 1, on the rows it was chosen on.
        nll_after: the same at ``value``; never larger.
        end: the end of the range that the search ran into; None inside.
    """

    value: float
    nll_before: float
    nll_after: float
    end: End | None = None

    @classmethod
    def fit(cls, logits: ArrayLike, labels: ArrayLike) -> Temperature:
        """Choose the temperature by likelihood.

        Args:
            logits: [T, B, C], or [1, B, C] of a deterministic model.
            labels: [B].

        Raises:
            UsageError: for arrays that do not fit.
        """
        values = as_float(logits, "[T, B, C]")
        truth = as_labels(labels, values.shape[1], values.shape[2])
        before = _log_likelihood(values, truth, 1.0)
        best = maximise(lambda t: _log_likelihood(values, truth, t), LOWEST, HIGHEST, tolerance=1e-4)
        if best.value <= before:
            return cls(1.0, -before, -before)
        return cls(best.at, -before, -best.value, best.end)

    def probabilities(self, logits: ArrayLike) -> Float:
        """Calibrated mean probabilities [B, C] of logits [T, B, C]."""
        return softmax(as_float(logits, "[T, B, C]") / self.value).mean(axis=0)


def _log_likelihood(logits: Float, labels: Whole, temperature: float) -> float:
    """Mean over rows of the log of the mean probability, in logs throughout: nothing underflows."""
    scaled = (logits - logits.max(axis=2, keepdims=True)) / temperature
    logs = scaled[:, np.arange(len(labels)), labels] - np.log(np.exp(scaled).sum(axis=2))
    top = logs.max(axis=0)
    return float((top + np.log(np.exp(logs - top).mean(axis=0))).mean())


@dataclass(frozen=True)
class VarianceScaling:
    """A factor for each target by which predicted standard deviations are multiplied.

    Laves et al., "Well-calibrated regression uncertainty in medical imaging", MIDL 2020: the factor of
    largest Gaussian likelihood has a closed form, the root mean square of the standardised residuals.

    Attributes:
        factors: for each target; above 1 where the model was too sure.
    """

    factors: tuple[float, ...]

    @classmethod
    def fit(cls, mean: ArrayLike, std: ArrayLike, targets: ArrayLike) -> VarianceScaling:
        """Choose the factors.

        Args:
            mean: [B, D].
            std: total standard deviations [B, D], above 0.
            targets: [B, D].

        Raises:
            UsageError: for shapes that differ, or a standard deviation of 0.
        """
        m, s, y = (as_float(a, "[B, D]") for a in (mean, std, targets))
        if not m.shape == s.shape == y.shape or s.min() <= 0:
            raise UsageError(
                f"mean {list(m.shape)}, std {list(s.shape)} from {s.min():.3g}, targets {list(y.shape)}: "
                "expected one shape, and deviations above 0 (pass total ones, not epistemic ones)"
            )
        return cls(tuple(np.sqrt(np.square((y - m) / s).mean(axis=0)).tolist()))

    def std(self, std: ArrayLike) -> Float:
        """Calibrated standard deviations [B, D]."""
        return as_float(std, "[B, D]") * np.asarray(self.factors)
