"""From a run to a version: audit, build, audit and compare again, archive, report, publish."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from dropserve.errors import CheckFailedError, DropoutError, ExportError, RecipeError
from dropserve.manifest import CheckRecord, RunManifest, VersionManifest
from dropserve.model import build_served
from dropserve.report.evidence import Evidence
from dropserve.report.page import write_report
from dropserve.store import Store, Stored

from . import audit, parity
from .archive import EXAMPLE, Stage, write_archives
from .artefacts import MASKED, Artefacts, build
from .calibrate import calibrate, held_out, with_nearest
from .settings import ExportSettings
from .subject import Subject

EXPORT = "export.json"
VALIDATION = "validation.npz"
MASKABLE = "dropout-maskable"
_REMEDY = f'to export without the Monte Carlo model, write waive = ["{MASKABLE}"] in export/checks.toml'


@dataclass
class Report:
    """What an export saw, filled in as it goes: it is there after a failure too.

    Attributes:
        checks: the verdicts so far.
        parity: figures of the parity checks, by name.
        notes: where the cut is, what the tracer warned of.
        seconds: how long each step took.
    """

    checks: list[CheckRecord] = field(default_factory=list[CheckRecord])
    parity: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: list[str] = field(default_factory=list[str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    on_step: Callable[[str], None] = lambda _: None

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        """Time a step, and say that it has begun."""
        self.on_step(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)

    def require(self) -> None:
        """Stop if a check has failed.

        Raises:
            CheckFailedError: naming each, with what to do.
        """
        failed = [check for check in self.checks if check.verdict == "failed"]
        if failed:
            lines = [f"  - {check.name}: {check.remedy or check.evidence}" for check in failed]
            count = f"{len(failed)} export check{'s' if len(failed) > 1 else ''} failed"
            raise CheckFailedError("\n".join([f"{count}; nothing was published", *lines]))

    def as_json(self) -> dict[str, Any]:
        """What ``export.json`` holds."""
        checks = [check.model_dump() for check in self.checks]
        return {"checks": checks, "parity": self.parity, "notes": self.notes, "seconds": self.seconds}


def export_run(
    store: Store,
    run: Stored[RunManifest],
    settings: ExportSettings,
    stage: Stage,
    report: Report | None = None,
) -> Stored[VersionManifest]:
    """Prove, export and publish a run.

    Args:
        store: where the version goes.
        run: verified, as :meth:`Store.run` gives it.
        settings: from ``export/checks.toml``.
        stage: handler and configuration for the archives.
        report: filled in on the way.

    Returns:
        The published version.

    Raises:
        CheckFailedError: if a check failed and is not waived.
        ExportError: if an exporter refuses the model.
        SourceChangedError: if the model's source differs from the one that was trained.
        PublishError: if the file system fails.
    """
    report = report or Report()
    require_known_waivers(settings)
    with report.step("load"):
        subject = load_subject(run)
    with report.step("audit the model"):
        rebuild = lambda: build_served(run)  # noqa: E731  # a name for the call below
        report.checks += audit.run_audit(subject, settings, rebuild=rebuild, stages=["eager"])
        report.require()
    with store.staging(run.manifest.name, VersionManifest) as staging:
        folder = staging.folder
        with report.step("export"):
            artefacts = _build(subject, folder, settings, report)
            _require_meaning(run.manifest, artefacts)
        with report.step("audit the graphs"):
            report.checks += audit.run_audit(subject, settings, artefacts, stages=["graph", "converse"])
        with report.step("compare"):
            compared = parity.parity(subject, artefacts, settings)
            report.checks += compared.checks
            report.parity = compared.figures
        report.require()
        (folder / MASKED).unlink(missing_ok=True)  # trunk and head say the same
        with report.step("calibrate"):
            artefacts = with_nearest(run, subject, artefacts, settings)
            held = held_out(run, artefacts)
            calibration, line = calibrate(run, artefacts, held)
            report.notes.append(line)
        manifest = _manifest(run, staging.number, artefacts, report, calibration)
        with report.step("archive"):
            _write_example(run, subject, folder)
            write_archives(folder, manifest, stage)
        with report.step("report"):
            known = (report.parity, report.notes, report.seconds)
            write_report(Evidence(run, manifest, folder, held, line, *known))
        (folder / EXPORT).write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
        return store.publish(staging, manifest)


def load_subject(run: Stored[RunManifest]) -> Subject:
    """The model of a run with its held-out rows."""
    rows: dict[str, Any] | None = None
    inputs = run.manifest.signature.inputs
    if VALIDATION in run.manifest.files:
        with np.load(run.path(VALIDATION), allow_pickle=False) as arrays:
            held = {spec.name: arrays[spec.name] for spec in inputs if spec.name in arrays.files}
        rows = held if len(held) == len(inputs) else None
    columns = run.manifest.preprocessing.columns
    return Subject(run.manifest.name, build_served(run), inputs, rows, columns)


def require_known_waivers(settings: ExportSettings) -> None:
    """Refuse waivers of checks that do not exist: a typing error must not look like a waiver.

    Raises:
        RecipeError: naming them, and what there is.
    """
    known = (*audit.NAMES, *parity.NAMES, MASKABLE)
    unknown = [name for name in settings.waive if name not in known]
    if unknown:
        listed = ", ".join(known)
        raise RecipeError(
            "export/checks.toml",
            [f"waive: there is no check {name!r}; there are {listed}" for name in unknown],
        )


def _build(subject: Subject, folder: Path, settings: ExportSettings, report: Report) -> Artefacts:
    try:
        artefacts = build(subject, folder, settings)
    except DropoutError as error:
        verdict = "waived" if settings.waived(MASKABLE) else "failed"
        record = CheckRecord(name=MASKABLE, verdict=verdict, evidence=str(error), remedy=_REMEDY)
        report.checks.append(record)
        report.require()
        artefacts = build(subject, folder, settings, monte_carlo=False)
    else:
        count = len(artefacts.sites)
        evidence = f"{count} site{'' if count == 1 else 's'}, each with a mask" if count else "no dropout"
        report.checks.append(CheckRecord(name=MASKABLE, verdict="passed", evidence=evidence))
    report.notes += artefacts.notes
    return artefacts


def _require_meaning(manifest: RunManifest, artefacts: Artefacts) -> None:
    """What a task promises, the outputs must be able to hold."""
    outputs = artefacts.signature.outputs
    if manifest.task == "raw":
        return
    if len(outputs) != 1:
        names = ", ".join(spec.name for spec in outputs)
        raise ExportError(
            f"{manifest.task} needs one output, the model returns {len(outputs)} ({names}); return the "
            "logits or values alone, or import the model with --task raw"
        )
    if manifest.preprocessing.heteroscedastic and outputs[0].shape != (2,):
        raise ExportError(
            "a heteroscedastic regressor gives value and log variance, [2] per row; the model gives "
            f"{outputs[0]}"
        )
    wanted = (len(manifest.labels),)
    if manifest.task == "classification" and manifest.labels and outputs[0].shape != wanted:
        raise ExportError(
            f"classification with {wanted[0]} labels needs an output of shape [{wanted[0]}] per row, the "
            f"model gives {outputs[0]}"
        )


def _manifest(
    run: Stored[RunManifest],
    number: int,
    artefacts: Artefacts,
    report: Report,
    calibration: dict[str, JsonValue] | None,
) -> VersionManifest:
    source = run.manifest
    return VersionManifest(
        name=source.name,
        version=number,
        run=source.id,
        task=source.task,
        labels=source.labels,
        signature=artefacts.signature,
        source=source.source,
        preprocessing=source.preprocessing,
        images=source.images,
        metrics=source.metrics,
        data=source.data,
        sites=artefacts.sites,
        checks=tuple(report.checks),
        calibration=calibration,
    )


def _write_example(run: Stored[RunManifest], subject: Subject, folder: Path) -> None:
    """One real row as a request; the run's own example if it has one."""
    if EXAMPLE in run.manifest.files:
        (folder / EXAMPLE).write_bytes(run.path(EXAMPLE).read_bytes())
        return
    batch = subject.batch(1)
    row: Any = {name: tensor[0].tolist() for name, tensor in batch.items()}
    if len(batch) == 1:
        (row,) = row.values()
    (folder / EXAMPLE).write_text(json.dumps({"instances": [row]}) + "\n", encoding="utf-8")
