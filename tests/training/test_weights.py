"""Weights that cannot be what the author meant are refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dropserve.errors import ModelSourceError, TrainingError, UsageError
from dropserve.model import build_served
from dropserve.store import Store
from dropserve.training.import_model import import_model
from dropserve.training.run_folder import write_weights
from dropserve.training.weights import load_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(x)) + self.mask


def load(path: Path, **changed: torch.Tensor) -> Any:
    state = Net().state_dict() | {key.replace("__", "."): value for key, value in changed.items()}
    torch.save(state, path / "w.pt")
    return load_weights(Net(), path / "w.pt")


def at(value: float, *shape: int) -> torch.Tensor:
    tensor = torch.zeros(*shape)
    tensor.view(-1)[1] = value
    return tensor


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fc__weight": torch.full((3, 4), torch.nan)}, "fc.weight: 12 of 12 numbers are NaN"),
        ({"fc__bias": at(torch.inf, 3)}, "fc.bias: 1 of 3 numbers are infinite"),
        ({"fc__bias": torch.full((3,), 1e300, dtype=torch.float64)}, "fc.bias: 3 of 3 numbers are infinite"),
        ({"mask": at(torch.nan, 3)}, "mask: 1 of 3 numbers are NaN"),
        ({"norm__running_var": at(torch.nan, 3)}, "norm.running_var: 1 of 3 numbers are NaN"),
    ],
)
def test_numbers_that_are_not_finite_are_counted_by_tensor(
    tmp_path: Path, changed: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, **changed)
    assert said in str(caught.value)


def test_infinity_in_a_buffer_may_be_a_mask(tmp_path: Path) -> None:
    assert load(tmp_path, mask=at(-torch.inf, 3)).converted == ()


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int8, torch.uint8, torch.bool, torch.complex64, torch.int64,
        torch.float8_e4m3fn, torch.float8_e5m2,
    ],
)  # fmt: skip
def test_another_kind_of_number_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UsageError) as caught:
        load(tmp_path, fc__weight=torch.ones(3, 4).to(dtype), fc__bias=torch.ones(3).to(dtype))
    for key in ("fc.weight", "fc.bias"):
        assert f"{key}: the file has {name}, the model float32" in str(caught.value)


def test_a_float_is_no_count_and_a_count_is_kept_in_another_width(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="num_batches_tracked: the file has float32, the model int64"):
        load(tmp_path, norm__num_batches_tracked=torch.tensor(3.0))
    done = load(tmp_path, norm__num_batches_tracked=torch.tensor(3, dtype=torch.int32))
    assert done.converted == ("int32 to int64: 1 tensor",)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:.*quantization.*:DeprecationWarning")
def test_a_quantised_tensor_is_refused(tmp_path: Path) -> None:
    codes = torch.quantize_per_tensor(torch.ones(3, 4), 0.1, 0, torch.qint8)
    with pytest.raises(UsageError, match=r"fc\.weight: the file has qint8, the model float32"):
        load(tmp_path, fc__weight=codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_precision_is_converted_and_said(tmp_path: Path, dtype: torch.dtype) -> None:
    done = load(tmp_path, fc__weight=torch.ones(3, 4, dtype=dtype), fc__bias=torch.ones(3, dtype=dtype))
    assert done.converted == (f"{str(dtype).removeprefix('torch.')} to float32: 2 tensors",)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin"])
@pytest.mark.parametrize("size", [0, 4, 8, 9, 60, 200])
def test_a_file_that_is_cut_off_is_refused_in_words(tmp_path: Path, name: str, size: int) -> None:
    file = tmp_path / name
    if name == "w.pt":
        torch.save(Net().state_dict(), file)
    else:
        save_file(Net().state_dict(), file)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UsageError, match=r"empty|no weights|not a whole|neither"):
        load_weights(Net(), file)


def test_a_run_is_neither_written_nor_read_with_nan(tmp_path: Path) -> None:
    model = Net()
    with torch.no_grad():
        model.fc.bias[0] = torch.nan
    with pytest.raises(TrainingError, match=r"fc\.bias: 1 of 3 numbers are NaN"):
        write_weights(tmp_path, model)
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(4, 3)\n"
    )
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "w.pt")
    done = import_model(
        Store(tmp_path / "store"), f"{tmp_path}/net.py:Net", tmp_path / "w.pt", ["4"], name="n"
    )
    weights = done.run.path("weights.safetensors")
    whole = weights.read_bytes()
    save_file({"weight": torch.full((3, 4), torch.nan), "bias": torch.zeros(3)}, weights)
    with pytest.raises(ModelSourceError, match="weight: 12 of 12 numbers are NaN"):
        build_served(done.run)
    weights.write_bytes(whole[:20])
    with pytest.raises(ModelSourceError, match="not whole"):
        build_served(done.run)
