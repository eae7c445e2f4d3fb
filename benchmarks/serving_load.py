"""Our endpoints on TorchServe against stock TorchServe, in one run, on loopback, all on the same cores.

One network (64-256-256-10), one row of 64 floats a request, as JSON. Stock is what TorchServe's examples lead
to: a handler on BaseHandler, an eager model, default configuration and logging; for Monte Carlo, a loop of 50
passes in the handler. Both servers are up all the time; loads alternate, and a ratio is the median over
repeats of ratios within a repeat. Every answer's status is counted; every answer of ours must be byte for
byte the first answer to its question, and that one is compared with a direct computation in float64.

    python benchmarks/serving_load.py [--json PATH] [--seconds 4] [--repeats 3] [--connections 1 8 32]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import psutil
from load import Figures, Group, apply
from rich.console import Console
from rich.table import Table
from served import NAME, SAMPLES, Subject, prepare, server_processes, serving
from stock import server

SUBJECTS = ("plain", "mc", "stock", "stock mc")
PROBES = ("nothing", "plain", "mc")  # what goes on beside the plain requests whose latency is taken
_CLOSE = 1e-5  # float32 on our side, float64 in the oracle
console = Console(width=120)


@dataclass(frozen=True)
class Bench:
    """Where to ask, and what is right."""

    subject: Subject
    urls: Mapping[str, str]
    run_dir: Path
    stock: server.Stock

    def group(self, name: str, connections: int, filed: str = "") -> Group:
        """A load on one of SUBJECTS."""
        return Group(filed or name, self.urls[name], self.subject.bodies, connections)


@dataclass
class Record:
    """Every figure by (subject, connections), one for each repeat, and what was wrong."""

    found: dict[tuple[str, int], list[Figures]]
    probes: dict[str, list[Figures]]
    busy: dict[str, dict[str, float]]
    wrong: list[str]
    checked: int = 0

    def rate(self, name: str, connections: int) -> float:
        """Answers a second."""
        return median(figures.rate for figures in self.found[name, connections])

    def ratio(self, over: str, under: str, connections: int) -> float:
        """Answers a second of one subject over another's, within a repeat."""
        pairs = zip(self.found[over, connections], self.found[under, connections], strict=True)
        return median(a.rate / b.rate for a, b in pairs)

    def latency(self, name: str, connections: int, at: str) -> float:
        """Milliseconds."""
        return median(figures.latency[at] for figures in self.found[name, connections])

    def probe(self, beside: str, at: str) -> float:
        """Milliseconds of a plain request beside some load."""
        return median(figures.latency[at] for figures in self.probes[beside])

    @property
    def errors(self) -> dict[str, int]:
        """Answers that were no answers, over the whole run, by subject and kind."""
        total: dict[str, int] = {}
        named = [(name, f) for (name, _), runs in self.found.items() for f in runs]
        named += [("plain", f) for runs in self.probes.values() for f in runs]
        for name, figures in named:
            for kind, count in figures.errors.items():
                total[f"{name}: {kind}"] = total.get(f"{name}: {kind}", 0) + count
        return total


def measure(bench: Bench, levels: list[int], repeats: int, seconds: float) -> Record:
    """Alternate between the subjects; each repeat goes the other way round."""
    record = Record({}, {beside: [] for beside in PROBES}, {}, [])
    for name in SUBJECTS:  # Java compiles what runs often
        apply([bench.group(name, 8)], seconds)
    for repeat in range(repeats):
        for connections in levels:
            for name in SUBJECTS[:: 1 if repeat % 2 == 0 else -1]:
                figures = apply([bench.group(name, connections)], seconds)[name]
                record.found.setdefault((name, connections), []).append(figures)
                check(bench.subject, name, figures, record)
        for beside in PROBES:
            record.probes[beside].append(probe(bench, beside, max(levels), seconds))
    for name in SUBJECTS:
        record.busy[name] = processor_time(bench, name, max(levels), seconds)
    return record


def probe(bench: Bench, beside: str, connections: int, seconds: float) -> Figures:
    """Plain requests on one connection, while as many as ``connections`` ask for something beside them."""
    groups = [bench.group("plain", 1, "probe")]
    if beside != "nothing":
        groups.append(bench.group(beside, connections))
    return apply(groups, seconds)["probe"]


def processor_time(bench: Bench, name: str, connections: int, seconds: float) -> dict[str, float]:
    """Processor microseconds for each answer, by process: what there is to save, and where.

    Unlike rates, these hardly move when others use the machine.
    """
    before, whole = _times(bench, name), os.times()
    figures = apply([bench.group(name, connections)], seconds, warmup=0.0)[name]
    after, spent = _times(bench, name), os.times()
    used = {key: after[key] - before[key] for key in before}
    used["load generator"] = spent.children_user - whole.children_user
    used["load generator"] += spent.children_system - whole.children_system
    return {key: 1e6 * value / figures.requests for key, value in used.items()}


def _times(bench: Bench, name: str) -> dict[str, float]:
    if name.startswith("stock"):
        return bench.stock.processor_seconds()
    endpoint = {"plain": NAME, "mc": f"{NAME}-mc"}[name]
    found = server_processes(bench.run_dir)
    parts = {"frontend": found["frontend"], "workers": found[endpoint]}
    return {key: sum(sum(p.cpu_times()[:2]) for p in processes) for key, processes in parts.items()}


def check(subject: Subject, name: str, figures: Figures, record: Record) -> None:
    """Compare the answers with the oracle; note what is wrong."""
    if name != "stock mc" and figures.varying:
        record.wrong.append(f"{name}: {figures.varying} answers differ from the first to the same question")
    oracle = subject.samples() if "mc" in name else subject.probabilities()
    for question, answers in enumerate(figures.answers):
        for text in answers:
            record.checked += 1
            if problem := PROBLEMS[name](json.loads(text), oracle[..., question, :]):
                record.wrong.append(f"{name}, question {question}: {problem}")


def _off(found: object, expected: np.ndarray, tolerance: float | np.ndarray = _CLOSE) -> str:
    values = np.array(found, np.float64)
    if values.shape != expected.shape or not (np.abs(values - expected) <= tolerance).all():
        return f"{values} where the direct computation gives {expected}"
    return ""


def _plain(document: dict, expected: np.ndarray) -> str:
    return _off(list(document["predictions"][0]["probabilities"].values()), expected)


def _mc(document: dict, samples: np.ndarray) -> str:
    (prediction,) = document["predictions"]
    mean = _off(list(prediction["probabilities"].values()), samples.mean(0))
    return mean or _off(list(prediction["uncertainty"]["standard_deviation"].values()), samples.std(0))


def _stock(document: dict, expected: np.ndarray) -> str:
    return _off(document["predictions"][0], expected)


def _stock_mc(document: dict, samples: np.ndarray) -> str:
    """Its masks are its own, so within six standard errors of our mean."""
    (found,) = document["predictions"]
    return _off(found["mean"], samples.mean(0), 6 * samples.std(0) * (2 / SAMPLES) ** 0.5 + _CLOSE)


PROBLEMS = {"plain": _plain, "mc": _mc, "stock": _stock, "stock mc": _stock_mc}


def figures_of(record: Record, levels: list[int]) -> dict[str, object]:
    """What is written as JSON."""
    most = max(levels)
    keys: dict[str, object] = {
        "cores": len(os.sched_getaffinity(0)),
        "errors": sum(record.errors.values()),
        "errors_by_kind": json.dumps(record.errors),
        "answers_checked": record.checked,
        "answers_wrong": len(record.wrong),
        "plain_latency_alone_ms": record.probe("nothing", "p50"),
        "plain_latency_beside_mc_ms": record.probe("mc", "p50"),
        "plain_latency_beside_plain_ms": record.probe("plain", "p50"),
        "plain_latency_mc_over_plain": record.probe("mc", "p50") / record.probe("plain", "p50"),
        "mc_over_stock_least": min(record.ratio("mc", "stock mc", c) for c in levels),
    }
    for c in levels:
        keys |= {
            f"plain_over_stock_{c}": record.ratio("plain", "stock", c),
            f"mc_over_plain_{c}": record.ratio("mc", "plain", c),
            f"mc_over_stock_{c}": record.ratio("mc", "stock mc", c),
        }
        for name in SUBJECTS:
            key = name.replace(" ", "_")
            keys[f"{key}_rate_{c}"] = record.rate(name, c)
            keys |= {f"{key}_{at}_ms_{c}": record.latency(name, c, at) for at in ("p50", "p99")}
    for name, used in record.busy.items():
        own = name.replace(" ", "_")
        keys |= {f"{own}_cpu_us_{key.replace(' ', '_')}_{most}": value for key, value in used.items()}
    for ours, theirs in (("plain", "stock"), ("mc", "stock mc")):
        costs = [record.busy[name]["frontend"] + record.busy[name]["workers"] for name in (theirs, ours)]
        keys[f"{ours}_cpu_saved_{most}"] = costs[0] / costs[1]
    return keys


def tables(record: Record, levels: list[int]) -> Iterator[Table]:
    """For people."""
    table = Table(
        "connections", "subject", "answers/s", "p50 ms", "p90 ms", "p99 ms", "over stock", "over plain"
    )
    for c in levels:
        for name in SUBJECTS:
            cells = [f"{record.rate(name, c):.0f}"]
            cells += [f"{record.latency(name, c, at):.1f}" for at in ("p50", "p90", "p99")]
            stock = {"plain": "stock", "mc": "stock mc"}.get(name)
            cells.append(f"{record.ratio(name, stock, c):.2f}" if stock else "")
            cells.append(f"{record.ratio('mc', 'plain', c):.2f}" if name == "mc" else "")
            table.add_row(str(c), name, *cells, end_section=name == SUBJECTS[-1])
    yield table
    beside = Table("one plain connection beside", "p50 ms", "p99 ms")
    for key in PROBES:
        label = key if key == "nothing" else f"{max(levels)} connections on {key}"
        beside.add_row(label, f"{record.probe(key, 'p50'):.1f}", f"{record.probe(key, 'p99'):.1f}")
    yield beside
    busy = Table("processor microseconds an answer", *record.busy)
    for key in ("frontend", "workers", "load generator"):
        busy.add_row(key, *(f"{used[key]:.0f}" for used in record.busy.values()))
    yield busy


def main() -> None:
    """Start both servers, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dropserve-bench-") as name:
        folder = Path(name)
        subject = prepare(folder)
        with (
            serving(folder, subject.version) as ours,
            server.running(folder / "stock", subject.weights) as stock,
        ):
            urls = {
                "plain": f"{ours.url}/predictions/{NAME}",
                "mc": f"{ours.url}/predictions/{NAME}-mc",
                "stock": f"{stock.url}/predictions/plain",
                "stock mc": f"{stock.url}/predictions/mc",
            }
            bench = Bench(subject, urls, folder / ".run", stock)
            load = psutil.getloadavg()[0]
            record = measure(bench, options.connections, options.repeats, options.seconds)
    for table in tables(record, options.connections):
        console.print(table)
    console.print(
        f"{record.checked} answers compared, wrong: {len(record.wrong)}; errors: {record.errors or 'none'}"
    )
    console.print(f"load average of the machine when this began: {load:.1f}")
    for line in record.wrong[:5]:
        console.print(line, markup=False)
    if options.json:
        content = {"figures": figures_of(record, options.connections)}
        options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    raise SystemExit(1 if record.wrong else 0)


if __name__ == "__main__":
    main()
