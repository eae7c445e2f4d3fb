"""What replicas serve: a local deployment, or versions of a store, pinned when the application is built."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from dropserve.errors import UsageError
from dropserve.project import packaged_stages
from dropserve.serving.deploy import unpack
from dropserve.serving.deployment import Deployment, Options
from dropserve.serving.graphs import Backend
from dropserve.serving.http.app import ModelEndpoint
from dropserve.serving.http.launch import Policy, ServerSettings, read_token
from dropserve.serving.tuning import endpoint_config, read_properties
from dropserve.store import Store

_PREFIX = "dropserve-replica-"
_CONFIG, _PROPERTIES = "model-config.yaml", "config.properties"


@dataclass(frozen=True)
class Opened:
    """What one replica serves.

    Attributes:
        endpoints: one for each endpoint; no model is loaded yet.
        policy: what is asked of every request.
        logs: the folder for its log; None leaves it to Ray.
        own: a folder that was made for it.
    """

    endpoints: list[ModelEndpoint]
    policy: Policy
    logs: Path | None = None
    own: Path | None = None

    @property
    def room(self) -> int:
        """Requests that may wait or be computed at once, over all endpoints."""
        configs = [each.config for each in self.endpoints]
        return sum(c.queue_size + 2 * c.batch_size * c.workers for c in configs)

    def remove(self) -> None:
        """Delete the folder that was made for it."""
        if self.own is not None:
            shutil.rmtree(self.own, ignore_errors=True)


class LocalDeployment(BaseModel):
    """What ``dropserve serve`` has unpacked on this machine.

    Attributes:
        file: its ``deployment.json``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    file: Path

    def open(self) -> Opened:
        """Find the endpoints; nothing is copied.

        Raises:
            CorruptStoreError: if a file is not what was published.
        """
        deployment = self._deployment()
        endpoints = [ModelEndpoint(e, deployment.folder / "models" / e.name) for e in deployment.endpoints]
        return Opened(endpoints, ServerSettings.read(deployment).policy(deployment), deployment.logs)

    def _deployment(self) -> Deployment:
        return Deployment.model_validate_json(self.file.read_bytes())


class PinnedVersions(BaseModel):
    """Versions of a model store that every node sees at the same path.

    Attributes:
        store: the store's folder, the same on every node.
        versions: by model; pinned, so that a replica that is started later serves no other one.
        monte_carlo: whether models get their ``-mc`` endpoint.
        backend: overrides the one in ``model_config``.
        tuning: the content of ``model-config.yaml``.
        properties: the content of ``config.properties``.
        token_file: holds the token that requests must carry; on every node.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    store: Path
    versions: dict[str, int]
    monte_carlo: bool = True
    backend: Backend | None = None
    tuning: str
    properties: str
    token_file: Path | None = None

    @classmethod
    def find(
        cls,
        store: Path,
        models: Sequence[str],
        settings: Path | None,
        *,
        monte_carlo: bool = True,
        backend: Backend | None = None,
        token_file: Path | None = None,
    ) -> PinnedVersions:
        """Open, and so verify, what is to be served.

        Args:
            store: the store's folder.
            models: names; ``name:3`` is version 3, the newest otherwise.
            settings: the folder of ``model-config.yaml`` and ``config.properties``; those that are shipped by
                default.
            monte_carlo: as the attribute.
            backend: as the attribute.
            token_file: as the attribute.

        Raises:
            UsageError: if a setting is wrong.
            StoreError: if a version is not there, or not what was published.
        """
        if not store.is_dir():
            raise UsageError(
                f"store: {store}: there is no such folder here; every node must see it at this path"
            )
        versions: dict[str, int] = {}
        for text in models or Store(store).names():
            name, colon, number = text.partition(":")
            if colon and not number.isdecimal():
                raise UsageError(f"models: {text!r}; expected NAME or NAME:VERSION")
            found = Store(store).version(name, int(number) if colon else None)
            versions[name] = found.manifest.version
        folder = settings or packaged_stages() / "serving"
        for doubt in (False, True):
            endpoint_config(folder / _CONFIG, monte_carlo=doubt)
        read_properties(folder / _PROPERTIES)
        if token_file is not None:
            read_token(token_file)
        return cls(
            store=store,
            versions=versions,
            monte_carlo=monte_carlo,
            backend=backend,
            tuning=(folder / _CONFIG).read_text("utf-8"),
            properties=(folder / _PROPERTIES).read_text("utf-8"),
            token_file=token_file,
        )

    def open(self) -> Opened:
        """Verify the versions and unpack them on this node.

        Raises:
            CorruptStoreError: if a file is not what was published.
        """
        _clear_abandoned()
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
        (folder / _CONFIG).write_text(self.tuning, "utf-8")
        (folder / _PROPERTIES).write_text(self.properties, "utf-8")
        properties = read_properties(folder / _PROPERTIES)
        options = Options(
            folder / _CONFIG,
            folder / _PROPERTIES,
            folder,
            monte_carlo=self.monte_carlo,
            backend=self.backend,
        )
        store = Store(self.store)
        found = [store.version(name, number) for name, number in self.versions.items()]
        unpacked = [e for version in found for e in unpack(version, folder, options, properties)]
        endpoints = [ModelEndpoint(each, folder / "models" / each.name) for each in unpacked]
        token = None if self.token_file is None else read_token(self.token_file)
        most = int(properties.values.get("max_request_size", "6553500"))
        return Opened(endpoints, Policy(max_body_bytes=most, token=token), own=folder)


Source = LocalDeployment | PinnedVersions


def _clear_abandoned() -> None:
    """Remove what replicas of this machine have left behind that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = re.match(rf"{_PREFIX}(\d+)-", folder.name)
        if owner and not Path(f"/proc/{owner[1]}").exists() and Path("/proc").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
