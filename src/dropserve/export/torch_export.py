"""``torch.export``: the program that will replace TorchScript, written beside it.

A ``.pt2`` file is written and hashed, and nothing here or in serving loads one: reading it unpickles. It is
compared with the eager model while it is in memory.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dropserve.dropout.mode import no_fused_attention
from dropserve.errors import ExportError
from dropserve.manifest import CheckRecord
from dropserve.signature import TensorSpec

from .artefacts import Artefacts, NamedOutputs, example_batch
from .cases import magnitude
from .onnx import dynamic_axes
from .quiet import cause, quiet
from .settings import ExportSettings
from .subject import Subject

NAME = "torch-export"
MODEL_PT2, MASKED_PT2 = "model.pt2", "masked.pt2"
_REMEDY = (
    'change that line, or write torch_export = "if-possible" in export/checks.toml: nothing serves the file'
)


def write_torch_export(subject: Subject, artefacts: Artefacts, settings: ExportSettings) -> list[CheckRecord]:
    """Write ``model.pt2`` and, with masks, ``masked.pt2`` beside the other files.

    Args:
        subject: the model in eval mode.
        artefacts: tells the folder and the masked program.
        settings: whether to try, and whether a refusal is a failure.

    Returns:
        The verdict: ``skipped`` where torch refuses and nobody asked for the files. None was written then.
    """
    if settings.torch_export == "never":
        return []
    examples = example_batch(subject)
    programs: list[tuple[str, nn.Module, Sequence[TensorSpec], list[Tensor]]] = [
        (MODEL_PT2, NamedOutputs(subject.module).eval(), subject.inputs, list(examples.values()))
    ]
    if (program := artefacts.program) is not None:
        count = len(next(iter(examples.values())))
        masks = [*examples.values(), *program.identity_masks(count)]
        programs.append((MASKED_PT2, program, (*subject.inputs, *artefacts.masks), masks))
    written: dict[str, bytes] = {}
    worst = 0.0
    try:
        for file, module, specs, tensors in programs:
            written[file], error = _exported(module, specs, tensors, settings)
            worst = max(worst, error)
    except ExportError as error:
        return [_refused(str(error), settings)]
    for file, content in written.items():
        (artefacts.folder / file).write_bytes(content)
    evidence = (
        f"{' and '.join(written)}: within {worst:.1e} of the scale of the eager model; written, never loaded"
    )
    return [CheckRecord(name=NAME, verdict="passed", evidence=evidence)]


def _exported(
    module: nn.Module, specs: Sequence[TensorSpec], tensors: list[Tensor], settings: ExportSettings
) -> tuple[bytes, float]:
    """The file's content, and the greatest difference from the eager model."""
    with quiet(), torch.no_grad(), no_fused_attention():
        try:
            exported = torch.export.export(module, tuple(tensors), dynamic_shapes=(dynamic_axes(specs),))
            loaded = exported.module()
            worst = max(_apart(module, loaded, tensors, size) for size in settings.batch_sizes)
            buffer = io.BytesIO()
            torch.export.save(exported, buffer)
        except Exception as error:
            raise ExportError(f"torch.export refuses the model: {cause(error)}") from error
    if not worst <= settings.tolerance:
        raise ExportError(
            f"the program of torch.export differs from the eager model by {worst:.2g} of its scale"
        )
    return buffer.getvalue(), worst


def _apart(module: nn.Module, loaded: nn.Module, tensors: list[Tensor], rows: int) -> float:
    index = torch.arange(rows) % len(tensors[0])
    batch = [tensor[index] for tensor in tensors]
    pairs = zip(module(*batch), loaded(*batch), strict=True)
    arrays = [(wanted.numpy(), got.numpy()) for wanted, got in pairs]
    return max(magnitude(wanted - got) / (magnitude(wanted) or 1.0) for wanted, got in arrays)


def _refused(evidence: str, settings: ExportSettings) -> CheckRecord:
    if settings.torch_export != "always":
        return CheckRecord(name=NAME, verdict="skipped", evidence=f"no .pt2 file: {evidence}")
    verdict = "waived" if settings.waived(NAME) else "failed"
    return CheckRecord(name=NAME, verdict=verdict, evidence=evidence, remedy=_REMEDY)
