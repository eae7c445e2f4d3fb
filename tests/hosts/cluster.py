"""A real Ray cluster of two nodes on this machine, deployed to by Ray's own command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import httpx
import psutil
import yaml

from dropserve.serving.runtime import free_ports
from dropserve.store import Store

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
LOOPBACK = "127.0.0.1"
_MARK = "DROPSERVE_TEST_NODE"


class Cluster:
    """Node 0 is the head; each has one core, and an HTTP proxy of its own.

    Args:
        folder: for the store and the configuration.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(folder / "model_store")
        self._temp = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets want a short path
        (self._temp / "ray").mkdir()  # there Ray notes the address, not where others look for one
        self._dashboard, *self._proxies = free_ports(3)
        (self._temp / "token").write_text(os.urandom(32).hex())
        text = (ROOT / "serving" / "deploy" / "ray-serve.yaml").read_text()
        self._advised = dict(re.findall(r"^#   (RAY_\w+)=(\S+)$", text, re.MULTILINE))
        assert "RAY_SERVE_USE_GRPC_BY_DEFAULT" in self._advised

    def environment(self) -> dict[str, str]:
        """Of the nodes, and of commands that speak to the cluster."""
        return {
            **os.environ,
            **self._advised,
            _MARK: f"{self._temp}-both",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._temp / "token"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps Ray on loopback
            "RAY_TMPDIR": str(self._temp),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(self._proxies[1]),
            "RAY_memory_monitor_refresh_ms": "0",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Self:
        """Start both nodes."""
        nodes = [{_MARK: f"{self._temp}-{node}"} for node in range(2)]
        given = {"temp": str(self._temp), "dashboard": self._dashboard, "nodes": nodes}
        line = [sys.executable, str(Path(__file__).with_name("cluster_nodes.py")), json.dumps(given)]
        console = (self.folder / "nodes.log").open("wb")
        with console:
            self._nodes = subprocess.Popen(
                line, env=self.environment(), stdout=subprocess.PIPE, stderr=console
            )
        assert self._nodes.stdout is not None
        if b"ready" not in self._nodes.stdout.readline():
            self.__exit__()
            raise AssertionError((self.folder / "nodes.log").read_text("utf-8", "replace"))
        return self

    def serve(self, *words: str) -> str:
        """What Ray's command `serve` says.

        Raises:
            AssertionError: if it fails.
        """
        environment = self.environment() | {"RAY_DASHBOARD_ADDRESS": f"http://{LOOPBACK}:{self._dashboard}"}
        line = [str(BIN / "serve"), *words]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def deploy(self, *, models: list[str], replicas: int, seconds: float = 120) -> None:
        """Deploy serving/deploy/ray-serve.yaml, as it is shipped but for what it says must be chosen."""
        config: dict[str, Any] = yaml.safe_load((ROOT / "serving" / "deploy" / "ray-serve.yaml").read_text())
        config["http_options"] |= {"host": LOOPBACK, "port": self._proxies[0]}
        (application,) = config["applications"]
        application["args"] |= {"store": str(self.folder / "model_store"), "models": models}
        application["deployments"][0] |= {"num_replicas": replicas}
        file = self.folder / "ray-serve.yaml"
        file.write_text(yaml.safe_dump(config))
        self.serve("deploy", str(file))
        deadline = time.monotonic() + seconds
        while not all(map(self._ready, range(2))):
            status = self.serve("status")
            assert "FAILED" not in status, status
            assert time.monotonic() < deadline, status

    def _ready(self, node: int) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url(node)}/v2/health/ready", timeout=5).status_code == 200
        return False

    def url(self, node: int) -> str:
        """The HTTP proxy of a node."""
        return f"http://{LOOPBACK}:{self._proxies[node]}"

    def processes(self, node: int) -> list[psutil.Process]:
        """Everything that runs there."""
        return self._marked(f"{self._temp}-{node}")

    def everything(self) -> list[psutil.Process]:
        """What runs on both nodes, and what has started them."""
        return self._marked(f"{self._temp}-")

    def _marked(self, mark: str) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(_MARK, "").startswith(mark):
                    found.append(process)
        return found

    @property
    def leader(self) -> int:
        """The number of the process that has started both nodes."""
        return self._nodes.pid

    def replicas(self, node: int) -> list[psutil.Process]:
        """The replicas of a node."""
        title = "ray::ServeReplica:dropserve:dropserve"
        return [p for p in self.processes(node) if p.cmdline()[:1] and p.cmdline()[0].startswith(title)]

    def remove(self, node: int) -> None:
        """As if the machine had lost its power."""
        for process in self.processes(node):
            with suppress(psutil.Error):
                process.kill()

    def logs(self) -> str:
        """What the processes of both nodes have written."""
        files = self._temp.glob("session_2*/logs/**/*")
        return "\n".join(path.read_text("utf-8", "replace") for path in files if path.is_file())

    def __exit__(self, *_: object) -> None:
        """End both nodes."""
        for node in (1, 0):
            self.remove(node)
        self._nodes.kill()
        self._nodes.communicate()
        psutil.wait_procs([*self.processes(0), *self.processes(1)], timeout=10)
        shutil.rmtree(self._temp, ignore_errors=True)
