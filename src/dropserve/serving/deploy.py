"""A folder with everything that one TorchServe needs: archives unpacked, settings written."""

from __future__ import annotations

import io
import json
import secrets
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dropserve.errors import CorruptStoreError, UsageError
from dropserve.manifest import VersionManifest
from dropserve.serving.deployment import Deployment, Endpoint, Options
from dropserve.serving.parameters import SUFFIX
from dropserve.serving.runtime import LOOPBACK, cores, free_ports, java, torchserve_home
from dropserve.serving.tally import metrics_config
from dropserve.serving.tuning import Properties, endpoint_config, escape, read_properties
from dropserve.store import Stored

_LONGEST_SOCKET = 90  # a Unix socket's path ends at 104 bytes on macOS, 108 on Linux; TorchServe adds a name
MODEL_CONFIG = "model-config.yaml"
_METRICS = "metrics.yaml"
_TOKEN_MINUTES = 525_600  # TorchServe's hour would lock every client out while it is in use


def deploy(run_dir: Path, versions: Sequence[Stored[VersionManifest]], options: Options) -> Deployment:
    """Prepare a folder from verified versions; nothing is started.

    Args:
        run_dir: the project's folder for run-time files.
        versions: what to serve, each just opened and so just verified.
        options: how.

    Raises:
        UsageError: if a setting is wrong.
        CorruptStoreError: if an archive is not what the manifest says.
        MissingExtraError: if TorchServe or its Java runtime is not installed.
    """
    properties = read_properties(options.properties)
    remote = options.host not in {LOOPBACK, "localhost"}
    tls = remote and options.tls
    if tls and not properties.has_certificate:
        raise UsageError(
            f"--host {options.host}: clients of other machines need TLS. Set certificate_file and "
            f"private_key_file in {options.properties}, or say --no-tls where something in front encrypts."
        )
    program, home = java(), torchserve_home()
    folder = (run_dir / f"server-{secrets.token_hex(4)}").absolute()
    folder.mkdir(parents=True, mode=0o700)
    try:
        endpoints = [e for version in versions for e in _unpack(version, folder, options, properties)]
        scratch = _scratch(folder)
        ports = free_ports(4)
        deployment = Deployment(
            folder=folder,
            scratch=scratch,
            logs=run_dir.absolute() / "logs",
            host=options.host,
            tls=tls,
            tokens=remote,
            port=options.port,
            management_port=ports[0],
            metrics_port=options.metrics_port or ports[1],
            endpoints=tuple(endpoints),
            command=_command(program, home, folder, scratch, properties, options.log_config),
            environment=_environment(run_dir.absolute() / "logs", scratch, program, endpoints),
        )
        _write_metrics_config(home, folder)
        _write_properties(deployment, properties, ports[2:])
        (folder / "deployment.json").write_text(deployment.model_dump_json(indent=1), "utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return deployment


def _unpack(
    version: Stored[VersionManifest], folder: Path, options: Options, properties: Properties
) -> list[Endpoint]:
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


def _scratch(folder: Path) -> Path:
    scratch = folder / "tmp"
    if len(str(scratch).encode()) > _LONGEST_SOCKET:
        return Path(tempfile.mkdtemp(prefix="dropserve-"))
    scratch.mkdir()
    return scratch


def _command(
    program: Path, home: Path, folder: Path, scratch: Path, properties: Properties, log_config: Path
) -> tuple[str, ...]:
    # What the `torchserve` script would run, without its pid file in the system's temporary folder.
    return (
        str(program),
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile={log_config.absolute().as_uri()}",
        f"-Djava.io.tmpdir={scratch}",
        "-Dfile.encoding=UTF-8",
        *properties.vm,
        "-cp",
        str(home / "ts" / "frontend" / "*"),
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "--ts-config-file",
        str(folder / "config.properties"),
        "--no-config-snapshot",
    )


def _environment(logs: Path, scratch: Path, program: Path, endpoints: Sequence[Endpoint]) -> dict[str, str]:
    return {
        "JAVA_HOME": str(program.parents[1]),
        "LOG_LOCATION": str(logs),
        "METRICS_LOCATION": str(logs),
        "TEMP": str(scratch),
        "TMPDIR": str(scratch),
        "OMP_NUM_THREADS": str(threads_per_worker(endpoints)),
    }


def threads_per_worker(endpoints: Sequence[Endpoint]) -> int:
    """Cores shared out to all workers; left alone, each would take all of them."""
    return max(1, cores() // max(1, sum(endpoint.workers for endpoint in endpoints)))


def _write_metrics_config(home: Path, folder: Path) -> None:
    import yaml  # noqa: PLC0415  # hosts only

    shipped = yaml.safe_load((home / "ts" / "configs" / "metrics.yaml").read_text("utf-8"))
    (folder / _METRICS).write_text(json.dumps(metrics_config(shipped), indent=1), "utf-8")


def _write_properties(deployment: Deployment, properties: Properties, grpc: Sequence[int]) -> None:
    d = deployment
    decided = {
        "inference_address": f"{'https' if d.tls else 'http'}://{d.host}:{d.port}",
        "management_address": f"http://{LOOPBACK}:{d.management_port}",
        "metrics_config": str(d.folder / _METRICS),
        "metrics_address": f"http://{LOOPBACK}:{d.metrics_port}",
        "grpc_inference_address": LOOPBACK,
        "grpc_inference_port": str(grpc[0]),
        "grpc_management_address": LOOPBACK,
        "grpc_management_port": str(grpc[1]),
        "model_store": str(d.folder / "models"),
        "load_models": ",".join(endpoint.name for endpoint in d.endpoints),
        "enable_model_api": "false",
        "allowed_urls": "none",
        "install_py_dep_per_model": "false",
        "disable_token_authorization": "false" if d.tokens else "true",
        "token_expiration_min": str(_TOKEN_MINUTES),
        "enable_envvars_config": "false",
        "decode_input_request": "false",
        "disable_system_metrics": "true",
        "number_of_gpu": "0",
    }
    if unfit := [key for key, value in decided.items() if "$$" in value]:
        raise UsageError(f"{decided[unfit[0]]}: TorchServe would replace what stands between $$ in this path")
    lines = [f"{key}={escape(value)}" for key, value in {**properties.values, **decided}.items()]
    (d.folder / "config.properties").write_text("\n".join(lines) + "\n", "ascii")
