"""From a run to a version: audit, build, audit and compare again, archive, report, publish."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dropserve.errors import CheckFailedError, DropoutError, ExportError, RecipeError
from dropserve.manifest import CheckRecord, RunManifest, VersionManifest
from dropserve.model import build_served
from dropserve.report.evidence import Evidence
from dropserve.report.page import write_report
from dropserve.store import Staging, Store, Stored

from . import audit, parity, precision, torch_export
from .archive import EXAMPLE, Stage, write_archives
from .artefacts import MASKED, Artefacts, build
from .calibrate import TARGET, ask_test_rows, calibrate, held_out, with_nearest
from .external import data_file
from .metadata import embed
from .nearest import NEAREST
from .settings import ExportSettings
from .subject import Subject

EXPORT = "export.json"
REFERENCE = "fp32"  # while a lower precision is judged
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
            artefacts, manifest = _graphs(run, subject, staging, settings, report)
        _prove(run, subject, artefacts, manifest, settings, report)
        if settings.precision != "fp32":
            artefacts, manifest = _lowered(run, subject, artefacts, manifest, staging, settings, report)
        with report.step("calibrate"):
            known = len(artefacts.notes)
            artefacts = with_nearest(run, subject, artefacts, _served(settings))
            report.notes += artefacts.notes[known:]
            if NEAREST in artefacts.paths:
                embed(artefacts, manifest, run.manifest_sha256, [NEAREST])
            held = held_out(run, artefacts)
            calibration, line = calibrate(run, artefacts, held)
            report.notes.append(line)
        found = {"checks": tuple(report.checks), "calibration": calibration}
        manifest = manifest.model_copy(update=found)
        with report.step("archive"):
            _write_example(run, subject, folder)
            write_archives(folder, manifest, stage)
        with report.step("report"):
            found_so_far = (report.parity, report.notes, report.seconds)
            tested = ask_test_rows(run, artefacts)
            write_report(Evidence(run, manifest, folder, held, line, *found_so_far, tested))
        (folder / EXPORT).write_text(json.dumps(report.as_json(), indent=1) + "\n", encoding="utf-8")
        return store.publish(staging, manifest)


def _graphs(
    run: Stored[RunManifest], subject: Subject, staging: Staging, settings: ExportSettings, report: Report
) -> tuple[Artefacts, VersionManifest]:
    """The float32 graphs, which describe themselves, and what the version's manifest holds already.

    Where another precision will be served, they stand in a folder of their own.
    """
    lower = settings.precision != "fp32"
    folder = staging.folder / REFERENCE if lower else staging.folder
    folder.mkdir(exist_ok=True)
    artefacts = _build(subject, folder, _served(settings), report)
    _require_meaning(run.manifest, artefacts)
    manifest = _manifest(run, staging.number, artefacts, settings)
    if lower:
        report.notes.append(
            f"no TorchScript and torch.export files: they would answer in fp32, not in {settings.precision}"
        )
    else:
        report.checks += torch_export.write_torch_export(subject, artefacts, settings)
    return artefacts, manifest


def _served(settings: ExportSettings) -> ExportSettings:
    """The settings, but for formats that would answer in another precision."""
    if settings.precision == "fp32":
        return settings
    formats = tuple(name for name in settings.formats if name != "torchscript")
    return settings.model_copy(update={"formats": formats})


def _prove(
    run: Stored[RunManifest],
    subject: Subject,
    artefacts: Artefacts,
    manifest: VersionManifest,
    settings: ExportSettings,
    report: Report,
) -> None:
    """Audit the float32 graphs, have them describe themselves, and compare them with the model."""
    with report.step("audit the graphs"):
        report.checks += audit.run_audit(subject, settings, artefacts, stages=["graph", "converse"])
        embed(artefacts, manifest, run.manifest_sha256)  # after an audit that names lines of the source
    with report.step("compare"):
        compared = parity.parity(subject, artefacts, settings)
        report.checks += compared.checks
        report.parity = compared.figures
    report.require()
    if "masked-onnx" not in settings.formats:  # trunk and head say the same
        for file in (artefacts.folder / MASKED, data_file(artefacts.folder / MASKED)):
            file.unlink(missing_ok=True)


def _lowered(
    run: Stored[RunManifest],
    subject: Subject,
    reference: Artefacts,
    manifest: VersionManifest,
    staging: Staging,
    settings: ExportSettings,
    report: Report,
) -> tuple[Artefacts, VersionManifest]:
    """The graphs that will be served, in a lower precision, and what that costs."""
    held = precision.Held.of(subject, _target(run))
    with report.step(f"convert to {settings.precision}"):
        artefacts = precision.lower(reference, held, staging.folder, settings)
        quanta = precision.row_quanta(reference, held.judging)
        manifest = manifest.model_copy(update={"row_quanta": quanta})
        embed(artefacts, manifest, run.manifest_sha256)
        report.notes += artefacts.notes[len(reference.notes) :]
    with report.step(f"judge {settings.precision}"):
        judged = precision.judge(
            reference,
            artefacts,
            held,
            settings,
            run.manifest.task,
            heteroscedastic=run.manifest.preprocessing.heteroscedastic,
        )
        graphs = audit.run_audit(subject, settings, artefacts, stages=["graph"])
        of_these = {check.name: check for check in graphs if check.name.startswith("onnx-")}
        report.checks = [of_these.get(check.name, check) for check in report.checks] + judged.checks
        report.parity |= judged.figures
    report.require()
    shutil.rmtree(reference.folder)
    return artefacts, manifest


def _target(run: Stored[RunManifest]) -> NDArray[Any] | None:
    if VALIDATION not in run.manifest.files:
        return None
    with np.load(run.path(VALIDATION), allow_pickle=False) as arrays:
        return arrays[TARGET] if TARGET in arrays.files else None


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
    known = (*audit.NAMES, *parity.NAMES, *precision.NAMES, torch_export.NAME, MASKABLE)
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
    run: Stored[RunManifest], number: int, artefacts: Artefacts, settings: ExportSettings
) -> VersionManifest:
    """What is known before anything is proven; checks and calibration follow."""
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
        precision=settings.precision,
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
