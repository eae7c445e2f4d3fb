"""Stock TorchServe for comparison: two archives, its own start script, its default configuration and logging.

Only addresses differ from the defaults (any free ports), and authorisation is off, as it is on our side; the
number of workers where it is asked for.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import started

from dropserve.serving.runtime import free_ports, java

HERE = Path(__file__).parent
HANDLERS = {"plain": "plain_handler.py", "mc": "mc_handler.py"}
_PATIENCE = 180.0


@dataclass(frozen=True)
class Stock:
    """A running server: where it answers, and its processes."""

    url: str
    server: started.Server

    def processor_seconds(self) -> dict[str, float]:
        """Processor time so far: of the frontend, and of the workers of both models together."""
        spent = {"frontend": 0.0, "workers": 0.0}
        for process in self.server.family.members():
            with contextlib.suppress(psutil.NoSuchProcess):
                what = "frontend" if Path(process.exe()).name == "java" else "workers"
                spent[what] += started.processor_seconds([process])
        return spent


@contextlib.contextmanager
def running(folder: Path, weights: Path, workers: int | None = None) -> Iterator[Stock]:
    """Serve ``plain`` and ``mc`` from weights saved by ``torch.save(state_dict)``.

    Args:
        folder: scratch space.
        weights: of :class:`net.Net`.
        workers: for each model; None leaves TorchServe its default, one for each core.
    """
    store = folder / "store"
    store.mkdir(parents=True)
    for name, handler in HANDLERS.items():
        _archive(store, name, handler, weights)
    inference, management, metrics, grpc, grpc_management = free_ports(5)
    (folder / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{inference}\n"
        f"management_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\n"
        f"grpc_inference_port={grpc}\n"
        f"grpc_management_port={grpc_management}\n"
        + (f"default_workers_per_model={workers}\n" if workers else "")
    )
    models = [f"{name}={name}.mar" for name in HANDLERS]
    command = [
        str(Path(sys.executable).parent / "torchserve"),
        "--start",
        "--foreground",
        "--disable-token-auth",
    ]
    command += ["--ncs", "--ts-config", "config.properties", "--model-store", "store", "--models", *models]
    environment = {"JAVA_HOME": str(java().parents[1]), "TMPDIR": str(folder)}
    with started.server(command, folder, environment) as server:
        _wait(server, f"http://127.0.0.1:{management}")
        yield Stock(f"http://127.0.0.1:{inference}", server)


def _archive(store: Path, name: str, handler: str, weights: Path) -> None:
    archiver = str(Path(sys.executable).parent / "torch-model-archiver")
    options = {"model-name": name, "version": "1.0", "model-file": HERE / "net.py"}
    options |= {"serialized-file": weights, "handler": HERE / handler, "export-path": store}
    arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
    subprocess.run([archiver, *arguments], check=True, capture_output=True)


def _wait(server: started.Server, management: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    waiting = set(HANDLERS)
    while waiting:
        if server.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"stock TorchServe does not start: {server.last_words()}")
        for name in sorted(waiting):
            with contextlib.suppress(httpx.HTTPError, KeyError, IndexError, ValueError):
                workers = httpx.get(f"{management}/models/{name}").json()[0]["workers"]
                if workers and all(worker["status"] == "READY" for worker in workers):
                    waiting.discard(name)
        time.sleep(0.2)
