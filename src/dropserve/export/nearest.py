"""A graph that says how unlike the training rows a row is, by the activations on the network's way.

The score is one minus the largest cosine similarity to a training row: a nearest neighbour among unit
vectors (Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022), here not of the
last hidden layer alone but of every level. A *level* is what a convolution other than the first is given,
brought to a mean and a deviation for each channel (averages over the map are Lee et al.'s, "A simple
unified framework for detecting out-of-distribution samples and adversarial attacks", NeurIPS 2018); in a
network without, what a linear layer other than the first is given. Levels weigh alike.

Why so: among nearest neighbours and Mahalanobis distances, relative ones too, on one level, on several and
summed over them, it told synthetic shifts of Fashion-MNIST apart best; it needs no covariance, which a few
hundred rows could not give; and no row is so far away that its score falls again, as relative distances do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dropserve.dropout.mode import no_fused_attention
from dropserve.errors import ExportError

from .onnx import OnnxProgram, export_onnx, numpy_arrays
from .settings import ExportSettings
from .subject import Subject
from .torchscript import ScriptProgram, export_torchscript

Array = np.ndarray[Any, np.dtype[Any]]
NAME = "nearest"
NEAREST, NEAREST_TS = "nearest.onnx", "nearest.ts"
_CONVOLUTIONS = frozenset(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))
_TINY = 1e-12
_PASS = 256
_AGREE = 1e-4  # of a score that is at most 2
_CLOSE = 1e-2  # of a squared distance, which is a difference of larger numbers


class _Levels(TorchFunctionMode):
    """Notes what convolutions and linear layers are given, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[Tensor] = []
        self.linear: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _CONVOLUTIONS or name == "linear":
            given = args[0] if args else (kwargs or {})["input"]
            if name == "linear":
                self.linear.append(given)
            else:
                self.convolutions.append(given.movedim(1, -1))
        return func(*args, **(kwargs or {}))


class Features(nn.Module):
    """The levels of a model's eval-mode pass as one unit vector for each row.

    Args:
        model: in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """Inputs [N, ...] to [N, F].

        Raises:
            ExportError: if the model has no layer that this knows, or one whose rows are not on axis 0.
        """
        levels = _Levels()
        with no_fused_attention(), levels:
            self.model(*inputs)
        found = levels.convolutions[1:] or levels.linear[1:] or levels.convolutions or levels.linear
        if not found:
            raise ExportError(_refusal("it has neither a convolution nor a linear layer"))
        if any(level.dim() < 2 or level.shape[0] != inputs[0].shape[0] for level in found):
            raise ExportError(_refusal("axis 0 of a hidden layer is not the rows"))
        return torch.cat([_unit(_pooled(level)) for level in found], dim=1) / len(found) ** 0.5


class Nearest(nn.Module):
    """The score: inputs [N, ...] to [N].

    Args:
        features: of the model.
        bank: unit vectors of training rows [R, F].
    """

    def __init__(self, features: Features, bank: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("bank", bank.T.contiguous())

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        """0 for a training row of the bank, at most 2."""
        similarity = self.features(*inputs) @ self.get_buffer("bank")
        return (1 - similarity.amax(dim=1),)


def _pooled(level: Tensor) -> Tensor:
    """[N, ..., C] to mean and deviation of each channel [N, 2C]; to itself if there is nothing between."""
    if level.dim() == 2:
        return level
    flat = level.flatten(1, -2)
    mean = flat.mean(dim=1)
    variance = (flat - mean[:, None]).square().mean(dim=1)
    return torch.cat([mean, variance.sqrt()], dim=1)


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.square().sum(dim=1, keepdim=True).sqrt().clamp_min(_TINY)


def _refusal(why: str) -> str:
    return (
        f'uncertainty.ood_score = "{NAME}" compares hidden layers, and this model\'s cannot be: {why}. '
        "Choose another score, such as energy, and train again."
    )


def write_nearest(
    subject: Subject,
    reference: Mapping[str, Array],
    examples: Mapping[str, Tensor],
    settings: ExportSettings,
    folder: Path,
) -> dict[str, Path]:
    """Write the graph in the formats asked for, and hold them against the eager module.

    Args:
        subject: the model.
        reference: training rows [R, ...] for each input.
        examples: rows to trace on.
        settings: formats and operator set.
        folder: where the files go.

    Returns:
        The files by name.

    Raises:
        ExportError: if the model's levels cannot be read, an exporter refuses, or formats disagree.
    """
    features = Features(subject.module).eval()
    bank = in_passes(features, [reference[spec.name] for spec in subject.inputs])
    return write_program(Nearest(features, bank), subject, examples, settings, folder)


def in_passes(features: Features, rows: Sequence[Array]) -> Tensor:
    """The features of many rows, a few at a time."""
    with torch.no_grad():
        parts = [
            features(*(torch.from_numpy(np.ascontiguousarray(array[at : at + _PASS])) for array in rows))
            for at in range(0, len(rows[0]), _PASS)
        ]
    return torch.cat(parts)


def write_program(
    program: nn.Module,
    subject: Subject,
    examples: Mapping[str, Tensor],
    settings: ExportSettings,
    folder: Path,
) -> dict[str, Path]:
    """Write a module that compares rows with training rows; see :func:`write_nearest`."""
    program = program.eval()
    paths = {NEAREST: folder / NEAREST}
    written = {"opset": settings.opset, "limit": settings.single_file_bytes}
    export_onnx(program, subject.inputs, [NAME], examples, paths[NEAREST], **written)
    if "torchscript" in settings.formats:
        paths[NEAREST_TS] = folder / NEAREST_TS
        export_torchscript(program, list(examples.values()), paths[NEAREST_TS])
    for count in (1, 3, 17):
        _require_agreement(program, subject.batch(count), paths)
    return paths


def _require_agreement(program: nn.Module, batch: dict[str, Tensor], paths: Mapping[str, Path]) -> None:
    with torch.no_grad():
        expected = program(*batch.values())[0].numpy()
    found = {NEAREST: OnnxProgram(paths[NEAREST])(numpy_arrays(batch))[NAME]}
    if NEAREST_TS in paths:
        found[NEAREST_TS] = ScriptProgram(paths[NEAREST_TS], list(batch), [NAME])(batch)[NAME].numpy()
    within = _AGREE if isinstance(program, Nearest) else _CLOSE
    for file, values in found.items():
        if values.shape != expected.shape or not np.allclose(values, expected, within, within):
            raise ExportError(
                f"{file} does not give the eager model's scores ({len(expected)} rows); choose another "
                "uncertainty.ood_score, and please report the model's layers"
            )
