"""No sentence of the page is false, whatever the curve: each is judged by its plain meaning."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from dropserve.report.content import Gallery
from dropserve.report.evidence import Evidence, HeldOut
from dropserve.report.learning import gap, tail, why_kept
from dropserve.report.page import compose
from dropserve.report.sets import needed
from dropserve.report.words import interval

Make = Callable[..., Evidence]
Rows = Callable[..., HeldOut]
LOSSES = st.lists(
    st.one_of(
        st.sampled_from([0.0, 0.5, 1.0, 1.04, 1.2]),
        st.floats(0, 3, allow_subnormal=False),
        st.sampled_from([float("nan"), float("inf")]),
    ),
    min_size=1,
    max_size=12,
)


def judge(sentence: str, losses: list[float], *, nats: bool) -> None:
    """Refuse a sentence that the losses do not bear out."""
    low = min((loss for loss in losses if np.isfinite(loss)), default=np.inf)
    assert not re.search(r"\b1 epochs\b", sentence)
    if "not a finite number" in sentence:
        assert not np.isfinite(losses).all()
        return
    assert np.isfinite(losses).all()
    if "at its lowest when training ended" in sentence:
        assert losses[-1] == low
        return
    found = re.search(r"In the (\d+) epochs? after epoch (\d+), where it was lowest", sentence)
    assert found
    later, epoch = int(found[1]), int(found[2])
    assert losses[epoch - 1] == low
    assert later == len(losses) - epoch
    after = losses[epoch:]
    if "stayed within" in sentence:
        bound = low + 0.05 if "0.05 nats" in sentence else low * 1.05
        assert all(loss <= bound + 1e-12 for loss in after)
        return
    peak = re.search(r"\(at epoch (\d+)\)", sentence)
    assert peak
    assert losses[int(peak[1]) - 1] == max(after)
    if "came back" in sentence:
        assert losses[-1] <= (low + 0.05 if nats else 1.05 * low) + 1e-12
    if "overfitted" in sentence:
        assert losses[-1] > low


@given(LOSSES, st.booleans(), st.integers(0, 11))
def test_what_is_said_of_validation_loss_holds_in_every_epoch(
    losses: list[float], nats: bool, kept: int
) -> None:
    curve = {"epoch": np.arange(1.0, len(losses) + 1), "validation_loss": np.array(losses)}
    best = min(kept, len(losses) - 1)
    judge(tail(curve, best, nats=nats), losses, nats=nats)
    if "was lowest" in why_kept(curve, best, "loss"):
        assert losses[best] == min(loss for loss in losses if np.isfinite(loss))


def test_a_rise_in_the_middle_is_told() -> None:
    losses = np.array([2.0, 1.0, 1.01, 1.092, 1.02])
    said = tail({"epoch": np.arange(1.0, 6), "validation_loss": losses}, 1, nats=False)
    assert "9.2% (at epoch 4)" in said
    assert "stayed within" not in said


@given(st.floats(), st.floats(), st.booleans())
def test_the_gap_is_told_as_it_is(train: float, validation: float, dropout: bool) -> None:
    said = gap(train, validation, dropout=dropout)
    assert ("no worse" not in said) or validation <= train
    assert ("does better on what it has seen" not in said) or validation > train
    assert dropout or "measured with dropout on" not in said


@given(st.integers(1, 3000), st.data())
def test_intervals_are_those_of_scipy(rows: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, rows))
    expected = binomtest(hits, rows).proportion_ci(method="wilson")
    assert interval(hits, rows) == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(st.integers(1, 999))
def test_rows_that_support_a_coverage_have_its_quantile(coverage: int) -> None:
    rows = needed(coverage)
    assert np.ceil((rows + 1) * coverage / 1000) <= rows
    assert rows == 1 or np.ceil(rows * coverage / 1000) > rows - 1


def test_the_tile_has_an_interval(make: Make) -> None:
    metrics = {"validation_accuracy": 1.0, "test_accuracy": 1.0, "best_epoch": 3.0}
    data = {"source": "animals", "rows": {"train": 90, "test": 45}}
    fact = compose(make(run_changes={"metrics": metrics, "data": data})).facts[0]
    assert fact.figure == "45 of 45"
    assert "95% interval 92.1% to 100.0%" in fact.words


def test_too_few_rows_give_no_set_and_say_so(make: Make, class_rows: Rows) -> None:
    page = compose(make(class_rows(45)))
    (found,) = [s for s in page.sections if s.id == "conformal"]
    words = " ".join(found.words)
    assert "cannot support 99%" in words
    assert "± 0.0%" not in str(found.blocks)
    assert not any(row[0] == "99%" for row in found.blocks[0].rows)  # type: ignore[union-attr]


def test_rows_that_are_all_certain_have_no_least_certain(make: Make, class_rows: Rows) -> None:
    held = class_rows()
    logits = 60 * np.eye(4)[held.target]
    page = compose(make(replace(held, plain=logits, samples=None), dropout=False))
    titles = [b.title for s in page.sections for b in s.blocks if isinstance(b, Gallery)]
    assert titles == ["Most certain"]
