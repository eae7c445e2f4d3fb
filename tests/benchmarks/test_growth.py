"""How a soak is judged: against closed forms, against noise of known kind, and against planted leaks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from growth import MIB, Trend, Verdict, leak, trend
from scipy import stats

SECONDS = np.arange(360.0)  # what is left of ten minutes, a reading a second
HOURS = SECONDS / 3600


def noise(rng: np.random.Generator, r: float, spread: float = 0.05) -> np.ndarray:
    """A first-order autoregression of given standard deviation [360], MiB."""
    steps = rng.normal(scale=spread * math.sqrt(1 - r * r), size=len(SECONDS))
    values = np.empty(len(SECONDS))
    values[0] = rng.normal(scale=spread)
    for i in range(1, len(values)):
        values[i] = r * values[i - 1] + steps[i]
    return values


def test_a_straight_line_is_found_to_the_last_bit() -> None:
    for slope in (-3.0, 0.0, 2.5):
        found = trend(SECONDS, (90 + slope * HOURS) * MIB)
        assert found.low == pytest.approx(slope, abs=1e-6)
        assert found.high == pytest.approx(slope, abs=1e-6)
    assert found.memory == pytest.approx(90 + 2.5 * HOURS[-36:].mean())


def test_without_autocorrelation_it_is_the_textbook_interval() -> None:
    """Residuals that alternate in sign resemble each other less than chance: n readings stay n."""
    values = 100 + 4 * HOURS + np.where(np.arange(360) % 2, 0.1, -0.1)
    found, fit = trend(SECONDS, values * MIB), stats.linregress(HOURS, values)
    reach = stats.t.ppf(0.975, 358) * fit.stderr
    assert found.worth == 360
    assert (found.low, found.high) == pytest.approx((fit.slope - reach, fit.slope + reach))


def test_readings_that_repeat_each_other_are_worth_less() -> None:
    """Every value of independent noise held for k readings: r is 1 - 1/k, so n are worth n / (2k - 1)."""
    rng = np.random.default_rng(1)
    for k in (2, 4, 8):
        worth = [
            trend(SECONDS, (100 + np.repeat(rng.normal(size=360 // k), k)) * MIB).worth for _ in range(200)
        ]
        assert np.median(worth) == pytest.approx(360 / (2 * k - 1), rel=0.1)


@pytest.mark.parametrize("r", [0.0, 0.5, 0.8, 0.9])
def test_the_interval_covers_as_often_as_it_says(r: float) -> None:
    rng = np.random.default_rng(2)
    found = [trend(SECONDS, (100 + 3 * HOURS + noise(rng, r)) * MIB) for _ in range(400)]
    covered = np.mean([one.low <= 3 <= one.high for one in found])
    # Four standard errors of a share of 400 below 95%; too wide an interval would cover always.
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / 400) <= covered < 1


def test_verdicts() -> None:
    def judged(low: float, high: float) -> Verdict:
        return Trend(100, (low + high) / 2, low, high, 50).against(2.5)

    assert judged(-1, 1) == judged(0.2, 2.4) == judged(-9, -3) == Verdict.FLAT
    assert judged(0.1, 2.6) == judged(3, 4) == Verdict.GROWS
    assert judged(-0.1, 2.6) == judged(-math.inf, math.inf) == Verdict.UNDECIDED


def test_a_leak_of_one_answer_in_a_thousand_is_never_called_flat() -> None:
    """The bar by hand: 1,000 answers a second of 1,000 bytes, one a second kept, are 3.43 MiB an hour."""
    bar = leak(1000, 1000)
    assert bar == pytest.approx(3_600_000 / 2**20)
    rng = np.random.default_rng(3)

    def verdicts(slope: float, r: float) -> list[Verdict]:
        memory = [(100 + slope * HOURS + noise(rng, r)) * MIB for _ in range(200)]
        return [trend(SECONDS, one).against(bar) for one in memory]

    for r in (0.0, 0.8):
        leaking, honest = verdicts(bar, r), verdicts(0, r)
        assert leaking.count(Verdict.FLAT) <= 15  # 2.5% is the promise: 5 of 200, and chance
        assert honest.count(Verdict.GROWS) <= 15
    assert verdicts(bar, 0.0).count(Verdict.GROWS) >= 185
    assert verdicts(0, 0.0).count(Verdict.FLAT) >= 185
    assert set(verdicts(10 * bar, 0.8)) == {Verdict.GROWS}


def test_one_step_is_no_leak_and_no_proof_of_none() -> None:
    """A pool that grows once in the middle: one event, of which no rate can be told."""
    memory = (100 + 0.5 * (SECONDS > 180)) * MIB
    assert trend(SECONDS, memory).against(leak(1000, 1000)) == Verdict.UNDECIDED


def test_a_staircase_is_a_leak() -> None:
    """A page taken now and then, as an allocator does with what is never given back."""
    memory = (100 + 0.125 * np.floor(SECONDS / 15)) * MIB
    assert trend(SECONDS, memory).against(leak(1000, 1000)) == Verdict.GROWS
