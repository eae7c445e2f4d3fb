"""What a deployment on TorchServe needs: its command line, its settings, its figures."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from dropserve.errors import UsageError
from dropserve.serving.deployment import Deployment, Endpoint, Options
from dropserve.serving.hosts import LaunchContext, LaunchSpec, PrivatePorts
from dropserve.serving.runtime import (
    LOOPBACK,
    cores,
    free_ports,
    java,
    torchserve_home,
    unreachable_address,
)
from dropserve.serving.tally import metrics_config
from dropserve.serving.tuning import Properties, escape

if TYPE_CHECKING:
    import httpx

_METRICS = "metrics.yaml"
_HANDLER = "dropserve.serving.handler:verified_handle"
_TOKEN_MINUTES = 525_600  # TorchServe's hour would lock every client out while it is in use


class TorchServeHost:
    """Starts TorchServe on the Java runtime that comes from PyPI.

    Raises:
        MissingExtraError: if either is not installed.
    """

    title = "TorchServe"
    longest_scratch = 90  # a Unix socket's path ends at 104 bytes on macOS, 108 on Linux; it adds a name
    grace = 10.0
    watched = False  # it watches its workers itself

    def __init__(self) -> None:
        self._java, self._home = java(), torchserve_home()

    def private_ports(self, chosen: int | None) -> PrivatePorts:
        """Management has a socket: who reaches it may unload models, and on loopback it asks for no token."""
        return PrivatePorts(0, chosen or free_ports(1)[0])

    def check(self, properties: Properties, options: Options, *, tls: bool) -> None:  # noqa: ARG002  # the protocol's
        """Refuse what TorchServe cannot do.

        Raises:
            UsageError: if it is given a token, or an IPv6 address.
        """
        if ":" in options.host:
            raise UsageError(
                f"--host {options.host}: TorchServe takes IPv4 addresses and names alone; give one, or "
                "choose --engine asgi"
            )
        if options.token_file is not None:
            raise UsageError(
                f"--token-file {options.token_file}: TorchServe draws its token itself; leave it out, or "
                "choose --engine asgi"
            )
        if options.origins or options.allowed_hosts:
            raise UsageError(
                "TorchServe checks neither Origin nor Host: --cors and --allowed-host want --engine asgi"
            )

    def launch(self, draft: LaunchContext) -> LaunchSpec:
        """What the ``torchserve`` script would run, without its pid file in the system's temporary folder."""
        command = (
            str(self._java),
            f"-Dmodel_server_home={self._home}",
            f"-Dlog4j.configurationFile={draft.options.log_config.absolute().as_uri()}",
            f"-Djava.io.tmpdir={draft.scratch}",
            "-Dfile.encoding=UTF-8",
            *draft.properties.vm,
            "-cp",
            str(self._home / "ts" / "frontend" / "*"),
            "org.pytorch.serve.ModelServer",
            "--python",
            sys.executable,
            "--ts-config-file",
            str(draft.folder / "config.properties"),
            "--no-config-snapshot",
        )
        environment = {
            "JAVA_HOME": str(self._java.parents[1]),
            "LOG_LOCATION": str(draft.logs),
            "METRICS_LOCATION": str(draft.logs),
            "TEMP": str(draft.scratch),
            "TMPDIR": str(draft.scratch),
        }
        return LaunchSpec(command, environment)

    def write(self, deployment: Deployment, properties: Properties, options: Options) -> None:  # noqa: ARG002
        """Write its settings.

        Args:
            deployment: what they are for.
            properties: what the operator has set.
            options: how it is served.

        Raises:
            UsageError: if a path cannot stand in them.
        """
        import yaml  # noqa: PLC0415  # hosts only

        shipped = yaml.safe_load((self._home / "ts" / "configs" / "metrics.yaml").read_text("utf-8"))
        (deployment.folder / _METRICS).write_text(json.dumps(metrics_config(shipped), indent=1), "utf-8")
        decided = _decided(deployment)
        if unfit := [key for key, value in decided.items() if "$$" in value]:
            raise UsageError(
                f"{decided[unfit[0]]}: TorchServe would replace what stands between $$ in this path"
            )
        for endpoint in deployment.endpoints:
            archive = deployment.folder / "models" / endpoint.name / "MAR-INF" / "MANIFEST.json"
            content = json.loads(archive.read_bytes())
            content["model"]["handler"] = _HANDLER  # it verifies the archive before the archive's own runs
            archive.write_text(json.dumps(content, indent=1), "utf-8")
        settings = {**_usual(), **properties.values, **decided}
        lines = [f"{key}={escape(value)}" for key, value in settings.items()]
        (deployment.folder / "config.properties").write_text("\n".join(lines) + "\n", "ascii")

    def ready_workers(self, deployment: Deployment, endpoint: Endpoint, private: httpx.Client) -> int:
        """Those whose status is READY."""
        headers = deployment.authorization("management")
        found = private.get(f"/models/{endpoint.name}", headers=headers).json()
        return sum(worker["status"] == "READY" for worker in found[0]["workers"])

    def sweep(self, deployment: Deployment) -> None:
        """Its workers end by themselves when their socket does."""


def _usual() -> dict[str, str]:
    """What an operator may change: TorchServe takes a thread for each core, and workers need cores too."""
    half = str(max(1, cores() // 2))
    return {"number_of_netty_threads": half, "netty_client_threads": half}


def _decided(d: Deployment) -> dict[str, str]:
    unreachable = unreachable_address()
    grpc = free_ports(2, unreachable)  # where other servers' gRPC listens too
    return {
        "inference_address": f"{'https' if d.tls else 'http'}://{d.host}:{d.port}",
        "management_address": f"unix:{d.management_socket}",
        "metrics_config": str(d.folder / _METRICS),
        "metrics_address": f"http://{LOOPBACK}:{d.metrics_port}",
        "grpc_inference_address": unreachable,
        "grpc_inference_port": str(grpc[0]),
        "grpc_management_address": unreachable,
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
