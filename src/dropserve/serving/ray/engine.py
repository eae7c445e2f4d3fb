"""What a deployment on Ray Serve needs: its command line, its settings, its environment; and its end."""

from __future__ import annotations

import contextlib
import secrets
import sys
from importlib.util import find_spec

from dropserve.errors import MissingExtraError
from dropserve.project import packaged_stages
from dropserve.serving.asgi.engine import AsgiEngine
from dropserve.serving.deployment import Deployment, Options
from dropserve.serving.engine import Draft, Launch, threads_per_worker
from dropserve.serving.ray.names import CALLBACK, DEPLOYMENT
from dropserve.serving.ray.scaling import Scaling, read_scaling
from dropserve.serving.tuning import Properties

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


class RayEngine(AsgiEngine):
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

    def launch(self, draft: Draft) -> Launch:
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
            "RAY_memory_monitor_refresh_ms": "0",  # it would end a replica because others use the memory
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK,
            **_QUICK,
        }
        file = str(draft.folder / "deployment.json")
        return Launch((sys.executable, "-P", "-m", "dropserve.serving.ray.server", file), environment)

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
