"""The converse: dropout that is off must also be dropout that can be turned on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import zoo
from torch import nn

from dropserve.dropout.program import masked_program
from dropserve.export.artefacts import Artefacts
from dropserve.export.audit import run_audit
from dropserve.export.audit.oracle import distance
from dropserve.export.subject import Subject
from dropserve.manifest import CheckRecord
from dropserve.signature import Signature, parse_input


class Discarded(nn.Module):
    """The old mistake: the result of one dropout is thrown away."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 3)
        self.first, self.second = nn.Dropout(0.5), nn.Dropout(0.5) if second else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.fc1(x))
        self.first(x)
        return self.fc2(self.second(x))


def audited(
    module: nn.Module, *, rows: bool = False, artefacts: Artefacts | None = None
) -> dict[str, CheckRecord]:
    inputs = (parse_input("8"),)
    held = {"input": np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)} if rows else None
    subject = Subject("model", module.eval(), inputs, held)
    return {r.name: r for r in run_audit(subject, zoo.SETTINGS, artefacts, stages=["eager", "converse"])}


def test_a_dead_site_among_living_ones_is_a_warning_with_its_place() -> None:
    record = audited(Discarded(second=True))["every-site-acts"]
    assert record.verdict == "passed"
    assert record.evidence.startswith("warning: 1 of 2 sites change nothing: first at test_masks.py:")
    assert "reaches no output" in record.evidence


@pytest.mark.parametrize("rows", [False, True])
def test_a_model_whose_masks_reach_no_output_would_claim_certainty(rows: bool) -> None:
    records = audited(Discarded(second=False), rows=rows)
    assert records["every-site-acts"].verdict == "failed"
    assert "claim certainty" in records["every-site-acts"].evidence
    assert records["samples-differ"].verdict == "skipped"


@pytest.mark.parametrize(("rows", "verdict"), [(False, "skipped"), (True, "failed")])
def test_zero_weights_excuse_a_new_model_but_no_trained_one(rows: bool, verdict: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    nn.init.zeros_(model[2].weight)
    record = audited(model, rows=rows)["every-site-acts"]
    assert record.verdict == verdict
    assert "with other weights" in record.evidence


def test_without_dropout_there_is_nothing_to_sample_and_that_is_said() -> None:
    for model in (nn.Linear(8, 2), nn.Sequential(nn.Dropout(0.0), nn.Linear(8, 2))):
        records = audited(model)
        assert "no dropout" in records["dropout-sites"].evidence
        assert {records[name].verdict for name in ("dropout-sites", "identity-masks", "mean-of-samples")} == {
            "skipped"
        }


def test_a_linear_rest_averages_to_the_deterministic_answer() -> None:
    model = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), nn.Dropout(0.2), nn.Linear(30, 2))
    records = audited(model)
    assert records["mean-of-samples"].verdict == "passed"
    assert "1 of 1 sites have an affine rest" in records["mean-of-samples"].evidence
    curved = nn.Sequential(nn.Linear(8, 30), nn.Dropout(0.2), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 2))
    assert audited(curved)["mean-of-samples"].verdict == "skipped"


class _Damaged(nn.Module):
    """A masked program with a fault put in."""

    def __init__(self, program: nn.Module, fault: str) -> None:
        super().__init__()
        self.program, self.fault = program, fault
        for name in ("sites", "input_names", "mask_names", "output_names", "identity_masks"):
            object.__setattr__(self, name, getattr(program, name))

    def forward(self, x: torch.Tensor, *masks: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.fault == "ignored":
            masks = tuple(torch.ones_like(mask) for mask in masks)
        elif self.fault == "unscaled":
            masks = tuple(0.5 * mask for mask in masks)
        elif self.fault == "doubled":
            masks = tuple(mask.square() for mask in masks)
        (output,) = self.program(x, *masks)
        return (output + (1e-3 if self.fault == "shifted" else 0.0),)


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("ignored", "every-site-acts"),
        ("unscaled", "mean-of-samples"),
        ("unscaled", "matches-training-dropout"),
        ("doubled", "matches-training-dropout"),
        ("shifted", "identity-masks"),
    ],
)
def test_a_masked_program_that_lost_its_meaning_is_refused(fault: str, check: str, tmp_path: object) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)).eval()
    inputs = (parse_input("8"),)
    program = _Damaged(masked_program(model, inputs), fault)
    signature = Signature(inputs=inputs, outputs=(parse_input("3", name="output"),))
    artefacts = Artefacts(tmp_path, signature, program.sites, program, {})  # type: ignore[arg-type]
    assert audited(model, artefacts=artefacts)[check].verdict == "failed"
    sound = Artefacts(tmp_path, signature, program.sites, masked_program(model, inputs), {})  # type: ignore[arg-type]
    assert audited(model, artefacts=sound)[check].verdict == "passed"


def test_the_distance_of_two_samples_counts_standard_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    same = [distance(*torch.randn(2, 256, 5, generator=generator)) for _ in range(200)]
    assert max(same) < 6
    assert np.mean([value > 2 for value in same]) < 0.35  # the worst of five means and a variance
    one = torch.randn(256, 5, generator=generator)
    assert distance(one, one + 1.0) > 6
    assert distance(one, torch.randn(256, 5, generator=generator) * 2) > 6
