"""The page as a whole: it parses, is self-contained, escapes, and says why something is not there."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from dropserve.columns import Column
from dropserve.manifest import CheckRecord, Preprocessing
from dropserve.report.content import Gallery
from dropserve.report.evidence import Evidence, HeldOut
from dropserve.report.page import compose, render, write_report

Make = Callable[..., Evidence]
Rows = Callable[..., HeldOut]
_VOID = {"meta", "link", "br", "img"}


class Strict(HTMLParser):
    """Refuses tags that do not nest, and keeps what was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read(html: str) -> Strict:
    parser = Strict()
    parser.feed(html)
    parser.close()
    assert parser.open == []
    return parser


def absences(evidence: Evidence) -> dict[str, str]:
    return {s.id: s.absent for s in compose(evidence).sections if s.absent and s.id != "tested"}


def variants(make: Make, class_rows: Rows, value_rows: Rows) -> dict[str, Evidence]:
    held = class_rows()
    both = {"a": held.inputs["input"], "b": np.arange(held.rows)}
    return {
        "trained": make(),
        "imported": make(
            "the run has no held-out rows (validation.npz)", curve=None, run_changes={"metrics": {}}
        ),
        "no dropout": make(replace(held, samples=None), dropout=False),
        "raw": make(held, task="raw"),
        "regression": make(value_rows(), task="regression"),
        "regression of two": make(value_rows(targets=2), task="regression"),
        "regression without dropout": make(
            replace(value_rows(), samples=None), task="regression", dropout=False
        ),
        "two inputs": make(replace(held, inputs=both)),
    }


def test_every_kind_of_run_has_a_whole_page(make: Make, class_rows: Rows, value_rows: Rows) -> None:
    for name, evidence in variants(make, class_rows, value_rows).items():
        page = compose(evidence)
        seen = read(render(page))
        ids = [attributes["id"] for tag, attributes in seen.tags if tag == "section"]
        assert len(ids) == len(set(ids)), name
        targets = {attributes["href"] for tag, attributes in seen.tags if tag == "a"}
        assert targets == {f"#{i}" for i in ids}, "the contents lead to each section, and nowhere else"
        assert {"model", "curves", "overfitting", "checks", "parity", "conformal", "selective"} <= set(ids)
        assert {"timing", "provenance", "examples"} <= set(ids)
        for section in page.sections:
            assert bool(section.absent) != bool(section.blocks), (
                f"{name}: {section.id} shows something or says why"
            )
        assert "nan" not in re.findall(r"[a-z]+", " ".join(seen.text).lower()), name


def test_drawings_are_well_formed_and_labelled(make: Make) -> None:
    html = render(compose(make()))
    drawings = re.findall(r"<figure>\s*<h3>.*</h3>\s*(<svg .*</svg>)\s*<figcaption>", html)
    assert len(drawings) == 10
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        numbers = re.findall(r'(?:points|cx|cy|y|x|d)="([^"]*)"', drawing)
        assert not re.search(r"nan|inf", " ".join(numbers))


def test_nothing_is_loaded_from_elsewhere(make: Make) -> None:
    html = render(compose(make()))
    seen = read(html)
    for tag, attributes in seen.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, name, value)
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"(?:https?:)?//\w", html), "no address at all"
    (policy,) = [a["content"] for t, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=y>"


def test_hostile_names_labels_and_evidence_are_text(make: Make, class_rows: Rows, value_rows: Rows) -> None:
    record = CheckRecord(name=HOSTILE, verdict="waived", evidence=HOSTILE, remedy=HOSTILE, where=HOSTILE)
    held = class_rows()
    rows = replace(held, inputs={HOSTILE: np.zeros_like(held.inputs["input"]), "b": np.arange(200)})
    data: dict[str, Any] = {"source": HOSTILE, "rows": {HOSTILE: 5}}
    column = Column(name=HOSTILE, categories=(HOSTILE, "b"), fill=0)
    table = Preprocessing(columns={HOSTILE: (column,) * 64})
    evidence = make(
        rows,
        name=HOSTILE,
        labels=(HOSTILE, "b", "c", "d"),
        checks=(record,),
        parity={HOSTILE: {"runs": 1, "problem": HOSTILE, "max": 0.0}},
        seconds={HOSTILE: 1.0},
        run_changes={"data": data, "metrics": {HOSTILE: 1.0}, "preprocessing": table},
    )
    regressor = make(value_rows(), task="regression", name=HOSTILE, run_changes={"data": data})
    absent = make(HOSTILE, calibrated=HOSTILE)
    for page in map(compose, (evidence, regressor, absent)):
        html = render(page)
        assert "<script" not in html
        assert "onerror=y>" not in html
        assert not any(tag == "img" and attributes.get("src") == "x" for tag, attributes in read(html).tags)
    text = "".join(read(render(compose(evidence))).text)
    assert text.count(HOSTILE) > 15, "shown as it is, everywhere"


def test_rows_of_a_table_are_told_by_name_in_the_words_of_a_request(make: Make, class_rows: Rows) -> None:
    held = class_rows()
    rows = np.tile(np.float32([np.nan, 1, 2, 5]), (held.rows, 16))  # 64 numbers that are no picture
    job = Column(name="job", categories=("clerk", "nurse"), fill=0)
    grade = Column(name="grade", categories=("x", "y"), other=True)
    four = (Column(name="age", fill=41.5), job, grade, Column(name="pay"))
    columns = tuple(c.model_copy(update={"name": f"{c.name}{n}"}) for n in range(16) for c in four)
    table = Preprocessing(columns={"input": columns})
    page = compose(make(replace(held, inputs={"input": rows}), run_changes={"preprocessing": table}))
    text = " ".join(" ".join(read(render(page)).text).split())
    assert "age0 missing" in text
    assert "job0 nurse" in text
    assert "grade0 other" in text
    assert "job0 clerk, nurse clerk" in text, "what it takes, and what stands in for a missing one"
    assert "grade0 x, y, or another refused" in text


def test_waivers_come_before_everything_else(make: Make) -> None:
    waiver = CheckRecord(
        name="row-independence",
        verdict="waived",
        evidence="rows differ by 0.3",
        remedy="fix it",
        where="net.py:9",
    )
    passed = CheckRecord(name="forward-runs", verdict="passed", evidence="3 forwards")
    html = render(compose(make(checks=(passed, waiver))))
    text = "".join(read(html).text)
    first = text.index("Waived: row-independence")
    assert first < text.index("What this model is")
    assert "rows differ by 0.3" in text[first : first + 300]
    assert "1 of 2" in text
    assert "the rest were WAIVED" in text
    section = html[html.index('<section id="checks">') :]
    assert section.index("row-independence") < section.index("<details>"), "not folded away"


def test_every_check_is_there_with_verdict_evidence_and_place(make: Make) -> None:
    records = tuple(
        CheckRecord(name=f"check-{i}", verdict=v, evidence=f"seen {i}", where=f"net.py:{i}")  # type: ignore[arg-type]
        for i, v in enumerate(("passed", "skipped", "waived", "passed"))
    )
    text = " ".join("".join(read(render(compose(make(checks=records)))).text).split())
    for record in records:
        assert f"{record.verdict}{record.name}{record.evidence}Place: {record.where}" in text


def test_what_is_absent_says_why(make: Make, class_rows: Rows, value_rows: Rows) -> None:
    found = {name: absences(e) for name, e in variants(make, class_rows, value_rows).items()}
    judged = {"reliability", "selective", "uncertainty", "conformal", "examples"}
    assert found["trained"] == found["regression"] == found["two inputs"] == {}
    assert set(found["imported"]) == judged | {"curves", "overfitting"}
    assert "trained elsewhere and imported" in found["imported"]["curves"]
    assert "no held-out rows" in found["imported"]["reliability"]
    assert set(found["raw"]) == judged
    assert "does not know what they mean" in found["raw"]["conformal"]
    assert set(found["no dropout"]) == {"conformal"}
    assert "not calibrated: the reason" in found["no dropout"]["conformal"]
    without = found["regression without dropout"]
    assert set(without) == {"conformal", "residuals", "selective", "examples"}
    assert "no measure of doubt" in without["selective"]


def test_rows_that_cannot_be_judged_are_a_reason_not_a_crash(make: Make, class_rows: Rows) -> None:
    few = class_rows(19)
    assert "19 held-out rows" in absences(make(few))["reliability"]
    held = class_rows()
    strange = replace(held, plain=np.full_like(held.plain, np.nan), samples=None)
    assert "holds nan" in absences(make(strange))["reliability"]
    beyond = replace(held, target=held.target + 1, samples=None)
    assert "labels from 1 to 4" in absences(make(beyond))["reliability"]
    nothing = absences(make(checks=(), parity={}, seconds={}))
    assert set(nothing) == {"checks", "parity", "timing"}


def test_a_model_that_is_always_right_or_never_is_described(make: Make, class_rows: Rows) -> None:
    held = class_rows()
    for target in (held.samples.mean(axis=0).argmax(axis=1), held.samples.mean(axis=0).argmin(axis=1)):
        read(render(compose(make(replace(held, target=target)))))


def test_pictures_are_shown_where_inputs_are_images(make: Make, class_rows: Rows, value_rows: Rows) -> None:
    for evidence, pictures in ((make(), True), (make(value_rows(), task="regression"), False)):
        page = compose(evidence)
        shown = [e for s in page.sections for b in s.blocks if isinstance(b, Gallery) for e in b.examples]
        assert len(shown) == 16
        assert all(bool(e.picture) == pictures and bool(e.values) != pictures for e in shown)


def test_hashes_and_versions_are_those_of_the_manifest(make: Make) -> None:
    evidence = make()
    path = write_report(evidence)
    assert path == evidence.folder / "report.html"
    text = "".join(read(path.read_text(encoding="utf-8")).text)
    graph = hashlib.sha256(b"graph").hexdigest()
    for digest in ("a1" * 32, "b2" * 32, graph, evidence.run.manifest.id):
        assert digest in text
    for package, version in evidence.manifest.built_with.items():
        assert package in text
        assert version in text


def test_numbers_of_timing_add_up(make: Make) -> None:
    text = "".join(read(render(compose(make()))).text)
    assert "took 8.0 seconds" in text
    assert "“export” with 7.5 seconds" in text
    assert "94%" in text


def test_many_rows_and_classes_are_thinned_evenly(class_rows: Rows) -> None:
    held = class_rows(3000, 100)
    thin = held.thinned()
    assert thin.rows == 1000
    kept = [int(np.flatnonzero((held.plain == row).all(axis=1))[0]) for row in thin.plain]
    assert (kept[0], kept[-1]) == (0, 2999)
    assert set(np.diff(kept)) <= {2, 3, 4}
    for a, b in ((thin.target, held.target), (thin.inputs["input"], held.inputs["input"])):
        assert np.array_equal(a, b[kept])
    assert np.array_equal(thin.samples, held.samples[:, kept])
    few = class_rows(200)
    assert few.thinned() is few
