"""What a deployment asks of its host: TorchServe, the ASGI server or Ray Serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dropserve.serving.deployment import Deployment, Endpoint, EngineName, Options
from dropserve.serving.runtime import cores
from dropserve.serving.tuning import Properties

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class LaunchContext:
    """What is known before there is a deployment.

    Attributes:
        folder: of the deployment.
        scratch: where sockets and temporary files go.
        logs: where logs go.
        properties: what the operator has set in ``config.properties``.
        options: what the caller has chosen.
        endpoints: what is served.
    """

    folder: Path
    scratch: Path
    logs: Path
    properties: Properties
    options: Options
    endpoints: Sequence[Endpoint]


@dataclass(frozen=True)
class LaunchSpec:
    """How a host is started: the command, and variables to set for it."""

    command: tuple[str, ...]
    environment: dict[str, str]


def threads_per_worker(workers: int) -> int:
    """Cores shared out to all workers; left alone, each would take all of them."""
    return max(1, cores() // max(1, workers))


class PrivatePorts(NamedTuple):
    """Ports on loopback: for readiness, and for figures. A host may have one listener for both.

    Attributes:
        management: 0 where the host takes a Unix socket in the deployment's private folder.
        metrics: for Prometheus.
    """

    management: int
    metrics: int


class Host(Protocol):
    """A server program. Making one raises MissingExtraError if what it stands on is not installed."""

    @property
    def title(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def longest_scratch(self) -> int:
        """Bytes that the path of the folder for its sockets may have."""
        ...

    @property
    def grace(self) -> float:
        """Seconds that it may take to end when it is asked to."""
        ...

    @property
    def watched(self) -> bool:
        """Whether it is asked how it is all the time, and started again when it does not answer."""
        ...

    def private_ports(self, chosen: int | None) -> PrivatePorts:
        """Where it is asked how it is.

        Args:
            chosen: the port for figures, if the operator has chosen one.
        """
        ...

    def check(self, properties: Properties, options: Options, *, tls: bool) -> None:
        """Refuse what this host cannot do.

        Raises:
            UsageError: naming the setting.
        """
        ...

    def launch(self, draft: LaunchContext) -> LaunchSpec:
        """How it is started."""
        ...

    def write(self, deployment: Deployment, properties: Properties, options: Options) -> None:
        """Write its own settings into the deployment's folder.

        Raises:
            UsageError: if they cannot be written down.
        """
        ...

    def ready_workers(self, deployment: Deployment, endpoint: Endpoint, private: httpx.Client) -> int:
        """How many of an endpoint's workers would answer now.

        Args:
            deployment: what runs.
            endpoint: one of its endpoints.
            private: asks its management port.

        Raises:
            httpx.HTTPError, OSError, ValueError, LookupError, TypeError: if it does not say.
        """
        ...

    def sweep(self, deployment: Deployment) -> None:
        """End what its process has left behind, if it has been killed."""
        ...


def host_named(name: EngineName) -> Host:
    """The host of this name.

    Raises:
        MissingExtraError: if what it stands on is not installed.
    """
    from dropserve.serving.http.launch import AsgiHost  # noqa: PLC0415  # they implement what stands here
    from dropserve.serving.on_torchserve import TorchServeHost  # noqa: PLC0415
    from dropserve.serving.ray.launch import RayHost  # noqa: PLC0415

    hosts: dict[EngineName, type[Host]] = {"torchserve": TorchServeHost, "asgi": AsgiHost, "ray": RayHost}
    return hosts[name]()
