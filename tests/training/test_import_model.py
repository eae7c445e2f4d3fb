"""Models trained elsewhere: tensors come in, pickles do not, and a misfit is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dropserve.errors import ModelSourceError, RecipeError, UsageError
from dropserve.model import build_served
from dropserve.signature import Axis
from dropserve.store import Store
from dropserve.training.import_model import Imported, default_name, import_model
from dropserve.training.weights import load_weights

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 4, outputs: int = 3):
        super().__init__()
        self.a = nn.Linear(6, width)
        self.b = nn.Linear(width, outputs)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

class Flat(Net):
    def forward(self, x):
        return super().forward(x)[:, 0]

class Scripted(Net):
    def __init__(self):
        super().__init__()
        self.b = torch.jit.script(self.b)

class Brief(Net):
    def forward(self, x):
        return super().forward(x).bfloat16()

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)

    def forward(self, tokens, scale):
        hidden = self.embed(tokens) * scale[:, None, None]
        return {"hidden": hidden, "mean": hidden.mean(1)}

class Echo(Net):
    def forward(self, x):
        return {"input": super().forward(x), "mean": x}

class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 3)

    def forward(self, x):
        return self.a(x).sum()
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(SOURCE)
    return f"{tmp_path}/net.py"


def state(width: int = 4, outputs: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"a.weight": (width, 6), "a.bias": (width,), "b.weight": (outputs, width), "b.bias": (outputs,)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def bring(
    tmp_path: Path, spec: str, content: Any = None, inputs: tuple[str, ...] = ("6",), **more: Any
) -> Imported:
    file = tmp_path / "weights.pt"
    torch.save(state() if content is None else content, file)
    return import_model(Store(tmp_path / "store"), spec, file, inputs, name="net", **more)


def test_an_imported_model_is_a_run_like_any_other(tmp_path: Path, net: str) -> None:
    done = bring(tmp_path, f"{net}:Net", task="classification", labels=["a", "b", "c"])
    run = Store(tmp_path / "store").run("net")
    assert run.manifest == done.run.manifest
    assert (run.manifest.task, run.manifest.labels) == ("classification", ("a", "b", "c"))
    assert set(run.manifest.files) == {"weights.safetensors", "recipe.json", "source/net.py", "example.json"}
    x = torch.randn(5, 6)
    weights = state()
    expected = (
        torch.relu(x @ weights["a.weight"].T + weights["a.bias"]) @ weights["b.weight"].T + weights["b.bias"]
    )
    torch.testing.assert_close(build_served(run)(x), expected)
    (row,) = json.loads(run.path("example.json").read_text())["instances"]
    assert len(row) == 6


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (lambda s: s, ""),
        (lambda s: {"epoch": 3, "state_dict": {f"model.{k}": v for k, v in s.items()}}, "model."),
        (lambda s: {"model_state_dict": {f"module.{k}": v for k, v in s.items()}}, "module."),
        (lambda s: {f"module._orig_mod.{k}": v for k, v in s.items()}, "module._orig_mod."),
    ],
)
def test_weights_are_found_where_trainers_put_them(tmp_path: Path, net: str, wrap: Any, prefix: str) -> None:
    done = bring(tmp_path, f"{net}:Net", wrap(state()))
    assert done.weights.prefix == prefix
    assert all(torch.equal(done.model.state_dict()[key], value) for key, value in state().items())


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "odd.bin")
    model = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(4, 3)})
    assert load_weights(model, tmp_path / "odd.bin").prefix == ""
    assert torch.equal(model["b"].bias, state()["b.bias"])


class Trap:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize("write", [torch.save, lambda o, f: f.write_bytes(pickle.dumps(o))])
def test_a_pickle_is_never_run(tmp_path: Path, net: str, monkeypatch: pytest.MonkeyPatch, write: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write({"state_dict": state(), "more": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(UsageError) as caught:
        import_model(Store(tmp_path / "store"), f"{net}:Net", tmp_path / "trap.pt", ["6"], name="net")
    assert not (tmp_path / "sprung").exists()
    assert "pickled objects are never loaded" in str(caught.value)
    assert "torch.save(model.state_dict()" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_whole_model_is_refused_with_its_class_named(tmp_path: Path, net: str) -> None:
    with pytest.raises(UsageError, match=r"it asks for torch\.nn\.modules\.linear\.Linear"):
        bring(tmp_path, f"{net}:Net", nn.Linear(6, 3))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({**state(), "c.weight": torch.ones(1)}, "c.weight: in the file, unknown to the model"),
        ({k: v for k, v in state().items() if k != "b.bias"}, "b.bias: in the model, missing from the file"),
        (state(width=8), r"a.weight: the file has [8, 6], the model [4, 6]"),
        (
            {"x.weight": torch.ones(1)},
            "a.weight, a.bias, b.weight, b.bias: in the model, missing from the file",
        ),
        ([1, 2], "expected tensors by name (a state_dict, or one under state_dict, "),
        ({"epoch": 3}, "found a dict with the keys epoch"),
    ],
)
def test_keys_that_do_not_fit_are_listed(tmp_path: Path, net: str, content: Any, expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        bring(tmp_path, f"{net}:Net", content)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"not weights at all", b'\x10\0\0\0\0\0\0\0{"a":', b"PK\x03\x04cut off"]
)
def test_a_broken_file_is_refused(tmp_path: Path, net: str, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(UsageError, match=r"weights .*w: "):
        import_model(Store(tmp_path / "store"), f"{net}:Net", tmp_path / "w", ["6"], name="net")


def test_arguments_reach_the_constructor_and_are_checked_first(tmp_path: Path, net: str) -> None:
    done = bring(tmp_path, f"{net}:Net", state(8), arguments={"width": 8})
    assert done.run.manifest.source.arguments == {"width": 8}
    with pytest.raises(RecipeError) as caught:
        bring(tmp_path, f"{net}:Net", arguments={"widht": 8, "outputs": "3"})
    assert caught.value.problems == [
        "--arg widht: unknown argument, value 8 (did you mean 'width'?); Net takes: width, outputs",
        "--arg outputs: got '3'; allowed: a whole number",
    ]


def test_several_inputs_and_a_variable_length(tmp_path: Path, net: str) -> None:
    done = bring(tmp_path, f"{net}:Words", {"embed.weight": torch.ones(9, 4)}, ("L<=7:int64", ":float32"))
    signature = done.run.manifest.signature
    assert [spec.name for spec in signature.inputs] == ["tokens", "scale"]
    assert {spec.name: spec.shape for spec in signature.outputs} == {
        "hidden": (Axis(name="L", maximum=7), 4),
        "mean": (4,),
    }
    (row,) = json.loads(done.run.path("example.json").read_text())["instances"]
    assert len(row["tokens"]) == 7
    assert all(isinstance(token, int) for token in row["tokens"])
    assert isinstance(row["scale"], float)


@pytest.mark.parametrize(
    ("cls", "more", "expected"),
    [
        (
            "Net",
            {"labels": ["a", "b"], "task": "classification"},
            "got 2 different labels (a, b); the model has 3",
        ),
        ("Net", {"labels": ["a", "a", "b"], "task": "classification"}, "got 2 different labels"),
        ("Net", {"labels": ["a"], "task": "regression"}, "labels are for --task classification"),
        (
            "Flat",
            {"task": "classification"},
            "expected one output of logits per row, the model gives output: float32[]",
        ),
    ],
)
def test_task_and_labels_have_to_fit_the_outputs(
    tmp_path: Path, net: str, cls: str, more: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        bring(tmp_path, f"{net}:{cls}", **more)
    assert expected in str(caught.value)


def test_one_logit_is_no_classification(tmp_path: Path, net: str) -> None:
    with pytest.raises(UsageError, match=r"a logit for each of 2 or more classes"):
        bring(tmp_path, f"{net}:Net", state(outputs=1), task="classification", arguments={"outputs": 1})


def test_a_wrong_input_says_what_an_input_is(tmp_path: Path, net: str) -> None:
    with pytest.raises(
        ModelSourceError, match=r"cannot take input: float32\[7\].*shape of one row, without the batch"
    ):
        bring(tmp_path, f"{net}:Net", inputs=("7",))


def test_an_output_without_a_batch_is_refused(tmp_path: Path, net: str) -> None:
    weights = {"a.weight": torch.ones(3, 6), "a.bias": torch.ones(3)}
    with pytest.raises(ModelSourceError, match=r"output 'output' has shape \[\] for a batch of 3 rows"):
        bring(tmp_path, f"{net}:Summed", weights)


def test_an_output_that_clients_cannot_be_sent_is_refused(tmp_path: Path, net: str) -> None:
    with pytest.raises(UsageError, match=r"output 'output' is bfloat16; expected one of .*float32"):
        bring(tmp_path, f"{net}:Brief")
    assert not (tmp_path / "store" / "net").exists()


def test_a_part_that_is_torchscript_is_refused(tmp_path: Path, net: str) -> None:
    with pytest.raises(ModelSourceError, match=r"Scripted: b is TorchScript, made by torch\.jit\.script"):
        bring(tmp_path, f"{net}:Scripted")


def test_one_name_for_an_input_and_an_output_is_refused(tmp_path: Path, net: str) -> None:
    with pytest.raises(UsageError, match="an input and an output are both called input"):
        bring(tmp_path, f"{net}:Echo")


def test_the_name_comes_from_the_class() -> None:
    assert default_name("a/b.py:MyNet") == "mynet"
