"""Steady load for minutes: does the memory of the server grow, does anything fail?

Both endpoints are asked without pause on some connections, good requests of several lengths and settings and,
on one connection each, bad ones, which must be refused every time. Every few seconds the memory that each
process has for itself alone (USS) is taken. The slope is that of a straight line through the means of ten
equal stretches of time, after a fifth for warming up; its interval is Student's, at 95%, on ten means (they
are far enough apart to be all but independent, single readings are not).

    python benchmarks/serving_soak.py [--json PATH] [--minutes 10]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import load
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats
from served import NAME, prepare, server_processes, serving

STRETCHES = 10
WARM_SHARE = 0.2
MIB = 2**20
BAD = ['{"instances": [[1, 2', '{"instances": [[1, 2]]}', '{"instances": [["x"]]}', "", '{"inputs": [{}]}']
console = Console(width=120)


@dataclass(frozen=True)
class Growth:
    """How one process changed, in MiB and MiB an hour.

    Attributes:
        memory: at the end, the mean of the last stretch.
        slope: of the line.
        low: lower end of its 95% interval.
        high: upper end.
    """

    memory: float
    slope: float
    low: float
    high: float

    @property
    def flat(self) -> bool:
        """No growth that can be told from none, or none that would matter: below 1% in an hour."""
        return self.low <= 0 or self.slope < 0.01 * self.memory


def growth(seconds: np.ndarray, memory: np.ndarray) -> Growth:
    """Fit a line to readings.

    Args:
        seconds: when they were taken, since the start.
        memory: bytes.
    """
    late = seconds >= WARM_SHARE * seconds[-1]
    parts = zip(
        np.array_split(seconds[late], STRETCHES), np.array_split(memory[late], STRETCHES), strict=True
    )
    hours, mib = np.array([(t.mean() / 3600, m.mean() / MIB) for t, m in parts]).T
    fit = stats.linregress(hours, mib)
    reach = float(stats.t.ppf(0.975, STRETCHES - 2) * fit.stderr)
    return Growth(float(mib[-1]), float(fit.slope), float(fit.slope) - reach, float(fit.slope) + reach)


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


def main() -> None:
    """Serve, load, watch, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between readings of memory")
    options = parser.parse_args()
    readings: list[dict[str, int]] = []
    moments: list[float] = []
    with tempfile.TemporaryDirectory(prefix="dropserve-soak-") as name:
        folder = Path(name)
        subject = prepare(folder)
        with serving(folder, subject.version) as deployment:
            processes = server_processes(folder / ".run")
            before = {key: [p.pid for p in found] for key, found in processes.items()}
            work = load.Work(groups(deployment.url, subject.bodies), options.minutes * 60)
            begin = time.monotonic()
            while not work.done:
                moments.append(time.monotonic() - begin)
                readings.append(
                    {k: sum(p.memory_full_info().uss for p in found) for k, found in processes.items()}
                )
                time.sleep(options.every)
            figures = work.figures()
            after = {key: [p.pid for p in found] for key, found in server_processes(folder / ".run").items()}
    seconds = np.array(moments)
    grown = {key: growth(seconds, np.array([reading[key] for reading in readings])) for key in readings[0]}
    report(figures, grown, same=before == after)
    if options.json:
        content = {"figures": as_figures(figures, grown, options.minutes, same=before == after)}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


def report(figures: dict[str, load.Figures], grown: dict[str, Growth], *, same: bool) -> None:
    """Tables for people."""
    table = Table("load", "answers", "answers/s", "p50 ms", "p99 ms", "errors", "answers that changed")
    for name, found in figures.items():
        cells = [f"{found.requests}", f"{found.rate:.0f}"]
        cells += [f"{found.latency.get(at, 0):.1f}" for at in ("p50", "p99")]
        table.add_row(name, *cells, str(found.errors or 0), str(found.varying))
    console.print(table)
    table = Table("process", "memory MiB", "growth MiB/h", "95% interval", "flat")
    for name, found in grown.items():
        interval = f"{found.low:+.2f} to {found.high:+.2f}"
        table.add_row(
            name, f"{found.memory:.1f}", f"{found.slope:+.2f}", interval, "yes" if found.flat else "NO"
        )
    console.print(table)
    console.print("the same processes at the end" if same else "[red]a process was replaced[/]")


def as_figures(
    figures: dict[str, load.Figures], grown: dict[str, Growth], minutes: float, *, same: bool
) -> dict[str, object]:
    """What is written as JSON."""
    workers = {name: found for name, found in grown.items() if name != "frontend"}
    keys: dict[str, object] = {
        "minutes": minutes,
        "answers": sum(found.requests for found in figures.values()),
        "errors": sum(sum(found.errors.values()) for found in figures.values()),
        "answers_changed": sum(found.varying for found in figures.values()),
        "same_processes": same,
        "workers_flat": all(found.flat for found in workers.values()),
        "worker_growth_worst_mib_per_hour": max(found.slope for found in workers.values()),
        "worker_growth_worst_upper_mib_per_hour": max(found.high for found in workers.values()),
    }
    for name, found in grown.items():
        keys |= {f"{name}_memory_mib": found.memory, f"{name}_growth_mib_per_hour": found.slope}
        keys |= {f"{name}_growth_low": found.low, f"{name}_growth_high": found.high}
    return keys


if __name__ == "__main__":
    main()
