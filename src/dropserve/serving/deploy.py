"""A folder with everything that one server needs: archives unpacked, settings written."""

from __future__ import annotations

import io
import json
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dropserve.errors import CorruptStoreError, ServerError, UsageError
from dropserve.manifest import VersionManifest
from dropserve.serving.deployment import MODEL_CONFIG, Deployment, Endpoint, Options
from dropserve.serving.hosts import Host, LaunchContext, host_named, threads_per_worker
from dropserve.serving.parameters import SUFFIX
from dropserve.serving.runtime import is_loopback
from dropserve.serving.tuning import Properties, endpoint_config, read_properties
from dropserve.store import Stored

_MANAGEMENT = "management.sock"


def deploy(run_dir: Path, versions: Sequence[Stored[VersionManifest]], options: Options) -> Deployment:
    """Prepare a folder from verified versions; nothing is started.

    Args:
        run_dir: the project's folder for run-time files.
        versions: what to serve, each just opened and so just verified.
        options: how.

    Raises:
        UsageError: if a setting is wrong.
        CorruptStoreError: if an archive is not what the manifest says.
        MissingExtraError: if what the engine stands on is not installed.
        ServerError: if the folder cannot be written, on a full disk say; nothing is left of it.
    """
    properties = read_properties(options.properties)
    remote = not is_loopback(options.host)
    tls = remote and options.tls
    if tls and not properties.has_certificate:
        raise UsageError(
            f"--host {options.host}: clients of other machines need TLS. Set certificate_file and "
            f"private_key_file in {options.properties}, or say --no-tls where something in front encrypts."
        )
    host = host_named(options.engine)
    host.check(properties, options, tls=tls)
    folder = (run_dir / f"server-{secrets.token_hex(4)}").absolute()
    try:
        folder.mkdir(parents=True, mode=0o700)
        return _write(folder, versions, options, host, properties, tls=tls)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ServerError(
            f"a server cannot be prepared in {run_dir}: {error}. Mend this and try again."
        ) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(
    folder: Path,
    versions: Sequence[Stored[VersionManifest]],
    options: Options,
    host: Host,
    properties: Properties,
    *,
    tls: bool,
) -> Deployment:
    endpoints = [e for version in versions for e in unpack(version, folder, options, properties)]
    logs, scratch = folder.parent / "logs", _scratch(folder, host.longest_scratch)
    try:
        launch = host.launch(LaunchContext(folder, scratch, logs, properties, options, endpoints))
        threads = threads_per_worker(sum(endpoint.workers for endpoint in endpoints))
        ports = host.private_ports(options.metrics_port)
        deployment = Deployment(
            folder=folder,
            scratch=scratch,
            logs=logs,
            host=options.host,
            tls=tls,
            tokens=(not is_loopback(options.host) and options.tokens) or options.token_file is not None,
            drawn=options.token_file is None,
            port=options.port,
            management_port=ports.management,
            management_socket=None if ports.management else scratch / _MANAGEMENT,
            metrics_port=ports.metrics,
            endpoints=tuple(endpoints),
            engine=options.engine,
            longest_silence=_silence(folder, endpoints) if host.watched else None,
            command=launch.command,
            environment={"OMP_NUM_THREADS": str(threads), **launch.environment},
        )
        host.write(deployment, properties, options)
        (folder / "deployment.json").write_text(deployment.model_dump_json(indent=1), "utf-8")
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return deployment


def unpack(
    version: Stored[VersionManifest], folder: Path, options: Options, properties: Properties
) -> list[Endpoint]:
    """Unpack the archives of a version, each with its settings beside it.

    Args:
        version: just opened and so just verified.
        folder: ``models/NAME`` is made in it for each endpoint.
        options: how it is served.
        properties: what the operator has set.

    Raises:
        UsageError: if a setting is wrong.
        CorruptStoreError: if an archive is not what the manifest says.
    """
    manifest = version.manifest
    endpoints: list[Endpoint] = []
    for name, doubt in ((manifest.name, False), (manifest.name + SUFFIX, True)):
        if doubt and not (options.monte_carlo and manifest.sites):
            continue
        archive = version.path(f"{name}.mar")
        config = endpoint_config(options.model_config, monte_carlo=doubt)
        workers = config.setdefault("minWorkers", 1)
        config.setdefault("maxWorkers", workers)
        handler: dict[str, Any] = config.setdefault("handler", {})
        handler["max_response_bytes"] = properties.longest_answer
        if options.backend is not None:
            handler["backend"] = options.backend
        target = folder / "models" / name
        _extract(archive, name, target)
        # YAML holds JSON, and what a machine writes is better read by a machine.
        (target / MODEL_CONFIG).write_text(json.dumps(config, indent=1), "utf-8")
        endpoints.append(
            Endpoint(
                name=name, model=manifest.name, version=manifest.version, monte_carlo=doubt, workers=workers
            )
        )
    return endpoints


def _extract(archive: Path, name: str, target: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as mar:
        mar.extractall(target)
    try:
        entry = json.loads((target / "MAR-INF" / "MANIFEST.json").read_bytes())["model"]
        fits = entry["modelName"] == name and entry["configFile"] == MODEL_CONFIG
    except (OSError, ValueError, KeyError) as error:
        raise CorruptStoreError(f"{archive} is no archive of TorchServe: {error}") from error
    if not fits:
        raise CorruptStoreError(
            f"{archive} registers {entry['modelName']!r} with {entry.get('configFile')!r}; expected "
            f"{name!r} with {MODEL_CONFIG!r}. Export the model again."
        )


def _scratch(folder: Path, longest: int) -> Path:
    scratch = folder / "tmp"
    if len(str(scratch).encode()) > longest:
        return Path(tempfile.mkdtemp(prefix="dropserve-"))
    scratch.mkdir(mode=0o700)
    return scratch


def _silence(folder: Path, endpoints: Sequence[Endpoint]) -> float:
    """As long as the most patient endpoint may compute."""
    files = (folder / "models" / endpoint.name / MODEL_CONFIG for endpoint in endpoints)
    return max(json.loads(file.read_bytes()).get("responseTimeout", 120) for file in files)
