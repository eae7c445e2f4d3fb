"""What was checked before this version was published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dropserve.manifest import CheckRecord

from .content import Checks, Fact, Notice, Section, Table
from .evidence import Evidence
from .precision import PREFIX
from .words import count

_ORDER = ("failed", "waived", "skipped", "passed")


def waived(evidence: Evidence) -> list[CheckRecord]:
    """The checks that failed and were waived by name."""
    return [check for check in evidence.manifest.checks if check.verdict == "waived"]


def warnings(evidence: Evidence) -> tuple[Notice, ...]:
    """A notice for each waiver."""
    return tuple(
        Notice(
            f"Waived: {check.name}",
            f"This check did not pass, and somebody decided to publish all the same. What was found: "
            f"{check.evidence.rstrip('.')}."
            + (f" Place: {check.where}." if check.where else "")
            + (f" What to do: {check.remedy}" if check.remedy else ""),
            "bad",
        )
        for check in waived(evidence)
    )


def fact(evidence: Evidence) -> Fact:
    """Checks in one figure."""
    verdicts = [check.verdict for check in evidence.manifest.checks]
    run = len(verdicts) - verdicts.count("skipped")
    passed = verdicts.count("passed")
    if verdicts.count("waived"):
        return Fact(f"{passed} of {run}", "export checks passed; the rest were WAIVED", "bad")
    return Fact(
        f"{passed} of {run}", "export checks passed", ("good" if passed == run else "bad") if run else "plain"
    )


def checks(evidence: Evidence) -> Section:
    """Every check with verdict, evidence and place."""
    records = evidence.manifest.checks
    title = "What was checked before export"
    if not records:
        return Section("checks", title, absent="No check was recorded.")
    verdicts = [check.verdict for check in records]
    words = [
        (
            "A model trained with dropout must not be served with dropout on by accident. These checks prove "
            "that "
            "it is off in what is served, that nothing else is random, and that the Monte Carlo model really "
            "samples. Had one failed without a waiver, nothing would have been published."
        ),
        (
            f"{verdicts.count('passed')} passed, {verdicts.count('waived')} waived, "
            f"{verdicts.count('skipped')} skipped; the evidence says why."
        ),
    ]
    found = waived(evidence)
    blocks: list[Notice | Checks] = []
    if found:
        names = ", ".join(check.name for check in found)
        blocks.append(
            Notice(
                f"{count(len(found), 'check')} waived: {names}",
                "A waiver is written by hand in export/checks.toml. What the check guards against is not "
                "proven "
                "absent from this version.",
                "bad",
            )
        )
    ordered = sorted(records, key=lambda check: _ORDER.index(check.verdict))
    return Section("checks", title, tuple(words), (*blocks, Checks(tuple(ordered))))


def parity(evidence: Evidence) -> Section:
    """How far the exported graphs are from the original."""
    title = "Do the exported graphs agree with the original?"
    names = (name for name in evidence.parity if not name.startswith(PREFIX))
    figures = {name: evidence.parity[name] for name in names if evidence.parity[name].get("runs")}
    if not figures:
        return Section(
            "parity", title, absent="No exported graph was compared: every comparison was skipped."
        )
    bad = [name for name, f in figures.items() if f.get("problem")]
    worst = max(float(f.get("max", 0)) for f in figures.values())
    runs = sum(int(f["runs"]) for f in figures.values())
    words = (
        (
            f"The same rows went through the original model and through each exported graph, {runs} times in "
            f"all, at "
            "several batch sizes, with ordinary and extreme inputs."
        ),
        f"They disagree in {', '.join(bad)}."
        if bad
        else f"They agree: the largest difference is {worst:.1e} of the output's scale, which is rounding.",
    )
    rows = tuple((_plain(name), *_row(f)) for name, f in figures.items())
    head = ("comparison", "runs", "largest", "99th percentile", "mean", "problem")
    table = Table(
        head, rows, caption="Differences are shares of the output's scale: 1e-06 is one part in a million."
    )
    return Section("parity", title, words, (table,))


_COLUMNS = ("max", "p99", "mean")


def _plain(name: str) -> str:
    words = name.removeprefix("parity-").replace("-", " ")
    return words.replace("torchscript", "TorchScript").replace("onnx", "ONNX")


def _row(figures: Mapping[str, Any]) -> tuple[str, ...]:
    errors = (_error(figures.get(column)) for column in _COLUMNS)
    return (str(figures["runs"]), *errors, str(figures.get("problem") or "none"))


def _error(value: object) -> str:
    return (f"{float(value):.1e}" if value else "0") if isinstance(value, int | float) else "not measured"
