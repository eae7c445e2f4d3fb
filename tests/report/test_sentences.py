"""No sentence of the page is false, whatever the curve: each is judged by its plain meaning."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import binomtest

from dropserve.report.classes import confidence, declined
from dropserve.report.content import Gallery, Plot, Table
from dropserve.report.evidence import Evidence, HeldOut
from dropserve.report.learning import gap, tail, why_kept
from dropserve.report.page import compose
from dropserve.report.sets import COVERAGES, refusals, said
from dropserve.report.values import within
from dropserve.report.words import interval
from dropserve.uncertainty.conformal import ConformalClassifier
from dropserve.uncertainty.ranking import risk_coverage

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


@pytest.mark.parametrize(("rows", "sure"), [(9, False), (1000, True), (None, True)])
def test_few_validation_rows_do_not_prove_overfitting(rows: int | None, sure: bool) -> None:
    curve = {"epoch": np.arange(1.0, 5), "validation_loss": np.array([2.0, 1.0, 1.2, 1.3])}
    said = tail(curve, 1, nats=False, rows=rows)
    assert ("the later epochs overfitted" in said) == sure
    assert ("chance moves a mean of 9 rows much" in said) != sure


@example(train=-0.0, validation=0.0, dropout=False)
@example(train=0.0, validation=-0.0, dropout=True)
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


@given(st.data())
def test_what_is_said_of_sets_is_borne_out(data: st.DataObject) -> None:
    rows, classes = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    sets = rng.random((rows, classes)) < data.draw(st.sampled_from([0, 0.3, 0.9, 0.97, 1]))
    labels = rng.integers(0, classes, rows)
    words = said(sets, labels, "test")
    hits = sum(bool(sets[row, labels[row]]) for row in range(rows))
    assert f"{hits} of {rows} (95% interval" in words
    assert f"had {sets.sum() / rows:.2f} of {classes} classes" in words
    ends = binomtest(hits, rows).proportion_ci(method="wilson")
    assert ("clearly less" in words) == (ends.high < 0.9)
    assert ("clearly more" in words) == (ends.low > 0.9)
    assert ("say nothing" in words) == all(all(row) for row in sets.tolist())
    empty = re.search(r"(\d+) sets? (?:is|are) empty", words)
    assert int(empty[1] if empty else 0) == sum(not any(row) for row in sets.tolist())
    assert not re.search(r"\b1 sets\b", words)


@given(st.integers(1, 120))
def test_a_coverage_is_refused_where_no_rank_exists(rows: int) -> None:
    rng = np.random.default_rng(rows)
    probabilities = rng.dirichlet([1.0, 1.0, 1.0], rows)
    sets = ConformalClassifier.fit(probabilities, rng.integers(0, 3, rows))
    words = " ".join(refusals(sets))
    for coverage in COVERAGES:
        refused = np.ceil((rows + 1) * coverage / 1000) > rows
        assert (f"{coverage // 10}%" in words) == refused
    assert ("gives no set" in words) == bool(words)


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
    assert "Asked for 99%, it gives no set: 45 calibration rows support a coverage of at most" in words
    assert "± 0.0%" not in str(found.blocks)
    assert not any(row[0] == "99%" for row in found.blocks[0].rows)  # type: ignore[union-attr]


def test_rows_that_are_all_certain_have_no_least_certain(make: Make, class_rows: Rows) -> None:
    held = class_rows()
    logits = 60 * np.eye(4)[held.target]
    page = compose(make(replace(held, plain=logits, samples=None), dropout=False))
    titles = [b.title for s in page.sections for b in s.blocks if isinstance(b, Gallery)]
    assert titles == ["Most certain"]


@pytest.mark.parametrize(("task", "rows"), [("classification", 8), ("classification", 30), ("regression", 8)])
def test_sets_and_intervals_are_judged_on_test_rows_as_served(
    make: Make, class_rows: Rows, value_rows: Rows, task: str, rows: int
) -> None:
    drawn = class_rows if task == "classification" else value_rows
    evidence = make(drawn(), task=task, tested=drawn(rows))
    page = compose(evidence)
    (found,) = [s for s in page.sections if s.id == "conformal"]
    words = " ".join(found.words)
    assert re.search(rf"of {rows} \(95% interval [^)]*\) test rows", words)
    assert "Test rows calibrated nothing." in words
    assert any(
        f"{rows} rows: test rows, as served" in b.caption for b in found.blocks if isinstance(b, Table)
    )


def test_intervals_of_few_rows_are_refused(make: Make, value_rows: Rows) -> None:
    page = compose(make(value_rows(21), task="regression"))
    (found,) = [s for s in page.sections if s.id == "conformal"]
    assert not any(
        "inf" in cell for b in found.blocks if isinstance(b, Table) for row in b.rows for cell in row
    )
    assert not any(row[0] == "95%" for b in found.blocks if isinstance(b, Table) for row in b.rows)


@given(st.integers(1, 400), st.floats(0, 1), st.data())
def test_confidence_is_called_too_much_or_too_little_only_beyond_chance(
    rows: int, sure: float, data: st.DataObject
) -> None:
    hits = data.draw(st.integers(0, rows))
    words = confidence(sure, hits, rows, 0.1)
    ends = binomtest(hits, rows).proportion_ci(method="wilson")
    near = min(abs(sure - ends.low), abs(sure - ends.high)) < 1e-6
    assert near or ("less sure than it may be" in words) == (sure < ends.low)
    assert near or ("more sure than it should be" in words) == (sure > ends.high)
    assert f"right on {hits} of {rows} (95% interval" in words


@given(st.integers(1, 200), st.data())
def test_what_declining_buys_is_told_as_it_is(rows: int, data: st.DataObject) -> None:
    wrong = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))  # most certain first
    curve = risk_coverage(-np.arange(float(rows)), wrong.astype(float))
    words = declined(int(wrong.sum()), rows, curve.risk_at(0.9), curve.risk_at(0.5))
    assert ("None of the" in words) == (not wrong.any())
    if wrong.any():
        half, answered = wrong[: math.ceil(rows / 2)].mean(), math.ceil(rows / 2)
        ends = binomtest(int(wrong[:answered].sum()), answered).proportion_ci(method="wilson")
        assert f"if half, {wrong[:answered].sum()} of {answered} (95% interval" in words
        assert f"to {100 * ends.high:.1f}%)." in words
        assert ("no smaller share" in words) == (half >= wrong.mean())


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.sampled_from([0.5, 0.9]))
def test_so_many_errors_are_as_small_as_is_said(errors: list[float], share: float) -> None:
    bound = within(np.array(errors), share)
    assert sum(error <= bound for error in errors) >= share * len(errors) - 1e-9
    assert sum(error < bound for error in errors) < share * len(errors) + 1e-9


@pytest.mark.parametrize("kind", ["right", "wrong", "ties", "one class", "certain"])
@pytest.mark.parametrize("rows", [20, 21, 45])
def test_a_page_of_odd_answers_is_whole_and_says_nothing_false(
    make: Make, class_rows: Rows, kind: str, rows: int
) -> None:
    held = class_rows(rows)
    truth = np.zeros(rows, int) if kind == "one class" else held.target
    said_class = (truth + 1) % 4 if kind == "wrong" else truth
    scale = 0.0 if kind == "ties" else 60.0 if kind == "certain" else 2.0
    logits = scale * np.eye(4)[said_class]
    samples = np.repeat(logits[None], len(held.samples), axis=0)
    page = compose(make(replace(held, target=truth, plain=logits, samples=samples)))
    text = " ".join(words for s in page.sections for words in (*s.words, s.absent))
    assert not re.search(r"\b(nan|inf)\b", text)
    right = int((logits.argmax(axis=1) == truth).sum())
    assert ("answers are right: there is no wrong answer" in text) == (right == rows)
    assert ("answers are wrong: there is no right answer" in text) == (right == 0)
    assert f"it is right on {right} of {rows}" in text


@pytest.mark.parametrize("losses", ["nan,nan,nan", "1.0,nan,0.5", "0.0,0.0,0.0", "inf,1.0,2.0"])
def test_a_page_of_an_odd_curve_is_whole(make: Make, losses: str) -> None:
    curve = "epoch,train_loss,validation_loss,validation_accuracy,learning_rate,seconds\n"
    curve += "".join(f"{k + 1},{loss},{loss},0.5,0.1,1\n" for k, loss in enumerate(losses.split(",")))
    page = compose(make(curve=curve))
    drawings = [str(b.svg) for s in page.sections for b in s.blocks if isinstance(b, Plot)]
    assert not any(re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', drawing) for drawing in drawings)
