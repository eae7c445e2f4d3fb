"""Steady load for minutes: does the memory of the server grow, does anything fail?

Both endpoints are asked without pause on some connections, good requests of several lengths and settings
and, on one connection each, bad ones, which must be refused every time. Every second the memory that each
process has for itself alone (USS) is taken. The first part is left out: pools, caches and compilers fill.
What is judged is the growth of the rest, with a 95% interval, against what a leak of one answer in a
thousand would cause (growth.py). A process is flat if such a leak is ruled out; it grows if it is not and
the interval lies above zero; else the run was too short.

    python benchmarks/serving_soak.py [--json PATH] [--minutes 10] [--engine torchserve] [--readings PATH]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load
import numpy as np
from growth import Trend, Verdict, leak, trend
from rich.console import Console
from rich.table import Table
from served import NAME, Subject, prepare, server_processes, serving

from dropserve.serving.deployment import EngineName

WARM_SHARE = 0.4
ENOUGH = 230.0  # seconds: pages are still taken in the second minute
BAD = ['{"instances": [[1, 2', '{"instances": [[1, 2]]}', '{"instances": [["x"]]}', "", '{"inputs": [{}]}']
console = Console(width=120)


def groups(url: str, bodies: list[str]) -> list[load.Group]:
    """Who asks what."""
    rows = [json.loads(body)["instances"][0] for body in bodies]
    v2 = [
        {"id": str(i), "inputs": [{"name": "input", "shape": [1, 64], "datatype": "FP32", "data": row}]}
        for i, row in enumerate(rows)
    ]
    several = [{"instances": rows[: 1 + i % 16]} for i in range(len(rows))]
    seeds = [{"instances": [row], "parameters": {"mc_seed": i % 8}} for i, row in enumerate(rows)]
    plain, doubt = f"{url}/predictions/{NAME}", f"{url}/predictions/{NAME}-mc"
    texts = {
        name: [json.dumps(d) for d in documents] for name, documents in (("v2", v2), ("several", several))
    }
    return [
        load.Group("plain", plain, bodies, 4),
        load.Group("plain, V2", f"{url}/v2/models/{NAME}/infer", texts["v2"], 2),
        load.Group("plain, 1 to 16 rows", plain, texts["several"], 2),
        load.Group("plain, bad", plain, BAD, 1, expected=400, pause=0.01),
        load.Group("mc", doubt, bodies, 4),
        load.Group("mc, 8 seeds", doubt, [json.dumps(d) for d in seeds], 2),
        load.Group("mc, bad", doubt, BAD, 1, expected=400, pause=0.01),
    ]


@dataclass(frozen=True)
class Watch:
    """What a steady load did.

    Attributes:
        figures: of each group of connections.
        seconds: [n] when memory was read.
        memory: [n] bytes of each kind of process.
        same: whether the processes were the same at the end.
        engine: the host.
    """

    figures: dict[str, load.Figures]
    seconds: np.ndarray
    memory: dict[str, np.ndarray]
    same: bool
    engine: EngineName

    def bar(self, process: str) -> float:
        """What it would grow by in an hour if it kept one answer of a thousand, in MiB."""
        mine = {"frontend": ("plain", "mc"), NAME: ("plain",), f"{NAME}-mc": ("mc",)}[process]
        return sum(
            leak(found.rate, np.mean([len(text.encode()) for texts in found.answers for text in texts]))
            for name, found in self.figures.items()
            if name.startswith(mine) and found.requests
        )

    def trends(self) -> dict[str, Trend]:
        """Of each kind of process, after the warm-up."""
        late = self.seconds >= WARM_SHARE * self.seconds[-1]
        return {name: trend(self.seconds[late], memory[late]) for name, memory in self.memory.items()}

    def verdicts(self) -> dict[str, Verdict]:
        """Of each kind of process; of a run that hardly outlasts the warm-up, none."""
        if self.seconds[-1] < ENOUGH:
            return dict.fromkeys(self.memory, Verdict.UNDECIDED)
        return {name: found.against(self.bar(name)) for name, found in self.trends().items()}

    @property
    def workers(self) -> list[str]:
        """The processes that are ours; Java's memory follows its own rules."""
        return [name for name in self.memory if self.engine != "torchserve" or name != "frontend"]


def watch(subject: Subject, folder: Path, seconds: float, engine: EngineName, every: float = 1.0) -> Watch:
    """Serve, load, read memory.

    Args:
        subject: what is served.
        folder: scratch space.
        seconds: how long.
        engine: the host.
        every: seconds between readings.
    """
    moments: list[float] = []
    readings: list[dict[str, int]] = []
    with serving(folder, subject.version, engine=engine) as deployment:
        processes = server_processes(folder / ".run")
        before = {key: [p.pid for p in found] for key, found in processes.items()}
        work = load.Work(groups(deployment.url, subject.bodies), seconds)
        begin = time.monotonic()
        while not work.done:
            moments.append(time.monotonic() - begin)
            readings.append(
                {k: sum(p.memory_full_info().uss for p in found) for k, found in processes.items()}
            )
            time.sleep(max(0.0, begin + every * len(moments) - time.monotonic()))
        figures = work.figures()
        after = {key: [p.pid for p in found] for key, found in server_processes(folder / ".run").items()}
    memory = {key: np.array([reading[key] for reading in readings]) for key in readings[0]}
    return Watch(figures, np.array(moments), memory, before == after, engine)


def report(found: Watch) -> None:
    """Tables for people."""
    table = Table("load", "answers", "answers/s", "p50 ms", "p99 ms", "errors", "answers that changed")
    for name, figures in found.figures.items():
        cells = [f"{figures.requests}", f"{figures.rate:.0f}"]
        cells += [f"{figures.latency.get(at, 0):.1f}" for at in ("p50", "p99")]
        table.add_row(name, *cells, str(figures.errors or 0), str(figures.varying))
    console.print(table)
    table = Table("process", "memory MiB", "MiB an hour", "95% interval", "bar", "verdict")
    verdicts = found.verdicts()
    for name, grown in found.trends().items():
        interval = f"{grown.low:+.2f} to {grown.high:+.2f}"
        cells = [f"{grown.memory:.1f}", f"{grown.slope:+.2f}", interval, f"{found.bar(name):.2f}"]
        table.add_row(name, *cells, str(verdicts[name]))
    console.print(table)
    console.print("the same processes at the end" if found.same else "[red]a process was replaced[/]")


def as_figures(found: Watch, minutes: float) -> dict[str, Any]:
    """What is written as JSON; ``not_run`` says why if the run was too short for a verdict."""
    trends, verdicts = found.trends(), found.verdicts()
    keys: dict[str, Any] = {
        "minutes": minutes,
        "answers": sum(figures.requests for figures in found.figures.values()),
        "errors": sum(sum(figures.errors.values()) for figures in found.figures.values()),
        "answers_changed": sum(figures.varying for figures in found.figures.values()),
        "same_processes": found.same,
        "worker_growth_worst_mib_per_hour": max(trends[name].slope for name in found.workers),
    }
    for name, grown in trends.items():
        keys |= {f"{name}_memory_mib": grown.memory, f"{name}_growth_mib_per_hour": grown.slope}
        keys |= {f"{name}_growth_low": grown.low, f"{name}_growth_high": grown.high}
        keys |= {f"{name}_growth_bar": found.bar(name), f"{name}_verdict": str(verdicts[name])}
    ours = {verdicts[name] for name in found.workers}
    if Verdict.GROWS in ours or not found.same:
        return keys | {"workers_flat": False}
    if Verdict.UNDECIDED in ours:
        why = f"{minutes:g} minutes are too short to tell whether memory grows; take {ENOUGH / 60:g} or more"
        return keys | {"not_run": {"workers_flat": why}}
    return keys | {"workers_flat": True}


def main() -> None:
    """Serve, load, watch, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--engine", choices=("torchserve", "asgi"), default="torchserve")
    parser.add_argument("--readings", type=Path, help="every reading of memory, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dropserve-soak-") as name:
        folder = Path(name)
        found = watch(prepare(folder), folder, options.minutes * 60, options.engine)
    report(found)
    if options.readings:
        memory = {key: values.tolist() for key, values in found.memory.items()}
        content = {"seconds": found.seconds.round(3).tolist(), "memory": memory}
        options.readings.write_text(json.dumps(content), encoding="utf-8")
    if options.json:
        content = {"figures": as_figures(found, options.minutes)}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
