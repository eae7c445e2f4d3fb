"""Places that exporters write into graphs as text: stacks of FX and ONNX nodes, ranges of TorchScript."""

from __future__ import annotations

import re
from pathlib import Path

from .places import is_user_file, short

_PYTHON = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')  # outermost first
_TORCHSCRIPT = re.compile(r"^\s*(?P<file>\S+\.py)\((?P<line>\d+)\): ", re.MULTILINE)  # innermost first


def written_place(text: str, path: str = "", kind: str = "") -> str:
    """The innermost line of the user's in a written stack, with the module if it is known."""
    found = [*_TORCHSCRIPT.finditer(text), *[*_PYTHON.finditer(text)][::-1]]
    own = [match for match in found if _is_own(match["file"])]
    name = f"{path} ({kind})" if path and kind else path or kind
    line = f"{short(own[0]['file'])}:{own[0]['line']}" if own else ""
    return " at ".join(part for part in (name, line) if part)


def module_of(scopes: dict[str, tuple[str, object]]) -> tuple[str, str]:
    """Path and class of the innermost module of an FX node's ``nn_module_stack``."""
    if not scopes:
        return "", ""
    path, kind = [*scopes.values()][-1]
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", "")
    return path.removeprefix("model.").removeprefix("model"), name.rpartition(".")[2]


def _is_own(file: str) -> bool:
    # Exporters shorten the paths of installed packages: torch/fx/... is no file of the user's.
    return Path(file).is_absolute() and is_user_file(file)
