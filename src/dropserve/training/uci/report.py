"""From results to figures: means with standard errors, beside what was published."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table as Grid

from dropserve.training.uci.published import ENSEMBLES, GRID, Published
from dropserve.training.uci.records import SplitResult
from dropserve.training.uci.splits import SplitTable

CLEAN = (
    "No test row was used to choose anything: each split's rate, learning rate, weight decay and noise were "
    "chosen, and its one network was trained, in a process that was given the split's training rows alone."
)


@dataclass(frozen=True)
class Mean:
    """A mean over splits and its standard error (NaN for one split)."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Of one figure for each split."""
        array = np.asarray(values)
        error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan
        return cls(float(array.mean()), error)


@dataclass(frozen=True)
class Row:
    """One table's figures.

    Attributes:
        done: splits that are in the means.
        splits: that the table has.
        seconds: summed over splits; what it took is this over the number of workers.
    """

    table: str
    done: int
    splits: int
    rmse: Mean
    log_likelihood: Mean
    seconds: float
    processor_seconds: float
    published: tuple[Published, ...]

    @property
    def label(self) -> str:
        """The table's name; a subset of its splits is called one."""
        part = "" if self.done == self.splits else f" (SUBSET: {self.done} of {self.splits} splits)"
        return f"{self.table}{part}"

    def better(self, source: str) -> tuple[bool, bool] | None:
        """Whether RMSE and log-likelihood are better than a source's; None if it has no such table."""
        for column in self.published:
            if column.source == source:
                return (
                    self.rmse.mean < column.rmse.mean,
                    self.log_likelihood.mean > column.log_likelihood.mean,
                )
        return None


def rows(
    tables: Sequence[SplitTable],
    results: Mapping[str, Sequence[SplitResult]],
    published: Mapping[str, Sequence[Published]],
) -> list[Row]:
    """A row for each table that has a result."""
    return [
        Row(
            table.name,
            len(done),
            table.splits,
            Mean.of([each.rmse for each in done]),
            Mean.of([each.log_likelihood for each in done]),
            sum(each.seconds for each in done),
            sum(each.processor_seconds for each in done),
            tuple(published.get(table.name, ())),
        )
        for table in tables
        if (done := results.get(table.name, []))
    ]


def grid(found: Sequence[Row]) -> Grid:
    """A terminal table: RMSE and log-likelihood of each, ours first."""
    sources = list(dict.fromkeys(column.source for row in found for column in row.published))
    table = Grid("table", "figure", "dropserve", *sources, "minutes of a core")
    for row in found:
        columns = {column.source: column for column in row.published}
        minutes = f"{row.processor_seconds / 60:.1f}"
        table.add_row(
            row.label,
            "RMSE",
            _shown(row.rmse.mean, row.rmse.error),
            *(_shown(columns[s].rmse.mean, columns[s].rmse.spread) if s in columns else "" for s in sources),
            minutes,
        )
        table.add_row(
            "",
            "log-likelihood",
            _shown(row.log_likelihood.mean, row.log_likelihood.error),
            *(
                _shown(columns[s].log_likelihood.mean, columns[s].log_likelihood.spread)
                if s in columns
                else ""
                for s in sources
            ),
            "",
            end_section=True,
        )
    return table


def verdicts(found: Sequence[Row]) -> list[str]:
    """What the comparison says, in sentences."""
    said: list[str] = []
    for source, both in ((GRID, True), (ENSEMBLES, False)):
        against = {row.label: better for row in found if (better := row.better(source)) is not None}
        if not against:
            continue
        good = [name for name, (rmse, likelihood) in against.items() if likelihood and (rmse or not both)]
        bad = [name for name in against if name not in good]
        what = "on both figures" if both else "in log-likelihood"
        said.append(
            f"Better than {source} {what} on {len(good)} of {len(against)} tables"
            + (f"; not on {', '.join(bad)}." if bad else ".")
        )
    parts = [row.label for row in found if row.done < row.splits]
    if said and parts:
        said.append(f"These are comparisons of a subset of the splits with all of them: {', '.join(parts)}.")
    return said


def record(found: Sequence[Row], results: Mapping[str, Sequence[SplitResult]]) -> dict[str, Any]:
    """All of it as JSON."""
    return {
        "statement": CLEAN,
        "verdicts": verdicts(found),
        "tables": {
            row.table: {
                "splits": row.splits,
                "done": row.done,
                "subset": row.done < row.splits,
                "rmse": {"mean": row.rmse.mean, "standard_error": _number(row.rmse.error)},
                "log_likelihood": {
                    "mean": row.log_likelihood.mean,
                    "standard_error": _number(row.log_likelihood.error),
                },
                "seconds": row.seconds,
                "processor_seconds": row.processor_seconds,
                "published": {
                    column.source: {
                        "rmse": [column.rmse.mean, _number(column.rmse.spread)],
                        "log_likelihood": [column.log_likelihood.mean, _number(column.log_likelihood.spread)],
                    }
                    for column in row.published
                },
                "per_split": [vars(each) for each in results[row.table]],
            }
            for row in found
        },
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _shown(mean: float, error: float) -> str:
    """Mean and standard error, three digits of the mean at least."""
    digits = 3 if abs(mean) >= 0.1 else 5
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")
