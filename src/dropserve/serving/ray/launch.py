"""How ``dropserve serve`` starts Ray Serve: ``ray-serve.yaml``, command line, environment; and its end."""

from __future__ import annotations

import contextlib
import secrets
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dropserve.errors import MissingExtraError, UsageError
from dropserve.project import packaged_stages
from dropserve.serving.deployment import Deployment, Options
from dropserve.serving.hosts import LaunchContext, LaunchSpec, threads_per_worker
from dropserve.serving.http.launch import AsgiHost
from dropserve.serving.runtime import cores
from dropserve.serving.tuning import Properties

APPLICATION = "dropserve"  # the name of the application, and of its one deployment
BUILDER = "dropserve.serving.ray.app:build"
DEPLOYMENT = "DROPSERVE_DEPLOYMENT"  # names the folder of the deployment to all processes of this Ray
SETTINGS = "ray.json"
_TOKEN = "ray-token"  # noqa: S105  # the name of the file that holds it
_FILE = "serving/deploy/ray-serve.yaml"
_GONE = 5.0  # seconds that killed processes may take to be gone
# Half of what Ray takes for an answer can go. Measured on 2 cores that others used too, with a network of
# 64-256-256-10, answers/s at 1 / 8 / 32 connections, and processor time each at 32:
#   as Ray comes     278 / 1091 / 2523   586 us
#   with gRPC        563 / 1444 / 3670   362 us
#   with all three   501 / 1691 / 4063   270 us
_QUICK = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",  # Ray looks ten times a second whether there is work for it
    "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "1",  # a replica that has fallen silent is found out after it
}
_LOG_BYTES, _LOG_FILES = 10_000_000, 3


class Scaling(BaseModel):
    """What ``serving/deploy/ray-serve.yaml`` says of our deployment: here and on a cluster alike.

    Attributes:
        options: as Ray names them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    options: dict[str, Any] = {}

    @property
    def replicas(self) -> int:
        """That there are at first."""
        own = self.options
        growth = own.get("autoscaling_config") or {}
        found = own.get("num_replicas", growth.get("initial_replicas") or growth.get("min_replicas", 1))
        return found if isinstance(found, int) else 1

    @property
    def processors(self) -> float:
        """That a Ray here counts: enough for all replicas; those that grow are bounded by the cores."""
        own = self.options
        each = (own.get("ray_actor_options") or {}).get("num_cpus", 1)
        grows = own.get("autoscaling_config") or own.get("num_replicas") == "auto"
        return max(self.replicas * each, cores() if grows else 0)


def read_scaling(path: Path) -> Scaling:
    """Read the file, as Ray itself would.

    Raises:
        UsageError: with everything that is wrong with it.
    """
    import yaml  # noqa: PLC0415  # hosts only
    from ray.serve.schema import ServeDeploySchema  # noqa: PLC0415  # Ray hosts only, and it takes seconds

    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
        found = ServeDeploySchema.model_validate(raw)
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        lines = [f"  - {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UsageError("\n".join([f"{path} is no Serve config file:", *lines])) from error
    ours = [application for application in found.applications if application.import_path == BUILDER]
    if len(ours) != 1:
        raise UsageError(f"{path}: expected one application with import_path: {BUILDER}; found {len(ours)}")
    entries = [
        entry
        for a in raw["applications"]
        if a["import_path"] == BUILDER
        for entry in a.get("deployments") or []
    ]
    if problems := [problem for entry in entries for problem in _unheard(entry)]:
        raise UsageError("\n".join([f"{path}:", *(f"  - {problem}" for problem in problems)]))
    (*_, own) = ({}, *(d.model_dump(exclude_unset=True, exclude={"name"}) for d in ours[0].deployments))
    return Scaling(options=own)


def _unheard(entry: dict[str, Any]) -> Iterator[str]:
    """What Ray would pass over in silence, or stumble over when it is started."""
    from ray.serve.schema import DeploymentSchema, RayActorOptionsSchema  # noqa: PLC0415  # as above

    name, actor = entry.get("name"), entry.get("ray_actor_options") or {}
    known = set(DeploymentSchema.model_fields), set(RayActorOptionsSchema.model_fields)
    for where, section, keys in zip(("", "ray_actor_options."), (entry, actor), known, strict=True):
        for key in section:
            if key not in keys:
                yield f"{name}: unknown key {where}{key}; expected {', '.join(sorted(keys))}"
    if name != APPLICATION:
        yield f"there is no deployment {name}; there is {APPLICATION}"


class RayHost(AsgiHost):
    """Starts ``dropserve.serving.ray.server``, which starts a Ray of its own.

    Raises:
        MissingExtraError: if what it stands on is not installed.
    """

    title = "Ray Serve"
    longest_scratch = 39  # a socket's path has 103 bytes on macOS, of which Ray takes 64
    grace = 20.0

    def __init__(self) -> None:
        if find_spec("ray") is None:
            raise MissingExtraError("ray", "ray")
        super().__init__()
        self._scaling = Scaling()

    def launch(self, draft: LaunchContext) -> LaunchSpec:
        """The server's process, and an environment that all of its Ray inherits.

        Raises:
            UsageError: if the file that says how many replicas there are is wrong.
        """
        self._scaling = read_scaling(draft.options.scaling or packaged_stages() / _FILE)
        workers = self._scaling.replicas * sum(endpoint.workers for endpoint in draft.endpoints)
        environment = {
            DEPLOYMENT: str(draft.folder),
            "OMP_NUM_THREADS": str(threads_per_worker(workers)),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",  # who may speak to Ray may run code
            "RAY_AUTH_TOKEN_PATH": str(draft.folder / _TOKEN),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: it keeps Ray's own ports on loopback
            "RAY_ROTATION_MAX_BYTES": str(_LOG_BYTES),
            "RAY_ROTATION_BACKUP_COUNT": str(_LOG_FILES),
            "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",  # a proxy that has died is noticed after three
            "RAY_metrics_report_interval_ms": "1000",
            "RAY_memory_monitor_refresh_ms": "0",  # it would end a replica because others use the memory
            **_QUICK,
        }
        file = str(draft.folder / "deployment.json")
        return LaunchSpec((sys.executable, "-P", "-m", "dropserve.serving.ray.server", file), environment)

    def write(self, deployment: Deployment, properties: Properties, options: Options) -> None:
        """Write settings and, where requests need one, the token."""
        super().write(deployment, properties, options)
        token = deployment.folder / _TOKEN
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), "ascii")
        (deployment.folder / SETTINGS).write_text(self._scaling.model_dump_json(indent=1), "utf-8")

    def sweep(self, deployment: Deployment) -> None:
        """End every process that was started for this deployment; those of another Ray are none of them."""
        import psutil  # noqa: PLC0415  # hosts only

        left: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(DEPLOYMENT) == str(deployment.folder):
                    left.append(process)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=_GONE)
