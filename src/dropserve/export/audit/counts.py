"""Numbers that a model keeps: one that changes from call to call may be what another answer waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .clock import user_namespaces

_ITEMS = 200  # of one container


def kept_numbers(model: nn.Module) -> dict[str, object]:
    """Plain numbers in attributes of modules, in containers there, and in globals of the user's files."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in {"training", "_modules", "_parameters", "_buffers"}:
                found.update(_numbers(value, f"{name}.{key}"))
    for index, space in enumerate(user_namespaces(model)):
        for key, value in list(space.items()):
            if not key.startswith("__"):
                found.update(_numbers(value, f"{index}:{key}"))
    return found


def _numbers(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, object]]:
    if isinstance(value, bool | int | float | str):
        yield name, value
    elif isinstance(value, torch.Tensor):
        if value.numel() == 1 and value.device.type == "cpu":
            yield name, value.detach().clone().item()
    elif isinstance(value, Mapping | list | tuple | set) and depth < 2:
        yield f"len({name})", len(value)
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in list(items)[:_ITEMS]:
            yield from _numbers(item, f"{name}[{key}]", depth + 1)
