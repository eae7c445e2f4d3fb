"""One number that calibrates Monte Carlo answers: a temperature for classes, a factor for deviations.

Both are chosen on rows that were not trained on, and hold for answers made as theirs were: with the same
number of samples, scheme and dropout rates (:class:`Assumptions`).

Few rows say little about such a number, and the likeliest one may make answers much worse: without an error
among the rows, the likelihood of a temperature rises to the end of any range. So the number is shrunk and has
to earn its place:

- it is the mode of the posterior under a prior by which the logarithm has Student's t distribution with
  three degrees of freedom and scale ``PRIOR``: near its centre thirty rows do not outweigh it and a few
  hundred do, and its heavy tails let go of what is far away (weakly informative priors: Gelman et al.,
  Annals of Applied Statistics 2008);
- the centre is 1, but for a temperature where the answers without dropout are known. A Monte Carlo mean is
  less sure than they are, often too unsure, while training chose its epoch by their loss. So the logarithm's
  centre lies ``TRUST`` of the way to the temperature at which the Monte Carlo answers resemble them most
  (least cross-entropy, as in distillation: Hinton et al. 2015), which needs no labels;
- it is kept only if, in five-fold cross-validation, it improves the log-likelihood of the rows by more than
  one standard error (the rule of Breiman et al., 1984, section 3.4.3); otherwise it is 1.

``benchmarks/calibration_simulation.py`` and ``benchmarks/small_data_calibration.py`` measure what this does
to temperatures, ``benchmarks/deviation_simulation.py`` what it does to factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dropserve.dropout.engine import Settings
from dropserve.dropout.masks import site_rates
from dropserve.dropout.statistics import softmax
from dropserve.errors import UsageError
from dropserve.signature import Site
from dropserve.uncertainty.checks import Float, Whole, as_float, as_probabilities
from dropserve.uncertainty.folds import LEAST, folds
from dropserve.uncertainty.search import End, maximise

LOWEST, HIGHEST = 0.02, 50.0
PRIOR = 0.2
"""Scale of the logarithm, before any row is seen."""
TRUST = 2 / 3
"""How far the prior's centre goes from 1 to what the answers without dropout say."""
FURTHEST = 3.0
"""They are believed up to this factor: a net that is sure of everything says nothing about a temperature."""
UNSEEN = 3.0
"""Residual, in predicted deviations, of the row that is added when a factor of deviations is chosen."""
FEW = 200
"""Fewer rows than this are said in every answer."""
_GRID = np.linspace(np.log(LOWEST), np.log(HIGHEST), 79)  # 0 is its middle: the number 1
_STEP = float(_GRID[1] - _GRID[0])


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
class Shrunk:
    """A number chosen from n rows.

    Attributes:
        value: shrunk; 1 if it did not earn its place.
        likeliest: what maximum likelihood alone says.
        before: mean log-likelihood at 1, in nats.
        after: the same at ``value``, cross-validated: each row under a number from other rows.
    """

    value: float
    likeliest: float
    before: float
    after: float


def shrink(
    log_likelihoods: Callable[[float], Float],
    one_more: Callable[[float], float] = lambda _: 0.0,
    centre: float = 0.0,
) -> Shrunk:
    """Choose a positive number by the log-likelihood of rows, as the text of this module says.

    Args:
        log_likelihoods: of each row [n] at a number from ``LOWEST`` to ``HIGHEST``, in nats.
        one_more: log-likelihood of a row that was not seen; it belongs to the prior.
        centre: of the prior of the number's logarithm.
    """
    table = np.stack([log_likelihoods(float(value)) for value in np.exp(_GRID)])
    count, plain = table.shape[1], table[len(_GRID) // 2]
    before, prior = float(plain.mean()), _log_prior(_GRID - centre)
    prior = prior + np.array([one_more(float(value)) for value in np.exp(_GRID)])
    likeliest = float(np.exp(_top(table.sum(axis=1))))
    at = int((table.sum(axis=1) + prior).argmax())
    unchanged = Shrunk(1.0, likeliest, before, before)
    if count < LEAST or at in {0, len(_GRID) - 1}:
        return unchanged
    gain = np.empty(count)
    for others, judged in folds(count):
        gain[judged] = (table[(table[:, others].sum(axis=1) + prior).argmax()] - plain)[judged]
    mean = float(gain.mean())
    if mean <= float(gain.std(ddof=1)) / np.sqrt(count):
        return unchanged
    best = maximise(
        lambda value: float(
            log_likelihoods(value).sum() + one_more(value) + _log_prior(np.log(value) - centre)
        ),
        float(np.exp(_GRID[at] - _STEP)),
        float(np.exp(_GRID[at] + _STEP)),
    )
    return Shrunk(best.at, likeliest, before, before + mean)


def _top(heights: Float) -> float:
    """Where on the grid a curve is highest, by the parabola through three points."""
    at = int(heights.argmax())
    if at in {0, len(_GRID) - 1}:
        return float(_GRID[at])
    left, middle, right = heights[at - 1 : at + 2].tolist()
    bend = left - 2 * middle + right
    return float(_GRID[at]) + (_STEP * (left - right) / (2 * bend) if bend < 0 else 0.0)


def _log_prior(distance: ArrayLike) -> Float:
    """Of a logarithm at a distance from the centre, without its constant."""
    return -2 * np.log1p(np.square(np.asarray(distance, np.float64) / PRIOR) / 3)


def shrinkage_note(what: str, value: float, likeliest: float | None, rows: int) -> str | None:
    """What so few rows meant for a number, in words; None if there were enough.

    Args:
        what: such as "the temperature".
        value: the number in use.
        likeliest: what maximum likelihood alone said; None where it was not kept.
        rows: that it rests on.
    """
    if rows >= FEW:
        return None
    if value == 1 and likeliest is None:
        return f"calibrated on {rows} rows, too few to show that {what} should be other than 1"
    if likeliest is None or abs(np.log(value / likeliest)) < _STEP / 5:
        return f"calibrated on {rows} rows, which fix {what} only roughly"
    if value != 1 and min(likeliest, 1) <= value <= max(likeliest, 1):
        return f"calibrated on {rows} rows: {what} was shrunk from {likeliest:.3g} to {value:.3g} towards 1"
    if value != 1:
        return (
            f"calibrated on {rows} rows: {what} is {value:.3g} and not the likeliest ({likeliest:.3g}), "
            "as so few rows count only in part"
        )
    return (
        f"calibrated on {rows} rows: too few to show that {what} should be other than 1 "
        f"(the likeliest is {likeliest:.3g}), so it is 1"
    )


@dataclass(frozen=True)
class Temperature:
    """Temperature scaling of Monte Carlo answers: mean probabilities to the power 1 / temperature.

    Guo et al., "On calibration", ICML 2017, applied to the logarithm of the *mean* over samples: pool, then
    calibrate (Rahaman and Thiery, NeurIPS 2021). The order of the classes stays, so the label does. Measured
    on the digits recipe (T=50, 20 halvings of its 270 held-out rows): likelihood loss 0.115 uncalibrated and
    0.078 calibrated so; 0.093 with the logits of every sample divided instead, where even the coldest
    temperature can only turn samples into votes, whose mean is still too unsure.

    Attributes:
        value: above 1 makes answers less confident, below 1 more; 1 changes nothing.
        nll_before: mean negative log-likelihood in nats, at temperature 1.
        nll_after: the same calibrated, cross-validated; never larger. Records from before ``likeliest`` was
            kept have it in-sample.
        end: of records from before ``likeliest`` was kept: the end of the range that the search ran into.
        likeliest: the temperature of largest likelihood, before it was shrunk.
    """

    value: float
    nll_before: float
    nll_after: float
    end: End | None = None
    likeliest: float | None = None

    @classmethod
    def fit(cls, probabilities: ArrayLike, labels: ArrayLike, plain: ArrayLike | None = None) -> Temperature:
        """Choose the temperature: see the module's text.

        One row is added on which the most probable class is wrong, as in Platt's smoothed targets (1999) and
        Laplace's rule of succession: n rows without an error do not say that there is none in n + 1. It is
        the mean row on which the model itself expects to err, so it costs little where errors are of the
        kind that is expected, and keeps a temperature from freezing where no row has one.

        Args:
            probabilities: means over samples [B, C].
            labels: [B].
            plain: probabilities without dropout [B, C], where they are known.

        Raises:
            UsageError: for arrays that do not fit.
        """
        values, truth = as_probabilities(probabilities, labels)
        without = values if plain is None else as_probabilities(plain, labels)[0]
        if without.shape != values.shape:
            raise UsageError(f"plain {list(without.shape)}: expected {list(values.shape)}")
        logs = _logs(values)
        logs -= logs.max(axis=1, keepdims=True)
        wrong = np.exp(logs)
        wrong[np.arange(len(logs)), logs.argmax(axis=1)] = 0.0
        wrong /= np.exp(logs).sum(axis=1, keepdims=True)
        wrong /= max(float(wrong.sum()), float(np.finfo(np.float64).tiny))
        found = shrink(
            lambda t: _log_likelihoods(logs, truth, t),
            lambda t: float((wrong * (logs / t - _log_sums(logs, t))).sum()),
            0.0 if plain is None else TRUST * _resemblance(logs, without),
        )
        return cls(found.value, -found.before, -found.after, likeliest=found.likeliest)

    def probabilities(self, probabilities: ArrayLike) -> Float:
        """Calibrated probabilities [B, C] of uncalibrated ones [B, C]."""
        return softmax(_logs(as_float(probabilities, "[B, C]")) / self.value)

    def note(self, rows: int) -> str | None:
        """What the number of rows meant for the temperature, in words; None if there were enough."""
        if self.end is not None:
            return (
                f"the temperature {self.value:.3g} is the {self.end} end of the range that an earlier "
                "dropserve searched: do not rely on the calibrated probabilities, export the model again"
            )
        return shrinkage_note("the temperature", self.value, self.likeliest, rows)


def _resemblance(logs: Float, plain: Float) -> float:
    """Logarithm of the temperature at which answers resemble those without dropout most."""
    heights = [float((plain * (logs / t - _log_sums(logs, t))).sum()) for t in np.exp(_GRID).tolist()]
    return float(np.clip(_top(np.array(heights)), -np.log(FURTHEST), np.log(FURTHEST)))


def _logs(probabilities: Float) -> Float:
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))


def _log_likelihoods(logs: Float, labels: Whole, temperature: float) -> Float:
    """Of each row [B]; the largest of ``logs`` in each row is 0."""
    return logs[np.arange(len(labels)), labels] / temperature - _log_sums(logs, temperature)[:, 0]


def _log_sums(logs: Float, temperature: float) -> Float:
    return np.log(np.exp(logs / temperature).sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class VarianceScaling:
    """A factor for each target by which predicted standard deviations are multiplied.

    Laves et al., "Well-calibrated regression uncertainty in medical imaging", MIDL 2020: the factor of
    largest Gaussian likelihood has a closed form, the root mean square of the standardised residuals. It is
    shrunk towards 1 as the module's text says. One row is added whose residual is three deviations: where
    noise has heavy tails, few rows hold none of its large errors, and a factor below 1 would cost dearly. It
    hardly moves a factor above 1.

    Attributes:
        factors: for each target; above 1 where the model was too sure.
        likeliest: the factors of largest likelihood, before they were shrunk; empty in older records.
    """

    factors: tuple[float, ...]
    likeliest: tuple[float, ...] = ()

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
        squares = np.square((y - m) / s)
        found = [
            shrink(
                lambda f, z=column: -z / (2 * f * f) - np.log(f),
                lambda f: -float(np.square(UNSEEN) / (2 * f * f) + np.log(f)),
            )
            for column in squares.T
        ]
        return cls(tuple(each.value for each in found), tuple(np.sqrt(squares.mean(axis=0)).tolist()))

    def std(self, std: ArrayLike) -> Float:
        """Calibrated standard deviations [B, D]."""
        return as_float(std, "[B, D]") * np.asarray(self.factors)

    def notes(self, rows: int) -> list[str]:
        """What the number of rows meant for the factors, in words; none if there were enough."""
        several = len(self.factors) > 1
        likeliest = self.likeliest or (None,) * len(self.factors)
        found = [
            shrinkage_note(f"the factor of deviations{f' of target {d}' if several else ''}", f, best, rows)
            for d, (f, best) in enumerate(zip(self.factors, likeliest, strict=True))
        ]
        return [note for note in found if note is not None]
