"""UCI tables: test RMSE and log-likelihood of one dropout network a split, beside what was published.

    python benchmarks/uci_tables.py [--data DIR] [--table NAME ...] [--splits N] [--workers 2] [--json PATH]

It does what `dropserve bench uci` does, and keeps its results in the same folder: what is done is not done
again, so it may be interrupted at any time. All six tables take 25 minutes of two cores. Minutes are those
of the processor divided by two cores, which a busy machine does not change; those of the clock stand beside.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from dropserve.project import Project
from dropserve.training.uci import report
from dropserve.training.uci.bench import run
from dropserve.training.uci.published import ENSEMBLES, GRID, read_published
from dropserve.training.uci.splits import read_tables

CORES = 2
SMALL = ("concrete", "energy", "yacht")
MEDIUM = ("kin8nm", "naval-propulsion-plant")
LARGE = ("protein-tertiary-structure",)


def figures(rows: list[report.Row]) -> dict[str, Any]:
    """What the promises are about; a subset of the splits is no figure."""
    subsets = [row.label for row in rows if row.done < row.splits]
    if subsets:
        return {"not_run": f"a subset: {', '.join(subsets)}"}
    by_name = {row.table: row for row in rows}
    grid = [row.table for row in rows if row.better(GRID) == (True, True)]
    compared = [row for row in rows if row.better(GRID) is not None]
    found: dict[str, Any] = {
        "tables": len(compared),
        "not_better_than_grid": len(compared) - len(grid),
        "better_than_ensembles": sum((row.better(ENSEMBLES) or (False, False))[1] for row in rows),
    }
    for name, tables in (("small", SMALL), ("medium", MEDIUM), ("large", LARGE)):
        if all(table in by_name for table in tables):
            for kind in ("processor_seconds", "seconds"):
                total = sum(getattr(by_name[table], kind) for table in tables)
                found[f"{name}_{kind.replace('seconds', 'minutes')}"] = total / CORES / 60
    for row in rows:
        found[f"{row.table}_rmse"] = row.rmse.mean
        found[f"{row.table}_log_likelihood"] = row.log_likelihood.mean
    return found


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared/data/uci")
    parser.add_argument("--table", action="append", help="one of them; repeat it")
    parser.add_argument("--splits", type=int, help="the first so many of each table")
    parser.add_argument("--workers", type=int, default=CORES)
    parser.add_argument("--results", type=Path, default=Project(Path.cwd()).run_dir / "bench" / "uci")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    console = Console(width=160)
    if options.data.is_dir():
        tables = read_tables(options.data, options.table)
        found = run(
            tables,
            options.results,
            splits=options.splits,
            workers=options.workers,
            told=lambda table, result: console.print(
                f"{table.name} split {result.split}: RMSE {result.rmse:.4g}, "
                f"log-likelihood {result.log_likelihood:.3f}",
                highlight=False,
            ),
        )
        rows = report.rows(tables, found, read_published(options.data))
        console.print(report.grid(rows))
        for sentence in (*report.verdicts(rows), report.CLEAN):
            console.print(sentence, highlight=False)
        measured = figures(rows)
    else:
        measured = {"not_run": f"no folder {options.data}; give one with --data"}
    if "not_run" in measured:
        console.print(f"NOT RUN: {measured['not_run']}", highlight=False)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"figures": measured}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
