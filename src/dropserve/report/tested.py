"""The test rows, which chose nothing: confusion, precision and recall, reliability, residuals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dropserve.dropout.statistics import softmax
from dropserve.dropout.student import mean_interval
from dropserve.uncertainty.checks import Bool, Float, Whole

from .classes import diagram
from .content import Plot, Section, Table
from .evidence import Evidence
from .svg import Axis, Line, Points, draw
from .words import between, count, interval, listed, number, of_rows

FILE = "test.npz"
TITLE = "How does it do on test rows?"
_MOST = 12  # classes that a confusion table has room for


@dataclass(frozen=True)
class Tested:
    """Plain answers (dropout off) to n test rows.

    Attributes:
        output: logits [n, C] or values [n, 1].
        target: classes [n] or values [n].
        available: test rows of the run, of which n were kept.
    """

    output: Float
    target: Whole | Float
    available: int

    @property
    def some(self) -> str:
        """That these are not all test rows, in words; empty if they are."""
        shown = len(self.target)
        return (
            f" (These are {shown:,} of {self.available:,}, drawn at random.)"
            if self.available > shown
            else ""
        )

    @property
    def hits(self) -> Bool:
        """Which answers of a classifier are right [n]."""
        return self.output.argmax(axis=1) == self.target

    @property
    def common(self) -> int:
        """The most frequent class of these rows; the first of several."""
        return int(np.bincount(self.target.astype(np.int64), minlength=self.output.shape[1]).argmax())

    @property
    def errors(self) -> Float:
        """True value less prediction of a regressor [n]."""
        return self.target - self.output[:, 0]


def read_tested(evidence: Evidence) -> Tested | str:
    """The run's answers to its test rows, or why there are none that could be judged."""
    if FILE not in evidence.run.manifest.files:
        return f"The run holds no answers to test rows ({FILE})."
    with np.load(evidence.run.path(FILE)) as found:
        output, target = np.asarray(found["output"], np.float64), found["target"]
    if not len(target):
        return "The run kept no test rows."
    bad = int((~np.isfinite(output)).any(axis=1).sum())
    if bad:
        return f"The model does not answer {of_rows(bad, len(target))} test rows with finite numbers."
    classes = evidence.manifest.task == "classification"
    truth = np.asarray(target, np.int64) if classes else np.asarray(target, np.float64)
    rows = evidence.run.manifest.data.get("rows")
    available = rows.get("test") if isinstance(rows, dict) else None
    return Tested(output, truth.reshape(-1), available if isinstance(available, int) else len(output))


def answers_to_test_rows(evidence: Evidence) -> Section:
    """Plain answers to the run's test rows; a run without them has a section that says so."""
    tested = read_tested(evidence)
    if isinstance(tested, str):
        return Section("tested", TITLE, absent=tested)
    if evidence.manifest.task == "classification":
        return _classes(tested, evidence.run.manifest.labels)
    return _values(tested)


def class_score(tested: Tested, names: tuple[str, ...]) -> str:
    """Accuracy with its interval, beside the most frequent class, and whether the two are told apart."""
    hits, common = tested.hits, tested.common
    usual = tested.target == common
    words = (
        f"It is right on {of_rows(int(hits.sum()), len(hits))} test rows, dropout off. Always answering "
        f"“{names[common]}”, the most frequent class of these rows, would be right on {int(usual.sum()):,}."
    )
    better, worse = int((hits & ~usual).sum()), int((usual & ~hits).sum())
    clear = bool(interval(better, better + worse)[0] > 0.5)
    return f"{words}{tested.some} {_verdict(better=better > worse, clear=clear)}"


def value_score(tested: Tested) -> str:
    """Root mean square error with its interval, beside the mean, and whether the two are told apart."""
    squares, target = np.square(tested.errors), np.asarray(tested.target, np.float64)
    mean, half = mean_interval(squares)
    ends = ""
    if np.isfinite(half):
        low, high = np.sqrt([max(mean - half, 0.0), mean + half])
        ends = f"; 95% interval about {number(float(low))} to {number(float(high))}"
    constant = np.square(target - target.mean())
    gain, doubt = mean_interval(constant - squares)
    verdict = _verdict(better=gain > 0, clear=gain > doubt)
    return (
        f"On {count(len(squares), 'test row')} it is off by {number(float(np.sqrt(mean)))} (root mean "
        f"square{ends}), dropout off. Always answering the mean of these rows would be off by "
        f"{number(float(target.std()))}.{tested.some} {verdict}"
    )


def _verdict(*, better: bool, clear: bool) -> str:
    if better and clear:
        return "On these rows the model is clearly better than that (95%)."
    if better:
        return "The model is better on these rows, but the difference lies within chance (95%)."
    return "The model is no better than that on these rows."


def _classes(tested: Tested, labels: tuple[str, ...]) -> Section:
    output, target = tested.output, tested.target.astype(np.int64)
    many = output.shape[1]
    names = labels or tuple(map(str, range(many)))
    table = np.bincount(target * many + output.argmax(axis=1), minlength=many**2).reshape(many, many)
    words = [class_score(tested, names)]
    if absent := [name for name, rows in zip(names, table.sum(axis=1), strict=True) if not rows]:
        told = listed(absent, 9)
        words.append(f"No test row is of {count(len(absent), 'class', 'classes')}: {told}.")
    rows = tuple(
        (name, f"{own.sum():,}", _share(own[k], own.sum()), _share(own[k], table[:, k].sum()))
        for k, (name, own) in enumerate(zip(names, table, strict=True))
    )
    caption = (
        "Recall: of the rows of a class, those that the model calls so. Precision: of the rows that it "
        "calls so, those of the class. With 95% intervals (Wilson)."
    )
    blocks: list[Table | Plot] = [Table(("class", "rows", "recall", "precision"), rows, caption=caption)]
    if many <= _MOST:
        lines = tuple((name, *map(str, own)) for name, own in zip(names, table.tolist(), strict=True))
        blocks.append(Table(("true class", *(f"said {name}" for name in names)), lines, long=True))
    blocks.append(diagram("Test rows, dropout off", softmax(output), target))
    return Section("tested", TITLE, tuple(words), tuple(blocks))


def _share(hits: int, rows: int) -> str:
    return f"{hits} of {rows} ({between(hits, rows).removeprefix('95% interval ')})" if rows else "no row"


def _values(tested: Tested) -> Section:
    said, off = tested.output[:, 0], tested.errors
    across = Axis.around("predicted value", said)
    plot = Plot(
        "Residuals against predictions",
        draw(
            "True value less prediction, by prediction",
            across,
            Axis.around("true less predicted", off, [0.0]),
            [Points(said, off), Line([across.low, across.high], [0.0, 0.0], "faint", dashed=True)],
        ),
        (("a", "test rows"), ("faint", "no error")),
    )
    return Section("tested", TITLE, (value_score(tested),), (plot,))
