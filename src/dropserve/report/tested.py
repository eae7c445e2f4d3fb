"""The test rows, which chose nothing: confusion, precision and recall, reliability, residuals."""

from __future__ import annotations

import numpy as np

from dropserve.dropout.statistics import softmax
from dropserve.uncertainty.checks import Float, Whole

from .classes import diagram
from .content import Plot, Section, Table
from .evidence import Evidence
from .svg import Axis, Line, Points, draw
from .words import between, count, number, of_rows

FILE = "test.npz"
TITLE = "How does it do on test rows?"
_MOST = 12  # classes that a confusion table has room for


def answers_to_test_rows(evidence: Evidence) -> Section:
    """Plain answers (dropout off) to the run's test rows; a run without them has a section that says so."""
    if FILE not in evidence.run.manifest.files:
        return Section("tested", TITLE, absent=f"The run holds no answers to test rows ({FILE}).")
    with np.load(evidence.run.path(FILE)) as found:
        output, target = np.asarray(found["output"], np.float64), found["target"]
    if evidence.manifest.task != "classification":
        return _values(output[:, 0], np.asarray(target, np.float64).reshape(len(output)))
    return _classes(output, target, evidence.run.manifest.labels)


def _classes(output: Float, target: Whole, labels: tuple[str, ...]) -> Section:
    said, many = output.argmax(axis=1), output.shape[1]
    names = labels or tuple(map(str, range(many)))
    table = np.bincount(target * many + said, minlength=many**2).reshape(many, many)
    common = int(table.sum(axis=1).argmax())
    words = [
        (
            f"It is right on {of_rows(int(table.trace()), len(target))} test rows, dropout off. Always "
            f"answering “{names[common]}”, the most frequent class of these rows, would be right on "
            f"{int(table[common].sum()):,}."
        )
    ]
    if absent := [name for name, rows in zip(names, table.sum(axis=1), strict=True) if not rows]:
        words.append(f"No test row is of {count(len(absent), 'class', 'classes')}: {', '.join(absent[:9])}.")
    rows = tuple(
        (name, f"{own.sum():,}", _share(own[k], own.sum()), _share(own[k], table[:, k].sum()))
        for k, (name, own) in enumerate(zip(names, table, strict=True))
    )
    blocks: list[Table | Plot] = [
        Table(("class", "rows", "recall", "precision"), rows, caption="With 95% intervals (Wilson).")
    ]
    if many <= _MOST:
        lines = tuple((name, *map(str, own)) for name, own in zip(names, table.tolist(), strict=True))
        blocks.append(Table(("true class", *(f"said {name}" for name in names)), lines, long=True))
    blocks.append(diagram("Test rows, dropout off", softmax(output), target))
    return Section("tested", TITLE, tuple(words), tuple(blocks))


def _share(hits: int, rows: int) -> str:
    return f"{hits} of {rows} ({between(hits, rows).removeprefix('95% interval ')})" if rows else "no row"


def _values(said: Float, target: Float) -> Section:
    off = target - said
    words = (
        f"On {count(len(off), 'test row')} it is off by {number(float(np.sqrt(np.square(off).mean())))} "
        f"(root mean square), dropout off. Always answering their mean would be off by "
        f"{number(float(target.std()))}."
    )
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
    return Section("tested", TITLE, (words,), (plot,))
