"""The first page, for who decides: what the model is, how good, how sure, and what not to use it for."""

from __future__ import annotations

from pathlib import PurePath
from typing import cast

import numpy as np

from dropserve.manifest import RunManifest
from dropserve.uncertainty.ood import GRAPHS

from .answers import calibration_of
from .content import Answer
from .evidence import Evidence
from .learning import monitor_of
from .proof import waived
from .tested import Tested, class_score, read_tested, value_score
from .words import FEW, between, count, listed, number, percent

FEW_OF_CLASS = 20
"""Fewer test rows of a class than this leave its recall uncertain by twenty points or so."""


def summarise(evidence: Evidence) -> tuple[Answer, ...]:
    """Four questions, each with its answers in a few sentences."""
    tested = read_tested(evidence)
    return (
        Answer("What is it?", (_what(evidence),)),
        Answer("How good is it?", (_how_good(evidence, tested),)),
        Answer("How sure is it?", _how_sure(evidence)),
        Answer("What must it not be used for?", tuple(_limits(evidence, tested)), listed=True),
    )


def split_of(run: RunManifest) -> dict[str, int]:
    """How many rows each part of the data had, as far as the run says."""
    rows = run.data.get("rows")
    found = cast("dict[str, object]", rows) if isinstance(rows, dict) else {}
    return {part: many for part, many in found.items() if isinstance(many, int)}


def names_of(evidence: Evidence, classes: int) -> tuple[str, ...]:
    """What the classes are called; their numbers where no labels are known."""
    return evidence.manifest.labels or tuple(map(str, range(classes)))


def _what(evidence: Evidence) -> str:
    manifest, run = evidence.manifest, evidence.run.manifest
    if manifest.task == "classification":
        labels = list(manifest.labels)
        does = "a classifier"
        if labels:
            does += f" that chooses among {count(len(labels), 'class', 'classes')} ({listed(labels)})"
    elif manifest.task == "regression":
        does = "a model that predicts a number"
    else:
        does = "a model whose outputs are passed on as they are"
    source, train = run.data.get("source"), split_of(run).get("train")
    if source is None and train is None:
        return f"{manifest.name} is {does}. It was trained elsewhere: on what is not known here."
    rows = "" if train is None else f" on {count(train, 'row')}"
    of = "" if source is None else f" of {PurePath(str(source)).name}"
    return f"{manifest.name} is {does}. It was trained{rows}{of or ' of unnamed data'}."


def _how_good(evidence: Evidence, tested: Tested | str) -> str:
    if isinstance(tested, Tested) and evidence.manifest.task == "classification":
        return class_score(tested, names_of(evidence, tested.output.shape[1]))
    if isinstance(tested, Tested) and evidence.manifest.task == "regression":
        return value_score(tested)
    run = evidence.run.manifest
    metrics, split = run.metrics, split_of(run)
    for part in ("test", "validation"):
        chose = " These rows also chose the epoch, so the figure may be too good."
        aside = "" if part == "test" or monitor_of(run) == "nothing" else chose
        many = split.get(part)
        on = f"{part} rows" if many is None else count(many, f"{part} row")
        if (share := metrics.get(f"{part}_accuracy")) is not None:
            ends = f" ({between(round(share * many), many)})" if many else ""
            return f"It is right on {percent(share)} of {on}{ends}, dropout off.{aside}"
        if (off := metrics.get(f"{part}_rmse")) is not None:
            return f"On {on} it is off by {number(off)} (root mean square), dropout off.{aside}"
    return "That is not known: the run carries no score."


def _how_sure(evidence: Evidence) -> tuple[str, ...]:
    manifest, found = evidence.manifest, calibration_of(evidence)
    if not manifest.sites:
        return ("It cannot say by Monte Carlo dropout how sure it is: there is no dropout to sample.",)
    asked = f"{manifest.name}-mc says with each answer how sure it is."
    if found is None:
        return (f"{asked} This is not calibrated: {evidence.calibrated.removeprefix('not calibrated: ')}.",)
    run, split = evidence.run.manifest, split_of(evidence.run.manifest)
    rows = count(found.rows, "row")
    if "calibration.npz" in run.files or split.get("calibration"):
        which = f"{rows} that were set aside for it"
    elif run.recipe and monitor_of(run) != "nothing":
        which = f"{rows} that also chose the epoch"
    else:
        which = rows
    notes = " ".join(f"{note[0].upper()}{note[1:]}." for note in found.notes())
    return (f"{asked} This was calibrated on {which}.", *((notes,) if notes else ()))


def _limits(evidence: Evidence, tested: Tested | str) -> list[str]:
    """Each from what was measured, the gravest first."""
    manifest, found = evidence.manifest, [f"Anything that the waived check {check.name} guards against."
                                          for check in waived(evidence)]  # fmt: skip
    rows = split_of(evidence.run.manifest).get("test", 0)
    rows = len(tested.target) if isinstance(tested, Tested) else rows
    if not rows:
        found.append(
            "Decisions that rest on a measured error rate: no test rows were held out, so how good it is on "
            "new rows was not measured."
        )
    elif rows < FEW:
        found.append(
            f"Decisions that rest on a precise error rate: it was tested on {count(rows, 'row')}, too few "
            "for one."
        )
    if isinstance(tested, Tested) and manifest.task == "classification":
        found += _rare(tested, names_of(evidence, tested.output.shape[1]))
    found.append(_unlike(evidence))
    if not manifest.sites:
        found.append("Anything that needs to know how sure an answer is by Monte Carlo: there is none.")
    elif manifest.calibration is None and manifest.task != "raw":
        found.append("Decisions by how sure it says it is: that was not calibrated.")
    return found


def _rare(tested: Tested, names: tuple[str, ...]) -> list[str]:
    many = np.bincount(tested.target.astype(np.int64), minlength=len(names))
    rare = [f"{name} ({rows})" for name, rows in zip(names, many, strict=True) if rows < FEW_OF_CLASS]
    if not rare:
        return []
    which = "any class" if len(rare) == len(names) else listed(rare, 6)
    return [
        (
            f"Decisions that rest on how often it is right about {which}: fewer than {FEW_OF_CLASS} test "
            "rows of each."
        )
    ]


def _unlike(evidence: Evidence) -> str:
    manifest, found = evidence.manifest, calibration_of(evidence)
    kind = "Inputs unlike its training data"
    if found is None or found.ood is None:
        return f"{kind}: it answers them all the same, and flags none."
    ood = found.ood
    if ood.threshold is None:
        return f"{kind}: {ood.note()}."
    score = ood.score.replace("_", " ")
    if ood.score not in GRAPHS:
        return (
            f"{kind}: {manifest.name}-mc flags answers by {score}, which does not compare inputs with it. "
            "The model may be sure of an input that is like none it knows, and then it is not flagged."
        )
    return (
        f"{kind}: {manifest.name}-mc flags those that lie far from it (at most "
        f"{percent(ood.false_alarms / 1000)} false alarms on average), but not all; {manifest.name} flags "
        "none."
    )
