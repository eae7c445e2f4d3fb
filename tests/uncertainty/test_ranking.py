"""Order measures against scikit-learn and closed forms, ties above all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from dropserve.errors import UsageError
from dropserve.uncertainty.ranking import aurc, auroc, fpr_at_tpr, risk_coverage

SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=40)  # few values: many ties


@given(positive=SCORES, negative=SCORES)
def test_auroc_agrees_with_scikit_learn(positive, negative):
    truth = np.repeat([1, 0], [len(positive), len(negative)])
    assert auroc(positive, negative) == pytest.approx(roc_auc_score(truth, positive + negative))


@given(positive=SCORES, negative=SCORES, tpr=st.sampled_from([0.5, 0.8, 0.9, 0.95, 1.0]))
def test_false_positive_rate_agrees_with_scikit_learn(positive, negative, tpr):
    truth = np.repeat([1, 0], [len(positive), len(negative)])
    false, true, _ = roc_curve(truth, positive + negative, drop_intermediate=False)
    assert fpr_at_tpr(positive, negative, tpr=tpr) == false[np.argmax(true >= tpr)]


def test_perfect_reversed_and_useless_scores():
    assert (auroc([2, 3], [0, 1]), auroc([0, 1], [2, 3]), auroc([1], [1])) == (1, 0, 0.5)
    assert (fpr_at_tpr([2, 3], [0, 1]), fpr_at_tpr([0, 1], [2, 3]), fpr_at_tpr([1], [1])) == (0, 1, 1)


def test_risk_coverage_of_a_perfect_order():
    curve = risk_coverage([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 1])
    assert np.allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    assert np.allclose(curve.risk, [0, 0, 1 / 3, 1 / 2])
    assert curve.aurc == pytest.approx((1 / 3 + 1 / 2) / 4)
    assert (curve.risk_at(0.5), curve.risk_at(0.6), curve.risk_at(1)) == (0, pytest.approx(1 / 3), 0.5)


def test_confidence_that_says_nothing_leaves_the_mean_risk_everywhere():
    loss = np.random.default_rng(0).integers(0, 2, 50)
    assert np.allclose(risk_coverage(np.ones(50), loss).risk, loss.mean())


@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30),
    seed=st.integers(0, 99),
)
def test_ties_are_the_mean_over_their_orders_and_rows_may_come_in_any(rows, seed):
    confidence, loss = np.array(rows, float).T
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))
    assert aurc(confidence[order], loss[order]) == pytest.approx(aurc(confidence, loss))
    broken = [aurc(confidence + 1e-6 * rng.permutation(len(rows)), loss) for _ in range(400)]
    assert aurc(confidence, loss) == pytest.approx(np.mean(broken), abs=max(0.02, 5 * np.std(broken) / 20))


def test_lengths_rates_and_missing_numbers_are_refused():
    with pytest.raises(UsageError, match="one length"):
        risk_coverage([1, 2], [1])
    with pytest.raises(UsageError, match="true positive rate"):
        fpr_at_tpr([1], [1], tpr=0)
    with pytest.raises(UsageError, match="finite"):
        auroc([np.nan], [1])
