"""The figures of the page, computed again by scikit-learn, MAPIE's formula or by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import binomtest
from scipy.stats import t as student
from sklearn import metrics
from sklearn.calibration import calibration_curve

from dropserve.dropout.statistics import softmax
from dropserve.report.content import Gallery, Page, Plot, Section, Table
from dropserve.report.evidence import Evidence, HeldOut
from dropserve.report.page import compose
from dropserve.report.words import interval
from dropserve.uncertainty.calibration import FURTHEST, PRIOR, TRUST
from dropserve.uncertainty.folds import folds

Make = Callable[..., Evidence]
Rows = Callable[..., HeldOut]


def section(page: Page, name: str) -> Section:
    (found,) = [s for s in page.sections if s.id == name]
    return found


def table(found: Section, first: str) -> dict[str, tuple[str, ...]]:
    """Rows of the table whose head begins so, by their first cell."""
    (wanted,) = [b for b in found.blocks if isinstance(b, Table) and b.head[0] == first]
    return {row[0]: row[1:] for row in wanted.rows}


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, strategy: str) -> float:
    """By scikit-learn's curve, each bin by the rows that its edges leave to it."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    share, mean = calibration_curve(right, confidence, n_bins=15, strategy=strategy)
    edges = np.linspace(0, 1, 16) if strategy == "uniform" else np.quantile(confidence, np.linspace(0, 1, 16))
    count = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=15)
    return float(np.average(np.abs(share - mean), weights=count[count > 0]))


def test_folds_judge_each_row_once_by_others() -> None:
    judged = []
    for others, own in folds(23):
        assert sorted([*others, *own]) == list(range(23))
        judged += own.tolist()
    assert sorted(judged) == list(range(23))


def test_scores_before_calibration_are_those_of_scikit_learn(make: Make, class_rows: Rows) -> None:
    held = class_rows(210)  # 14 for each of the bins of equal mass, so that no row lies on an edge
    rows = table(section(compose(make(held)), "reliability"), "answers")
    plain, mean = softmax(held.plain), softmax(held.samples).mean(axis=0)
    for name, p in (("plain (dropout off)", plain), ("Monte Carlo, 50 samples, before calibration", mean)):
        accuracy = metrics.accuracy_score(held.target, p.argmax(axis=1))
        loss = metrics.log_loss(held.target, p)
        squares = metrics.brier_score_loss(held.target, p, scale_by_half=False)
        got = rows[name]
        assert (got[0], got[3], got[4]) == (f"{accuracy:.1%}", f"{loss:.4f}", f"{squares:.4f}")
        for cell, strategy in ((got[1], "uniform"), (got[2], "quantile")):
            assert float(cell) == pytest.approx(calibration_error(p, held.target, strategy), abs=6e-5)


def shrunk_temperature(p: np.ndarray, labels: np.ndarray, plain: np.ndarray) -> float:
    """The mode of the posterior, by scipy: Student's t prior, and one more row that is wrong.

    The prior's centre is on the way to the temperature of least cross-entropy from the plain answers.
    """
    logs, expected_errors = np.log(p), p * (np.arange(p.shape[1]) != p.argmax(axis=1)[:, None])

    def cross_entropy(at: float) -> float:
        return -float((plain * log_softmax(logs / np.exp(at), axis=1)).sum())

    centre = TRUST * float(minimize_scalar(cross_entropy, (-1.0, 0.0)).x)
    assert 0.01 < abs(centre) < TRUST * np.log(FURTHEST)

    def minus_log_posterior(at: float) -> float:
        each = log_softmax(logs / np.exp(at), axis=1)
        seen = each[np.arange(len(labels)), labels].sum()
        unseen = (expected_errors / expected_errors.sum() * each).sum()
        return -float(seen + unseen + student.logpdf(at, df=3, loc=centre, scale=PRIOR))

    return float(np.exp(minimize_scalar(minus_log_posterior, (-1.0, 0.0)).x))


def test_calibration_is_judged_on_rows_it_did_not_see(make: Make, class_rows: Rows) -> None:
    held = class_rows()
    mean = softmax(held.samples).mean(axis=0)
    expected = np.empty_like(mean)
    for others, own in folds(held.rows):
        t = shrunk_temperature(mean[others], held.target[others], softmax(held.plain)[others])
        expected[own] = softmax(np.log(mean[own]) / t)
    got = table(section(compose(make(held)), "reliability"), "answers")
    after = float(got["Monte Carlo, 50 samples, after calibration"][3])
    assert after == pytest.approx(metrics.log_loss(held.target, expected), abs=2e-4)
    assert after < float(got["Monte Carlo, 50 samples, before calibration"][3])


def test_what_declining_buys_is_counted_by_hand(make: Make, class_rows: Rows) -> None:
    held = class_rows()
    mean = softmax(held.samples).mean(axis=0)
    doubt = -(mean * np.log(mean)).sum(axis=1)
    wrong = (mean.argmax(axis=1) != held.target)[np.argsort(doubt)]
    rows = table(section(compose(make(held)), "selective"), "answered by the model")
    for share in (100, 90, 50):
        assert rows[f"{share}%"][0].startswith(f"{wrong[: 2 * share].sum()} of {2 * share} (95% interval")


def test_doubt_of_wrong_answers_is_scikit_learns_auroc(make: Make, class_rows: Rows) -> None:
    held = class_rows()
    mean = softmax(held.samples).mean(axis=0)
    doubt = -(mean * np.log(mean)).sum(axis=1)
    wrong = mean.argmax(axis=1) != held.target
    found = section(compose(make(held)), "uncertainty")
    assert f"{metrics.roc_auc_score(wrong, doubt):.1%} of such pairs" in found.words[0]
    assert f"{(~wrong).sum()} answers right, {wrong.sum()} wrong" in found.words[0]


def test_sets_are_those_of_the_quantile_of_the_other_rows(make: Make, class_rows: Rows) -> None:
    held = class_rows()
    mean = softmax(held.samples).mean(axis=0)
    own = np.arange(held.rows)
    scores = 1 - mean
    sets = np.empty(mean.shape, bool)
    for others, judged in folds(held.rows):
        rank = int(np.ceil((len(others) + 1) * 0.9))
        limit = np.sort(scores[own, held.target][others])[rank - 1]
        sets[judged] = scores[judged] <= limit
    sets[own, mean.argmax(axis=1)] = True  # of a marginal threshold: never empty
    row = table(section(compose(make(held)), "conformal"), "asked")["90%"]
    sizes = sets.sum(axis=1)
    assert (row[0], row[2], *row[3:]) == (
        f"{sets[own, held.target].mean():.1%}",
        f"{sizes.mean():.2f}",
        f"{(sizes == 1).mean():.1%}",
    )


def test_intervals_of_many_shares_are_those_of_scipy() -> None:
    counts = np.array([1, 5, 40, 40])
    hits = np.array([1, 2, 0, 37])
    low, high = interval(hits, counts)
    for i, (k, n) in enumerate(zip(hits, counts, strict=True)):
        expected = binomtest(int(k), int(n)).proportion_ci(method="wilson")
        assert (low[i], high[i]) == pytest.approx((expected.low, expected.high), abs=1e-7)


def test_a_regressors_errors_are_those_of_scikit_learn(make: Make, value_rows: Rows) -> None:
    held = value_rows()
    page = compose(make(held, task="regression"))
    mean = held.samples.mean(axis=0)
    rows = table(section(page, "predictions"), "answers")
    for name, made in (("plain (dropout off)", held.plain), ("Monte Carlo mean, 50 samples", mean)):
        expected = (
            metrics.root_mean_squared_error(held.target, made),
            metrics.mean_absolute_error(held.target, made),
        )
        assert rows[name] == tuple(f"{e:.4g}" for e in expected)


@pytest.mark.parametrize("method", ["scaled", "absolute", "cqr"])
def test_a_regressors_intervals_cover_and_are_as_wide_as_the_noise_demands(
    make: Make, value_rows: Rows, method: str
) -> None:
    page = compose(make(value_rows(2000), task="regression", intervals=method))
    rows = table(section(page, "conformal"), "asked")
    for share, z in ((50, 0.6745), (80, 1.2816), (90, 1.6449), (95, 1.96)):
        held, _, width = rows[f"{share}%"]
        assert float(held.rstrip("%")) == pytest.approx(share, abs=2.5)
        assert float(width) == pytest.approx(2 * z * 2, rel=0.08), "errors have the deviation 2"
    residuals = [b for b in section(page, "residuals").blocks if isinstance(b, Plot)]
    squares = [float(re.findall(r"Mean square ([\d.]+)", plot.caption)[0].rstrip(".")) for plot in residuals]
    assert squares == pytest.approx([1, 1], abs=0.1)


def test_overfitting_is_told_from_the_curve(make: Make) -> None:
    found = section(compose(make()), "overfitting")
    assert "rose by up to 100.0% (at epoch 4)" in found.words[0], "0.2 at epoch 3, 0.4 at epoch 4"
    assert "accuracy is 91.0% on the former and 87.0% on the latter" in found.words[2]
    losses = table(found, "loss")
    assert losses["validation, dropout off"] == ("0.2", "0.4")


@pytest.mark.parametrize("monitor", ["score", "nothing"])
def test_an_epoch_kept_for_another_reason_is_not_said_to_have_the_lowest_loss(
    make: Make, monitor: str
) -> None:
    metrics = {"validation_accuracy": 0.91, "best_epoch": 4.0}
    curve = (
        "epoch,train_loss,validation_loss,validation_accuracy,learning_rate,seconds\n"
        "1,1.7,0.8,0.85,0.001,1.0\n2,0.7,0.3,0.90,0.001,1.0\n3,0.4,0.2,0.90,0.001,1.0\n4,0.2,0.4,0.91,0.001,1.0\n"
    )
    evidence = make(run_changes={"metrics": metrics}, curve=curve)
    asked = evidence.run.manifest.model_copy(update={"recipe": {"training": {"monitor": monitor}}})
    page = compose(replace(evidence, run=replace(evidence.run, manifest=asked)))
    (learned,) = section(page, "curves").words
    assert "epoch 4 are kept" in learned
    assert "lowest" not in learned
    assert (
        "as the recipe asks" if monitor == "nothing" else "score on the validation rows was best"
    ) in learned
    found = section(page, "overfitting")
    assert "after epoch 3, where it was lowest, validation loss rose by up to 100.0%" in found.words[0]
    assert "Epoch 4 is kept all the same" in found.words[0]
    assert "is 0.4 on validation rows" in found.words[1]
    assert table(found, "loss")["validation, dropout off"] == ("0.4", "0.4")


def test_examples_are_in_the_order_of_the_number_they_show(make: Make, class_rows: Rows) -> None:
    held = class_rows()
    galleries = [b for b in section(compose(make(held)), "examples").blocks if isinstance(b, Gallery)]
    shown = [[float(e.said.split("(")[1].rstrip("%)")) for e in g.examples] for g in galleries]
    assert [g.title for g in galleries] == ["Least certain", "Most certain"]
    assert shown[0] == sorted(shown[0])
    assert shown[1] == sorted(shown[1], reverse=True)
    assert max(shown[0]) <= min(shown[1])
    for gallery in galleries:
        for example in gallery.examples:
            label = example.said.split(" ")[0]
            assert example.tone == ("good" if example.truth == "right" else "bad")
            assert example.truth == "right" or f"it is {label} " not in example.truth
