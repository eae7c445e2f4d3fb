"""The held-out rows that a model is most and least certain of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dropserve.columns import Column
from dropserve.manifest import RunManifest

from .answers import ClassAnswers, ValueAnswers
from .content import Example, Gallery, Section, Tone
from .evidence import HeldOut
from .pictures import as_pictures, data_uri
from .words import count, number, percent

EACH = 8
_VALUES = 6
Say = Callable[[int], tuple[str, str, Tone]]
_TITLE = "What it is most and least certain of"


def class_examples(a: ClassAnswers, held: HeldOut, run: RunManifest) -> Section:
    """Examples of a classifier, by predictive entropy."""
    shown = a.mean if a.calibrated is None else a.calibrated
    labels = run.labels or tuple(map(str, range(shown.shape[1])))

    def say(row: int) -> tuple[str, str, Tone]:
        best, true = int(shown[row].argmax()), int(a.labels[row])
        said = f"{labels[best]} ({percent(float(shown[row, best]))})"
        if best == true:
            return said, "right", "good"
        return said, f"wrong: it is {labels[true]} ({percent(float(shown[row, true]))})", "bad"

    confidence = shown.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    doubted = [int(row) for row in order[::-1][:EACH] if percent(float(confidence[row])) != percent(1)]
    wrong = sum(int(shown[row].argmax()) != int(a.labels[row]) for row in doubted)
    kind = "calibrated probability" if a.calibrated is not None else "probability"
    if doubted:
        words = (
            (
                f"Rows are in the order of the {kind} of the answer, which is the percentage shown. Of the "
                f"{count(len(doubted), 'row')} that the model doubts most, it got {wrong} wrong."
            ),
        )
    else:
        words = (
            (
                f"Every held-out row got its answer with a {kind} of {percent(1)}, rounded: there is no row "
                "that the model doubts to show."
            ),
        )
    return _section(words, order, doubted, held, run, say)


def value_examples(a: ValueAnswers, held: HeldOut, run: RunManifest) -> Section:
    """Examples of a regressor, by predicted deviation."""
    doubt = next((s for s in (a.calibrated, a.total, a.epistemic) if s is not None), None)
    if doubt is None:
        return Section("examples", _TITLE, absent="Without dropout this model gives no measure of doubt.")

    def say(row: int) -> tuple[str, str, Tone]:
        off = abs(float(a.mean[row, 0] - a.target[row, 0]))
        said = f"{number(float(a.mean[row, 0]))} ± {number(float(doubt[row, 0]))}"
        return (
            said,
            f"true: {number(float(a.target[row, 0]))}",
            "good" if off <= 2 * float(doubt[row, 0]) else "bad",
        )

    words = (
        (
            "Below are the held-out rows at each end: what the model said, plus or minus one predicted "
            "standard "
            "deviation, and what is true. Red: off by more than two of them."
        ),
    )
    order = np.argsort(doubt[:, 0], kind="stable")
    return _section(words, order, order[::-1][:EACH].tolist(), held, run, say)


def _section(
    words: tuple[str, ...], order: np.ndarray, doubted: list[int], held: HeldOut, run: RunManifest, say: Say
) -> Section:
    columns = run.preprocessing.columns
    mixed = any(not column.is_plain for own in columns.values() for column in own)
    pictures = None if mixed else as_pictures(held.inputs)

    def example(row: int) -> Example:
        picture = "" if pictures is None else data_uri(pictures[row])
        values = () if picture else _values(held, row, columns)
        return Example(picture, values, *say(row))

    most = Gallery("Most certain", tuple(example(int(row)) for row in order[:EACH]))
    least = Gallery("Least certain", tuple(example(row) for row in doubted))
    blocks = (least, most) if doubted else (most,)
    return Section("examples", _TITLE, words, blocks)


def _values(held: HeldOut, row: int, columns: Mapping[str, Sequence[Column]]) -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    for name, array in held.inputs.items():
        flat = np.ravel(array[row])
        own = [name] if len(flat) == 1 else [f"{name}[{i}]" for i in range(len(flat))]
        shown = flat[:_VALUES].tolist()
        for column, value in zip(columns.get(name) or map(_numbers, own), shown, strict=False):
            found.append((column.name, _written(column.value(value))))
        if len(flat) > _VALUES:
            found.append(("...", f"{len(flat) - _VALUES} more"))
    return tuple(found)


def _numbers(name: str) -> Column:
    return Column(name=name)


def _written(value: str | float | None) -> str:
    if value is None:
        return "missing"
    return value if isinstance(value, str) else f"{value:.4g}"
