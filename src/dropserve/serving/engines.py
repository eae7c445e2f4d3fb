"""Every engine by its name."""

from __future__ import annotations

from dropserve.serving.deployment import EngineName
from dropserve.serving.engine import Engine
from dropserve.serving.http.launch import AsgiEngine
from dropserve.serving.on_torchserve import TorchServeEngine
from dropserve.serving.ray.launch import RayEngine

_ENGINES: dict[EngineName, type[Engine]] = {
    "torchserve": TorchServeEngine,
    "asgi": AsgiEngine,
    "ray": RayEngine,
}


def engine(name: EngineName) -> Engine:
    """The engine of this name.

    Raises:
        MissingExtraError: if what it stands on is not installed.
    """
    return _ENGINES[name]()
