"""What the cells of a study say: means with error bars, differences seed by seed, and one sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dropserve.dropout.student import mean_interval
from dropserve.training.overfit.study import Cell


@dataclass(frozen=True)
class Bar:
    """A mean over seeds and half its 95% interval (Student's t)."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Bar:
        """Of one number for each seed, at least two."""
        return cls(*mean_interval(values))

    @property
    def clear(self) -> int:
        """The sign of what the whole interval lies on one side of 0; 0 if it holds it."""
        return int(math.copysign(1, self.mean)) if abs(self.mean) > self.half else 0


@dataclass(frozen=True)
class Line:
    """One number of training rows at one rate: means over seeds.

    Attributes:
        gain: of the test score over the same seeds without dropout; above 0 is better, whatever the score.
        averaging: what the mean over samples gains over scaled weights, likewise.
    """

    rows: int
    rate: float
    test: Bar
    validation: Bar
    train: Bar
    gap: Bar
    co_adaptation: Bar
    gain: Bar
    averaging: Bar


@dataclass(frozen=True)
class Evidence:
    """A study's lines, and what they say.

    Attributes:
        lines: by rows and then rate, both ascending.
        seeds: how many are in each mean.
        classifies: whether scores are accuracies, else RMSE.
    """

    lines: tuple[Line, ...]
    seeds: int
    classifies: bool

    @property
    def sizes(self) -> list[int]:
        """Numbers of training rows."""
        return list(dict.fromkeys(line.rows for line in self.lines))

    def at(self, rows: int) -> list[Line]:
        """The lines of one training set."""
        return [line for line in self.lines if line.rows == rows]

    def chosen(self, rows: int) -> Line:
        """The rate above 0 that the validation rows choose."""
        sign = 1 if self.classifies else -1
        return max(
            (line for line in self.at(rows) if line.rate), key=lambda line: sign * line.validation.mean
        )

    @property
    def sentence(self) -> str:
        """What the evidence says, also when it is that dropout does not help."""
        said = "; ".join(self._said(rows) for rows in self.sizes)
        return f"{said[0].upper()}{said[1:]} (95% intervals over {self.seeds} seeds)."

    def _said(self, rows: int) -> str:
        line, none = self.chosen(rows), self.at(rows)[0]
        gain, score = line.gain, "accuracy" if self.classifies else "RMSE"
        factor, unit = (100, " points") if self.classifies else (1, "")
        size = f"{factor * abs(gain.mean):.3g} ± {factor * gain.half:.2g}{unit}"
        where = f"with {rows:,} training rows"
        gap = f"the gap of validation to training loss goes from {none.gap.mean:.3g} to {line.gap.mean:.3g}"
        if gain.clear == 0:
            sign = 1 if self.classifies else -1
            change = f"{sign * factor * gain.mean:+.2g} ± {factor * gain.half:.2g}{unit}"
            doubt = f"dropout at p = {line.rate:g} does not clearly help"
            return f"{where} {doubt}: test {score} {change}, while {gap}"
        better = gain.clear > 0
        moves = "raises" if better is self.classifies else "lowers"
        verdict = "helps" if better else "hurts"
        return f"{where} dropout {verdict}: p = {line.rate:g} {moves} test {score} by {size}, and {gap}"


def weigh(cells: Sequence[Cell], *, classifies: bool) -> Evidence:
    """From cells to evidence; every size has every rate and seed, 0 among the rates."""
    by_place = {(cell.rows, cell.rate, cell.seed): cell for cell in cells}
    seeds = sorted({cell.seed for cell in cells})
    sign = 1.0 if classifies else -1.0
    lines: list[Line] = []
    for rows in sorted({cell.rows for cell in cells}):
        for rate in sorted({cell.rate for cell in cells}):
            here = [by_place[rows, rate, seed] for seed in seeds]
            without = [by_place[rows, 0.0, seed] for seed in seeds]

            def bar(measure: Callable[[Cell], float], here: Sequence[Cell] = here) -> Bar:
                return Bar.of([measure(cell) for cell in here])

            gains = [sign * (a.test_score - b.test_score) for a, b in zip(here, without, strict=True)]
            lines.append(
                Line(
                    rows=rows,
                    rate=rate,
                    test=bar(lambda cell: cell.test_score),
                    validation=bar(lambda cell: cell.validation_score),
                    train=bar(lambda cell: cell.train_score),
                    gap=bar(lambda cell: cell.gap),
                    co_adaptation=bar(lambda cell: cell.co_adaptation),
                    gain=Bar.of(gains),
                    averaging=bar(lambda cell: sign * (cell.averaged_score - cell.test_score)),
                )
            )
    return Evidence(tuple(lines), len(seeds), classifies)
