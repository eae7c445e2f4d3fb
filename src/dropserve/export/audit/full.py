"""The whole audit of one model: eager checks, masks, graphs made for the purpose, and parity."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import nn

from dropserve.errors import DropserveError, ExportError
from dropserve.export import parity
from dropserve.export.artefacts import build
from dropserve.export.quiet import quiet
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.manifest import CheckRecord

from . import run_audit
from .catalogue import GRAPH

EXPORTABLE = "exportable"


def full_audit(
    subject: Subject,
    settings: ExportSettings,
    *,
    rebuild: Callable[[], nn.Module] | None = None,
    graphs: bool = True,
    on_step: Callable[[str], None] = lambda _: None,
) -> list[CheckRecord]:
    """Run every check on a model that stands in no store.

    Args:
        subject: the model in eval mode.
        settings: tolerances, batch sizes and waivers.
        rebuild: builds the model again from its constructor.
        graphs: whether to export the model to a temporary folder and check the graphs as well.
        on_step: told the name of each step as it begins.

    Returns:
        The records of the audit and of parity, in order. Graphs are not built of a model that has failed.
    """
    on_step("the model")
    records = run_audit(subject, settings, rebuild=rebuild, stages=["eager", "converse"])
    if not graphs:
        return records
    if any(record.verdict == "failed" for record in records):
        reason = "not judged: the eager model failed, so no graphs were built"
        return [*records, *(CheckRecord(name=c.name, verdict="skipped", evidence=reason) for c in GRAPH)]
    with tempfile.TemporaryDirectory() as folder, quiet():  # a model may print and warn
        on_step("exporting to ONNX and TorchScript")
        try:
            artefacts = build(subject, Path(folder), settings, monte_carlo=_can_be_sampled(records))
        except Exception as error:  # noqa: BLE001  # whatever an exporter raises, this model cannot be exported
            return [*records, _unexportable(error)]
        on_step("the graphs")
        records += run_audit(subject, settings, artefacts, stages=["graph"])
        on_step("parity")
        records += parity.parity_checks(subject, artefacts, settings)
    return records


def _can_be_sampled(records: list[CheckRecord]) -> bool:
    return any(record.name == "dropout-sites" and record.verdict == "passed" for record in records)


def _unexportable(error: Exception) -> CheckRecord:
    known = isinstance(error, DropserveError)
    in_words = known and not isinstance(error, ExportError)  # those end with what to do
    return CheckRecord(
        name=EXPORTABLE,
        verdict="failed",
        evidence=str(error) if known else f"{type(error).__name__}: {error}",
        remedy="" if in_words else "change that line, or leave the format out in export/checks.toml",
    )
