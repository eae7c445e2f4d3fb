"""The verdicts of checks as a table on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from dropserve.manifest import CheckRecord

_STYLE = {"passed": "green", "failed": "bold red", "waived": "yellow", "skipped": "dim"}


def checks_table(checks: Sequence[CheckRecord]) -> Table:
    """One row for each check; a place and a remedy stand below the evidence of what did not pass."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("evidence", overflow="fold")
    for check in checks:
        warning = check.evidence.startswith("warning")
        lines = [f"[yellow]{escape(check.evidence)}[/]" if warning else escape(check.evidence)]
        if check.verdict != "passed" or warning:
            lines += [f"[bold]at[/] {escape(check.where)}"] if check.where else []
            lines += [f"[bold]do[/] {escape(check.remedy)}"] if check.remedy else []
        verdict = f"[{_STYLE[check.verdict]}]{check.verdict}[/]"
        table.add_row(escape(check.name), verdict, "\n".join(lines))
    return table


def counted(checks: Sequence[CheckRecord]) -> str:
    """How many checks have which verdict: ``20 passed, 1 failed``."""
    counts = Counter(check.verdict for check in checks)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in _STYLE if counts[verdict])
