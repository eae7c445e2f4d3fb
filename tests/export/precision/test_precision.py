from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from dropserve.dropout.masks import draw
from dropserve.dropout.rows import ALONE, QUANTUM, measure_quantum
from dropserve.errors import ExportError
from dropserve.export.artefacts import HEAD, MODEL, TRUNK, Artefacts, build
from dropserve.export.onnx import OnnxProgram
from dropserve.export.precision import Held, judge, lower
from dropserve.export.precision.exact import masks_stay_exact
from dropserve.export.precision.fold import folded
from dropserve.export.precision.half import to_fp16
from dropserve.export.precision.independence import rows_are_independent
from dropserve.export.precision.integers import to_int8
from dropserve.export.settings import Bounds, ExportSettings
from dropserve.export.subject import Subject
from dropserve.signature import TensorSpec, parse_input

LOWER = ("fp16", "int8")
QUICK = {"formats": ("onnx",), "batch_sizes": (1, 3)}


class Net(nn.Module):
    """Rates whose 1/(1 - p) no half-precision number equals."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 3)
        self.drop, self.more = nn.Dropout(0.3), nn.Dropout(0.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(torch.relu(self.first(x)))
        return self.last(self.more(torch.relu(self.second(x))))


@dataclasses.dataclass
class Made:
    subject: Subject
    held: Held
    reference: Artefacts
    lowered: dict[str, Artefacts]


def make(
    subject: Subject, folder: Path, target: np.ndarray | None = None, formats: tuple[str, ...] = ()
) -> Made:
    """The graphs of a model in three precisions."""
    quick = ExportSettings(**QUICK)
    held = Held.of(subject, target)
    folder.mkdir(exist_ok=True)
    reference = build(subject, folder, quick)
    lowered: dict[str, Artefacts] = {}
    for precision in LOWER:
        (folder / precision).mkdir()
        settings = ExportSettings(precision=precision, **{**QUICK, "formats": ("onnx", *formats)})
        lowered[precision] = lower(reference, held, folder / precision, settings)
    return Made(subject, held, reference, lowered)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(0)
    rows = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    module = Net().eval()
    with torch.no_grad():
        target = module(torch.tensor(rows)).argmax(-1).numpy()
    subject = Subject("net", module, (parse_input("8"),), {"input": rows})
    return make(subject, tmp_path_factory.mktemp("net") / "graphs", target, ("masked-onnx",))


@pytest.mark.parametrize("precision", LOWER)
def test_every_check_passes_with_figures_and_bounds(made: Made, precision: str) -> None:
    settings = ExportSettings(precision=precision, **QUICK)
    found = judge(made.reference, made.lowered[precision], made.held, settings, "classification")
    assert {check.verdict for check in found.checks} == {"passed"}, found.checks
    evidence = {check.name: check.evidence for check in found.checks}
    assert f"(bound {settings.bounds.largest:g})" in evidence["precision-monte-carlo"]
    assert "accuracy 100.00% in fp32" in evidence["precision-accuracy"]
    assert "Monte Carlo mean" in evidence["precision-accuracy"]
    largest = found.figures["precision-monte-carlo"]["max"]
    assert 0 < largest < settings.bounds.largest
    assert found.figures["precision-parity"]["max"] > 1e-6, "something was converted"


@pytest.mark.parametrize("precision", LOWER)
def test_files_are_smaller_and_edges_are_float32(made: Made, precision: str) -> None:
    for part in (MODEL, TRUNK, HEAD):
        before, after = (onnx.load(m.paths[part]) for m in (made.reference, made.lowered[precision]))
        for kind in ("input", "output"):
            edges = [
                [(v.name, v.type.tensor_type.elem_type) for v in getattr(model.graph, kind)]
                for model in (before, after)
            ]
            assert edges[0] == edges[1]
        weights = [sum(len(t.raw_data) for t in m.graph.initializer) for m in (before, after)]
        assert weights[1] < 0.6 * weights[0]


@pytest.mark.parametrize("precision", LOWER)
def test_the_masked_graph_in_one_file_is_trunk_and_head(made: Made, precision: str) -> None:
    paths = made.lowered[precision].paths
    x = made.held.judging.inputs["input"][:5]
    masks = draw(made.reference.sites, 5, seed=3)
    parts = OnnxProgram(paths[HEAD])(OnnxProgram(paths[TRUNK])({"input": x}) | masks)["output"]
    np.testing.assert_array_equal(OnnxProgram(paths["masked.onnx"])({"input": x} | masks)["output"], parts)


@pytest.mark.parametrize("precision", ["fp32", *LOWER])
def test_what_is_dropped_is_gone_and_what_is_kept_is_scaled_as_drawn(made: Made, precision: str) -> None:
    """Behind the trunk, a dropped unit may hold anything; with all kept and p known, the product is exact."""
    paths = (made.reference if precision == "fp32" else made.lowered[precision]).paths
    x = made.held.judging.inputs["input"][:20]
    (crossing,) = OnnxProgram(paths[TRUNK])({"input": x}).items()
    name, hidden = crossing
    masks = draw(made.reference.sites, 20, seed=4)
    head = OnnxProgram(paths[HEAD])
    usual = head({name: hidden, **masks})["output"]
    mask = next(array for array in masks.values() if array.shape == hidden.shape)
    assert 0 < (mask == 0).mean() < 1
    other = np.where(mask == 0, np.float32(3.25), hidden)
    np.testing.assert_array_equal(head({name: other, **masks})["output"], usual)
    kept = np.where(mask == 0, hidden, hidden + np.float32(0.5))
    assert not np.array_equal(head({name: kept, **masks})["output"], usual)


def test_masks_that_are_rounded_before_they_are_multiplied_are_found(made: Made, tmp_path: Path) -> None:
    assert masks_stay_exact(made.reference)[0] == ""
    rounded = convert_float_to_float16(onnx.load(made.reference.paths[HEAD]), keep_io_types=True)
    onnx.save(rounded, tmp_path / HEAD)
    paths = {**made.reference.paths, HEAD: tmp_path / HEAD}
    problem, _ = masks_stay_exact(dataclasses.replace(made.reference, paths=paths))
    assert "not float32" in problem


def test_scales_taken_from_the_batch_are_found(made: Made, tmp_path: Path) -> None:
    """Dynamic quantisation: what static quantisation is there to avoid."""
    words = rows_are_independent(made.lowered["int8"], made.held.judging)
    assert words[0] == ""
    plain = onnx.load(made.reference.paths[MODEL])
    del plain.graph.value_info[:]  # onnxruntime 1.30 turns weights and keeps their former shapes
    quantize_dynamic(plain, tmp_path / MODEL, weight_type=QuantType.QInt8)
    paths = {**made.reference.paths, MODEL: tmp_path / MODEL}
    problem, _ = rows_are_independent(dataclasses.replace(made.reference, paths=paths), made.held.judging)
    assert problem.startswith("model.onnx: row 0 with")
    assert "a scale is taken from the batch" in problem


@pytest.mark.parametrize("bound", ["largest", "typical"])
def test_what_is_out_of_bounds_fails_with_figures_and_a_remedy(made: Made, bound: str) -> None:
    tight = Bounds(largest=0.25, typical=0.25, accuracy=1).model_copy(update={bound: 1e-7})
    settings = ExportSettings(precision="int8", **QUICK).model_copy(update={"int8": tight})
    found = judge(made.reference, made.lowered["int8"], made.held, settings, "raw")
    failed = {check.name: check for check in found.checks if check.verdict == "failed"}
    assert set(failed) == {
        "precision-parity", "precision-monte-carlo", "precision-identity-masks", "precision-statistics",
    }  # fmt: skip
    check = failed["precision-monte-carlo"]
    assert "(bound 1e-07)" in check.evidence
    assert "--precision fp16" in check.remedy
    assert "[int8]" in check.remedy
    waived = settings.model_copy(update={"waive": ("precision-monte-carlo",)})
    found = judge(made.reference, made.lowered["int8"], made.held, waived, "raw")
    assert {c.verdict for c in found.checks if c.name == "precision-monte-carlo"} == {"waived"}


def test_lost_accuracy_fails(made: Made) -> None:
    """Targets that int8 can no longer tell apart: the classes of rows at the border."""
    plain = [OnnxProgram(m.paths[MODEL]) for m in (made.reference, made.lowered["int8"])]
    x = np.random.default_rng(1).normal(size=(20_000, 8)).astype(np.float32)
    classes = [program({"input": x})["output"].argmax(-1) for program in plain]
    border = classes[0] != classes[1]
    assert 2 < border.sum() < 2000
    held = dataclasses.replace(
        made.held,
        judging=dataclasses.replace(
            made.held.judging, inputs={"input": x[border]}, target=classes[0][border]
        ),
    )
    settings = ExportSettings(precision="int8", **QUICK)
    found = judge(made.reference, made.lowered["int8"], held, settings, "classification")
    (check,) = [check for check in found.checks if check.name == "precision-accuracy"]
    assert check.verdict == "failed"
    assert f"{border.sum()} of {border.sum()} rows lost" in check.evidence


def test_int8_without_rows_says_what_to_do(tmp_path: Path) -> None:
    subject = Subject("net", nn.Linear(4, 2).eval(), (parse_input("4"),))
    reference = build(subject, tmp_path, ExportSettings(**QUICK))
    settings = ExportSettings(precision="int8", **QUICK)
    with pytest.raises(ExportError, match=r"has 0; expected at least 16\. .*--precision fp16"):
        lower(reference, Held.of(subject, None), tmp_path, settings)


def test_a_weight_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    module = nn.Linear(4, 2).eval()
    with torch.no_grad():
        module.weight[0, 0] = 70_000
    reference = build(Subject("net", module, (parse_input("4"),)), tmp_path, ExportSettings(**QUICK))
    with pytest.raises(ExportError, match=r"holds 7e\+04, and fp16 ends at 65504"):
        to_fp16(onnx.load(reference.paths[MODEL]), [])


class Scaled(nn.Module):
    """Raw inputs and targets of a size that half precision cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers((x - 2e6) / 1e5) * 3e6 + 7e7


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWER)
def test_scaling_at_the_edges_stays_in_float32(tmp_path: Path, precision: str) -> None:
    torch.manual_seed(0)
    rows = (2e6 + 1e5 * np.random.default_rng(0).normal(size=(100, 4))).astype(np.float32)
    subject = Subject("net", Scaled().eval(), (parse_input("4"),), {"input": rows})
    held = Held.of(subject, None)
    (tmp_path / precision).mkdir()
    reference = build(subject, tmp_path, ExportSettings(**QUICK))
    lowered = lower(reference, held, tmp_path / precision, ExportSettings(precision=precision, **QUICK))
    want, got = (OnnxProgram(m.paths[MODEL])({"input": rows})["output"] for m in (reference, lowered))
    assert np.isfinite(got).all()
    assert np.abs(want - got).max() < {"fp16": 0.005, "int8": 0.1}[precision] * np.ptp(want)


@pytest.mark.slow
def test_recurrent_weights_and_embeddings_are_stored_in_8_bits(tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.rnn = nn.Embedding(50, 16), nn.LSTM(16, 24, 2, dropout=0.3, batch_first=True)
            self.last = nn.Linear(24, 2)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.last(self.rnn(self.table(tokens))[0][:, -1])

    torch.manual_seed(0)
    rows = {"tokens": np.random.default_rng(0).integers(0, 50, size=(60, 6))}
    subject = Subject("words", Words().eval(), (TensorSpec(name="tokens", dtype="int64", shape=(6,)),), rows)
    reference = build(subject, tmp_path, ExportSettings(**QUICK))
    model, count = to_int8(folded(onnx.load(reference.paths[MODEL])), [], [rows])
    assert count == 4  # two recurrent layers, a table, a product
    for tensor in model.graph.initializer:
        assert tensor.data_type != TensorProto.FLOAT or numpy_helper.to_array(tensor).size <= 200, tensor.name
    onnx.checker.check_model(model, full_check=True)
    got = OnnxProgram(model.SerializeToString())(rows)["output"]
    want = OnnxProgram(reference.paths[MODEL])(rows)["output"]
    assert 0 < np.abs(want - got).max() < 0.05 * np.abs(want).max()


def test_smaller_quanta_than_the_least_are_not_tried() -> None:
    program: Callable[..., dict[str, np.ndarray]] = lambda fed: {"y": fed["x"] * 2}  # noqa: E731
    x = {"x": np.ones((1, 3), np.float32)}
    assert measure_quantum(program, x) == 1
    assert measure_quantum(program, x, QUANTUM) == QUANTUM
    mean: Callable[..., dict[str, np.ndarray]] = lambda fed: {"y": fed["x"] - fed["x"].mean()}  # noqa: E731
    assert measure_quantum(mean, x, QUANTUM) == ALONE


@pytest.mark.slow
@pytest.mark.parametrize("precision", LOWER)
def test_all_kinds_of_networks(built: tuple[Subject, Artefacts], tmp_path: Path, precision: str) -> None:
    """Nine networks: attention, recurrent layers, embeddings, variable lengths, several outputs."""
    subject, reference = built
    rows = {name: tensor.numpy() for name, tensor in subject.batch(300, seed=8).items()}
    held = Held.of(dataclasses.replace(subject, rows=rows), None)
    settings = ExportSettings(precision=precision, formats=("onnx", "masked-onnx"))
    lowered = lower(reference, held, tmp_path, settings)
    found = judge(reference, lowered, held, settings, "raw")
    assert [check for check in found.checks if check.verdict not in {"passed", "skipped"}] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 3, 7, 17, 64])
@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_rounding_itself_does_not_depend_on_the_number_of_rows(kind: str, width: int) -> None:
    """What the float32 twin cannot show: the kernels that round, on a million numbers, half of them ties."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in ("x", "y"))
    scale = np.float32(0.0371)
    weights = [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(np.uint8(113), "z")]
    if kind == "fp16":
        nodes = [helper.make_node("Cast", ["x"], ["h"], to=10), helper.make_node("Cast", ["h"], ["y"], to=1)]
        weights = []
    else:
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ]
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    program = OnnxProgram(model.SerializeToString())
    rng = np.random.default_rng(width)
    rows = 1_000_000 // width
    ties = (rng.integers(-100, 100, (rows, width)) + 0.5) * (scale if kind == "int8" else 2.0**-9)
    values = np.where(rng.random((rows, width)) < 0.5, ties, 2 * rng.normal(size=(rows, width))).astype(
        np.float32
    )
    whole = program({"x": values})["y"]
    assert not np.array_equal(whole, values)
    first = 0
    while first < rows:
        count = int(rng.integers(1, 40))
        part = program({"x": values[first : first + count]})["y"]
        assert part.tobytes() == whole[first : first + count].tobytes()
        first += count


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, 21, 23])
def test_other_operator_sets(made: Made, tmp_path: Path, opset: int) -> None:
    reference = build(made.subject, tmp_path, ExportSettings(opset=opset, **QUICK))
    for precision in LOWER:
        (tmp_path / precision).mkdir()
        settings = ExportSettings(precision=precision, opset=opset, **QUICK)
        lowered = lower(reference, made.held, tmp_path / precision, settings)
        versions = {entry.domain: entry.version for entry in onnx.load(lowered.paths[HEAD]).opset_import}
        assert versions == {"": opset}
        found = judge(reference, lowered, made.held, settings, "classification")
        assert {check.verdict for check in found.checks} == {"passed"}
