from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from dropserve.manifest import CheckRecord
from dropserve.report.evidence import Evidence
from dropserve.report.page import compose, render
from dropserve.report.precision import cost

Make = Callable[..., Evidence]
FIGURES = {
    "precision-parity": {"runs": 3, "problem": None, "max": 0.012, "mean": 1e-3, "p99": 0.009, "rms": 0.0021},
    "precision-monte-carlo": {
        "runs": 1,
        "problem": None,
        "max": 0.05,
        "mean": 1e-3,
        "p99": 0.03,
        "rms": 0.004,
    },
}
ACCURACY = CheckRecord(
    name="precision-accuracy", verdict="passed", evidence="dropout off: accuracy 99.26% in fp32, 98.90% now"
)


def lowered(make: Make, verdict: str = "passed") -> Evidence:
    evidence = make(checks=(ACCURACY.model_copy(update={"verdict": verdict}),), parity=FIGURES)
    return dataclasses.replace(evidence, manifest=evidence.manifest.model_copy(update={"precision": "int8"}))


def test_the_cost_of_a_precision_has_a_section_of_its_own(make: Make) -> None:
    page = compose(lowered(make))
    (section,) = [section for section in page.sections if section.id == "precision"]
    assert section.title == "What does int8 cost?"
    html = render(page)
    for part in (
        "whole numbers of 8 bits",
        "1.2e-02",
        "4.0e-03",
        "98.90% now",
        "numbers in the served graphs",
    ):
        assert part in html
    (parity,) = [section for section in page.sections if section.id == "parity"]
    assert parity.absent, "what a precision costs is no rounding of the exporter"


def test_float32_has_nothing_to_say(make: Make) -> None:
    assert cost(make()) == ()


@pytest.mark.parametrize(("verdict", "said"), [("waived", True), ("passed", False)])
def test_what_is_out_of_bounds_is_named(make: Make, verdict: str, said: bool) -> None:
    html = render(compose(lowered(make, verdict)))
    assert ("Out of bounds: precision-accuracy" in html) == said
