"""What a server is made of: endpoints, addresses, the command that starts it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from dropserve.serving.graphs import Backend
from dropserve.serving.runtime import LOOPBACK, bracketed

KEYS = "key_file.json"  # TorchServe writes it into its working folder
MODEL_CONFIG = "model-config.yaml"
MODEL_LOG = "model_log.log"
EngineName = Literal["torchserve", "asgi", "ray"]
ENGINES: tuple[EngineName, ...] = ("torchserve", "asgi", "ray")


class Endpoint(BaseModel):
    """One name that answers.

    Attributes:
        name: ``<model>`` or ``<model>-mc``.
        model: the model's name.
        version: its version.
        monte_carlo: whether it answers with uncertainty.
        workers: processes that serve it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    model: str
    version: int
    monte_carlo: bool
    workers: int


class Deployment(BaseModel):
    """All that it takes to start a server, and to start it again.

    Attributes:
        folder: holds models, settings and temporary files; removed when the server stops.
        scratch: where sockets are; within ``folder`` unless that path is too long for a socket.
        logs: where logs go.
        host: the address that it listens on.
        tls: whether clients speak HTTPS.
        tokens: whether requests must carry a token.
        drawn: whether that is a new one whenever the server is started.
        port: the port that clients use.
        management_port: private, for readiness; 0 where there is a socket for it.
        management_socket: the same as a Unix socket in ``scratch``, which no other user can reach.
        metrics_port: figures for Prometheus.
        endpoints: what it serves.
        engine: the host.
        longest_silence: seconds without an answer to a question about its health after which it is started
            again; None where its own workers are watched by itself.
        command: the program and its arguments.
        environment: variables to set for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: Path
    scratch: Path
    logs: Path
    host: str = LOOPBACK
    tls: bool = False
    tokens: bool = False
    drawn: bool = True
    port: int
    management_port: int
    management_socket: Path | None = None
    metrics_port: int
    endpoints: tuple[Endpoint, ...]
    engine: EngineName = "torchserve"
    longest_silence: float | None = None
    command: tuple[str, ...]
    environment: dict[str, str]

    @property
    def url(self) -> str:
        """Where clients on this machine find it."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.host, self.host)  # noqa: S104  # not bound to
        return f"{'https' if self.tls else 'http'}://{bracketed(host)}:{self.port}"

    def authorization(self, kind: Literal["inference", "management"]) -> dict[str, str]:
        """The header that lets a request in; empty where none is asked for.

        Raises:
            OSError, ValueError, KeyError: while the server has not written its tokens yet.
        """
        if not self.tokens:
            return {}
        key = json.loads((self.folder / KEYS).read_bytes())[kind]["key"]
        return {"authorization": f"Bearer {key}"}

    def example_file(self, endpoint: Endpoint) -> Path:
        """Where :meth:`example` stands while the server runs."""
        return self.folder / "models" / endpoint.name / "example.json"

    def example(self, endpoint: Endpoint) -> bytes:
        """A request with the example row of the model."""
        return self.example_file(endpoint).read_bytes()

    def remove(self) -> None:
        """Delete its files; logs stay."""
        for folder in (self.folder, self.scratch):
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Options:
    """What a caller chooses.

    Attributes:
        model_config: the file that tunes endpoints.
        properties: sizes and certificates, and TorchServe's own settings.
        log_config: TorchServe's log4j2 configuration.
        port: where clients find it.
        host: the address to listen on; other than loopback, requests need a token.
        tls: off lets clients of another machine speak HTTP, where something in front encrypts.
        tokens: off lets clients of another machine ask without a token, where something in front knows them.
        token_file: holds the token that requests must carry; one is drawn by default.
        allowed_hosts: names that the header ``Host`` may have, besides those of loopback.
        origins: of pages in browsers that may ask (CORS).
        metrics_port: for Prometheus; any free one by default.
        backend: overrides the one in ``model_config``.
        monte_carlo: whether models get their ``-mc`` endpoint.
        engine: the host.
        scaling: the file that says how many replicas Ray Serve keeps; the one that is shipped by default.
    """

    model_config: Path
    properties: Path
    log_config: Path
    port: int = 8080
    host: str = LOOPBACK
    tls: bool = True
    tokens: bool = True
    token_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    metrics_port: int | None = None
    backend: Backend | None = None
    monte_carlo: bool = True
    engine: EngineName = "torchserve"
    scaling: Path | None = None
