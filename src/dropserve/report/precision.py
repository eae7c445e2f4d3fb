"""What it costs to serve the model in fewer bits than it was trained in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .content import Fact, Section, Table
from .evidence import Evidence

PREFIX = "precision-"
_BITS = {"fp16": "half precision (16 bits a number)", "int8": "whole numbers of 8 bits"}
_SERVED = (
    "The model was trained in float32 and is served in {}; requests and answers are float32 all the same. "
    "Held-out rows that set no scale of it were asked of both; this is how far the answers are apart, as a "
    "share of the largest answer."
)
_WORDS = {
    "precision-parity": "dropout off",
    "precision-monte-carlo": "Monte Carlo, sample by sample under the same masks",
    "precision-identity-masks": "Monte Carlo graph under masks that change nothing, against dropout off",
    "precision-statistics": "mean and standard deviation over samples",
}


def cost(evidence: Evidence) -> tuple[Section, ...]:
    """How far the served graphs are from float32; nothing to say of a version that is served in float32."""
    precision = evidence.manifest.precision
    if precision == "fp32":
        return ()
    title = f"What does {precision} cost?"
    figures = {name: f for name, f in evidence.parity.items() if name in _WORDS}
    checks = {c.name: c for c in evidence.manifest.checks if c.name.startswith(PREFIX)}
    if not figures:
        return (Section("precision", title, absent="The cost of the precision was not measured."),)
    words = [_SERVED.format(_BITS[precision])]
    accuracy = checks.get("precision-accuracy")
    if accuracy is not None and accuracy.verdict != "skipped":
        words.append(f"{accuracy.evidence.rstrip('.')}.")
    bad = [name for name, check in checks.items() if check.verdict in {"failed", "waived"}]
    if bad:
        words.append(f"Out of bounds: {', '.join(bad)}.")
    rows = tuple((_WORDS[name], *_row(f)) for name, f in figures.items())
    head = ("comparison", "largest", "typical (root mean square)", "99th percentile", "problem")
    return (Section("precision", title, tuple(words), (Table(head, rows),)),)


def facts(evidence: Evidence) -> tuple[Fact, ...]:
    """The precision, where it is not float32."""
    precision = evidence.manifest.precision
    return () if precision == "fp32" else (Fact(precision, "numbers in the served graphs"),)


def _row(figures: Mapping[str, Any]) -> tuple[str, ...]:
    shares = (f"{float(figures[column]):.1e}" for column in ("max", "rms", "p99"))
    return (*shares, str(figures.get("problem") or "none"))
