"""From a spec to a class, from a class to the module that is exported, and back from a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from dropserve.errors import CorruptStoreError, ModelSourceError, SourceChangedError, UsageError
from dropserve.manifest import Preprocessing, RunManifest, Scaling, SourceRecord
from dropserve.model import (
    ServedModel,
    build_served,
    load_class,
    name_inputs,
    parse_arguments,
    require_eval,
    set_mode,
)
from dropserve.signature import Signature, TensorSpec
from dropserve.store import Store

SOURCE = "from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, n=3): super().__init__(n, 2)\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return path


def test_a_file_is_found_from_its_base_and_named_absolutely(file: Path) -> None:
    loaded = load_class("net.py:Net", file.parent)
    assert loaded.spec == f"{file}:Net"
    assert loaded.source == SOURCE.encode()
    assert isinstance(loaded.build({"n": 5}), nn.Linear)


def test_a_module_is_found_by_its_name() -> None:
    assert load_class("torch.nn:Linear").cls is nn.Linear


def test_two_files_of_one_name_and_an_edited_file_never_mix(tmp_path: Path) -> None:
    for name, size in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(SOURCE.replace("n=3", f"n={size}"))
    one, two = (load_class("net.py:Net", tmp_path / name).build({}) for name in ("one", "two"))
    assert (one.in_features, two.in_features) == (1, 2)
    (tmp_path / "one/net.py").write_text(SOURCE.replace("n=3", "n=9"))
    assert load_class("net.py:Net", tmp_path / "one").build({}).in_features == 9


def test_a_model_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_net.py").write_text("SIZE = 7\n")
    (tmp_path / "net.py").write_text("from neighbour_of_net import SIZE\n" + SOURCE.replace("n=3", "n=SIZE"))
    assert load_class("net.py:Net", tmp_path).build({}).in_features == 7


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("Net", "write file.py:Class or package.module:Class"),
        ("net.py:", "write file.py:Class"),
        ("no.py:Net", "there is no file"),
        ("net.py:Nett", r"net.py defines no nn.Module called Nett; it has: Net"),
        ("no_such.module:Net", "importing no_such.module failed: ModuleNotFoundError"),
        ("math:pi", "math defines no nn.Module called pi; it has: none"),
    ],
)
def test_what_is_no_model_says_why(file: Path, spec: str, expected: str) -> None:
    with pytest.raises(ModelSourceError, match=expected):
        load_class(spec, file.parent)


def test_a_file_that_fails_to_import_can_be_mended(file: Path) -> None:
    file.write_text("1 / 0\n")
    with pytest.raises(ModelSourceError, match="ZeroDivisionError"):
        load_class("net.py:Net", file.parent)
    file.write_text(SOURCE)
    assert load_class("net.py:Net", file.parent).cls.__name__ == "Net"


def test_a_constructor_that_fails_is_shown_with_its_arguments(file: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"Net\(n='x'\) failed: TypeError.*Net\(n=3\)"):
        load_class("net.py:Net", file.parent).build({"n": "x"})


def test_a_constructor_that_chooses_a_device_is_refused(file: Path) -> None:
    file.write_text(SOURCE.replace("2)", "2); self.to('meta')"))
    with pytest.raises(
        ModelSourceError, match=r"Net: weight is on meta; .*name no device in its constructor"
    ):
        load_class(f"{file}:Net").build({})


def test_arguments_are_json_or_text() -> None:
    pairs = ["a=3", "b=0.5", "c=true", "d=[1,2]", "e=relu", 'f="3"', "g=x=y", "h="]
    assert parse_arguments(pairs) == {
        "a": 3, "b": 0.5, "c": True, "d": [1, 2], "e": "relu", "f": "3", "g": "x=y", "h": "",
    }  # fmt: skip
    for wrong in ("a", "=3", "a b=3"):
        with pytest.raises(UsageError, match="write NAME=VALUE"):
            parse_arguments([wrong])


def test_inputs_are_named_as_forward_names_them() -> None:
    class Two(nn.Module):
        def forward(self, tokens: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
            return tokens * mask

    assert [spec.name for spec in name_inputs(["7"], Two)] == ["input"]
    assert [spec.name for spec in name_inputs(["7", "3"], Two)] == ["tokens", "input_1"]
    assert name_inputs(["7:int64", "3"], Two)[0] == TensorSpec(name="tokens", dtype="int64", shape=(7,))


@given(
    mean=st.lists(st.floats(-100, 100, width=32), min_size=6, max_size=6),
    scale=st.lists(st.floats(0.5, 100, width=32), min_size=6, max_size=6),
    unit=st.floats(0.5, 100, width=32),
)
def test_scaling_in_and_out_of_the_graph(mean: list[float], scale: list[float], unit: float) -> None:
    target = Scaling(mean=(mean[0],), scale=(unit,))
    preprocessing = Preprocessing(inputs={"b": Scaling(mean=tuple(mean), scale=tuple(scale))}, target=target)

    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b.flatten(1).sum(1, keepdim=True)

    a, b = torch.randn(4, 1), torch.randn(4, 2, 3)
    got = ServedModel(Sum(), preprocessing, {"a": (1,), "b": (2, 3)})(a, b).numpy()
    scaled = (b.reshape(4, 6).double().numpy() - mean) / scale
    expected = (a.double().numpy() + scaled.sum(1, keepdims=True)) * unit + mean[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3 * unit)


def test_without_preprocessing_the_answer_is_the_models_own() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"same": x}

    x = torch.randn(2, 3)
    assert torch.equal(ServedModel(Pair(), Preprocessing(), {"input": (3,)})(x)["same"], x)


def publish(store: Store, file: Path) -> None:
    loaded = load_class(f"{file}:Net")
    with store.staging("net", RunManifest) as staging:
        save_file(loaded.build({}).state_dict(), staging.folder / "weights.safetensors")
        (staging.folder / "source").mkdir()
        (staging.folder / "source/net.py").write_bytes(loaded.source)
        record = SourceRecord(spec=loaded.spec, sha256=loaded.sha256, copy_file="source/net.py")
        specs = (TensorSpec(name="input", shape=(3,)),), (TensorSpec(name="output", shape=(2,)),)
        manifest = RunManifest(
            id=staging.id,
            name="net",
            task="raw",
            signature=Signature(inputs=specs[0], outputs=specs[1]),
            source=record,
        )
        store.publish(staging, manifest)


def test_a_run_is_built_again_in_eval_mode(tmp_path: Path, file: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, file)
    model = build_served(store.run("net"))
    assert not any(module.training for module in model.modules())
    assert model(torch.zeros(1, 3)).shape == (1, 2)


def test_a_changed_source_is_refused_and_a_lost_one_comes_from_the_copy(tmp_path: Path, file: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, file)
    file.write_text(SOURCE + "# a comment\n")
    with pytest.raises(SourceChangedError, match=r"net.py has changed since run .*or train again"):
        build_served(store.run("net"))
    file.unlink()
    assert build_served(store.run("net"))(torch.zeros(1, 3)).shape == (1, 2)


def test_a_flipped_byte_in_the_weights_is_noticed_before_they_are_read(tmp_path: Path, file: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, file)
    weights = next((tmp_path / "store").rglob("weights.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"weights\.safetensors is not what was published"):
        store.run("net")


FORGETS = """
import torch
from torch import nn

class Forgets(nn.Module):
    def __init__(self, inputs: int = 4, outputs: int = 3):
        super().__init__()
        self.body, self.drop, self.head = nn.Linear(inputs, 16), nn.Dropout(0.3), nn.Linear(16, outputs)

    def train(self, mode=True):
        super().train(mode)

    def forward(self, x):
        return self.head(self.drop(torch.relu(self.body(x))))

class Loop(Forgets):
    def train(self):
        print("training")

class Epochs(Forgets):
    def train(self, epochs=3):
        return [epochs]

class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Loop()

    def forward(self, x):
        return self.inner(x)
"""


def test_a_train_that_forgets_to_return_self_is_no_matter(tmp_path):
    (tmp_path / "net.py").write_text(FORGETS)
    model = set_mode(load_class(f"{tmp_path}/net.py:Forgets").build({}))
    assert not any(part.training for part in model.modules())
    require_eval(model)
    assert set_mode(model, training=True).drop.training


@pytest.mark.parametrize("name", ["Loop", "Outer"])
def test_a_training_loop_called_train_is_named_with_its_line(tmp_path, name):
    (tmp_path / "net.py").write_text(FORGETS)
    with pytest.raises(ModelSourceError) as caught:
        set_mode(load_class(f"{tmp_path}/net.py:{name}").build({}))
    line = 1 + FORGETS.splitlines().index("    def train(self):")
    assert f"Loop defines train() itself ({tmp_path}/net.py:{line})" in str(caught.value)


def test_a_train_that_switches_nothing_is_named(tmp_path):
    (tmp_path / "net.py").write_text(FORGETS)
    model = set_mode(load_class(f"{tmp_path}/net.py:Epochs").build({}))
    with pytest.raises(ModelSourceError, match=r"in train mode after eval\(\): .*Epochs defines train\(\)"):
        require_eval(model)
