from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dropserve.columns import Column
from dropserve.errors import DataError, ModelSourceError
from dropserve.export.artefacts import build
from dropserve.export.parity import parity_checks
from dropserve.export.settings import ExportSettings
from dropserve.export.subject import Subject
from dropserve.manifest import Preprocessing
from dropserve.model import ServedModel
from dropserve.signature import Axis, TensorSpec, parse_input

LENGTH = Axis(name="L", maximum=9)


def test_the_same_arguments_give_the_same_rows_and_no_generator_moves() -> None:
    subject = Subject("net", nn.Identity(), (parse_input("4"),))
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002  # under test
    first, again, other = subject.batch(3, 5), subject.batch(3, 5), subject.batch(3, 6)
    assert torch.equal(first["input"], again["input"])
    assert not torch.equal(first["input"], other["input"])
    assert torch.equal(torch_before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002  # under test


def test_a_model_elsewhere_than_on_the_cpu_is_told_to_come() -> None:
    with pytest.raises(ModelSourceError, match=r"Linear: weight is on meta; .*model\.cpu\(\)"):
        Subject("net", nn.Linear(4, 2, device="meta"), (parse_input("4"),))


def test_real_rows_come_first_and_are_real() -> None:
    rows = np.arange(24, dtype=np.float64).reshape(8, 3)
    subject = Subject("net", nn.Identity(), (parse_input("3"),), {"input": rows})
    assert subject.kinds == ("rows", "random", "zeros", "large", "edge", "padded")
    batch = subject.batch(17)["input"].numpy()
    assert batch.dtype == np.float32
    assert all(any(np.array_equal(row, real) for real in rows) for row in batch)
    assert len(np.unique(subject.batch(8)["input"].numpy(), axis=0)) == 8, "without replacement while it can"


def test_random_draws_follow_the_real_rows() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal([0.0, 500.0], [1.0, 20.0], size=(400, 2))
    subject = Subject("net", nn.Identity(), (parse_input("2"),), {"input": rows})
    drawn = subject.batch(4000, kind="random")["input"].numpy()
    np.testing.assert_allclose(drawn.mean(0), rows.mean(0), atol=1.5)
    np.testing.assert_allclose(drawn.std(0), rows.std(0), rtol=0.05)
    assert np.abs(subject.batch(400, kind="large")["input"].numpy()).max() > 2000


def test_variable_axes_share_their_length_across_inputs() -> None:
    inputs = (
        TensorSpec(name="a", shape=(LENGTH, 2)),
        TensorSpec(name="mask", dtype="bool", shape=(LENGTH,)),
    )
    subject = Subject("net", nn.Identity(), inputs)
    assert subject.axes == {"L": 9}
    batch = subject.batch(2, lengths={"L": 5})
    assert (batch["a"].shape, batch["mask"].shape) == ((2, 5, 2), (2, 5))
    assert subject.batch(2)["a"].shape == (2, 9, 2)
    short = Subject(
        "net", nn.Identity(), inputs, {"a": np.ones((4, 6, 2)), "mask": np.ones((4, 9), dtype=bool)}
    )
    batch = short.batch(3)
    assert (batch["a"].shape, batch["mask"].shape) == ((3, 6, 2), (3, 6)), "the shortest real rows decide"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "no real rows for input 'input'"),
        ({"input": np.ones((0, 3))}, "at least 1"),
        ({"input": np.ones((2, 4))}, r"real rows of input: float32\[3\] have shape \[4\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Subject("net", nn.Identity(), (parse_input("3"),), rows)


COLUMNS = (
    Column(name="age", fill=40.0),
    Column(name="job", categories=("a", "b", "c")),
    Column(name="grade", categories=("x", "y"), other=True, fill=1.0),
    Column(name="pay"),
)


def of_a_table() -> Subject:
    rows = np.column_stack([np.linspace(1, 9, 20), np.arange(20) % 3, np.arange(20) % 3, np.arange(20)])
    rows[4, 0] = np.nan
    spec = TensorSpec(name="input", shape=(4,))
    preprocessing = Preprocessing(columns={"input": COLUMNS})
    module = ServedModel(nn.Linear(7, 2), preprocessing, {"input": (4,)}).eval()
    return Subject("staff", module, (spec,), {"input": rows.astype(np.float32)}, {"input": COLUMNS})


def test_rows_of_a_table_hold_codes_and_gaps_where_they_may_be() -> None:
    subject = of_a_table()
    assert subject.kinds == ("rows", "random", "zeros", "large", "missing", "edge")
    for kind in subject.kinds:
        rows = subject.batch(200, seed=1, kind=kind)["input"].numpy()
        gaps = np.isnan(rows)
        assert not gaps[:, [1, 3]].any()
        for place in (1, 2):
            codes = rows[~gaps[:, place], place]
            assert set(codes) <= set(range(3))
            assert kind == "zeros" or len(set(codes)) == 3
        if kind == "missing":
            assert gaps[0].tolist() == [True, False, True, False]
            assert (np.abs(gaps[:, [0, 2]].mean(axis=0) - 0.5) < 0.15).all()
        elif kind != "rows":
            assert not gaps.any()
    assert "missing" not in Subject("numbers", nn.Identity(), subject.inputs, subject.rows).kinds


def test_parity_sees_a_graph_that_does_not_fill_gaps(tmp_path: Path) -> None:
    """Without rows of gaps such a graph would pass: no other kind of input has one."""
    settings = ExportSettings(formats=("onnx",), batch_sizes=(1, 3))
    subject = of_a_table()
    whole = replace(subject, rows={"input": np.nan_to_num(subject.rows["input"])})  # type: ignore[index]  # has rows
    artefacts = build(whole, tmp_path, settings)
    assert {check.verdict for check in parity_checks(whole, artefacts, settings)} == {"passed"}
    graph = onnx.load(artefacts.paths["model.onnx"])
    (gap,) = [node for node in graph.graph.node if node.op_type == "IsNaN"]
    gap.op_type = "IsInf"
    onnx.save(graph, artefacts.paths["model.onnx"])
    failed = {c.name: c for c in parity_checks(whole, artefacts, settings) if c.verdict == "failed"}
    assert "parity-onnx" in failed
    assert "missing" in failed["parity-onnx"].evidence
