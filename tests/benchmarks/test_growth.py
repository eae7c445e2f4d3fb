"""How a soak is judged: against closed forms, against growth of known kind, and with a planted leak."""

from __future__ import annotations

import math

import numpy as np
import pytest
from growth import MIB, STEP, STRETCHES, Trend, Verdict, leak, trend
from scipy import stats

SECONDS = np.arange(361.0)  # what is left of ten minutes, a reading a second
HOURS = SECONDS / 3600
BAR = leak(1000, 1000)
PAGE = 4096


def pages(rng: np.random.Generator, slope: float, size: int) -> np.ndarray:
    """Bytes [361] of a process that takes ``size`` of them at random moments, ``slope`` MiB in an hour."""
    each_second = slope * MIB / 3600 / size
    return 100 * MIB + size * np.concatenate([[0], rng.poisson(each_second, 360).cumsum()])


def test_an_even_growth_is_found_to_the_last_bit() -> None:
    missed = 3 * STEP / MIB / 0.1
    for slope in (-3.0, 0.0, 2.5):
        found = trend(SECONDS, (90 + slope * HOURS) * MIB)
        assert (found.slope, found.low, found.high) == pytest.approx((slope, slope, slope + missed), abs=1e-6)
        assert found.memory == pytest.approx(90 + slope * 0.1)


def test_the_interval_is_students_on_the_growth_of_twelve_stretches() -> None:
    rng = np.random.default_rng(1)
    grown = rng.normal(0.1, 0.05, size=STRETCHES)  # MiB in 30 s
    held = np.concatenate([[0.0], grown.cumsum()])
    found = trend(SECONDS, (100 + np.interp(SECONDS, np.arange(13) * 30, held)) * MIB)
    per_hour = grown * 120
    low, high = stats.t.interval(0.95, 11, loc=per_hour.mean(), scale=stats.sem(per_hour))
    assert (found.slope, found.low, found.high) == pytest.approx((per_hour.mean(), low, high))


@pytest.mark.parametrize("size", [PAGE, STEP])
def test_the_interval_covers_as_often_as_it_says(size: int) -> None:
    rng = np.random.default_rng(2)
    found = [trend(SECONDS, pages(rng, 5.0, size)) for _ in range(600)]
    covered = np.mean([one.low <= 5 <= one.high for one in found])
    # Four standard errors of a share of 600 below 95%; too wide an interval would cover always.
    assert 0.95 - 4 * math.sqrt(0.95 * 0.05 / 600) <= covered < 1


def test_noise_that_comes_and_goes_only_widens_it() -> None:
    """Pages that are taken and given back: the interval covers more often than it says."""
    rng = np.random.default_rng(3)
    noise = rng.normal(scale=0.05, size=(300, len(SECONDS)))
    found = [trend(SECONDS, (100 + 3 * HOURS + one) * MIB) for one in noise]
    assert np.mean([one.low <= 3 <= one.high for one in found]) > 0.99


def test_verdicts() -> None:
    def judged(low: float, high: float) -> Verdict:
        return Trend(100, (low + high) / 2, low, high).against(2.5)

    assert judged(-1, 1) == judged(0.2, 2.4) == judged(-9, -3) == Verdict.FLAT
    assert judged(0.1, 2.6) == judged(3, 4) == Verdict.GROWS
    assert judged(-0.1, 2.6) == judged(-50, 50) == Verdict.UNDECIDED


def test_the_bar_by_hand() -> None:
    """1,000 answers a second of 1,000 bytes, of which one a second is kept: 3.43 MiB an hour."""
    assert pytest.approx(3_600_000 / 2**20) == BAR


@pytest.mark.parametrize("size", [PAGE, STEP])
def test_a_leak_of_one_answer_in_a_thousand_is_not_called_flat(size: int) -> None:
    rng = np.random.default_rng(4)
    verdicts = [trend(SECONDS, pages(rng, BAR, size)).against(BAR) for _ in range(300)]
    assert verdicts.count(Verdict.FLAT) <= 21  # 2.5% is the promise: 7.5 of 300, and five deviations
    assert verdicts.count(Verdict.GROWS) >= 270
    verdicts = [trend(SECONDS, pages(rng, 3 * BAR, size)).against(BAR) for _ in range(300)]
    assert set(verdicts) == {Verdict.GROWS}


def test_a_page_now_and_then_is_flat() -> None:
    """A tenth of the bar: what a warm server takes."""
    rng = np.random.default_rng(5)
    verdicts = [trend(SECONDS, pages(rng, BAR / 10, PAGE)).against(BAR) for _ in range(300)]
    assert set(verdicts) == {Verdict.FLAT}


def test_stillness_proves_little_in_a_short_run() -> None:
    still = np.full(len(SECONDS), 100.0 * MIB)
    assert trend(SECONDS, still).against(BAR) == Verdict.FLAT
    assert trend(SECONDS[:31], still[:31]).against(BAR) == Verdict.UNDECIDED


def test_one_step_is_no_leak_and_no_proof_of_none() -> None:
    """A pool that grows once in the middle: one event, of which no rate can be told."""
    memory = (100 + 0.5 * (SECONDS > 185)) * MIB
    assert trend(SECONDS, memory).against(BAR) == Verdict.UNDECIDED


def test_too_few_readings_are_refused() -> None:
    with pytest.raises(ValueError, match="12 readings; expected more than 12"):
        trend(SECONDS[:12], SECONDS[:12])
