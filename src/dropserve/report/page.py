"""Puts the report together and writes it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path

from dropserve.errors import DropserveError, MissingExtraError
from dropserve.uncertainty.metrics import ece
from dropserve.uncertainty.scores import BINS

from . import about, classes, examples, learning, precision, proof, sets, tested, values
from .answers import ClassAnswers, calibration_of, class_answers, value_answers, why_unjudged
from .content import Fact, Page, Section
from .evidence import Evidence, HeldOut
from .summary import split_of, summarise
from .words import FEW, between, count, number, percent

REPORT = "report.html"
_CLASSES = (
    ("reliability", "Can its probabilities be believed?"),
    ("selective", "What if it declines when in doubt?"),
    ("uncertainty", "Is it less sure where it is wrong?"),
    ("conformal", "Sets that hold the truth as often as promised"),
    ("examples", "What it is most and least certain of"),
)
_VALUES = (
    ("predictions", "How close are its predictions?"),
    ("conformal", "Intervals that hold the truth as often as promised"),
    ("residuals", "Does it know how far off it may be?"),
    ("selective", "What if it declines when in doubt?"),
    ("examples", "What it is most and least certain of"),
)
_NO_SETS = "Sets and intervals with a guarantee rest on a calibration, and the answers are {}."


def write_report(evidence: Evidence) -> Path:
    """Write ``report.html`` into the version's folder.

    The page is one file: style, drawings and pictures are inside, and a content security policy forbids
    anything else.

    Raises:
        MissingExtraError: if jinja2 is not installed.
    """
    path = evidence.folder / REPORT
    path.write_text(render(compose(evidence)), encoding="utf-8")
    return path


def compose(evidence: Evidence) -> Page:
    """All that the page says."""
    manifest = evidence.manifest
    judged, facts = _judge(evidence)
    sections = (
        about.describe(evidence),
        learning.curves(evidence),
        learning.overfitting(evidence),
        tested.answers_to_test_rows(evidence),
        proof.checks(evidence),
        proof.parity(evidence),
        *precision.cost(evidence),
        *judged,
        about.timing(evidence),
        about.provenance(evidence),
    )
    created = manifest.created[:16].replace("T", " ")
    return Page(
        title=f"{manifest.name}, version {manifest.version}",
        subtitle=f"{manifest.task} model, exported {created} UTC from run {manifest.run}",
        summary=summarise(evidence),
        facts=(
            *_quality(evidence),
            proof.fact(evidence),
            _sites(evidence),
            *precision.facts(evidence),
            *facts,
        ),
        warnings=proof.warnings(evidence),
        sections=sections,
        footer=f"Written by dropserve {manifest.built_with.get('dropserve', '')} when this version was "
        f"exported. "
        "The page loads nothing from elsewhere.",
    )


def render(page: Page) -> str:
    """The page as HTML; every text is escaped.

    Raises:
        MissingExtraError: if jinja2 is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415  # of an extra
    except ModuleNotFoundError as error:
        raise MissingExtraError("jinja2", "export") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files(__package__ or "dropserve.report").joinpath("template.html")
    return environment.from_string(source.read_text(encoding="utf-8")).render(page=page)


def _quality(evidence: Evidence) -> tuple[Fact, ...]:
    metrics = evidence.run.manifest.metrics
    for part in ("test", "validation"):
        if (share := metrics.get(f"{part}_accuracy")) is not None:
            return (_right(share, split_of(evidence.run.manifest).get(part, 0), part),)
        if (off := metrics.get(f"{part}_rmse")) is not None:
            return (Fact(number(off), f"root mean square error on {part} rows"),)
    return ()


def _right(share: float, rows: int, part: str) -> Fact:
    """A share of right answers, with its interval where the number of rows is known."""
    if rows < 1:
        return Fact(percent(share), f"right on {part} rows; how many there were is not known")
    hits = round(share * rows)
    few = "; too few rows to tell more" if rows < FEW else ""
    return Fact(f"{hits:,} of {rows:,}", f"right on {part} rows ({between(hits, rows)}){few}")


def _judge(evidence: Evidence) -> tuple[tuple[Section, ...], tuple[Fact, ...]]:
    """The sections that need held-out rows, or why they are absent."""
    outline = _VALUES if evidence.manifest.task == "regression" else _CLASSES
    held, why = evidence.held, why_unjudged(evidence)
    if why or isinstance(held, str):
        return _absent(outline, why), ()
    judge: Callable[[Evidence, HeldOut], tuple[tuple[Section, ...], tuple[Fact, ...]]]
    judge = _values if evidence.manifest.task == "regression" else _classes
    try:
        return judge(evidence, held.thinned())
    except DropserveError as error:
        return _absent(outline, f"The held-out answers could not be judged: {error}"), ()


def _absent(outline: tuple[tuple[str, str], ...], why: str) -> tuple[Section, ...]:
    return tuple(Section(name, title, absent=why) for name, title in outline)


def _classes(evidence: Evidence, held: HeldOut) -> tuple[tuple[Section, ...], tuple[Fact, ...]]:
    a, calibration = class_answers(evidence, held), calibration_of(evidence)
    tested = None if evidence.tested is None else (class_answers(evidence, evidence.tested), evidence.tested)
    sections = (
        classes.reliability_section(a, evidence.calibrated),
        classes.selective_section(a),
        classes.histogram_section(a),
        sets.conformal_section(a, held, calibration.sets, tested, evidence.manifest.labels)
        if calibration is not None and calibration.sets is not None
        else Section(*_CLASSES[3], absent=_NO_SETS.format(evidence.calibrated)),
        examples.class_examples(a, held, evidence.run.manifest),
    )
    return sections, (_calibration_error(a),)


def _values(evidence: Evidence, held: HeldOut) -> tuple[tuple[Section, ...], tuple[Fact, ...]]:
    a, calibration = value_answers(evidence, held), calibration_of(evidence)
    tested = None if evidence.tested is None else value_answers(evidence, evidence.tested)
    method = None if calibration is None else calibration.intervals
    many = a.target.shape[1]
    names = tuple(f"target {d + 1}" for d in range(many))
    sections = (
        values.prediction_section(a, names, values.intervals(a, method, 900) if method else None),
        values.coverage_section(a, names, method, tested)
        if method
        else Section(*_VALUES[1], absent=_NO_SETS.format(evidence.calibrated)),
        values.residual_section(a, evidence.calibrated),
        values.selective_section(a),
        examples.value_examples(a, held, evidence.run.manifest),
    )
    return sections, ()


def _sites(evidence: Evidence) -> Fact:
    many = len(evidence.manifest.sites)
    if not many:
        return Fact("none", "of its answers can be sampled: there is no Monte Carlo model")
    return Fact(str(many), f"dropout {'place' if many == 1 else 'places'} sampled on request")


def _calibration_error(a: ClassAnswers) -> Fact:
    judged = a.mean if a.calibrated is None else a.calibrated
    error = ece(judged, a.labels, bins=BINS)
    state = "after calibration" if a.calibrated is not None else "uncalibrated"
    return Fact(
        percent(error), f"gap between confidence and accuracy, {state}, {count(len(a.labels), 'row')}"
    )
