"""The network of the serving benchmarks, taken through dropserve itself: imported, exported, served."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from stock.net import Net

from dropserve.dropout.masks import draw
from dropserve.manifest import VersionManifest
from dropserve.serving import lifecycle
from dropserve.serving.deployment import Deployment, EngineName, Options
from dropserve.serving.runtime import free_ports
from dropserve.store import Store, Stored

ROOT = Path(__file__).parents[1]
NAME = "mlp"
SAMPLES = 50
QUESTIONS = 64


@dataclass(frozen=True)
class Subject:
    """The exported network and its oracle: eager PyTorch in float64.

    Attributes:
        version: what is served.
        weights: the state_dict, as ``torch.save`` writes it.
        net: the eager network in eval mode, float64.
        rows: the questions [QUESTIONS, 64], four decimals each.
    """

    version: Stored[VersionManifest]
    weights: Path
    net: Net
    rows: np.ndarray

    @property
    def bodies(self) -> list[str]:
        """One V1 request for each row."""
        return [json.dumps({"instances": [row]}) for row in self.rows.tolist()]

    def probabilities(self) -> np.ndarray:
        """Direct computation of the plain answers [QUESTIONS, 10]."""
        with torch.no_grad():
            return self.net(torch.from_numpy(self.rows)).softmax(-1).numpy()

    def samples(self) -> np.ndarray:
        """Direct computation of the Monte Carlo samples [SAMPLES, QUESTIONS, 10]: a loop over masks."""
        sites = self.version.manifest.sites
        masks = draw(sites, SAMPLES, seed=0)
        scales = [torch.from_numpy(masks[site.scale].astype(np.float64)) for site in sites]
        first, second, last = (m for m in self.net.layers if isinstance(m, torch.nn.Linear))
        with torch.no_grad():
            hidden = first(torch.from_numpy(self.rows)).relu()
            passes = [last(second(hidden * a).relu() * b).softmax(-1) for a, b in zip(*scales, strict=True)]
        return torch.stack(passes).numpy()


def prepare(folder: Path, handler: Path | None = None) -> Subject:
    """Make the network (weights from a fixed seed), import and export it in a project of its own.

    Args:
        folder: scratch space.
        handler: replaces ``serving/handler.py``.
    """
    project = folder / "project"
    project.mkdir(parents=True)
    if handler is not None:
        (project / "serving").mkdir()
        shutil.copy(handler, project / "serving" / "handler.py")
    torch.manual_seed(0)
    net = Net().eval()
    weights = project / "weights.pt"
    torch.save(net.state_dict(), weights)
    spec = f"{ROOT}/benchmarks/stock/net.py:Net"
    for line in (
        f"import {spec} --weights {weights} --input 64 --task classification --name {NAME}",
        f"export {NAME}",
    ):
        command = [str(Path(sys.executable).parent / "dropserve"), *line.split()]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"dropserve {line} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    rows = np.random.default_rng(0).normal(size=(QUESTIONS, 64)).round(4)
    return Subject(Store(project / "model_store").version(NAME), weights, net.double(), rows)


@contextlib.contextmanager
def serving(
    folder: Path,
    version: Stored[VersionManifest],
    stage: Path = ROOT / "serving",
    *,
    engine: EngineName = "torchserve",
) -> Iterator[Deployment]:
    """``dropserve serve --engine ENGINE`` on a free port, with the settings of a stage folder."""
    files = stage / "model-config.yaml", stage / "config.properties", stage / "log4j2.xml"
    run_dir = folder / ".run"
    deployment = lifecycle.start(run_dir, [version], Options(*files, port=free_ports(1)[0], engine=engine))
    try:
        yield deployment
    finally:
        lifecycle.stop(run_dir)


def server_processes(run_dir: Path) -> dict[str, list[psutil.Process]]:
    """The processes of a running server by what they do: ``frontend``, and the workers by endpoint."""
    state = lifecycle.running(run_dir)
    if state is None or state.frontend is None:
        raise RuntimeError(f"no server runs in {run_dir}")
    frontend = psutil.Process(state.frontend.pid)
    found = {"frontend": [frontend]}
    for process in frontend.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.setdefault(Path(process.cwd()).name, []).append(
                process
            )  # a worker runs in its model's folder
    return found
