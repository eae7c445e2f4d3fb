"""The export audit: many small checks that decide by behaviour and explain by pattern.

Each check runs the model (or reads a graph) and compares what happens with what must happen; only then
do patterns put a name to the cause. A failure gives evidence in numbers, a remedy, and the place: module
path, file and line of the user's call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from dropserve.errors import DropserveError

if TYPE_CHECKING:
    from dropserve.export.artefacts import Artefacts
from dropserve.export.quiet import quiet
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.manifest import CheckRecord

from .catalogue import CHECKS, NAMES, Check, Stage
from .generators import restored
from .outcome import Examination, Outcome, failed, skipped
from .probe import ForwardError, OutputError
from .snapshot import kept_state

__all__ = ["CHECKS", "NAMES", "Check", "run_audit"]


def run_audit(
    subject: Subject,
    settings: ExportSettings,
    artefacts: Artefacts | None = None,
    *,
    rebuild: Callable[[], nn.Module] | None = None,
    stages: Sequence[Stage] | None = None,
) -> list[CheckRecord]:
    """Run the checks of the audit, in order.

    The model is left as it was found: weights, buffers, modes and the global random generators.

    Args:
        subject: the eager model, called as it is: put it in eval mode first.
        settings: tolerances, batch sizes and waivers.
        artefacts: the exported graphs; without them the checks of graphs and masks do not run.
        rebuild: builds the model again from its constructor (weights are loaded by the check).
        stages: which stages to run; all by default.

    Returns:
        One record for each check that ran or was skipped. A waived failure has the verdict "waived".
    """
    wanted = stages or (("eager",) if artefacts is None else ("eager", "graph", "converse"))
    records: list[CheckRecord] = []
    # A model may print and warn; the audit looks at what it does.
    with quiet(), kept_state(subject.module), restored():
        exam = Examination(subject, settings, artefacts, rebuild)
        fallen: set[str] = set()
        for check in CHECKS:
            if check.stage not in wanted:
                continue
            outcome = _run(check, exam, fallen)
            if outcome.verdict != "passed":
                fallen.add(check.name)
            records.append(_record(check.name, outcome, settings))
    return records


def _run(check: Check, exam: Examination, fallen: set[str]) -> Outcome:
    missing = [name for name in check.needs if name in fallen]
    if missing:
        return skipped(f"not judged: {missing[0]} did not pass")
    try:
        return check.run(exam)
    except ForwardError as error:
        return failed(
            f"the forward raised {error}",
            "make forward run on these inputs, at every batch size and call",
            error.place,
        )
    except (OutputError, DropserveError) as error:
        return failed(f"{error}", "change the model as the message says", exam.probe.placer.root_place())
    except Exception as error:  # noqa: BLE001  # a model that breaks a check has not passed it
        return failed(
            f"the check could not finish: {type(error).__name__}: {error}",
            "nothing is proven until it can: make forward ordinary enough to be run under it",
            exam.probe.placer.root_place(),
        )


def _record(name: str, outcome: Outcome, settings: ExportSettings) -> CheckRecord:
    waived = outcome.verdict == "failed" and settings.waived(name)
    return CheckRecord(
        name=name,
        verdict="waived" if waived else outcome.verdict,
        evidence=outcome.evidence,
        remedy=outcome.remedy,
        where=outcome.where,
    )
