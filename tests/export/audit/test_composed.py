"""Random models: putting one trap in, or taking it out, flips the verdict and moves the place."""

from __future__ import annotations

import composed
import pytest
import zoo
from torch import nn

from dropserve.export.audit import run_audit
from dropserve.export.subject import Subject
from dropserve.manifest import CheckRecord
from dropserve.signature import parse_input


def refusals(model: nn.Module) -> list[CheckRecord]:
    subject = Subject("composed", model.eval(), (parse_input(str(composed.WIDTH)),))
    return [record for record in run_audit(subject, zoo.SETTINGS) if record.verdict == "failed"]


def check_flip(seed: int, trap: type[nn.Module]) -> None:
    assert refusals(composed.compose(seed)) == []
    failed = refusals(composed.compose(seed, trap))
    assert failed, f"{trap.__name__} went unseen"
    assert failed[0].where.endswith(composed.places(trap)), failed[0]


@pytest.mark.parametrize("trap", composed.TRAPS, ids=lambda trap: trap.__name__)
def test_one_trap_flips_the_verdict(trap: type[nn.Module]) -> None:
    check_flip(composed.TRAPS.index(trap), trap)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 250))
def test_one_trap_flips_the_verdict_of_many_models(seed: int) -> None:
    check_flip(seed, composed.TRAPS[seed % len(composed.TRAPS)])
