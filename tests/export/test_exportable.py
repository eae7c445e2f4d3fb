"""Forms written for the ONNX exporter: torch's own answer, where its own form is missing or differs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor, nn

from dropserve.dropout.mode import no_fused_attention
from dropserve.export.artefacts import NamedOutputs
from dropserve.export.onnx import OnnxProgram, export_onnx
from dropserve.export.torchscript import export_torchscript
from dropserve.signature import parse_input


class Attends(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        mask = (keep > 0)[:, None, :].expand(-1, x.shape[1], -1)
        if self.kind == "bool":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        if self.kind == "float":
            bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, -torch.inf)
            return F.scaled_dot_product_attention(q, k, v, bias)
        if self.kind == "causal":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        q, k, v = (part.unflatten(-1, (4, 2)).transpose(1, 2) for part in (q, k, v))
        k, v = k[:, :2], v[:, :2]
        found = F.scaled_dot_product_attention(q, k, v, mask[:, None], enable_gqa=True)
        return found.transpose(1, 2).flatten(2)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.attention(x, x, x, key_padding_mask=keep == 0, need_weights=False)[0]


@pytest.mark.parametrize("kind", ["bool", "float", "causal", "gqa", "heads"])
def test_attention_that_may_look_nowhere_answers_as_torch_does(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = (Heads() if kind == "heads" else Attends(kind)).eval()
    specs = (parse_input("L<=6,8", name="x"), parse_input("L<=6:int64", name="keep"))
    program = NamedOutputs(module).eval()
    examples = {"x": torch.randn(3, 6, 8), "keep": torch.ones(3, 6, dtype=torch.int64)}
    export_onnx(program, specs, ["output"], examples, tmp_path / "m.onnx", opset=18)
    x, keep = torch.randn(4, 5, 8), torch.tensor([[1] * 5, [0] * 5, [0, 1, 0, 0, 1], [1, 0, 0, 0, 0]])
    with torch.no_grad(), no_fused_attention():
        expected = module(x, keep)
    assert expected.isfinite().all()
    got = OnnxProgram(tmp_path / "m.onnx")({"x": x.numpy(), "keep": keep.numpy()})["output"]
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=1e-5, atol=1e-5)
    with no_fused_attention():
        export_torchscript(program, list(examples.values()), tmp_path / "m.ts")
    script = torch.jit.load(tmp_path / "m.ts")
    torch.testing.assert_close(script(x, keep)[0], expected, rtol=1e-5, atol=1e-5)


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = x.clone()
        torch.rrelu_(y, 0.2, 0.4)
        return F.rrelu(x) + torch.rrelu(x, 0.1, 0.2) + y


@pytest.mark.parametrize("module", [nn.RReLU(), nn.RReLU(0.1, 0.5), Functional(), nn.LogSigmoid()], ids=repr)
def test_activations_that_onnx_lacks_are_written_as_what_they_are(module: nn.Module, tmp_path: Path) -> None:
    program = NamedOutputs(module.eval()).eval()
    specs = (parse_input("7", name="x"),)
    export_onnx(program, specs, ["output"], {"x": torch.randn(3, 7)}, tmp_path / "m.onnx", opset=18)
    x = torch.randn(5, 7) * torch.tensor([[1e-3], [1.0], [10.0], [1000.0], [1e6]])
    got = OnnxProgram(tmp_path / "m.onnx")({"x": x.numpy()})["output"]
    torch.testing.assert_close(torch.from_numpy(got), module(x), rtol=1e-5, atol=1e-6)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embed(ids).mean(1)


@pytest.mark.parametrize("ids", [[-1, 2], [-7, 0], [7, 0], [-8, 1]])
def test_ids_outside_the_table_are_refused_as_torch_refuses_them(ids: list[int], tmp_path: Path) -> None:
    program = NamedOutputs(Words().eval()).eval()
    export_onnx(
        program, (parse_input("2:int64"),), ["output"], {"input": torch.ones(3, 2, dtype=torch.int64)},
        tmp_path / "m.onnx", opset=18,
    )  # fmt: skip
    graph, rows = OnnxProgram(tmp_path / "m.onnx"), torch.tensor([ids])
    with pytest.raises(IndexError, match="index out of range"):
        program(rows)
    with pytest.raises(Exception, match=r"must be within the inclusive range \[-7,6\]"):
        graph({"input": rows.numpy()})
    last = torch.tensor([[6, 0]])
    assert torch.allclose(torch.from_numpy(graph({"input": last.numpy()})["output"]), program(last)[0])
