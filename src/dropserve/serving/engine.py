"""What a deployment asks of the engine that it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dropserve.serving.deployment import Deployment, Options
from dropserve.serving.tuning import Properties


@dataclass(frozen=True)
class Draft:
    """What is known before there is a deployment.

    Attributes:
        folder: of the deployment.
        scratch: where sockets and temporary files go.
        logs: where logs go.
        properties: what the operator has set in ``config.properties``.
        options: what the caller has chosen.
    """

    folder: Path
    scratch: Path
    logs: Path
    properties: Properties
    options: Options


@dataclass(frozen=True)
class Launch:
    """How an engine is started: the command, and variables to set for it."""

    command: tuple[str, ...]
    environment: dict[str, str]


class Engine(Protocol):
    """A host. Making one raises MissingExtraError if what it stands on is not installed."""

    def check(self, properties: Properties, *, tls: bool) -> None:
        """Refuse what this engine cannot do.

        Raises:
            UsageError: naming the setting.
        """
        ...

    def launch(self, draft: Draft) -> Launch:
        """How it is started."""
        ...

    def write(self, deployment: Deployment, properties: Properties) -> None:
        """Write its own settings into the deployment's folder.

        Raises:
            UsageError: if they cannot be written down.
        """
        ...
