"""Prediction sets against MAPIE, the theory of coverage and the definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import RAPSConformityScore
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import StratifiedShuffleSplit

from dropserve.errors import UsageError
from dropserve.uncertainty.conformal import (
    METHODS,
    ConformalClassifier,
    choose_penalty,
    class_scores,
    row_uniforms,
)
from dropserve.uncertainty.quantiles import coverage_theory

CLASSES = 6


def draw(rows, seed=0, sharpness=2.0):
    """Probabilities, and labels that follow a blunter truth: an overconfident model."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, CLASSES)) * sharpness
    truth = softmax(logits * 0.6, axis=1)
    labels = (rng.random(rows)[:, None] > truth.cumsum(1)[:, :-1]).sum(1)
    return softmax(logits, axis=1), labels, rng.random(rows)


class Given(ClassifierMixin, BaseEstimator):
    """An estimator whose features are its probabilities."""

    def fit(self, _x, _y):
        self.classes_ = np.arange(CLASSES)
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(1)


def mapie_sets(score, calibration, test, levels=(0.9, 0.95), seed=7, **params):
    oracle = SplitConformalClassifier(
        Given().fit(None, None), confidence_level=levels, conformity_score=score, random_state=seed
    )
    oracle.conformalize(calibration[0], calibration[1])
    return oracle, oracle.predict_set(test[0], conformity_score_params=params)[1]


def test_lac_gives_the_sets_of_mapie():
    calibration, test = draw(537, 1), draw(800, 2)
    _, expected = mapie_sets("lac", calibration, test)
    mine = ConformalClassifier.fit(*calibration[:2], method="lac")
    for i, coverage in enumerate((900, 950)):
        assert np.array_equal(mine.sets(test[0], coverage, allow_empty=True), expected[:, :, i])


def test_aps_gives_the_sets_of_mapie_for_the_same_uniforms():
    calibration, test = draw(537, 1), draw(800, 2)
    _, expected = mapie_sets("aps", calibration, test, include_last_label="randomized")
    # MAPIE seeds a RandomState anew for calibration and for prediction.
    uniforms = [np.random.RandomState(7).uniform(size=n) for n in (537, 800)]
    mine = ConformalClassifier.fit(*calibration[:2], method="aps", uniforms=uniforms[0])
    for i, coverage in enumerate((900, 950)):
        assert np.array_equal(mine.sets(test[0], coverage, uniforms[1], allow_empty=True), expected[:, :, i])


def test_raps_has_the_quantile_of_mapie_for_the_same_rows_and_parameters():
    """The sets cannot be compared: MAPIE keeps or removes the last class by another rule than its score.

    It also takes the rows on which it chooses its parameters from those given for calibration.
    """
    calibration, test = draw(537, 1), draw(50, 2)
    score = RAPSConformityScore()
    oracle, _ = mapie_sets(score, calibration, test, levels=(0.9,), include_last_label="randomized")
    split = StratifiedShuffleSplit(n_splits=1, test_size=score.size_raps, random_state=7)
    used, _ = next(split.split(*calibration[:2]))
    uniforms = np.random.RandomState(7).uniform(size=len(used))
    mine = ConformalClassifier.fit(
        calibration[0][used],
        calibration[1][used],
        method="raps",
        uniforms=uniforms,
        penalty=float(np.ravel(score.lambda_star)[0]),
        free_ranks=int(np.ravel(score.k_star)[0]),
    )
    quantile = oracle._mapie_classifier.conformity_score_function_.quantiles_
    assert mine.quantiles.at(900) == pytest.approx(float(np.ravel(quantile)[0]), abs=1e-12)


def test_scores_by_their_definitions():
    p, u = np.array([[0.5, 0.2, 0.3]]), [0.25]
    assert np.allclose(class_scores(p, "lac"), [[0.5, 0.8, 0.7]])
    assert np.allclose(class_scores(p, "aps", u), [[0.375, 0.95, 0.725]])
    assert np.allclose(class_scores(p, "raps", u, penalty=0.1, free_ranks=1), [[0.375, 1.15, 0.825]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("coverage", [800, 900, 950])
def test_coverage_is_within_what_theory_predicts(method, coverage):
    """Means over random splits of one pool; without ties the theory is exact."""
    probabilities, labels, uniforms = draw(1200)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        order = rng.permutation(1200)
        a, b = order[:500], order[500:]
        fitted = ConformalClassifier.fit(
            probabilities[a], labels[a], method=method, uniforms=uniforms[a], penalty=0.01, free_ranks=2
        )
        sets = fitted.sets(probabilities[b], coverage, uniforms[b], allow_empty=True)
        found.append(sets[np.arange(700), labels[b]].mean())
    mean, deviation = coverage_theory(500, coverage, 700)
    assert abs(np.mean(found) - mean) < 4 * deviation / np.sqrt(200)
    assert np.std(found) == pytest.approx(deviation, rel=0.25)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["tied", "certain", "rare"])
def test_coverage_holds_with_few_rows_ties_and_classes_without_rows(kind, method, conditional):
    """Over 400 draws of 40 rows; class-conditional: for each class. Served sets hold the truth as often."""
    rng, n = np.random.default_rng(3), 40
    hits, rows = np.zeros((400, 3)), np.zeros((400, 3))
    for draw_number in range(400):
        logits = rng.normal(size=(n + 60, 3)) * 2 + ([0, 1, -4] if kind == "rare" else 0)
        labels = (rng.random(n + 60)[:, None] > softmax(logits, 1).cumsum(1)[:, :-1]).sum(1)
        p = softmax(logits * 1.5, axis=1)
        if kind == "tied":
            p = rng.multinomial(5, p) / 5
        elif kind == "certain":
            p = np.eye(3)[p.argmax(1)]
        u = rng.random(n + 60)
        fitted = ConformalClassifier.fit(
            p[:n], labels[:n], method=method, uniforms=u[:n], class_conditional=conditional
        )
        sets = fitted.sets(p[n:], 900, u[n:], allow_empty=True)
        own = sets[np.arange(60), labels[n:]]
        group = labels[n:] if conditional else np.zeros(60, int)
        hits[draw_number] = np.bincount(group, own, 3)
        rows[draw_number] = np.bincount(group, minlength=3)
        assert fitted.sets(p[n:], 900, u[n:])[np.arange(60), labels[n:]].sum() >= own.sum()
    for h, r in zip(hits.T, rows.T, strict=True):
        if r.sum():
            error = np.sqrt(np.square(h - h.sum() / r.sum() * r).sum()) / r.sum()
            assert h.sum() / r.sum() > 0.9 - 4 * error


@pytest.mark.parametrize("method", METHODS)
def test_a_higher_coverage_only_adds_classes(method):
    calibration, test = draw(300, 1), draw(200, 2)
    fitted = ConformalClassifier.fit(*calibration[:2], method=method, uniforms=calibration[2])
    before = np.zeros((200, CLASSES), bool)
    for coverage in (1, 300, 700, 900, 990, 996):
        sets = fitted.sets(test[0], coverage, test[2])
        assert np.all(sets | ~before)
        before = sets


def test_too_few_rows_give_every_class_and_say_so():
    calibration = draw(9)
    fitted = ConformalClassifier.fit(*calibration[:2])
    assert fitted.note(900) is None
    assert fitted.sets(draw(5)[0], 950).all()
    assert (fitted.supports(900), fitted.supports(950)) == (True, False)
    assert "at least 19 rows" in fitted.note(950)


@pytest.mark.filterwarnings("ignore:WARNING. your conformalization dataset has less labels")
def test_class_conditional_sets_are_those_of_each_class_alone():
    """The oracle is MAPIE, calibrated on the rows of one class: its decision on that class alone counts."""
    calibration, test = draw(900, 1), draw(300, 2)
    fitted = ConformalClassifier.fit(*calibration[:2], class_conditional=True)
    mine = fitted.sets(test[0], 900, allow_empty=True)
    for k in range(CLASSES):
        own = calibration[1] == k
        _, expected = mapie_sets("lac", [calibration[0][own], calibration[1][own]], test, levels=(0.9,))
        assert np.array_equal(mine[:, k], expected[:, k, 0])


def test_class_conditional_coverage_holds_for_each_class_where_marginal_coverage_does_not():
    calibration, test = draw(6000, 1), draw(6000, 2)
    denied = np.array([0.05, 1, 1, 1, 1, 1])  # the model all but denies class 0
    (p, y, _), (new, truth, _) = calibration, test
    p, new = ((each * denied) / (each * denied).sum(1, keepdims=True) for each in (p, new))
    hits = {}
    for conditional in (False, True):
        sets = ConformalClassifier.fit(p, y, class_conditional=conditional).sets(new, 900)
        hits[conditional] = [sets[truth == k, k].mean() for k in range(CLASSES)]
    assert hits[False][0] < 0.8
    assert np.allclose(hits[True], 0.9, atol=0.04)


def test_a_class_conditional_set_holds_the_most_probable_class_too():
    """Class 0 needs a high probability: by thresholds alone, sets lack their best class."""
    p, y, _ = draw(3000, 1)
    y = np.where((y == 0) & (p[:, 0] < 0.9), 1, y)
    fitted = ConformalClassifier.fit(p, y, class_conditional=True)
    rows, best = np.arange(3000), p.argmax(1)
    exact, sets = fitted.sets(p, 900, allow_empty=True), fitted.sets(p, 900)
    assert (exact.any(1) & ~exact[rows, best]).sum() > 50
    assert sets[rows, best].all()
    assert np.array_equal(np.delete(sets, 0, 1)[best == 0], np.delete(exact, 0, 1)[best == 0])


def test_classes_with_too_few_rows_stand_in_every_set_and_are_named():
    p, y, u = draw(400, 1)
    kept = (y != 2) & ((y != 4) | (np.cumsum(y == 4) <= 5))
    for method in METHODS:
        fitted = ConformalClassifier.fit(
            p[kept], y[kept], method=method, uniforms=u[kept], class_conditional=True
        )
        sets = fitted.sets(p, 900, u)
        assert sets[:, [2, 4]].all()
        assert not sets.all(0)[[0, 1, 3, 5]].any()
        assert fitted.supports(900)
        assert "2 of 6 classes" in fitted.note(900)
        assert "2 (0), 4 (5), where it takes 9 of each class" in fitted.note(900)
        assert "c (0), e (5), where" in fitted.note(900, ["a", "b", "c", "d", "e", "f"])
        assert not fitted.supports(999)
        assert "so there are no sets" in fitted.note(999)


def test_a_set_holds_the_most_probable_class_unless_empty_ones_are_allowed():
    """Empty sets would keep the coverage at exactly 90% where accuracy is 99%."""
    probabilities, labels, _ = draw(4000, sharpness=12)
    labels = np.where(np.random.default_rng(0).random(4000) < 0.99, probabilities.argmax(1), labels)
    fitted = ConformalClassifier.fit(probabilities[:2000], labels[:2000])
    exact = fitted.sets(probabilities[2000:], 900, allow_empty=True)
    size = exact.sum(1)
    assert (size == 0).mean() == pytest.approx(0.1, abs=0.02)
    assert size.max() == 1
    least_sure = probabilities[2000:].max(1)
    assert least_sure[size == 0].max() < least_sure[size == 1].min()
    sets, best = fitted.sets(probabilities[2000:], 900), probabilities[2000:].argmax(1)
    assert np.array_equal(sets[size == 0], np.eye(CLASSES, dtype=bool)[best[size == 0]])
    assert np.array_equal(sets[size > 0], exact[size > 0])
    assert sets[np.arange(2000), labels[2000:]].mean() == pytest.approx(0.99, abs=0.01)


def test_raps_sets_have_a_shorter_tail_than_aps_sets():
    calibration, test, tune = draw(800, 1, 1.0), draw(2000, 2, 1.0), draw(800, 3, 1.0)
    penalty, free = choose_penalty(*tune)
    assert penalty > 0
    assert 1 <= free <= CLASSES
    sizes = {}
    for method in ("aps", "raps"):
        fitted = ConformalClassifier.fit(
            *calibration[:2], method=method, uniforms=calibration[2], penalty=0.2, free_ranks=2
        )
        sizes[method] = fitted.sets(test[0], 900, test[2]).sum(1)
    assert np.percentile(sizes["raps"], 99) <= np.percentile(sizes["aps"], 99)
    assert sizes["raps"].std() < sizes["aps"].std()


def test_uniforms_repeat_and_belong_to_the_row_alone():
    rng = np.random.default_rng(0)
    inputs = {"x": rng.normal(size=(500, 3)).astype(np.float32), "k": rng.integers(0, 9, (500, 2))}
    whole = row_uniforms(inputs, 5)
    assert np.array_equal(whole, row_uniforms(dict(reversed(inputs.items())), 5))
    assert whole[17] == row_uniforms({name: array[17:18] for name, array in inputs.items()}, 5)[0]
    swapped = {name: array.astype(array.dtype.newbyteorder(">")) for name, array in inputs.items()}
    assert np.array_equal(whole, row_uniforms(swapped, 5))
    strided = {name: np.asfortranarray(array) for name, array in inputs.items()}
    assert np.array_equal(whole, row_uniforms(strided, 5))


def test_uniforms_change_with_the_seed_and_with_any_value_but_not_with_the_sign_of_zero():
    x = np.zeros((1, 3), np.float32)
    base = row_uniforms({"x": x}, 0)
    assert base != row_uniforms({"x": x}, 1)
    assert base != row_uniforms({"y": x}, 0)
    assert base != row_uniforms({"x": np.array([[0, 0, 1e-30]], np.float32)}, 0)
    assert base == row_uniforms({"x": -x}, 0)


def test_uniforms_are_uniform_and_seeds_are_independent():
    from scipy import stats

    x = {"x": np.arange(20_000.0)[:, None]}
    a, b = row_uniforms(x, 0), row_uniforms(x, 1)
    assert stats.kstest(a, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 0.03


@given(seed=st.integers(0, 2**53 - 1))
def test_any_seed_of_the_engine_will_do(seed):
    assert 0 <= row_uniforms({"x": np.ones((1, 1), np.int64)}, seed)[0] < 1


def test_what_is_missing_or_unknown_is_named():
    p, y, u = draw(30)
    with pytest.raises(UsageError, match="row_uniforms"):
        ConformalClassifier.fit(p, y, method="aps")
    with pytest.raises(UsageError, match="lac, aps, raps"):
        ConformalClassifier.fit(p, y, method="naive")
    with pytest.raises(UsageError, match=r"expected \[30\]"):
        ConformalClassifier.fit(p, y, method="aps", uniforms=u[:3])
    with pytest.raises(UsageError, match="such as 900"):
        ConformalClassifier.fit(p, y).sets(p, 0.9)
