"""What the model is, where it came from, and how long its export took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from dropserve.columns import Column
from dropserve.manifest import RunManifest, VersionManifest
from dropserve.store import hash_folder

from .answers import calibration_of
from .content import Section, Table
from .evidence import Evidence
from .learning import monitor_of
from .words import between, count, listed, number, percent, size, spaced

_SHARES = ("accuracy",)


def describe(evidence: Evidence) -> Section:
    """What this model takes, answers, and was measured to be worth."""
    manifest, run = evidence.manifest, evidence.run.manifest
    kind = {"classification": "a classifier", "regression": "a regression model"}.get(
        manifest.task, "a model whose outputs are passed on as they are"
    )
    file, _, name = manifest.source.spec.rpartition(":")
    words = [f"{manifest.name} is {kind}, built by the class {name} in {PurePath(file).name or 'a module'}."]
    if manifest.task == "classification" and manifest.labels:
        shown = listed(list(manifest.labels))
        words[0] += f" It chooses among {count(len(manifest.labels), 'label')}: {shown}."
    words.append(_dropout(manifest))
    words.append(_quality(run))
    rows: list[tuple[str, str]] = []
    for spec in manifest.signature.inputs:
        shape = " x ".join(map(str, spec.shape)) or "one number"
        rows.append((f"input {spec.name}", f"{shape}, {spec.dtype}"))
    for spec in manifest.signature.outputs:
        shape = " x ".join(map(str, spec.shape)) or "one number"
        rows.append((f"output {spec.name}", f"{shape}, {spec.dtype}"))
    rows += [(key, str(value)) for key, value in manifest.source.arguments.items()]
    source, split = run.data.get("source"), run.data.get("rows")
    if source:
        rows.append(("data", PurePath(str(source)).name))
    if isinstance(split, dict):
        rows += [(f"{part} rows", f"{many:,}") for part, many in split.items() if isinstance(many, int)]
        if manifest.calibration is not None and "calibration" not in split:
            chose = "" if monitor_of(run) == "nothing" else ", which also chose the epoch"
            rows.append(("calibration rows", f"the validation rows{chose}"))
    if (found := calibration_of(evidence)) is not None and found.ood is not None:
        parts = f" (distances: {', '.join(p.name for p in found.ood.parts)})" if found.ood.parts else ""
        limit = found.ood.note()
        limit = limit or f"flagged above {number(found.ood.threshold or 0.0)}, {found.ood.alarms()}"
        rows.append(("out of distribution", f"{found.ood.score}{parts}: {limit}"))
    blocks = [Table(("property", "value"), tuple(rows), numbers=2)]
    blocks += [_columns(columns) for columns in manifest.preprocessing.columns.values() if _told(columns)]
    if run.metrics:
        blocks.append(_measured(run.metrics))
    if manifest.sites:
        sites = tuple((s.name, s.kind, percent(s.p, 0), f"{s.units:,}", s.where) for s in manifest.sites)
        blocks.append(Table(("dropout site", "kind", "dropped", "units", "place"), sites, numbers=5))
    return Section("model", "What this model is", tuple(words), tuple(blocks))


def _told(columns: Sequence[Column]) -> bool:
    """Whether the columns of a table are worth a word: some hold categories, or may lack a value."""
    return not all(column.is_plain for column in columns)


def _columns(columns: Sequence[Column]) -> Table:
    """What each column takes, and what stands in for a missing value."""
    rows: list[tuple[str, str, str]] = []
    for column in columns:
        takes = listed(list(column.categories)) or "a number"
        fill = None if column.fill is None else column.value(column.fill)
        missing = "refused" if fill is None else fill if isinstance(fill, str) else number(fill)
        rows.append((column.name, f"{takes}, or another" if column.other else takes, missing))
    caption = "Fitted on the training rows alone. Each category is an input of the model by itself."
    return Table(("column", "takes", "in place of a missing one"), tuple(rows), numbers=3, caption=caption)


def _dropout(manifest: VersionManifest) -> str:
    if not manifest.sites:
        return (
            "The Monte Carlo model was not exported: there is no dropout that could be sampled, so the model "
            "answers, but cannot say how sure it is by Monte Carlo dropout."
        )
    return (
        f"It has dropout in {count(len(manifest.sites), 'place')}. Plain answers have dropout "
        "switched off and are the same every time. Monte Carlo answers ask many thinned copies of the model "
        "instead: the more the copies disagree, the less sure the model is."
    )


def _quality(run: RunManifest) -> str:
    m, rows = run.metrics, run.data.get("rows")
    part = next((p for p in ("test", "validation") if any(k.startswith(f"{p}_") for k in m)), None)
    if part is None:
        return "How good it is was not measured by dropserve: the run carries no metrics."
    many = rows.get(part) if isinstance(rows, dict) else None
    on = f"On {many:,} {part} rows" if isinstance(many, int) else f"On the {part} rows"
    chose = "" if monitor_of(run) == "nothing" else " (which chose the best epoch)"
    aside = " that were kept aside from training" if part == "test" else chose
    if f"{part}_accuracy" in m:
        share = m[f"{part}_accuracy"]
        ends = f" ({between(round(share * many), many)})" if isinstance(many, int) and many else ""
        return f"{on}{aside} it is right {percent(share)} of the time{ends}."
    if f"{part}_rmse" in m:
        r2 = _explained(m.get(f"{part}_r2"))
        return f"{on}{aside} it is off by {number(m[f'{part}_rmse'])} (root mean square){r2}."
    return f"{on}{aside} it was measured as the table says."


def _explained(r2: float | None) -> str:
    if r2 is None or not math.isfinite(r2):
        return ""
    if r2 <= 0:
        return f", and explains none of the variance (R² {number(r2)})"
    return f", and explains {percent(r2)} of the variance"


def _measured(metrics: Mapping[str, float]) -> Table:
    rows = tuple((spaced(name), _metric(name, value)) for name, value in metrics.items())
    caption = "Loss is in nats." if any(name.endswith("_loss") for name in metrics) else ""
    if any(name.endswith("_ece") for name in metrics):
        caption += " ece: expected calibration error, over bins of equal width, and (mass) of equal mass."
    return Table(("measured after training, dropout off", "value"), rows, caption=caption)


def _metric(name: str, value: float) -> str:
    return percent(value, 2) if name.endswith(_SHARES) else number(value)


def timing(evidence: Evidence) -> Section:
    """How long each step of the export took."""
    taken = evidence.seconds
    if not taken:
        return Section("timing", "How long the export took", absent="No step was timed.")
    total = sum(taken.values())
    slowest = max(taken, key=lambda step: taken[step])
    words = (
        f"The export took {total:.1f} seconds up to this page; the longest step was “{slowest}” with "
        f"{taken[slowest]:.1f} seconds."
    )
    rows = tuple(
        (step, f"{seconds:.2f}", percent(seconds / (total or 1), 0)) for step, seconds in taken.items()
    )
    table = Table(("step", "seconds", "share"), rows)
    return Section("timing", "How long the export took", (words,), (table,))


def provenance(evidence: Evidence) -> Section:
    """What this version was made of, to the bit."""
    manifest, run = evidence.manifest, evidence.run.manifest
    words = (
        (
            f"Version {manifest.version} was made from run {manifest.run} on {_when(manifest.created)}; the "
            f"run "
            f"was "
            f"published on {_when(run.created)}. Every file is identified by its SHA-256: the same digits "
            f"mean "
            f"the "
            "same content. manifest.json lists all files of the version, this page among them."
        ),
    )
    made = [("model source", manifest.source.sha256)]
    made += [(f"data: {key.removesuffix('sha256').strip('_') or 'all'}", str(value))
             for key, value in run.data.items() if key.endswith("sha256")]  # fmt: skip
    made += [
        (f"run: {name}", record.sha256)
        for name, record in run.files.items()
        if name in {"weights.safetensors", "validation.npz", "calibration.npz", "recipe.json"}
    ]
    graphs = hash_folder(evidence.folder)
    files = tuple((name, size(record.size), record.sha256) for name, record in graphs.items())
    blocks = (
        Table(("made of", "SHA-256"), tuple(made), numbers=2, long=True),
        Table(("file of this version", "size", "SHA-256"), files, numbers=3, long=True),
        Table(("built with", "version"), tuple(manifest.built_with.items()), numbers=2),
    )
    return Section("provenance", "Versions and hashes", words, blocks)


def _when(stamp: str) -> str:
    return stamp[:16].replace("T", " ") + " UTC"
