"""What the audit promises whatever the model: it finishes, waives by name, and leaves things as they were."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name that everyone gives it
import zoo
from torch import nn

from dropserve.errors import RecipeError
from dropserve.export.audit import CHECKS, NAMES, run_audit
from dropserve.export.audit.full import full_audit
from dropserve.export.pipeline import require_known_waivers
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.manifest import CheckRecord, Preprocessing, Scaling
from dropserve.model import ServedModel
from dropserve.signature import parse_input


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.norm(self.fc(x)))  # NOISE


def line(marker: str) -> str:
    file = Path(__file__)
    found = [i for i, text in enumerate(file.read_text().splitlines(), 1) if text.endswith(f"  # {marker}")]
    return f"{file.name}:{found[0]}"


def subject(module: nn.Module, shape: str = "8") -> Subject:
    return Subject("model", module, (parse_input(shape),))


def by_name(records: list[CheckRecord]) -> dict[str, CheckRecord]:
    return {record.name: record for record in records}


def test_names_are_unique_and_every_check_needs_others_that_there_are() -> None:
    assert len(set(NAMES)) == len(NAMES) == len(CHECKS)
    known = set(NAMES)
    assert all(set(check.needs) <= known for check in CHECKS)


def test_a_waiver_shows_and_waives_one_check_only() -> None:
    settings = ExportSettings(waive=("torch-random-state",))
    records = by_name(run_audit(subject(Noisy().eval()), settings))
    assert records["torch-random-state"].verdict == "waived"
    assert "moved in 3 of 3" in records["torch-random-state"].evidence
    assert records["random-operators"].verdict == "failed"
    sound = by_name(run_audit(subject(nn.Linear(8, 2).eval()), settings))
    assert sound["torch-random-state"].verdict == "passed"


def test_an_unknown_waiver_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(RecipeError, match="no check 'torch-rng'") as caught:
        require_known_waivers(ExportSettings(waive=("torch-rng",)))
    assert all(name in str(caught.value) for name in NAMES)
    require_known_waivers(ExportSettings(waive=NAMES))


def test_the_model_and_the_generators_are_left_as_they_were() -> None:
    class Messy(Noisy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.train()
            random.random()
            np.random.random()  # noqa: NPY002
            return super().forward(x)

    model = Messy().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    records = run_audit(subject(model), zoo.SETTINGS)
    assert {r.name for r in records if r.verdict == "failed"} >= {
        "modules-in-eval", "weights-unchanged", "numpy-random-state", "python-random-state",
    }  # fmt: skip
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()


def test_the_place_is_the_users_through_the_wrapper_that_serves_it() -> None:
    scaling = Scaling(mean=(0.0,) * 8, scale=(2.0,) * 8)
    served = ServedModel(Noisy(), Preprocessing(inputs={"input": scaling}), {"input": (8,)}).eval()
    record = by_name(run_audit(subject(served), zoo.SETTINGS))["torch-random-state"]
    assert record.verdict == "failed"
    assert record.where.startswith("Noisy at ")
    assert record.where.endswith(line("NOISE"))
    assert "training=self.training" in record.remedy


def test_a_hidden_module_is_named_by_its_holder() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = {"drop": nn.Dropout(0.5)}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts["drop"](x)

    model = nn.Sequential(nn.Linear(8, 8), Holder()).eval()
    record = by_name(run_audit(subject(model), zoo.SETTINGS))["torch-random-state"]
    assert record.where.startswith("1.parts['drop'] (Dropout) at ")
    assert "nn.ModuleDict" in record.remedy


def test_a_child_left_in_train_is_named_even_where_no_line_is_the_users() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1)).eval()
    model[1].train()
    records = by_name(run_audit(subject(model), zoo.SETTINGS))
    assert records["modules-in-eval"].where == "1 (Dropout)"
    assert records["torch-random-state"].where == "1 (Dropout)"
    model.train()
    assert by_name(run_audit(subject(model), zoo.SETTINGS))["modules-in-eval"].verdict == "failed"


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), RecursionError("deep"), KeyError("k")])
def test_whatever_a_forward_raises_is_a_finding_with_a_place(error: BaseException) -> None:
    class Raising(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
            raise error  # RAISES

    records = by_name(run_audit(subject(Raising().eval()), zoo.SETTINGS))
    assert records["forward-runs"].verdict == "failed"
    assert type(error).__name__ in records["forward-runs"].evidence
    assert records["forward-runs"].where.endswith(line("RAISES"))
    assert records["row-independence"].verdict == "skipped"


def test_an_interrupt_is_not_a_finding() -> None:
    class Interrupted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(subject(Interrupted().eval()), zoo.SETTINGS)


@pytest.mark.parametrize("value", [None, 3.0, "text", object(), [], {"a": "b"}])
def test_whatever_a_forward_returns_is_judged(value: object) -> None:
    class Returning(nn.Module):
        def forward(self, x: torch.Tensor) -> object:  # noqa: ARG002
            return value

    records = by_name(run_audit(subject(Returning().eval()), zoo.SETTINGS, stages=["eager", "converse"]))
    assert records["outputs-are-batched"].verdict == "failed"
    assert not any("could not finish" in record.evidence for record in records.values())


def test_a_model_that_cannot_be_copied_is_audited_all_the_same() -> None:
    class Uncopyable(nn.Module):
        def __init__(self, noisy: bool) -> None:
            super().__init__()
            self.fc, self.noisy = nn.Linear(8, 2), noisy

        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("there is one of me")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(self.fc(x), training=self.noisy)

    records = run_audit(subject(Uncopyable(noisy=False).eval()), zoo.SETTINGS)
    assert [r.name for r in records if r.verdict == "failed"] == []
    assert by_name(records)["call-history"].verdict == "skipped"
    assert by_name(run_audit(subject(Uncopyable(noisy=True).eval()), zoo.SETTINGS))[
        "torch-random-state"
    ].where


def test_real_rows_are_what_the_model_is_judged_on() -> None:
    class Logarithm(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x)

    rows = {"input": np.random.default_rng(0).uniform(1, 2, (50, 8)).astype(np.float32)}
    judged = Subject("model", Logarithm().eval(), (parse_input("8"),), rows)
    assert by_name(run_audit(judged, zoo.SETTINGS))["finite-outputs"].verdict == "passed"
    assert by_name(run_audit(subject(Logarithm().eval()), zoo.SETTINGS))["finite-outputs"].verdict == "failed"


def test_what_cannot_be_exported_says_what_to_do_once() -> None:
    class Brief(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).bfloat16()

    class Deciding(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = [super(Deciding, self).forward(row) * (2 if row[0] > 0 else 1) for row in x]
            return torch.stack(rows)

    waived = ExportSettings(waive=("data-dependent-control-flow",), formats=("onnx",))
    for kind, words, remedy in (
        (Brief, "output 'output' is bfloat16; expected one of", ""),
        (Deciding, "cannot be exported to ONNX", "change that line"),
    ):
        records = by_name(full_audit(subject(kind(8, 2).eval()), waived))
        assert records["exportable"].verdict == "failed"
        assert words in records["exportable"].evidence
        assert records["exportable"].remedy.startswith(remedy)
        assert bool(remedy) == bool(records["exportable"].remedy)
