"""What a user might serve an ONNX file with instead, each as its own documentation has it.

A folder beside this file holds the application and its pinned packages; ``make peers`` installs each into an
environment of its own. One process (or one worker, where a server is made of several) runs the model with
one thread of onnxruntime, the answer is the class probabilities, and nothing is written for a request.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENTS = Path(__file__).parents[2] / ".venv-peers"

Row = list[float]


@dataclass(frozen=True)
class Peer:
    """A server that somebody else wrote.

    Attributes:
        name: how it is called in figures.
        label: how it is called in tables.
        about: what runs, in a line.
        application: the folder of its files, which is copied beside ``model.onnx``.
        command: what starts it there. ``{bin}`` is where its programs are, ``{port}`` where it shall listen,
            ``{other}`` and ``{third}`` are two more free ports.
        path: where it is asked.
        ask: from a row to the document that is sent.
        read: from the document that comes to the row's probabilities.
        environment: variables to set; the same words in braces are filled in.
        packages: what its version is told of.
        restless: whether it looks for work so often that it must be stopped while others are measured.
        bin: where its programs are; in ``.venv-peers`` unless it is said.
    """

    name: str
    label: str
    about: str
    application: Path
    command: tuple[str, ...]
    path: str
    ask: Callable[[Row], object]
    read: Callable[[Any], Row]
    environment: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    restless: bool = False
    bin: Path | None = None

    @property
    def programs(self) -> Path:
        """The folder of its python, among others."""
        return self.bin or ENVIRONMENTS / self.application.name / "bin"

    @property
    def missing(self) -> str:
        """Why it cannot run; empty if it can."""
        if self.bin is not None:
            return ""
        installed = self.programs.parent / "requirements.txt"
        if not installed.is_file():
            return "not installed; install it with: make peers"
        wanted = self.application / "requirements.txt"
        if installed.read_text("utf-8") != wanted.read_text("utf-8"):
            return f"installed from other pins than {wanted.name} has now; install it with: make peers"
        return ""

    def versions(self) -> dict[str, str]:
        """What runs, from the pins."""
        if not self.packages:
            return {}
        pins = dict(
            line.split("==") for line in (self.application / "requirements.txt").read_text("utf-8").split()
        )
        return {package: pins[package] for package in self.packages}

    def place(self, folder: Path, model: Path) -> None:
        """Lay the application and the model into a folder of their own."""
        shutil.copytree(self.application, folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(model, folder / "model.onnx")


FASTAPI = Peer(
    name="fastapi",
    label="FastAPI, def route",
    about="one process of uvicorn; a plain `def` route, which FastAPI runs in its thread pool",
    application=HERE / "fastapi",
    command=("{bin}/uvicorn", "app:app", "--host", "127.0.0.1", "--port", "{port}", "--no-access-log"),
    path="/predict",
    ask=lambda row: {"instances": [row]},
    read=lambda document: document["predictions"][0],
    packages=("fastapi", "uvicorn", "uvloop"),
)
BENTOML = Peer(
    name="bentoml",
    label="BentoML",
    about="one worker, no batching (the default), no access log",
    application=HERE / "bentoml",
    command=("{bin}/bentoml", "serve", "app:Classifier", "--host", "127.0.0.1", "--port", "{port}"),
    path="/predict",
    ask=lambda row: {"rows": [row]},
    read=lambda document: document[0],
    environment={
        "BENTOML_CONFIG": "configuration.yaml",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": "home",
    },
    packages=("bentoml", "uvicorn"),
)
PEERS = (
    FASTAPI,
    replace(
        FASTAPI,
        name="fastapi async",
        label="FastAPI, async route",
        about="the same with an `async def` route: the model runs in the event loop, which waits for it",
        path="/predict-in-loop",
    ),
    Peer(
        name="litserve",
        label="LitServe",
        about="one API server, one worker, batches of at most 32 within 1 ms, the fast queue",
        application=HERE / "litserve",
        command=("{bin}/python", "app.py", "{port}"),
        path="/predict",
        ask=lambda row: {"input": row},
        read=lambda document: document["output"],
        packages=("litserve", "uvicorn", "uvloop"),
        restless=True,
    ),
    Peer(
        name="mlserver",
        label="MLServer",
        about="a custom runtime in one process; a parallel worker and batches cost more than they save here",
        application=HERE / "mlserver",
        command=("{bin}/mlserver", "start", "."),
        path="/v2/models/mlp/infer",
        ask=lambda row: {"inputs": [{"name": "rows", "shape": [1, 64], "datatype": "FP32", "data": row}]},
        read=lambda document: document["outputs"][0]["data"],
        environment={
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{other}",
            "MLSERVER_METRICS_PORT": "{third}",
        },
        packages=("mlserver", "uvicorn", "uvloop"),
    ),
    BENTOML,
    replace(
        BENTOML,
        name="bentoml batching",
        label="BentoML, batching",
        about="the same with adaptive batches of at most 32, for which a lone caller waits",
        path="/predict_batch",
    ),
)
