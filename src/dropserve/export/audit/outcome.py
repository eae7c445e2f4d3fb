"""What a check hands back, and what it is given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from dropserve.dropout.program import MaskedProgram, masked_program
from dropserve.errors import DropoutError
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject

from .observe import Observation, materialise, observe
from .optrace import Trace, record
from .places import Place
from .probe import Probe

if TYPE_CHECKING:
    from dropserve.export.artefacts import Artefacts

BATCH = 5  # rows of the batch that most checks use: no layer's width, and not a size that hides a guard


@dataclass(frozen=True)
class Outcome:
    """One check's finding: what it saw in numbers, and for a failure what to do and where."""

    verdict: Literal["passed", "failed", "skipped"]
    evidence: str
    remedy: str = ""
    where: str = ""


def passed(evidence: str) -> Outcome:
    """The check holds."""
    return Outcome("passed", evidence)


def skipped(reason: str) -> Outcome:
    """The check says nothing, and why."""
    return Outcome("skipped", reason)


def failed(evidence: str, remedy: str, where: Place | str | None = None) -> Outcome:
    """The check does not hold."""
    return Outcome("failed", evidence, remedy, "" if where is None else str(where))


@dataclass
class Examination:
    """One model under audit, with what several checks need of it.

    Attributes:
        subject: the model, its inputs and real rows.
        settings: tolerances, batch sizes and waivers.
        artefacts: the exported graphs, once they are built.
        fresh: a copy of the model from before its first forward; None where it cannot be copied.
        refusal: why masks cannot replace the model's randomness; set with ``program``.
        rebuild: makes the model again from its constructor and saved weights.
    """

    subject: Subject
    settings: ExportSettings
    artefacts: Artefacts | None = None
    rebuild: Callable[[], nn.Module] | None = None
    probe: Probe = field(init=False)
    fresh: nn.Module | None = field(init=False)
    refusal: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.probe = Probe(self.subject)
        materialise(self.probe, self.inputs)
        try:
            self.fresh = copy.deepcopy(self.subject.module)
        except Exception:  # noqa: BLE001  # a user's __deepcopy__ or attribute may raise anything
            self.fresh = None

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The batch that most checks use."""
        return self.subject.batch(BATCH, seed=1)

    @cached_property
    def trace(self) -> Trace:
        """The operators that one forward of that batch runs."""
        return record(self.probe, self.inputs)

    @cached_property
    def program(self) -> MaskedProgram | None:
        """The masked program; None without sites, or where ``refusal`` says why it cannot be made."""
        if self.artefacts is not None and self.artefacts.program is not None:
            return self.artefacts.program
        try:
            program = masked_program(self.subject.module, self.subject.inputs, self.inputs)
        except DropoutError as error:
            self.refusal = str(error)
            return None
        except Exception as error:  # noqa: BLE001  # a model that no mask can be put into may break anything
            self.refusal = f"{type(error).__name__}: {error}"
            return None
        return program if program.sites else None

    def unused(self) -> Probe:
        """The model as it was before its first forward; the used one where it cannot be copied."""
        return self.probe if self.fresh is None else Probe(self.subject, copy.deepcopy(self.fresh))

    @cached_property
    def double(self) -> Probe | None:
        """A copy of the model in float64, to tell rounding from what is real."""
        if self.fresh is None:
            return None
        return Probe(self.subject, copy.deepcopy(self.fresh).double())

    @cached_property
    def observation(self) -> Observation:
        """A few forwards of that batch, and everything that moved meanwhile."""
        return observe(self.probe, self.inputs)
