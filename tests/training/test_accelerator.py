"""What surrounds a training on a GPU, as far as it shows without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dropserve.errors import TrainingError
from dropserve.training.accelerator import accelerated
from dropserve.training.hardware import Hardware


def flags() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.allow_tf32,
    )


@pytest.mark.parametrize("before", [(False, False, True), (False, False, False), (True, False, True)])
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_sums_are_repeatable_and_32_bits_are_32_bits(before: tuple[bool, bool, bool], precision: str) -> None:
    outside = flags()
    try:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.allow_tf32 = before[2]
        with accelerated(Hardware("cuda", precision=precision)):
            assert flags() == (True, True, before[2] and precision != "32")
        assert flags() == before
        with pytest.raises(KeyError), accelerated(Hardware("cuda", precision=precision)):
            raise KeyError
        assert flags() == before
        with accelerated(Hardware("cpu", precision=precision)):
            assert flags() == before, "a CPU needs none of it"
    finally:
        torch.use_deterministic_algorithms(outside[0], warn_only=outside[1])
        torch.backends.cudnn.allow_tf32 = outside[2]


def test_who_has_chosen_by_the_newer_names_is_left_alone() -> None:
    before = torch.backends.cudnn.conv.fp32_precision
    try:
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        with accelerated(Hardware("cuda")):
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = before


def test_a_full_memory_says_what_to_lower() -> None:
    text = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB"
    with (
        pytest.raises(
            TrainingError, match=r"cuda: CUDA out of memory\. .*training\.batch_size.*--device cpu"
        ),
        accelerated(Hardware("cuda")),
    ):
        raise torch.OutOfMemoryError(text)


def test_tensors_of_two_devices_name_the_line_of_the_model(tmp_path: Path) -> None:
    """The meta device is another one on every machine."""
    file = tmp_path / "net.py"
    file.write_text("import torch\n\ndef forward(x):\n    return torch.add(x, torch.ones(2))\n")
    scope: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), scope)
    rows = torch.ones(2, device="meta")
    wanted = r"cuda: net\.py:4: the model mixes tensors of two devices: .*device=x\.device.*--device cpu"
    with pytest.raises(TrainingError, match=wanted), accelerated(Hardware("cuda")):
        scope["forward"](rows)
    with pytest.raises(RuntimeError, match="device"), accelerated(Hardware("cpu")):
        scope["forward"](rows)


def test_another_error_is_left_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"), accelerated(Hardware("cuda")):
        raise RuntimeError("size mismatch")
