"""How ``dropserve serve --engine asgi`` starts the server: command line, settings, token."""

from __future__ import annotations

import json
import re
import secrets
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from dropserve.errors import MissingExtraError, UsageError
from dropserve.serving.deployment import KEYS, Deployment, Endpoint, Options
from dropserve.serving.hosts import LaunchContext, LaunchSpec, PrivatePorts
from dropserve.serving.runtime import free_ports, is_loopback
from dropserve.serving.tuning import Properties

if TYPE_CHECKING:
    import httpx

_SETTINGS = "asgi.json"
_PACKAGES = ("starlette", "uvicorn", "prometheus_client", "onnxruntime")


@dataclass(frozen=True)
class Policy:
    """What is asked of every request.

    Attributes:
        max_body_bytes: that a body may have.
        body_timeout_s: seconds that a body may take to arrive.
        token: which each request must carry; None lets everybody in.
        loopback: whether the server listens on loopback: ``Host`` must then be a name of it, or a page of
            a browser could ask by a name of its own (DNS rebinding).
        allowed_hosts: other names that ``Host`` may have.
        origins: of pages in browsers that may ask (CORS); ``*`` is any.
    """

    max_body_bytes: int = 6_553_500
    body_timeout_s: float = 30.0
    token: str | None = None
    loopback: bool = False
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


class ServerSettings(BaseModel):
    """What the server's process reads beside the deployment.

    Attributes:
        max_body_bytes: that the body of a request may have.
        certificate: for TLS; None speaks HTTP.
        private_key: to it.
        allowed_hosts: names that ``Host`` may have besides those of loopback.
        origins: of pages in browsers that may ask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    max_body_bytes: int
    certificate: str | None = None
    private_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @classmethod
    def read(cls, deployment: Deployment) -> ServerSettings:
        """Those of a deployment."""
        return cls.model_validate_json((deployment.folder / _SETTINGS).read_bytes())

    def policy(self, deployment: Deployment) -> Policy:
        """What is asked of every request of this deployment."""
        key = deployment.authorization("inference").get("authorization", "").removeprefix("Bearer ")
        return Policy(
            max_body_bytes=self.max_body_bytes,
            token=key or None,
            loopback=is_loopback(deployment.host),
            allowed_hosts=self.allowed_hosts,
            origins=self.origins,
        )


class AsgiHost:
    """Starts ``dropserve.serving.http.server``.

    Raises:
        MissingExtraError: if what it stands on is not installed.
    """

    title = "the server"
    longest_scratch = 90  # it has no sockets there
    grace = 10.0  # it drains for less
    watched = True

    def __init__(self) -> None:
        for package in _PACKAGES:
            if find_spec(package) is None:
                raise MissingExtraError(package, "serve")

    def private_ports(self, chosen: int | None) -> PrivatePorts:
        """One listener for both."""
        port = chosen or free_ports(1)[0]
        return PrivatePorts(port, port)

    def check(self, properties: Properties, options: Options, *, tls: bool) -> None:
        """Refuse what only Java can read, and a token that is none.

        Raises:
            UsageError: if TLS has nothing but a keystore, or the token's file holds no token.
        """
        if options.token_file is not None:
            read_token(options.token_file)
        if tls and not {"certificate_file", "private_key_file"} <= set(properties.values):
            raise UsageError(
                "serving/config.properties: a keystore is Java's; for --engine asgi set certificate_file "
                "and private_key_file (PEM)"
            )

    def launch(self, draft: LaunchContext) -> LaunchSpec:
        """The server's process."""
        file = str(draft.folder / "deployment.json")
        return LaunchSpec((sys.executable, "-P", "-m", "dropserve.serving.http.server", file), {})

    def write(self, deployment: Deployment, properties: Properties, options: Options) -> None:
        """Write settings and, where requests need one, the token.

        Args:
            deployment: what they are for.
            properties: what the operator has set.
            options: how it is served.
        """
        values = properties.values
        settings = ServerSettings(
            max_body_bytes=int(values.get("max_request_size", "6553500")),
            certificate=values["certificate_file"] if deployment.tls else None,
            private_key=values["private_key_file"] if deployment.tls else None,
            allowed_hosts=options.allowed_hosts,
            origins=options.origins,
        )
        (deployment.folder / _SETTINGS).write_text(settings.model_dump_json(indent=1), "utf-8")
        if deployment.tokens:
            given = options.token_file
            key = read_token(given) if given is not None else secrets.token_urlsafe(32)
            file = deployment.folder / KEYS
            file.touch(mode=0o600)
            file.write_text(json.dumps({"inference": {"key": key}}), "ascii")

    def ready_workers(self, deployment: Deployment, endpoint: Endpoint, private: httpx.Client) -> int:  # noqa: ARG002  # the protocol's
        """All or none: an endpoint is ready when all its workers are."""
        path = f"/v2/models/{quote(endpoint.name, safe='')}/ready"
        return endpoint.workers if private.get(path).status_code == 200 else 0

    def sweep(self, deployment: Deployment) -> None:
        """Its workers end by themselves when their socket does."""


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        UsageError: if there is none, or it cannot stand in a header.
    """
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: no token can be read: {error}") from error
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]{16,}=*", token):
        raise UsageError(
            f"{path}: expected one token, at least 16 letters, digits or any of . _ ~ + / - (what a header "
            f"Authorization: Bearer TOKEN can hold); it has {len(token)} characters"
        )
    return token
