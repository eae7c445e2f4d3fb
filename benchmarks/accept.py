"""Print every promise of the project as a row: figure, bar, PASS, FAIL or NOT RUN.

``accept.toml`` holds the promises. A row names a script of this folder and a key of the figures that it
writes, or a test. A row with neither is NOT RUN, and so is one whose script says that it could not
measure (a figure ``not_run`` with the reason). Exit status 1 unless every row asked for passes.

    python benchmarks/accept.py            every group
    python benchmarks/accept.py endpoint   one group
"""

from __future__ import annotations

import json
import operator
import re
import subprocess
import sys
import tempfile
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

HERE = Path(__file__).parent
BARS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq}
COLOURS = {"PASS": "green", "FAIL": "red", "NOT RUN": "yellow"}
console = Console(width=None if sys.stdout.isatty() else 160)


@cache
def figures(command: str) -> dict[str, Any]:
    """Run one script and return what it measured (``error`` if it failed)."""
    console.print(f"[dim]running {command}[/dim]")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "figures.json"
        line = [sys.executable, *command.split(), "--json", str(target)]
        done = subprocess.run(line, cwd=HERE.parent, capture_output=True, text=True, check=False)
        console.print(done.stdout, markup=False, highlight=False)
        if done.returncode or not target.is_file():
            tail = " ".join((done.stderr or done.stdout).split()[-30:])
            return {"error": f"exit status {done.returncode}: {tail}"}
        return json.loads(target.read_text("utf-8"))["figures"]


@cache
def tests(nodes: str) -> tuple[bool, str]:
    """Run tests, slow ones too; return whether they passed and pytest's closing line."""
    console.print(f"[dim]testing {nodes}[/dim]")
    line = [sys.executable, "-m", "pytest", "-q", "-m", "not soak", "--timeout", "1200", *nodes.split()]
    done = subprocess.run(line, cwd=HERE.parent, capture_output=True, text=True, check=False)
    closing = (done.stdout.strip().splitlines() or [done.stderr.strip()])[-1].strip("= ")
    return done.returncode == 0 and "passed" in closing, closing


def judge(row: dict[str, Any]) -> tuple[str, str]:
    """Measure one row: the figure as text, and the verdict."""
    if "test" in row:
        passed, closing = tests(row["test"])
        skipped = "skipped" in closing and not re.search("failed|error", closing)  # one is one too many
        return closing, "NOT RUN" if skipped else "PASS" if passed else "FAIL"
    if "script" not in row:
        return row.get("why", "no script yet"), "NOT RUN"
    found = figures(row["script"])
    not_run: str | dict[str, str] = found.get("not_run", {})  # why: of the whole script, or of some keys
    if why := not_run if isinstance(not_run, str) else not_run.get(row["key"]):
        return why, "NOT RUN"
    figure = found.get(row["key"], found.get("error", f"no figure {row['key']!r}"))
    if row["key"] not in found:
        return str(figure), "FAIL"
    text = f"{figure:.4g}" if isinstance(figure, float) else str(figure)
    bar = row["bar"]
    if bar == "stated":
        return text, "PASS"
    match = re.fullmatch(r"(>=|<=|==|>|<)\s*(.+)", bar)
    if not match:
        raise SystemExit(f"accept.toml: bar {bar!r} is neither 'stated' nor a comparison")
    return text, "PASS" if BARS[match[1]](figure, json.loads(match[2])) else "FAIL"


def main() -> int:
    """Judge the rows of the groups asked for, print the table, and say how it went."""
    rows: list[dict[str, Any]] = tomllib.loads((HERE / "accept.toml").read_text("utf-8"))["row"]
    groups = list(dict.fromkeys(row["group"] for row in rows))
    wanted = sys.argv[1:] or groups
    if unknown := set(wanted) - set(groups):
        console.print(f"no group {', '.join(unknown)}; there are: {', '.join(groups)}", markup=False)
        return 2
    table = Table("group", "it must show", "figure", "bar", "verdict", show_lines=True)
    verdicts: list[str] = []
    record: list[dict[str, str]] = []
    for row in (row for row in rows if row["group"] in wanted):
        figure, verdict = judge(row)
        verdicts.append(verdict)
        bar = row.get("bar", "tests pass" if "test" in row else "")
        table.add_row(
            row["group"], escape(row["line"]), escape(figure), bar, f"[{COLOURS[verdict]}]{verdict}[/]"
        )
        record.append({**row, "figure": figure, "verdict": verdict})
    console.print(table)
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / f"accept-{'-'.join(wanted)}.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    console.print(", ".join(f"{verdicts.count(v)} {v}" for v in COLOURS))
    return 0 if set(verdicts) <= {"PASS"} else 1


if __name__ == "__main__":
    sys.exit(main())
