"""Rows at the edges of what people send, and the whole numbers that an input may hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dropserve.export.audit import run_audit
from dropserve.export.audit.full import full_audit
from dropserve.export.audit.gradients import NESTED
from dropserve.export.edge_rows import PATTERNS
from dropserve.export.integers import integer_ranges
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.signature import TensorSpec, parse_input


class Calls(nn.Module):
    def __init__(self, call: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.call, self.parts = call, nn.ModuleList(parts)

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.call(self.parts, *tensors)


def bert() -> Calls:
    """Words, token types, and positions that no input reaches."""

    def call(parts: nn.ModuleList, ids: Tensor, types: Tensor) -> Tensor:
        return parts[0](ids) + parts[1](types) + parts[2](torch.arange(ids.shape[1]))

    return Calls(call, nn.Embedding(3000, 4, padding_idx=1), nn.Embedding(2, 4), nn.Embedding(6, 4)).eval()


BERT = (
    TensorSpec(name="ids", dtype="int64", shape=(6,)),
    TensorSpec(name="types", dtype="int64", shape=(6,)),
)


def test_each_input_is_bounded_by_the_table_that_it_reaches() -> None:
    ranges = integer_ranges(bert(), BERT)
    assert (ranges["ids"].low, ranges["ids"].high) == (0, 2999)
    assert (ranges["types"].low, ranges["types"].high) == (0, 1)
    assert ranges["ids"].pads == (0, 1), "padding_idx is tried as padding too"
    subject = Subject("bert", bert(), BERT)
    assert len(np.unique(subject.batch(17)["ids"])) > 50
    assert int(subject.batch(len(PATTERNS), kind="edge")["ids"].max()) == 2999
    assert int(subject.batch(len(PATTERNS), kind="edge")["types"].max()) == 1


@pytest.mark.parametrize(
    ("call", "part", "low", "high", "limited"),
    [
        (lambda parts, x: parts[0](x), nn.Embedding(7, 2), 0, 6, True),
        (lambda parts, x: parts[0](x), nn.EmbeddingBag(7, 2), 0, 6, True),
        (lambda parts, x: parts[0](x + 3), nn.Embedding(50, 2), 0, 46, True),
        (lambda parts, x: parts[0](x % 5), nn.Embedding(5, 2), 0, 1, False),
        (lambda parts, x: parts[0].weight[x], nn.Linear(2, 9), 0, 8, True),
        (lambda _, x: nn.functional.one_hot(x, 13).float(), nn.Identity(), 0, 12, True),
        (lambda parts, x: parts[0](x.float()), nn.Linear(6, 2), 0, 1, False),
        (lambda parts, x: parts[0](x - 1), nn.Embedding(7, 2), 1, 7, True),
    ],
)
def test_the_greatest_number_is_found_by_running(
    call: Callable[..., Tensor], part: nn.Module, low: int, high: int, *, limited: bool
) -> None:
    found = integer_ranges(Calls(call, part).eval(), (parse_input("6:int64"),))["input"]
    assert (found.low, found.high, found.limited) == (low, high, limited)


def test_looking_for_the_range_leaves_the_model_and_the_generators_alone() -> None:
    class Counts(nn.Module):
        seen = 0

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = self.seen + 1
            return self.table(x) + torch.rand(2)

    model, before = Counts().eval(), torch.get_rng_state()
    integer_ranges(model, (parse_input("6:int64"),))
    assert model.seen == 0
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("spec", ["7:int64", "7:int32", "7:uint8", "7", "5,3:float64", "5:float16"])
def test_padded_rows_end_in_padding_and_hold_it_nowhere_else(spec: str) -> None:
    subject = Subject("net", Calls(lambda _, x: x.float()).eval(), (parse_input(spec),))
    rows = subject.batch(12, kind="padded")["input"].numpy().astype(float)
    there = (rows.reshape(12, rows.shape[1], -1) != 0).any(2)
    kept = there.sum(1)
    assert (kept >= 1).all()
    assert (kept < rows.shape[1]).all(), "every row ends in padding, so that a batch could be cut"
    assert len(set(kept)) > 1
    assert all(row[: row.sum()].all() for row in there)


def test_numbers_that_a_model_compares_ids_with_are_tried_as_padding() -> None:
    model = Calls(lambda parts, x: parts[0](x) * (x != 4).unsqueeze(2), nn.Embedding(9, 2)).eval()
    subject = Subject("net", model, (parse_input("6:int64"),))
    ends = {int(subject.batch(3, seed, kind="padded")["input"][0, -1]) for seed in range(subject.pads)}
    assert ends == {0, 4}


def test_masks_are_tried_ending_in_true_and_in_false() -> None:
    inputs = (parse_input("6:bool", name="mask"),)
    subject = Subject("net", Calls(lambda _, mask: mask.float()).eval(), inputs)
    for kind, end in (("masked", True), ("padded", False)):
        rows = subject.batch(4, kind=kind)["mask"]  # type: ignore[arg-type]  # of two
        assert (rows[:, -1] == end).all()
        assert (rows[:, 0] != end).all()
    edge = subject.batch(len(PATTERNS), kind="edge")["mask"]
    assert edge.all(1).any()
    assert (~edge).all(1).any()


class Classifier(nn.Module):
    """The usual text classifier: padding is masked in the encoder, and the mean is over all positions."""

    def __init__(self, *, nested: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16, padding_idx=0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0).mean(1)


def test_the_nested_path_of_an_encoder_is_seen_and_its_remedy_named() -> None:
    for nested in (True, False):
        torch.manual_seed(0)
        subject = Subject("text", Classifier(nested=nested).eval(), (parse_input("7:int64"),))
        records = {record.name: record for record in run_audit(subject, ExportSettings())}
        failed = [name for name, record in records.items() if record.verdict == "failed"]
        assert ("gradient-mode" in failed) is nested
        if not nested:
            assert failed == []
            continue
        assert {records[name].remedy for name in failed} == {NESTED}
        assert records["gradient-mode"].where.startswith("encoder (TransformerEncoder) at ")
        assert "padded rows" in records["gradient-mode"].evidence


def test_held_out_rows_are_among_the_rows_that_are_tried() -> None:
    """No drawn row has this value; the rows that the run has kept do."""

    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x == 0.75, 2.0 * (not torch.is_grad_enabled()), x)

    rows = np.linspace(-1, 1, 60, dtype=np.float32)[:, None].repeat(4, axis=1)
    rows[57] = 0.75  # the same number in float32 and float64
    for held, verdict in ((None, "passed"), ({"input": rows}, "failed")):
        subject = Subject("rare", Rare().eval(), (parse_input("4"),), held)
        records = {record.name: record for record in run_audit(subject, ExportSettings(), stages=["eager"])}
        assert records["gradient-mode"].verdict == verdict


class Tagger(nn.Module):
    """An encoder whose mean leaves padding out: torch's paths part on a row of padding alone, if at all."""

    def __init__(self, *, nested: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 32, padding_idx=0)
        self.place = nn.Parameter(torch.randn(64, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)

    def forward(self, ids: Tensor) -> Tensor:
        padding = ids == 0
        hidden = self.encoder(self.embed(ids) + self.place[: ids.shape[1]], src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(hidden.dtype)
        return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", ["20:int64", "L<=64:int64"])
def test_an_encoder_that_leaves_padding_out_is_sound(nested: bool, shape: str) -> None:
    torch.manual_seed(0)
    model = Tagger(nested=nested).eval()
    records = full_audit(Subject("tagger", model, (parse_input(shape),)), ExportSettings(), graphs=True)
    assert [record for record in records if record.verdict == "failed"] == []
