"""dropserve: from a dropout-regularised PyTorch model to an endpoint that can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dropserve.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> Any:
    """Import the clients when they are asked for: every command imports this package."""
    if name in __all__:
        from dropserve import client  # noqa: PLC0415  # late on purpose

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
