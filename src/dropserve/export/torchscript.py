"""TorchScript, behind one door: the only module of the export stage that touches ``torch.jit``.

TorchScript is deprecated in favour of ``torch.export``; what replaces it replaces this file.

Traces are not frozen. Freezing turns weights into constants, which no longer follow ``.to(device)``, and
folds BatchNorm into convolutions, which moves the answer; it bought nothing measurable on the recipes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.jit._trace import TracerWarning

from dropserve.errors import ExportError

from .quiet import NOT_OWN, cause, quiet

Tensors = dict[str, torch.Tensor]


class ScriptProgram:
    """A loaded TorchScript file, called with tensors by name.

    Args:
        path: the file.
        inputs: names in the order of ``forward``.
        outputs: names in the order of what it returns.
    """

    def __init__(self, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self.module: Any = _load(path)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        """Run the program twice and give the second answer.

        The first call at a shape only records it; the second runs what the optimiser made of it.
        """
        tensors = [inputs[name] for name in self.inputs]
        with torch.no_grad():
            self.module(*(tensor.clone() for tensor in tensors))  # a program may write into what it is given
            found = self.module(*(tensor.clone() for tensor in tensors))
        return dict(zip(self.outputs, found, strict=False))

    def save(self, path: Path) -> None:
        """Write the loaded program again."""
        with quiet():
            _write(self.module, path)


def export_torchscript(program: nn.Module, examples: Sequence[torch.Tensor], path: Path) -> tuple[str, ...]:
    """Trace a program in eval mode and write it.

    Args:
        program: returns a tuple of tensors.
        examples: one tensor for each argument, two rows at least: one row is a size that traces treat
            as special.
        path: the file to write.

    Returns:
        What the tracer warned of in the model's own files: values of this run that the trace has fixed.

    Raises:
        ExportError: if the model cannot be traced, or the trace not be written.
    """
    traced, notes = trace(program, examples)
    with quiet():
        try:
            _write(traced, path)
        except OSError:
            raise
        except Exception as error:
            raise _refused(error) from error
    return notes


def trace(program: nn.Module, examples: Sequence[torch.Tensor]) -> tuple[Any, tuple[str, ...]]:
    """Trace a program as :func:`export_torchscript` does, and keep it in memory.

    Raises:
        ExportError: if the model cannot be traced.
    """
    with quiet() as caught, torch.no_grad():
        try:
            traced = torch.jit.trace(program, tuple(examples), check_trace=False, strict=False)
        except Exception as error:
            raise _refused(error) from error
    own = [warning for warning in caught if issubclass(warning.category, TracerWarning) and _is_own(warning)]
    return traced, tuple(_short(warning) for warning in own)


def _write(module: Any, path: Path) -> None:
    """By way of memory: given a path, torch ends the whole process when the disk is full."""
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    path.write_bytes(buffer.getvalue())


def _refused(error: Exception) -> ExportError:
    return ExportError(
        f"the model cannot be traced to TorchScript: {cause(error)}. Change that line, or leave "
        '"torchscript" out of formats in export/checks.toml.'
    )


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(path), map_location="cpu").eval()


def _is_own(warning: warnings.WarningMessage) -> bool:
    """Whether the line is the user's: what torch warns of in its own files, nobody can mend."""
    return NOT_OWN.search(warning.filename) is None


def _short(warning: warnings.WarningMessage) -> str:
    first = str(warning.message).strip().split(". ")[0]
    return f"{Path(warning.filename).name}:{warning.lineno}: {first}"
