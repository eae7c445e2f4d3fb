"""The cut is right when trunk and head on T x B rows are the masked graph on tiled rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dropserve.export.onnx import LEVELS, OnnxProgram
from dropserve.export.trunk import Split, split
from dropserve.signature import Axis, TensorSpec

Export = Callable[..., onnx.ModelProto]
L = Axis(name="L", maximum=9)


def specs(**shapes: Sequence[int | Axis]) -> list[TensorSpec]:
    return [TensorSpec(name=name, shape=tuple(shape)) for name, shape in shapes.items()]


def check(model: onnx.ModelProto, given: list[TensorSpec], *, lengths: Sequence[int] = (9,)) -> Split:
    """Cut; then compare with the whole graph on tiled rows, at several B, T, lengths and levels."""
    rng = np.random.default_rng(0)
    masks = [spec for spec in given if spec.name.startswith("mask")]
    inputs = [spec for spec in given if spec not in masks]
    rows = {s.name: rng.normal(size=(3, *s.sized())).astype(np.float32) for s in inputs}
    parts = split(model, [spec.name for spec in masks], rows)
    onnx.checker.check_model(parts.head, full_check=True)
    for level in (LEVELS[0], LEVELS[-1]):
        whole = OnnxProgram(model.SerializeToString(), level)
        head = OnnxProgram(parts.head.SerializeToString(), level)
        trunk = OnnxProgram(parts.trunk.SerializeToString(), level) if parts.trunk else None
        for batch, samples, length in ((b, t, n) for b in (1, 2, 5) for t in (1, 3) for n in lengths):
            few = {
                s.name: rng.normal(size=(batch, *s.sized({"L": length}))).astype(np.float32) for s in inputs
            }
            drawn = {
                s.name: rng.integers(0, 2, size=(samples * batch, *s.sized({"L": length}))).astype(np.float32)
                for s in masks
            }
            tiled = {name: np.concatenate([array] * samples) for name, array in few.items()}
            cross = trunk(few) if trunk else few
            assert all(len(array) == batch for array in cross.values()), "what crosses has a row for each row"
            fed = {name: np.concatenate([array] * samples) for name, array in cross.items()} | drawn
            assert set(head.inputs) == set(fed)
            expected, got = whole(tiled | drawn), head(fed)
            for name in whole.outputs:
                np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-5)
    return parts


def ops(model: onnx.ModelProto | None) -> list[str]:
    assert model is not None
    return [node.op_type for node in model.graph.node]


def test_layers_before_the_first_mask_run_once(to_onnx: Export) -> None:
    net = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)])
    given = specs(input=[4], mask=[8])
    model = to_onnx(net, lambda n, x, m: n[2](torch.relu(n[1](torch.relu(n[0](x)))) * m), given)
    parts = check(model, given)
    assert ops(parts.trunk).count("Gemm") == 2
    assert ops(parts.head) == ["Mul", "Gemm"]
    assert "run once" in parts.reason


def test_nothing_costly_before_the_first_mask_means_no_trunk(to_onnx: Export) -> None:
    given = specs(input=[4], mask=[4])
    model = to_onnx(nn.Linear(4, 2), lambda n, x, m: n(((x - 1) / 3).relu() * m), given)
    parts = check(model, given)
    assert parts.trunk is None
    assert parts.head is model
    assert parts.reason.startswith("no trunk")


def test_a_residual_network_that_reads_its_batch_size_early(to_onnx: Export) -> None:
    net = nn.ModuleList([nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.Linear(48, 2)])
    given = specs(input=[1, 4, 4], mask=[3, 1, 1])

    def call(n: Any, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        size = x.shape[0]
        h = torch.relu(n[0](x))
        h = h + n[1](h) * m
        return n[2](h.reshape(size, -1))

    parts = check(to_onnx(net, call, given), given)
    assert ops(parts.trunk).count("Conv") == 2
    crossing = [value.name for value in parts.head.graph.input]
    assert not any("input" in name for name in crossing), "the raw image is not tiled to read its batch size"


def test_a_tensor_with_the_batch_inside_crosses_moved_to_the_front(to_onnx: Export) -> None:
    given = specs(input=[L, 4], mask=[L, 4])

    def call(n: Any, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        h = n[0](x.transpose(0, 1)) * m.transpose(0, 1)
        return n[1](h).mean(0)

    model = to_onnx(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 3)]), call, given)
    parts = check(model, given, lengths=(9, 4))
    assert "MatMul" in ops(parts.trunk)
    assert ops(parts.head)[0] == "Transpose"


def test_a_batch_folded_with_another_axis_does_not_cross(to_onnx: Export) -> None:
    given = specs(input=[6, 4], mask=[6, 4])

    def call(n: Any, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        h = n[0](torch.relu(x)).reshape(-1, 4)  # [6 B, 4]
        return (n[1](h) * m.reshape(-1, 4)).reshape(x.shape[0], 6, 4).sum(1)

    parts = check(to_onnx(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), call, given), given)
    folded = [v for v in parts.trunk.graph.output if v.type.tensor_type.shape.dim[0].dim_param != "batch"]  # type: ignore[union-attr]
    assert not folded
    assert ops(parts.trunk).count("MatMul") == 1, (
        "the layer before the fold runs once, the one after does not"
    )


def test_a_reshape_that_mixes_rows_is_caught_by_behaviour(to_onnx: Export) -> None:
    # [B, 2, 4] -> [2, B, 4] by view: the shape looks like a moved batch, the rows are mixed.
    given = specs(input=[2, 4], mask=[2, 4])

    def call(n: Any, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        size = x.shape[0]
        h = torch.relu(n(x)).reshape(2, size, 4) * 1.5 + 1
        h = torch.tanh(h).reshape(size, 2, 4)
        return (h * m).sum(1)

    parts = check(to_onnx(nn.Linear(4, 4), call, given), given)
    assert "MatMul" in ops(parts.trunk), "the cut has moved up past the mixing, not given up"


def test_values_made_from_the_batch_size_do_not_cross(to_onnx: Export) -> None:
    given = specs(input=[5, 4], mask=[4])

    def call(n: Any, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        h = n(x)
        rows = torch.arange(x.shape[0])
        last = (x[:, :, 0] > 0).sum(1).clamp(max=4)
        return h[rows, last] * m  # indices [B, 2] hold row numbers: tiling them would repeat rows 0..B-1

    parts = check(to_onnx(nn.Linear(4, 4), call, given), given)
    assert ops(parts.trunk).count("MatMul") == 1


def test_an_output_that_no_mask_reaches_comes_from_the_head_all_the_same(to_onnx: Export) -> None:
    net = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 3)])
    given = specs(input=[4], mask=[6])

    def call(n: Any, x: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = torch.relu(n[0](x))
        return h, n[1](h * m), x + 1

    parts = check(to_onnx(net, call, given, ("features", "output", "moved")), given)
    assert [value.name for value in parts.head.graph.output] == ["features", "output", "moved"]


def test_raw_inputs_that_the_head_needs_pass_through_the_trunk(to_onnx: Export) -> None:
    given = specs(first=[4], second=[6], mask=[6])
    model = to_onnx(nn.Linear(4, 6), lambda n, a, b, m: n(a) * m + b, given)
    parts = check(model, given)
    assert [v.name for v in parts.trunk.graph.input] == ["first", "second"]  # type: ignore[union-attr]
    assert "second.rows" in [value.name for value in parts.head.graph.input]


def test_constants_made_from_a_length_are_worked_out_on_both_sides(to_onnx: Export) -> None:
    given = specs(input=[L, 4], mask=[L, 1])

    def call(n: Any, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        position = torch.arange(length, dtype=torch.float32)[None, :, None] / length
        causal = torch.triu(torch.full((length, length), -1e9), 1)
        h = torch.softmax(n(x + position) @ x.transpose(1, 2) + causal, -1)
        return (h * m).sum(1) @ torch.ones(length, 2) + position.sum()

    parts = check(to_onnx(nn.Linear(4, 4), call, given), given, lengths=(9, 2, 5))
    assert "Softmax" in ops(parts.trunk)


def test_recurrent_layers_before_the_mask_run_once(to_onnx: Export) -> None:
    net = nn.ModuleList([nn.LSTM(4, 5, batch_first=True), nn.LSTM(5, 5, batch_first=True)])
    given = specs(input=[L, 4], mask=[L, 5])
    model = to_onnx(net, lambda n, x, m: n[1](n[0](x)[0] * m)[0][:, -1], given)
    parts = check(model, given, lengths=(9, 2))
    assert ops(parts.trunk).count("LSTM") == 1
    assert ops(parts.head).count("LSTM") == 1


def test_control_flow_is_left_whole() -> None:
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["input"], ["branch"])],
        "branch",
        [],
        [onnx.helper.make_tensor_value_info("branch", onnx.TensorProto.FLOAT, None)],
    )
    value = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node("If", ["yes"], ["taken"], then_branch=branch, else_branch=branch),
        onnx.helper.make_node("Mul", ["taken", "mask"], ["output"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "with_if",
        [value("input", 1, ["batch", 2]), value("mask", 1, ["batch", 2])],
        [value("output", 1, ["batch", 2])],
        [onnx.numpy_helper.from_array(np.array(True), "yes")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    parts = split(model, ["mask"], {"input": np.ones((3, 2), np.float32)})
    assert parts.trunk is None
    assert "control flow" in parts.reason


def test_convolutions_with_late_dropout_leave_a_small_head(to_onnx: Export) -> None:
    net = nn.ModuleList([nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(16, 8), nn.Linear(8, 2)])
    given = specs(input=[1, 6, 6], mask=[8])

    def call(n: Any, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        h = nn.functional.max_pool2d(torch.relu(n[1](n[0](x))), 2).flatten(1)
        return n[3](torch.relu(n[2](h)) * m)

    parts = check(to_onnx(net, call, given), given)
    assert ops(parts.head) == ["Mul", "Gemm"]


@pytest.mark.parametrize("masks", [[], ["mask"]])
def test_no_masks_no_cut(to_onnx: Export, masks: list[str]) -> None:
    given = specs(input=[4], mask=[2])
    model = to_onnx(nn.Linear(4, 2), lambda n, x, m: n(x) * m, given)
    rows = {"input": np.ones((3, 4), np.float32)}
    assert (split(model, masks, rows).trunk is None) == (not masks)
